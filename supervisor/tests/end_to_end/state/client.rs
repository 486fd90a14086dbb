//! A client that asks one thing after the other and fails the test if an answer does not come, or is not
//! a good one. It never retries.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::harness::PATIENCE;

/// How a client uses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// One for all requests, which is expected to stand for ever.
    Keeps,
    /// One for each request.
    Fresh,
}

#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    habit: Habit,
    kept: Option<BufReader<TcpStream>>,
}

/// An answer: its status, and its body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, habit: Habit) -> Self {
        Self {
            address,
            habit,
            kept: None,
        }
    }

    /// The body of a good answer.
    pub(crate) fn get(&mut self, target: &str) -> String {
        self.good("GET", target, "")
    }

    /// The body of a good answer.
    pub(crate) fn post(&mut self, target: &str, body: &str) -> String {
        self.good("POST", target, body)
    }

    fn good(&mut self, method: &str, target: &str, body: &str) -> String {
        let answer = self.ask(method, target, body);
        assert!(
            matches!(answer.status, 200 | 201),
            "{method} {target} {body}: {answer:?}"
        );
        answer.body
    }

    /// Any answer.
    pub(crate) fn ask(&mut self, method: &str, target: &str, body: &str) -> Answer {
        let asked = self.try_ask(method, target, body);
        asked.unwrap_or_else(|error| panic!("{:?} {method} {target}: {error}", self.habit))
    }

    pub(crate) fn try_ask(&mut self, method: &str, target: &str, body: &str) -> io::Result<Answer> {
        let mut stream = match self.kept.take() {
            Some(stream) => stream,
            None => connect(self.address)?,
        };
        let length = body.len();
        let close = match self.habit {
            Habit::Keeps => "",
            Habit::Fresh => "connection: close\r\n",
        };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: demo\r\n{close}content-length: {length}\r\n\r\n{body}"
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let (answer, closes) = read(&mut stream)?;
        match self.habit {
            Habit::Keeps if closes => {
                return Err(io::Error::other("the connection was closed, not moved"));
            }
            Habit::Keeps => self.kept = Some(stream),
            Habit::Fresh => {}
        }
        Ok(answer)
    }
}

fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// Reads an answer, and whether it says that the connection ends.
fn read(stream: &mut BufReader<TcpStream>) -> io::Result<(Answer, bool)> {
    let status_line = line(stream)?;
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no status line: {status_line:?}")))?;
    let (mut length, mut closes) = (0, false);
    loop {
        let line = line(stream)?.to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(("connection", value)) => closes = value == "close",
            Some(_) => {}
            None if line.is_empty() => break,
            None => return Err(io::Error::other(format!("no header: {line:?}"))),
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body).map_err(io::Error::other)?;
    Ok((Answer { status, body }, closes))
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    line.strip_suffix("\r\n")
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("the connection ended after {line:?}")))
}
