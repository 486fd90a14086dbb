//! The fast codec in place of the default one: the same bytes under another number.

#![cfg(feature = "wincode")]

use heirloom_state_codec::{Bincode, Codec, CodecError, CodecId, State, Wincode};
use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite, State)]
struct Session {
    user: String,
    seen: Vec<u64>,
}

#[test]
fn wincode_reads_what_bincode_wrote_and_refuses_what_it_would() {
    let session = Session {
        user: "ann".to_owned(),
        seen: vec![1, 2],
    };
    let (mut fast, mut plain) = (vec![9], vec![9]);
    Wincode::encode(&session, &mut fast).unwrap();
    Bincode::encode(&session, &mut plain).unwrap();
    assert_eq!(fast, plain);
    let bytes = &fast[1..];
    assert_eq!(Wincode::decode(bytes), Ok(session));
    assert_eq!(<Wincode as Codec<Session>>::ID, CodecId::WINCODE);
    for length in 0..bytes.len() {
        let cut: Result<Session, _> = Wincode::decode(&bytes[..length]);
        assert!(matches!(cut, Err(CodecError::Decode { .. })), "{length}");
    }
    let longer: Result<Session, _> = Wincode::decode(&[bytes, &[0]].concat());
    assert!(longer.is_err());
}
