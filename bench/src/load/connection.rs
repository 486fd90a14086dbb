//! One TCP connection that carries requests, one after another. It never retries.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::load::failure::{Failure, FailureKind};
use crate::load::http::{Reader, Request, Response};

/// What an idle connection looks like before it is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peek {
    /// Open, with nothing to read: fit for the next request.
    Open,
    /// The server closed or reset it.
    Closed,
    /// The server sent bytes nobody asked for.
    Unsolicited,
}

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects to `server`, at the latest at `deadline`.
    ///
    /// # Errors
    /// The kinds of connecting: refused, reset, timed out, or a failure of the client's own machine.
    pub async fn open(server: SocketAddr, deadline: Instant) -> Result<Self, Failure> {
        let stream = timeout_at(deadline, TcpStream::connect(server))
            .await
            .map_err(|_| Failure::new(FailureKind::Timeout, format!("connecting to {server}")))?
            .map_err(|error| {
                let kind = FailureKind::of_connect(&error);
                Failure::new(kind, format!("connecting to {server}: {error}"))
            })?;
        // Without this, Nagle's algorithm and delayed acknowledgements would be measured instead.
        stream
            .set_nodelay(true)
            .map_err(|error| transfer("setting TCP_NODELAY", &error))?;
        Ok(Self { stream })
    }

    /// Looks at the socket without reading from it and without waiting.
    ///
    /// It asks the kernel directly: the runtime's idea of readiness is as old as its last poll.
    #[must_use]
    pub fn peek(&self) -> Peek {
        let mut byte = [0_u8];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        loop {
            return match recv(self.stream.as_raw_fd(), &mut byte, flags) {
                Ok(0) => Peek::Closed,
                Ok(_) => Peek::Unsolicited,
                Err(Errno::EAGAIN) => Peek::Open,
                Err(Errno::EINTR) => continue,
                Err(_) => Peek::Closed,
            };
        }
    }

    /// Sends `request` once and reads its answer, whatever its status.
    ///
    /// With `close`, the server is asked to close the connection after it. After an error, or if
    /// the answer does not [keep the connection open](Response::keeps_open), drop the connection.
    ///
    /// # Errors
    /// The kinds of an open connection: reset, closed before or within the answer, timed out,
    /// malformed. A bad status is not an error here.
    pub async fn send(
        &mut self,
        request: &Request,
        close: bool,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        timeout_at(deadline, self.exchange(&request.encode(close)))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    FailureKind::Timeout,
                    "no complete answer within the deadline",
                ))
            })
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Response, Failure> {
        self.stream
            .write_all(request)
            .await
            .map_err(|error| transfer("writing the request", &error))?;
        let mut reader = Reader::default();
        loop {
            let count = self
                .stream
                .read_buf(reader.buffer())
                .await
                .map_err(|error| transfer("reading the answer", &error))?;
            if let Some(response) = reader.advance(count == 0)? {
                return Ok(response);
            }
            if count == 0 && reader.is_empty() {
                let text = "the server closed the connection instead of answering";
                return Err(Failure::new(FailureKind::ClosedBeforeResponse, text));
            }
            if count == 0 {
                let text = "the server closed the connection within its answer";
                return Err(Failure::new(FailureKind::Truncated, text));
            }
        }
    }
}

fn transfer(doing: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::of_transfer(error), format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A server that reads one request from one connection, writes `answer` and closes.
    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        address
    }

    async fn answer_of(answer: &'static [u8]) -> Result<Response, Failure> {
        let mut connection = Connection::open(server(answer).await, soon())
            .await
            .unwrap();
        connection.send(&Request::get("/"), false, soon()).await
    }

    #[tokio::test]
    async fn each_way_of_not_answering_has_its_kind() {
        let kind = |result: Result<Response, Failure>| result.unwrap_err().kind;
        assert_eq!(
            kind(answer_of(b"").await),
            FailureKind::ClosedBeforeResponse
        );
        assert_eq!(
            kind(answer_of(b"HTTP/1.1 200 OK\r\nConte").await),
            FailureKind::Truncated
        );
        assert_eq!(
            kind(answer_of(b"hello\r\n\r\n").await),
            FailureKind::Malformed
        );
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let failure = Connection::open(address, soon()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
    }

    #[tokio::test]
    async fn a_server_that_is_silent_runs_into_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connection = Connection::open(address, soon()).await.unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let failure = connection
            .send(&Request::get("/"), false, deadline)
            .await
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Timeout);
    }

    #[tokio::test]
    async fn peek_tells_open_from_closed_from_chatty() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connection = Connection::open(address, soon()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        assert_eq!(connection.peek(), Peek::Open);
        peer.write_all(b"x").await.unwrap();
        connection.stream.readable().await.unwrap();
        assert_eq!(connection.peek(), Peek::Unsolicited);

        let connection = Connection::open(address, soon()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        drop(peer);
        connection.stream.readable().await.unwrap();
        assert_eq!(connection.peek(), Peek::Closed);
    }

    #[tokio::test]
    async fn a_reset_is_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = Connection::open(listener.local_addr().unwrap(), soon())
            .await
            .unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // Closing with a byte unread makes the kernel send a reset.
            let mut byte = [0];
            let _ = peer.read(&mut byte).await.unwrap();
        });
        let failure = connection
            .send(&Request::get("/"), false, soon())
            .await
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Reset);
    }
}
