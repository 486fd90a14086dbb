//! WebSockets that go on in the next generation: a [`Session`] that speaks RFC 6455.
//!
//! What a frame means is `tungstenite`'s affair. Here frames are cut at their borders, so that at any
//! moment it is known which bytes belong to a message that is not complete: these travel with the
//! session, and the next generation begins with them. A message in several fragments may be parked
//! in the middle. Extensions, compression among them, are not agreed to.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use heirloom_state_codec::{Codec, Lineage, Step};
use hyper::{
    Request, Response, StatusCode,
    header::{
        CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use tungstenite::{
    Error as Fault, Message as Frame,
    handshake::derive_accept_key,
    protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
};

use crate::{
    session::{Served, Session},
    stream::Stream,
};

/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// The longest header of a frame, in bytes.
const HEADER_BYTES_MAX: usize = 14;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

/// Why a request cannot become a WebSocket. It is the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAWebSocket(&'static str);

/// One WebSocket, the server's side.
pub struct WebSocket<V> {
    session: Session<V>,
    codec: tungstenite::WebSocket<Pipe>,
    /// Bytes of the session's unread ones that the codec has had; they are kept until their message
    /// is complete.
    fed: usize,
    /// Whether a message is under way of which fragments are to come.
    in_fragments: bool,
    /// Bytes that are still to be written.
    unsent: Vec<u8>,
}

/// What the codec reads from and writes to.
#[derive(Debug, Default)]
struct Pipe {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<V, C> Served<V, C>
where
    V: Step + Lineage<C> + Clone + Send + 'static,
    C: Codec<V> + 'static,
{
    /// Answers a request that asks for a WebSocket, which begins with `state` and is served by the
    /// handler of these sessions. The answer is to be returned to [`http::serve`](crate::http::serve),
    /// with any empty body.
    ///
    /// # Errors
    ///
    /// [`NotAWebSocket`]: answer with 400 or 426 and this text.
    pub fn upgrade<B>(
        &self,
        request: &Request<B>,
        state: V,
    ) -> Result<Response<()>, NotAWebSocket> {
        let headers = request.headers();
        if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket")
        {
            return Err(NotAWebSocket("this is for WebSockets only"));
        }
        if headers
            .get(SEC_WEBSOCKET_VERSION)
            .map(HeaderValue::as_bytes)
            != Some(b"13")
        {
            return Err(NotAWebSocket("only version 13 of the protocol is spoken"));
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
            return Err(NotAWebSocket("the Sec-WebSocket-Key is missing"));
        };
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
            .map_err(|_| NotAWebSocket("the Sec-WebSocket-Key is damaged"))?;
        let served = self.clone();
        let upgrade = Upgrade::new(move |stream, unread| {
            served.start(Session::new(stream, unread, state));
        });
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let answers = response.headers_mut();
        answers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        answers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        answers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        response.extensions_mut().insert(upgrade);
        Ok(response)
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut tokens = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tokens.any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// What becomes of a connection once its last HTTP answer is out; travels with that answer.
#[derive(Clone)]
pub(crate) struct Upgrade {
    start: Arc<Mutex<Option<Box<Start>>>>,
}

type Start = dyn FnOnce(Stream, Vec<u8>) + Send;

impl Upgrade {
    fn new(start: impl FnOnce(Stream, Vec<u8>) + Send + 'static) -> Self {
        Self {
            start: Arc::new(Mutex::new(Some(Box::new(start)))),
        }
    }

    /// Goes on with the connection in its new protocol.
    pub(crate) fn start(&self, stream: Stream, unread: Vec<u8>) {
        let start = self
            .start
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(start) = start {
            start(stream, unread);
        }
    }
}

impl<V> WebSocket<V> {
    /// A session that speaks WebSocket, new or of the former generation.
    #[must_use]
    pub fn new(session: Session<V>) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Self {
            session,
            codec: tungstenite::WebSocket::from_raw_socket(
                Pipe::default(),
                Role::Server,
                Some(config),
            ),
            fed: 0,
            in_fragments: false,
            unsent: Vec::new(),
        }
    }

    /// The session's state.
    pub fn state(&mut self) -> &mut V {
        &mut self.session.state
    }

    /// Waits for the next message; none when the client has said goodbye or is gone. Pings are answered.
    /// Nothing is lost if this is given up half-way.
    ///
    /// # Errors
    ///
    /// The system's; `InvalidData` if the client breaks the protocol, which it has then been told.
    pub async fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(frame) = self.next_frame()? {
                match frame {
                    Frame::Text(text) => return Ok(Some(Message::Text(text.to_string()))),
                    Frame::Binary(bytes) => return Ok(Some(Message::Binary(bytes.into()))),
                    Frame::Close(_) => {
                        self.flush().await?;
                        return Ok(None);
                    }
                    Frame::Ping(_) | Frame::Pong(_) | Frame::Frame(_) => {}
                }
                continue;
            }
            self.flush().await?;
            if self.session.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// The system's.
    pub async fn send(&mut self, message: Message) -> io::Result<()> {
        let frame = match message {
            Message::Text(text) => Frame::text(text),
            Message::Binary(bytes) => Frame::binary(bytes),
        };
        self.codec.write(frame).map_err(into_io)?;
        self.flush().await
    }

    /// Says goodbye: this server goes away, and the client may connect again (status 1001).
    ///
    /// # Errors
    ///
    /// The system's.
    pub async fn say_goodbye(mut self) -> io::Result<()> {
        let frame = CloseFrame {
            code: CloseCode::Away,
            reason: "".into(),
        };
        match self.codec.close(Some(frame)) {
            Ok(()) | Err(Fault::ConnectionClosed) => {}
            Err(fault) => return Err(into_io(fault)),
        }
        self.flush().await?;
        self.session.close().await;
        Ok(())
    }

    /// The session, between two messages or in the middle of one that the client has not finished; to be
    /// returned by a handler that was asked to leave. None if what was sent last cannot be written.
    pub async fn into_session(mut self) -> Option<Session<V>> {
        self.flush().await.ok()?;
        Some(self.session)
    }

    /// The next message of what has been read; none if it takes more.
    fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            match self.codec.read() {
                Ok(frame) => {
                    self.keep_output();
                    self.use_up();
                    return Ok(Some(frame));
                }
                Err(Fault::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(Fault::ConnectionClosed | Fault::AlreadyClosed) => {
                    self.keep_output();
                    return Ok(Some(Frame::Close(None)));
                }
                Err(fault) => {
                    self.keep_output();
                    return Err(into_io(fault));
                }
            }
            self.keep_output();
            self.use_up();
            let Some(border) = Border::of(&self.session.unread()[self.fed..])? else {
                return Ok(None);
            };
            let whole = self.fed..self.fed + border.length;
            let input = &mut self.codec.get_mut().input;
            input.extend_from_slice(&self.session.unread()[whole.clone()]);
            match border.more {
                Some(more) => {
                    self.fed += border.length;
                    self.in_fragments = more;
                }
                // A frame of control between fragments has its effect now, and must not have it again.
                None => self.session.cut_out(whole),
            }
        }
    }

    /// What the codec had is used up, unless it belongs to a message that is not complete.
    fn use_up(&mut self) {
        if !self.in_fragments {
            self.session.consume(self.fed);
            self.fed = 0;
        }
    }

    fn keep_output(&mut self) {
        self.unsent.append(&mut self.codec.get_mut().output);
    }

    /// Writes what is to be written. If it is given up half-way, the rest is kept.
    async fn flush(&mut self) -> io::Result<()> {
        match self.codec.flush() {
            Ok(()) | Err(Fault::ConnectionClosed | Fault::AlreadyClosed) => {}
            Err(fault) => return Err(into_io(fault)),
        }
        self.keep_output();
        while !self.unsent.is_empty() {
            let count = self.session.write(&self.unsent).await?;
            self.unsent.drain(..count);
        }
        Ok(())
    }
}

impl<V: fmt::Debug> fmt::Debug for WebSocket<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WebSocket")
            .field("session", &self.session)
            .field("in_fragments", &self.in_fragments)
            .finish_non_exhaustive()
    }
}

fn into_io(fault: Fault) -> io::Error {
    match fault {
        Fault::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// Where a frame ends (RFC 6455, section 5.2).
#[derive(Debug, PartialEq, Eq)]
struct Border {
    /// The frame's length with its header, in bytes.
    length: usize,
    /// Whether fragments are to come, if it is a frame with a part of a message.
    more: Option<bool>,
}

impl Border {
    /// The border of the frame at the front of these bytes; none if it is not complete.
    fn of(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(&[first, second]) = bytes.first_chunk() else {
            return Ok(None);
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (header, payload) = match second & 0x7F {
            126 => match bytes[2..].first_chunk() {
                Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
                None => return Ok(None),
            },
            127 => match bytes[2..].first_chunk() {
                Some(length) => (10, u64::from_be_bytes(*length)),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        debug_assert!(header + mask <= HEADER_BYTES_MAX);
        let payload = usize::try_from(payload)
            .ok()
            .filter(|payload| *payload <= MESSAGE_BYTES_MAX)
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the client sent a frame longer than a message may be",
                )
            })?;
        let length = header + mask + payload;
        let is_control = first & 0x08 != 0;
        let more = (!is_control).then_some(first & 0x80 == 0);
        Ok((bytes.len() >= length).then_some(Self { length, more }))
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = buffer.len().min(self.input.len());
        buffer[..count].copy_from_slice(&self.input[..count]);
        self.input.drain(..count);
        Ok(count)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    fn pair() -> (UnixStream, WebSocket<u32>) {
        let (client, server) = UnixStream::pair().unwrap();
        let session = Session::new(Stream::Unix(server), Vec::new(), 7);
        (client, WebSocket::new(session))
    }

    /// A client's frame, masked with zeros.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        assert!(payload.len() < 126);
        let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn borders_are_found_and_long_frames_refused() {
        let text = frame(0x81, b"hello");
        for length in 0..text.len() {
            assert_eq!(Border::of(&text[..length]).unwrap(), None, "{length}");
        }
        let border = |length, more| Some(Border { length, more });
        assert_eq!(Border::of(&text).unwrap(), border(11, Some(false)));
        assert_eq!(
            Border::of(&frame(0x01, b"he")).unwrap(),
            border(8, Some(true))
        );
        assert_eq!(Border::of(&frame(0x89, b"")).unwrap(), border(6, None));
        let mut long = vec![0x82, 126, 1, 0];
        long.resize(4 + 256, 0);
        assert_eq!(Border::of(&long).unwrap(), border(260, Some(false)));
        let mut huge = vec![0x82, 127];
        huge.extend_from_slice(&u64::MAX.to_be_bytes());
        assert!(Border::of(&huge).is_err());
    }

    #[tokio::test]
    async fn messages_come_and_go_and_pings_are_answered() {
        let (mut client, mut socket) = pair();
        client.write_all(&frame(0x89, b"p")).await.unwrap();
        client.write_all(&frame(0x81, b"hello")).await.unwrap();
        let message = socket.receive().await.unwrap();
        assert_eq!(message, Some(Message::Text("hello".to_owned())));
        socket
            .send(Message::Text("world".to_owned()))
            .await
            .unwrap();
        let mut answer = [0; 10];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"\x8A\x01p\x81\x05world");
        client.write_all(&frame(0x88, b"")).await.unwrap();
        assert_eq!(socket.receive().await.unwrap(), None);
        client.read_exact(&mut answer[..2]).await.unwrap();
        assert_eq!(&answer[..2], b"\x88\x00");
    }

    #[tokio::test]
    async fn a_message_in_fragments_goes_on_in_another_socket() {
        let (mut client, mut socket) = pair();
        client.write_all(&frame(0x81, b"first")).await.unwrap();
        assert!(socket.receive().await.unwrap().is_some());
        let parts = [
            frame(0x01, b"one "),
            frame(0x89, b"ping"),
            frame(0x00, b"two "),
            vec![0x80, 0x85, 0, 0, 0, 0, b't'],
        ];
        client.write_all(&parts.concat()).await.unwrap();
        // Until all of it has been read, and is not a message yet.
        while socket.session.unread().len() < parts.concat().len() - parts[1].len() {
            let receiving =
                tokio::time::timeout(std::time::Duration::from_millis(20), socket.receive());
            assert!(receiving.await.is_err());
        }
        let session = socket.into_session().await.unwrap();
        // The ping was answered, and is not to be answered again.
        let mut pong = [0; 6];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8A\x04ping");
        let kept = [&parts[0][..], &parts[2], &parts[3]].concat();
        assert_eq!(session.unread(), kept);
        let mut other = WebSocket::new(session);
        assert_eq!(*other.state(), 7);
        client.write_all(b"hree").await.unwrap();
        let message = other.receive().await.unwrap();
        assert_eq!(message, Some(Message::Text("one two three".to_owned())));
        assert_eq!(other.session.unread(), b"");
    }

    #[tokio::test]
    async fn a_client_that_breaks_the_protocol_is_told() {
        let (mut client, mut socket) = pair();
        // Not masked, which a client must.
        client.write_all(b"\x81\x02hi").await.unwrap();
        let error = socket.receive().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
