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

#[derive(Debug, PartialEq, SchemaRead, SchemaWrite, State)]
struct Tree {
    children: Vec<Self>,
}

#[test]
fn a_recursive_type_is_refused_before_it_can_overflow_the_stack() {
    let counts = 1_u64.to_le_bytes().repeat(1 << 17);
    let refused: Result<Tree, _> = Wincode::decode(&counts);
    assert_eq!(
        refused,
        Err(CodecError::Recursive {
            codec: CodecId::WINCODE
        })
    );
    let leaf: Result<Tree, _> = Wincode::decode(&[0; 8]);
    assert_eq!(
        leaf,
        Err(CodecError::Recursive {
            codec: CodecId::WINCODE
        })
    );
}
