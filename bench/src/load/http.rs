//! HTTP/1.1 as far as a load needs it: writing a request, reading a response. No I/O.
//!
//! The reader is strict. Where a tolerant client would guess, it reports a malformed answer, because
//! a server that answers twice or answers half must not look healthy.

use std::fmt::Write as _;

use crate::load::failure::{Failure, FailureKind};

/// Longest head of a response that is read, in bytes.
const HEAD_LIMIT: usize = 16 * 1024;
/// Longest body of a response that is read, in bytes.
const BODY_LIMIT: usize = 4 * 1024 * 1024;
/// Most header fields in one response.
const FIELD_LIMIT: usize = 64;

/// One request, ready to be sent any number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    method: String,
    target: String,
    body: Vec<u8>,
}

impl Request {
    /// A GET of `target`, for instance `/hello?x=1`.
    pub fn get(target: impl Into<String>) -> Self {
        Self {
            method: "GET".to_owned(),
            target: target.into(),
            body: Vec::new(),
        }
    }

    /// A POST of `body` to `target`.
    pub fn post(target: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            method: "POST".to_owned(),
            target: target.into(),
            body: body.into(),
        }
    }

    /// The bytes on the wire. With `close`, the server is asked to close after answering.
    pub(crate) fn encode(&self, close: bool) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\n",
            self.method, self.target
        );
        if self.method != "GET" {
            // Writing to a String cannot fail.
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        if close {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// One complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    head: Vec<u8>,
    keeps_open: bool,
}

impl Response {
    /// The first value of the header field `name`, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = [httparse::EMPTY_HEADER; FIELD_LIMIT];
        let mut parsed = httparse::Response::new(&mut fields);
        parsed.parse(&self.head).ok()?;
        let field = parsed
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok()
    }

    /// The body as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the connection may carry another request.
    #[must_use]
    pub fn keeps_open(&self) -> bool {
        self.keeps_open
    }
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// The head of a response.
#[derive(Debug)]
struct Head {
    status: u16,
    length: usize,
    framing: Framing,
    keeps_open: bool,
}

/// Reads one response from bytes as they arrive.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    head: Option<Head>,
}

impl Reader {
    /// Where the next bytes are to be appended.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Whether nothing at all has arrived.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Looks whether the response is complete. `ended` says that no more bytes will come.
    ///
    /// # Errors
    /// [`FailureKind::Malformed`] if these bytes cannot be the one answer to one request.
    pub(crate) fn advance(&mut self, ended: bool) -> Result<Option<Response>, Failure> {
        if self.head.is_none() {
            self.head = parse_head(&self.buffer)?;
        }
        let Some(head) = &self.head else {
            return Ok(None);
        };
        let received = &self.buffer[head.length..];
        let (body, used) = match head.framing {
            Framing::Length(length) if received.len() >= length => {
                (received[..length].to_vec(), length)
            }
            Framing::Length(_) => return Ok(None),
            Framing::Chunked => match parse_chunks(received)? {
                Some(complete) => complete,
                None => return Ok(None),
            },
            Framing::UntilClose if ended => (received.to_vec(), received.len()),
            Framing::UntilClose if received.len() > BODY_LIMIT => return Err(too_long("body")),
            Framing::UntilClose => return Ok(None),
        };
        if received.len() > used {
            let extra = received.len() - used;
            return Err(malformed(format!(
                "{extra} bytes behind the answer, nobody asked for them"
            )));
        }
        let response = Response {
            status: head.status,
            body,
            head: self.buffer[..head.length].to_vec(),
            keeps_open: head.keeps_open,
        };
        Ok(Some(response))
    }
}

fn malformed(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Malformed, text)
}

fn too_long(what: &str) -> Failure {
    malformed(format!(
        "the {what} of the answer is longer than this client reads"
    ))
}

fn parse_head(buffer: &[u8]) -> Result<Option<Head>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() > HEAD_LIMIT => return Err(too_long("head")),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(format!("no HTTP/1 head: {error}"))),
    };
    let status = parsed.code.unwrap_or(0);
    if status < 200 {
        return Err(malformed(format!(
            "interim status {status}, which was not asked for"
        )));
    }
    let mut keeps_open = parsed.version == Some(1);
    let mut framing = None;
    for field in parsed.headers.iter() {
        let value = std::str::from_utf8(field.value)
            .map_err(|_| malformed(format!("field {} is not text", field.name)))?
            .trim();
        if field.name.eq_ignore_ascii_case("connection") {
            for option in value.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    keeps_open = false;
                } else if option.eq_ignore_ascii_case("keep-alive") && parsed.version == Some(0) {
                    keeps_open = true;
                }
            }
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let length: usize = value
                .parse()
                .map_err(|_| malformed(format!("Content-Length is not a number: {value}")))?;
            if length > BODY_LIMIT {
                return Err(too_long("body"));
            }
            set_framing(&mut framing, Framing::Length(length))?;
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(malformed(format!("unknown Transfer-Encoding: {value}")));
            }
            set_framing(&mut framing, Framing::Chunked)?;
        }
    }
    let framing = match framing {
        _ if status == 204 || status == 304 => Framing::Length(0),
        Some(framing) => framing,
        None => {
            keeps_open = false;
            Framing::UntilClose
        }
    };
    Ok(Some(Head {
        status,
        length,
        framing,
        keeps_open,
    }))
}

