//! The self-describing codec for other languages: CBOR.
//!
//! CBOR rather than MessagePack: it is an IETF standard (RFC 8949) with integers of any width,
//! bytes told apart from text, and a library in every language. Structs are maps by field name, so
//! a reader needs no schema to make sense of an entry. Order of fields and map keys is the
//! writer's; the same value gives the same bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::guard::{Budget, Guarded};
use super::{Codec, CodecError, CodecId};

/// CBOR through serde, number 3.
#[derive(Debug, Clone, Copy)]
pub struct Cbor;

impl<T: Serialize + DeserializeOwned> Codec<T> for Cbor {
    const ID: CodecId = CodecId::CBOR;

    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let mut serializer = minicbor_serde::Serializer::new(out);
        let encoded = value.serialize(&mut serializer);
        encoded.map(drop).map_err(|error| CodecError::Encode {
            codec: CodecId::CBOR,
            reason: error.to_string(),
        })
    }

    fn decode(bytes: &[u8]) -> Result<T, CodecError> {
        let budget = Budget::for_input(bytes.len());
        let mut deserializer = minicbor_serde::Deserializer::new(bytes);
        let decoded = T::deserialize(Guarded::new(&mut deserializer, &budget));
        let value = decoded.map_err(|error| CodecError::Decode {
            codec: CodecId::CBOR,
            reason: error.to_string(),
        })?;
        match bytes.len() - deserializer.decoder().position() {
            0 => Ok(value),
            left => Err(CodecError::Trailing {
                codec: CodecId::CBOR,
                left,
            }),
        }
    }
}
