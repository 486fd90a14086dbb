//! The answering end of a link, in the generation that owns the state.

use std::{io, os::fd::OwnedFd, os::unix::net::UnixStream as StdStream, sync::Arc};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::UnixStream,
    runtime::Handle,
    sync::{Mutex, Semaphore},
};

use super::wire::{self, Answer, Part, Question};
use crate::{
    Drain,
    state::{
        Core,
        error::StateError,
        store::{Store, Wanted},
        transaction::{self, Group},
    },
};

/// So many operations of another generation are under way at a time; more wait in the socket.
const MOST_AT_ONCE: usize = 256;

/// Answers on this socket until the other generation closes it. The drain waits for that: a generation
/// that has given its state away itself carries the questions on to the one that has it.
///
/// # Errors
///
/// The system's.
pub(crate) fn start(
    socket: OwnedFd,
    core: &Arc<Core>,
    drain: &Drain,
    runtime: &Handle,
) -> io::Result<()> {
    let stream = StdStream::from(socket);
    stream.set_nonblocking(true)?;
    let _entered = runtime.enter();
    let stream = UnixStream::from_std(stream)?;
    let core = Arc::clone(core);
    drain.spawn(async move {
        if let Err(error) = serve(stream, core).await {
            tracing::warn!(%error, "the former generation's operations end here");
        }
    });
    Ok(())
}

async fn serve(stream: UnixStream, core: Arc<Core>) -> io::Result<()> {
    let (reading, writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let writing = Arc::new(Mutex::new(writing));
    let room = Arc::new(Semaphore::new(MOST_AT_ONCE));
    while let Some((id, body)) = wire::read_frame(&mut reading).await? {
        let Some(question) = Question::parse(&body) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it asked what is no question; it is at fault",
            ));
        };
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            // The semaphore is never closed.
            break;
        };
        let (core, writing) = (Arc::clone(&core), Arc::clone(&writing));
        tokio::spawn(async move {
            let _permit = permit;
            let answer = answer(&core, question)
                .await
                .unwrap_or_else(|error| Answer::Refused(error.to_string()));
            let frame = answer.to_frame(id).or_else(|| {
                Answer::Refused("the answer has more than 256 MiB".to_owned()).to_frame(id)
            });
            if let Some(frame) = frame {
                // Whoever asked may have ended.
                let _gone = writing.lock().await.write_all(&frame).await;
            }
        });
    }
    Ok(())
}

async fn answer(core: &Core, question: Question) -> Result<Answer, StateError> {
    match question {
        Question::See {
            section,
            version,
            key,
        } => {
            let store = find(core, &section)?;
            store.see(version, &key).await.map(Answer::Seen)
        }
        Question::SeeAll { section, version } => {
            let store = find(core, &section)?;
            store.see_all(version).await.map(Answer::All)
        }
        Question::Commit(parts) => {
            let groups: Result<Vec<Box<dyn Group>>, StateError> = parts
                .iter()
                .map(|(version, part)| staged(core, *version, part))
                .collect();
            transaction::commit_groups(&core.gate, groups?)
                .await
                .map(Answer::Done)
        }
    }
}

fn staged(core: &Core, version: u32, part: &Part) -> Result<Box<dyn Group>, StateError> {
    let wanted: Vec<Wanted<'_>> = part
        .changes
        .iter()
        .map(|change| Wanted {
            key: &change.key,
            expected: change.expected,
            change: change.change.as_change(),
        })
        .collect();
    find(core, &part.section)?.stage(version, &wanted)
}

fn find(core: &Core, section: &str) -> Result<Arc<dyn Store>, StateError> {
    core.store(section)
        .ok_or_else(|| StateError::Refused(format!("there is no store {section}")))
}