/// Two answers to "where does the body end" are how requests get smuggled; one is enough.
fn set_framing(framing: &mut Option<Framing>, found: Framing) -> Result<(), Failure> {
    match framing.replace(found) {
        None => Ok(()),
        Some(_) => Err(malformed("the length of the answer is given twice")),
    }
}

/// The decoded body and the bytes it took, or nothing if more must come.
fn parse_chunks(received: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Failure> {
    let mut body = Vec::new();
    let mut position = 0;
    loop {
        let rest = &received[position..];
        let (head, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(malformed(format!("bad chunk: {error}"))),
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > BODY_LIMIT - body.len() {
            return Err(too_long("body"));
        }
        let Some(data) = rest.get(head..head + size) else {
            return Ok(None);
        };
        let Some(end) = rest.get(head + size..head + size + 2) else {
            return Ok(None);
        };
        if end != b"\r\n" {
            return Err(malformed(
                "a chunk without its end, or trailers, which this client refuses",
            ));
        }
        body.extend_from_slice(data);
        position += head + size + 2;
        if size == 0 {
            return Ok(Some((body, position)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` one at a time; gives the result and how many bytes it took.
    fn read(bytes: &[u8]) -> Result<Option<(Response, usize)>, Failure> {
        let mut reader = Reader::default();
        for (index, byte) in bytes.iter().enumerate() {
            reader.buffer().push(*byte);
            if let Some(response) = reader.advance(false)? {
                return Ok(Some((response, index + 1)));
            }
        }
        Ok(reader
            .advance(true)?
            .map(|response| (response, bytes.len())))
    }

    #[test]
    fn a_length_ends_the_body_at_exactly_that_byte() {
        let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Test: a\r\n\r\nhello";
        let (response, used) = read(wire).unwrap().unwrap();
        assert_eq!(
            (response.status, response.text().as_str(), used),
            (200, "hello", wire.len())
        );
        assert!(response.keeps_open());
        assert_eq!(response.header("x-test"), Some("a"));
        assert_eq!(response.header("absent"), None);
    }

    #[test]
    fn no_prefix_of_an_answer_is_an_answer() {
        let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..wire.len() {
            assert_eq!(read(&wire[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn chunks_are_joined() {
        let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let (response, used) = read(wire).unwrap().unwrap();
        assert_eq!((response.text().as_str(), used), ("abcde", wire.len()));
        for cut in 0..wire.len() {
            assert_eq!(read(&wire[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn close_is_honoured_in_a_list_and_in_any_case() {
        let wire = b"HTTP/1.1 200 OK\r\nConnection: foo, Close\r\nContent-Length: 0\r\n\r\n";
        assert!(!read(wire).unwrap().unwrap().0.keeps_open());
    }

    #[test]
    fn without_a_length_the_body_lasts_until_the_end() {
        let (response, _) = read(b"HTTP/1.0 200 OK\r\n\r\nabc").unwrap().unwrap();
        assert_eq!(response.text(), "abc");
        assert!(!response.keeps_open());
    }

    #[test]
    fn a_second_answer_is_a_failure() {
        let mut reader = Reader::default();
        reader
            .buffer()
            .extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 ");
        assert_eq!(
            reader.advance(false).unwrap_err().kind,
            FailureKind::Malformed
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for wire in [
            &b"SSH-2.0-OpenSSH\r\n\r\n"[..],
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        ] {
            let failure = read(wire).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Malformed, "{failure}");
        }
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut reader = Reader::default();
        reader.buffer().extend_from_slice(b"HTTP/1.1 200 OK\r\nX: ");
        reader.buffer().resize(HEAD_LIMIT + 1, b'a');
        assert_eq!(
            reader.advance(false).unwrap_err().kind,
            FailureKind::Malformed
        );
    }

    #[test]
    fn a_request_carries_its_body_and_length() {
        assert_eq!(
            Request::post("/x", "ab").encode(true),
            b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab"
        );
        assert_eq!(
            Request::get("/").encode(false),
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        );
    }
}
