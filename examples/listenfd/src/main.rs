//! A plain program: takes its listener with the `listenfd` crate, knows nothing of Heirloom, and on
//! SIGTERM answers all it has accepted before it ends. A thread a connection, HTTP by hand.

use std::error::Error;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use listenfd::ListenFd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::SIGTERM;

/// How long a connection may take to send its first request, and later its next.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may once we are to end: the next request may be on the way.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// No head of a request is longer.
const LONGEST_HEAD_BYTES: u64 = 16 << 10;

static STOPPING: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Box<dyn Error>> {
    let listener = ListenFd::from_env()
        .take_tcp_listener(0)?
        .ok_or("no listener was passed; start this under a supervisor")?;
    // Another generation may take a connection between our poll and our accept.
    listener.set_nonblocking(true)?;
    let (told, teller) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, teller)?;
    thread::scope(|connections| {
        while wait_for_connection(&listener, &told)? {
            match listener.accept() {
                Ok((stream, _)) => {
                    connections.spawn(|| {
                        // The client has gone; there is nobody to tell.
                        let _gone = serve(stream);
                    });
                }
                Err(error) if passes(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Between two accepts, so nothing that was accepted is left behind.
        STOPPING.store(true, Ordering::Relaxed);
        Ok(())
    })
}

/// Waits until a connection may be accepted; false once we were told to end.
fn wait_for_connection(listener: &TcpListener, told: &UnixStream) -> io::Result<bool> {
    let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut both = [readable(told.as_fd()), readable(listener.as_fd())];
    loop {
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) => return Ok(both[0].any() != Some(true)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the next accept may succeed.
fn passes(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(&stream);
    while let Some(head) = read_head(&stream, &mut reader)? {
        if head.starts_with("GET /slow ") {
            thread::sleep(Duration::from_millis(300));
        }
        let last =
            STOPPING.load(Ordering::Relaxed) || head.to_lowercase().contains("connection: close");
        let body = format!("pid {}\n", std::process::id());
        let connection = if last { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        (&stream).write_all(answer.as_bytes())?;
        if last {
            break;
        }
    }
    Ok(())
}

/// The head of the next request; none if the client sends none.
fn read_head(stream: &TcpStream, reader: &mut BufReader<&TcpStream>) -> io::Result<Option<String>> {
    if !wait_for_request(stream, reader)? {
        return Ok(None);
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = reader.take(LONGEST_HEAD_BYTES);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// Waits for the first byte of a request, in short turns, to notice when we are to end.
fn wait_for_request(stream: &TcpStream, reader: &mut BufReader<&TcpStream>) -> io::Result<bool> {
    const TURN: Duration = Duration::from_millis(100);
    stream.set_read_timeout(Some(TURN))?;
    let mut left = PATIENCE;
    loop {
        match reader.fill_buf() {
            Ok(bytes) => return Ok(!bytes.is_empty()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if STOPPING.load(Ordering::Relaxed) {
                    left = left.min(LAST_PATIENCE);
                }
                left = left.saturating_sub(TURN);
                if left.is_zero() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
