//! The demo's connections with a state of their own: `/ws`, and the listener `chat`. Both count what is
//! said on a connection, and go on counting in the next generation.

use heirloom_app::{
    Drain, Listener,
    session::{Leave, Leaving, Served, Session, Sessions},
    state::State,
    websocket::{Message, WebSocket},
};

use crate::release::Talk;

/// The name of the listener on which lines are talked.
pub(super) const CHAT: &str = "chat";

/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Chats that are served at a time; further ones wait in the listener's queue.
const CHATS_MAX: usize = 16_384;

/// Both kinds, declared and not served yet.
#[derive(Debug)]
pub(super) struct Talks {
    chat: Sessions<Talk>,
    frames: Sessions<Talk>,
}

impl Talks {
    pub(super) fn declare(state: &State) -> Self {
        Self {
            chat: state.sessions("chat"),
            frames: state.sessions("ws"),
        }
    }

    /// Serves both; `listener` is where chats come in, if anywhere. What requests for a WebSocket are
    /// answered with is returned.
    pub(super) fn serve(
        self,
        listener: Option<Listener>,
        drain: &Drain,
        generation: u64,
    ) -> std::io::Result<Served<Talk>> {
        let chat = self.chat.serve(drain, move |session, leave| {
            talk_in_lines(session, leave, generation)
        });
        if let Some(listener) = listener {
            chat.accept(listener, CHATS_MAX, move || Talk::begin(generation))?;
        }
        Ok(self.frames.serve(drain, move |session, leave| {
            talk_in_frames(session, leave, generation)
        }))
    }
}

async fn talk_in_frames(
    session: Session<Talk>,
    mut leave: Leave,
    generation: u64,
) -> Option<Session<Talk>> {
    let mut socket = WebSocket::new(session);
    loop {
        let message = tokio::select! {
            biased;
            leaving = leave.asked() => return match leaving {
                Leaving::Move => socket.into_session().await,
                // The client may be gone; there is nobody else to tell.
                _ => socket.say_goodbye().await.ok().and(None),
            },
            message = socket.receive() => message.ok()??,
        };
        if let Message::Text(text) = message {
            let number = socket.state().say();
            let answer = format!("{number} gen={generation} {text}");
            socket.send(Message::Text(answer)).await.ok()?;
        }
    }
}

async fn talk_in_lines(
    mut session: Session<Talk>,
    mut leave: Leave,
    generation: u64,
) -> Option<Session<Talk>> {
    loop {
        while let Some(end) = session.unread().iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&session.unread()[..end]).into_owned();
            session.consume(end + 1);
            let answer = answer(&mut session.state, line.trim_end_matches('\r'), generation);
            session.write_all(answer.as_bytes()).await.ok()?;
        }
        if session.unread().len() > LINE_BYTES_MAX {
            let text = format!("ERR a line has at most {LINE_BYTES_MAX} bytes\n");
            session.write_all(text.as_bytes()).await.ok()?;
            session.close().await;
            return None;
        }
        tokio::select! {
            biased;
            leaving = leave.asked() => match leaving {
                Leaving::Move => return Some(session),
                _ => {
                    session.close().await;
                    return None;
                }
            },
            read = session.fill() => if read.ok()? == 0 {
                return None;
            },
        }
    }
}

/// What a line is answered with.
fn answer(talk: &mut Talk, line: &str, generation: u64) -> String {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "NAME" if rest.is_empty() || rest.len() > NAME_BYTES_MAX => {
            format!("ERR a name has 1 to {NAME_BYTES_MAX} bytes\n")
        }
        "NAME" => {
            talk.name = rest.to_owned();
            format!("OK {rest}\n")
        }
        "SAY" if talk.name.is_empty() => "ERR say who you are first: NAME ann\n".to_owned(),
        "SAY" => {
            let number = talk.say();
            format!("{} #{number} gen={generation} {rest}\n", talk.name)
        }
        _ => "ERR there is NAME and SAY\n".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_answered_and_counted() {
        let mut talk = Talk::begin(3);
        assert!(answer(&mut talk, "SAY hi", 3).starts_with("ERR"));
        assert_eq!(answer(&mut talk, "NAME ann", 3), "OK ann\n");
        assert_eq!(answer(&mut talk, "SAY hi", 3), "ann #1 gen=3 hi\n");
        assert_eq!(answer(&mut talk, "SAY hi all", 4), "ann #2 gen=4 hi all\n");
        assert!(answer(&mut talk, "DANCE", 4).starts_with("ERR"));
        assert!(answer(&mut talk, &format!("NAME {}", "x".repeat(65)), 4).starts_with("ERR"));
    }
}
