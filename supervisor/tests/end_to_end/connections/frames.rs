//! A client's side of a WebSocket, frame by frame, so that a test can stop within a message.

use std::net::SocketAddr;

use super::wire::Wire;

/// Kinds of frames (RFC 6455, section 5.2).
pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// The bit that says that no fragment follows.
const LAST: u8 = 0x80;

/// What a client masks its frames with.
const MASK: [u8; 4] = [1, 2, 3, 4];

/// Connects and asks for a WebSocket.
pub(super) fn connect(address: SocketAddr) -> Wire {
    let mut wire = Wire::connect(address);
    wire.send(
        "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let answer = wire.try_answer().unwrap();
    assert_eq!(answer.status, 101, "{answer:?}");
    wire
}

/// A client's frame; `last` unless fragments follow.
pub(super) fn frame(kind: u8, last: bool, payload: &str) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126, "tests send short messages");
    let first = if last { LAST | kind } else { kind };
    let mut bytes = vec![first, 0x80 | length];
    bytes.extend_from_slice(&MASK);
    let masked = payload.bytes().zip(MASK.into_iter().cycle());
    bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The next frame of the server: its kind and what is in it.
pub(super) fn next(wire: &mut Wire) -> (u8, String) {
    let header = wire.bytes(2);
    assert_eq!(header[0] & LAST, LAST, "the server sends whole messages");
    let length = match header[1] {
        126 => usize::from(u16::from_be_bytes(wire.bytes(2).try_into().unwrap())),
        short => usize::from(short),
    };
    let payload = String::from_utf8(wire.bytes(length)).unwrap();
    (header[0] & !LAST, payload)
}

/// The next text.
pub(super) fn text(wire: &mut Wire) -> String {
    let (kind, text) = next(wire);
    assert_eq!(kind, TEXT, "{text}");
    text
}
