//! Enough of HTTP/1.1 to ask for something and to know what became of it. Pure.
//!
//! It reads one answer to one request from bytes as they come. It never guesses: an answer that is not whole
//! is none.

/// The largest answer that is read.
const LARGEST_BYTES: usize = 16 << 20;

/// A request.
pub(crate) fn request(method: &str, path: &str, host: &str, closes: bool) -> Vec<u8> {
    let close = if closes { "Connection: close\r\n" } else { "" };
    let length = if method == "POST" {
        "Content-Length: 0\r\n"
    } else {
        ""
    };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}{close}\r\n").into_bytes()
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// Whether the connection goes on behind it.
    pub(crate) keeps_open: bool,
}

/// What is known from the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// There is more to come.
    More,
    Whole(Answer),
}

/// Reads an answer from all bytes that have come since the request; `ended` if no more will.
///
/// # Errors
///
/// What is wrong with it, in words.
pub(crate) fn read(bytes: &[u8], ended: bool) -> Result<Read, String> {
    if bytes.len() > LARGEST_BYTES {
        return Err(format!("an answer of more than {LARGEST_BYTES} bytes"));
    }
    let Some(length) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(Read::More);
    };
    let head = std::str::from_utf8(&bytes[..length]).map_err(|_| "a head that is no text")?;
    let head = Head::parse(head)?;
    let rest = &bytes[length + 4..];
    let body = match head.body {
        Body::None => Some((Vec::new(), 0)),
        Body::Length(length) => {
            let whole = rest.get(..length);
            whole.map(|body| (body.to_vec(), length))
        }
        Body::Chunked => chunks(rest)?,
        Body::UntilClose => ended.then(|| (rest.to_vec(), rest.len())),
    };
    match body {
        None => Ok(Read::More),
        Some((_, used)) if used < rest.len() => Err("bytes behind the answer".to_owned()),
        Some((body, _)) => Ok(Read::Whole(Answer {
            status: head.status,
            body,
            keeps_open: head.keeps_open && head.body != Body::UntilClose,
        })),
    }
}

struct Head {
    status: u16,
    body: Body,
    keeps_open: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

impl Head {
    fn parse(head: &str) -> Result<Self, String> {
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.splitn(3, ' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|word| word.parse().ok());
        let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
            return Err(format!("what is no answer: {first:?}"));
        };
        let mut keeps_open = version != "HTTP/1.0";
        let mut body = match status {
            204 | 304 => Body::None,
            _with_a_body => Body::UntilClose,
        };
        for line in lines {
            let (name, value) = line.split_once(':').ok_or("a field without a colon")?;
            let value = value.trim();
            let says = |word: &str| {
                let mut words = value.split(',').map(str::trim);
                words.any(|one| one.eq_ignore_ascii_case(word))
            };
            if name.eq_ignore_ascii_case("connection") {
                keeps_open = (keeps_open || says("keep-alive")) && !says("close");
            } else if name.eq_ignore_ascii_case("content-length") && body == Body::UntilClose {
                let length = value
                    .parse()
                    .map_err(|_| format!("a length of {value:?}"))?;
                body = Body::Length(length);
            } else if name.eq_ignore_ascii_case("transfer-encoding") && says("chunked") {
                body = Body::Chunked;
            }
        }
        Ok(Self {
            status,
            body,
            keeps_open,
        })
    }
}

/// The body that comes in chunks, and how many bytes it was; none if it is not whole.
fn chunks(mut rest: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let whole = rest.len();
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| "a chunk without a length")?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(digits, 16)
            .ok()
            .filter(|length| *length <= LARGEST_BYTES)
            .ok_or_else(|| format!("a chunk of length {digits:?}"))?;
        rest = &rest[end + 2..];
        let Some(chunk) = rest.get(..length + 2) else {
            return Ok(None);
        };
        // Behind the last one come fields, which nobody here has asked for.
        if chunk.get(length..) != Some(b"\r\n") {
            return Err("a chunk that is longer than it says".to_owned());
        }
        body.extend_from_slice(&chunk[..length]);
        rest = &rest[length + 2..];
        if length == 0 {
            return Ok(Some((body, whole - rest.len())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8], ended: bool) -> Answer {
        match read(bytes, ended) {
            Ok(Read::Whole(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        for (bytes, body, keeps_open) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi", true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
                "hi",
                false,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "", false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
                "",
                true,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", "", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x\r\ni\r\n0\r\n\r\n",
                "hi",
                true,
            ),
        ] {
            let bytes = bytes.as_bytes();
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end], true), Ok(Read::More), "{end}");
            }
            let answer = whole(bytes, false);
            assert_eq!(answer.body, body.as_bytes());
            assert_eq!(answer.keeps_open, keeps_open);
        }
    }

    #[test]
    fn without_a_length_the_end_is_the_end() {
        let bytes = b"HTTP/1.1 503 No\r\n\r\nhi";
        assert_eq!(read(bytes, false), Ok(Read::More));
        let answer = whole(bytes, true);
        assert_eq!((answer.status, answer.keeps_open), (503, false));
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for bytes in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 two hundred\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhix",
        ] {
            read(bytes.as_bytes(), false).unwrap_err();
        }
    }
}
