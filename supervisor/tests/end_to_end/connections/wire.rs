//! One connection of a client that says byte by byte what it wants. It fails the test if an answer does
//! not come, or says that the connection ends; it never retries.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::harness::PATIENCE;

#[derive(Debug)]
pub(super) struct Wire {
    stream: BufReader<TcpStream>,
}

/// An answer, whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its fields, in lower case.
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    /// A field's value.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    pub(super) fn says_close(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

impl Wire {
    pub(super) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.get_mut().write_all(bytes.as_ref());
        sent.unwrap_or_else(|error| panic!("the connection takes nothing more: {error}"));
    }

    /// Exactly so many bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = self.stream.read_exact(&mut bytes);
        read.unwrap_or_else(|error| panic!("the connection gives nothing more: {error}"));
        bytes
    }

    /// A line, without its end.
    pub(super) fn line(&mut self) -> String {
        let line = self.try_line();
        line.unwrap_or_else(|error| panic!("the connection gives nothing more: {error}"))
    }

    fn try_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(whole) => Ok(whole.trim_end_matches('\r').to_owned()),
            None => Err(io::Error::other(format!("it ended behind {line:?}"))),
        }
    }

    /// The body of a good answer, after which the connection goes on.
    pub(super) fn answer(&mut self) -> String {
        let answer = self
            .try_answer()
            .unwrap_or_else(|error| panic!("there is no answer: {error}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.says_close(), "{answer:?}");
        answer.body
    }

    /// Any answer.
    pub(super) fn try_answer(&mut self) -> io::Result<Answer> {
        let first = self.try_line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no answer: {first:?}")))?;
        let mut head = String::new();
        loop {
            let line = self.try_line()?;
            if line.is_empty() {
                break;
            }
            head.push_str(&line.to_ascii_lowercase());
            head.push('\n');
        }
        let mut answer = Answer {
            status,
            head,
            body: String::new(),
        };
        let mut body = Vec::new();
        if status == 100 {
            return Ok(answer);
        } else if answer.field("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.try_chunk()?;
                if chunk.is_empty() {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
        } else {
            let length = answer.field("content-length").unwrap_or("0");
            body.resize(length.parse().map_err(io::Error::other)?, 0);
            self.stream.read_exact(&mut body)?;
        }
        answer.body = String::from_utf8(body).map_err(io::Error::other)?;
        Ok(answer)
    }

    /// One chunk of a body that comes in chunks; empty for the last.
    pub(super) fn try_chunk(&mut self) -> io::Result<Vec<u8>> {
        let length = self.try_line()?;
        let length = usize::from_str_radix(&length, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; length];
        self.stream.read_exact(&mut chunk)?;
        let end = self.try_line()?;
        assert!(end.is_empty(), "{end:?} behind a chunk");
        Ok(chunk)
    }

    pub(super) fn get(&mut self, target: &str) -> String {
        self.send(get(target));
        self.answer()
    }

    pub(super) fn post(&mut self, target: &str, body: &str) -> String {
        self.send(post(target, body));
        self.answer()
    }

    /// The generation that answers now.
    pub(super) fn generation(&mut self) -> u64 {
        super::number(&self.get("/hello"), "generation")
    }

    /// Whether the server has closed it; what has not been read yet stays.
    pub(super) fn is_closed(&mut self) -> bool {
        let stream = self.stream.get_ref();
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        match peeked {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

pub(super) fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n")
}

pub(super) fn post(target: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
}
