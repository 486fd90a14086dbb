//! The least of an HTTP client: one request on one connection, answered with 200.

use std::io::{Read, Write};
use std::net::TcpStream;

/// The body of the answer to `GET path`.
///
/// # Errors
/// If the connection fails, or the answer is not a 200.
pub(crate) fn get(mut stream: TcpStream, path: &str) -> Result<String, String> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: rig\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.read_to_string(&mut answer))
        .map_err(|error| error.to_string())?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("not an answer: {answer:?}"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(head.to_owned());
    }
    Ok(body.to_owned())
}
