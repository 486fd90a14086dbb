//! The fast codec: wincode, which writes bincode's version 1 bytes without going through serde.
//!
//! It has a number of its own because its types need other derives. It bounds what it reserves by
//! the input but not its depth, so recursive types are refused: they do not compile with it.

use ::wincode::config::{self, Configuration, DefaultConfig};
use ::wincode::{SchemaReadOwned, SchemaWrite};

use super::DEPTH_MAX;
use super::{Codec, CodecError, CodecId};
use crate::shape::Shape;

/// wincode with its default configuration, number 2.
#[derive(Debug, Clone, Copy)]
pub struct Wincode;

impl<T> Codec<T> for Wincode
where
    T: Shape + SchemaWrite<DefaultConfig, Src = T> + SchemaReadOwned<DefaultConfig>,
    T: for<'de> ::wincode::SchemaRead<'de, DefaultConfig, Dst = T>,
{
    const ID: CodecId = CodecId::WINCODE;

    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let encoded = config::serialize_into(out, value, Configuration::default());
        encoded.map_err(|error| CodecError::Encode {
            codec: CodecId::WINCODE,
            reason: error.to_string(),
        })
    }

    fn decode(bytes: &[u8]) -> Result<T, CodecError> {
        // A recursive type's depth depends on itself, which the compiler reports as a cycle.
        const { assert!(T::DEPTH <= DEPTH_MAX, "nested too deeply for wincode") };
        config::deserialize_exact(bytes, Configuration::default()).map_err(|error| {
            CodecError::Decode {
                codec: CodecId::WINCODE,
                reason: error.to_string(),
            }
        })
    }
}
