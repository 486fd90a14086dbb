//! The socket of one connection, with the bytes that were read from it before.

use std::{
    io,
    net::TcpStream as StdTcpStream,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream as StdUnixStream,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Buf, Bytes};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use socket2::{Domain, SockRef};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// How long, and how much, a closing connection reads what the client still sends.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
const CLOSE_BYTES_MAX: usize = 256 * 1024;

/// An accepted connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A connection and the bytes already read from it, which are read again first.
#[derive(Debug)]
pub(crate) struct Rewound {
    head: Bytes,
    stream: Stream,
}

impl Rewound {
    pub(crate) fn new(head: Bytes, stream: Stream) -> Self {
        Self { head, stream }
    }

    /// The stream, and what of the head nobody has read.
    pub(crate) fn into_parts(self) -> (Bytes, Stream) {
        (self.head, self.stream)
    }
}

impl Stream {
    /// A connection that comes from another generation. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's, and `InvalidInput` for what is no TCP or Unix socket.
    pub(crate) fn from_descriptor(socket: OwnedFd) -> io::Result<Self> {
        let domain = SockRef::from(&socket).domain()?;
        if domain == Domain::UNIX {
            let stream = StdUnixStream::from(socket);
            stream.set_nonblocking(true)?;
            Ok(Self::Unix(UnixStream::from_std(stream)?))
        } else if domain == Domain::IPV4 || domain == Domain::IPV6 {
            let stream = StdTcpStream::from(socket);
            stream.set_nonblocking(true)?;
            Ok(Self::Tcp(TcpStream::from_std(stream)?))
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// The socket, taken off the runtime.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn into_descriptor(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Tcp(stream) => stream.into_std()?.into(),
            Self::Unix(stream) => stream.into_std()?.into(),
        })
    }

    /// Whether the client has sent something that nobody has read. Asks the kernel, not the
    /// runtime, which may not have heard of it yet.
    pub(crate) fn has_unread_bytes(&self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        loop {
            match recv(self.as_fd().as_raw_fd(), &mut byte, flags) {
                Ok(length) => return length > 0,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Closes so that what was sent last arrives: says that nothing more comes, then reads on for
    /// a moment. To close with unread bytes in the socket would send a reset, and a reset
    /// destroys what the client has not read.
    pub(crate) async fn close(mut self) {
        let closing = async {
            self.shutdown().await?;
            let mut discarded = 0;
            let mut buffer = [0; 4096];
            while discarded < CLOSE_BYTES_MAX {
                match self.read(&mut buffer).await? {
                    0 => break,
                    length => discarded += length,
                }
            }
            Ok::<_, io::Error>(())
        };
        match timeout(CLOSE_LIMIT, closing).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => tracing::trace!(%error, "the client was gone before the close"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head[..length]);
        self.head.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_read_before_are_read_again_first() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"CD").await.unwrap();
        let mut rewound = Rewound::new(Bytes::from_static(b"AB"), Stream::Unix(server));
        let mut three = [0; 3];
        rewound.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"ABC");
        let (head, stream) = rewound.into_parts();
        assert!(head.is_empty());
        assert!(stream.has_unread_bytes());
    }

    #[tokio::test]
    async fn unread_bytes_are_seen_without_the_runtime() {
        let (client, server) = UnixStream::pair().unwrap();
        let server = Stream::Unix(server);
        assert!(!server.has_unread_bytes());
        client.try_write(b"G").unwrap();
        assert!(server.has_unread_bytes());
    }

    #[tokio::test]
    async fn an_ended_stream_has_no_unread_bytes() {
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        assert!(!Stream::Unix(server).has_unread_bytes());
    }

    #[tokio::test]
    async fn closing_reads_on_so_that_the_answer_arrives() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut server = Stream::Tcp(TcpStream::from_std(server).unwrap());
        // Bytes the server never asks for: with a plain close they would turn into a reset.
        client.write_all(&[b'x'; 100_000]).await.unwrap();
        server.write_all(b"the answer").await.unwrap();
        let close = tokio::spawn(server.close());
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "the answer");
        drop(client);
        close.await.unwrap();
    }
}
