//! The default codec: bincode 2 with its version 1 bytes.
//!
//! `config::legacy()` writes little-endian, fixed-width integers and `u64` lengths. wincode writes
//! and reads the same bytes, which is the tested way out should bincode, no longer maintained, have
//! to go.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer};

use super::guard::{Budget, Guarded};
use super::{Codec, CodecError, CodecId};
use crate::limits::ENTRY_BYTES_MAX;

const LIMIT: usize = ENTRY_BYTES_MAX as usize;

fn config() -> Configuration<LittleEndian, Fixint, Limit<LIMIT>> {
    bincode::config::legacy().with_limit::<LIMIT>()
}

/// bincode through serde, number 1.
#[derive(Debug, Clone, Copy)]
pub struct Bincode;

impl<T: Serialize + DeserializeOwned> Codec<T> for Bincode {
    const ID: CodecId = CodecId::BINCODE;

    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let encoded = bincode::serde::encode_into_std_write(value, out, config());
        match encoded {
            Ok(_) => Ok(()),
            Err(error) => Err(CodecError::Encode {
                codec: CodecId::BINCODE,
                reason: error.to_string(),
            }),
        }
    }

    fn decode(bytes: &[u8]) -> Result<T, CodecError> {
        let budget = Budget::for_input(bytes.len());
        let seed = Seed(&budget, std::marker::PhantomData);
        let decoded = bincode::serde::seed_decode_from_slice(seed, bytes, config());
        let (value, used) = decoded.map_err(|error| CodecError::Decode {
            codec: CodecId::BINCODE,
            reason: error.to_string(),
        })?;
        match bytes.len() - used {
            0 => Ok(value),
            left => Err(CodecError::Trailing {
                codec: CodecId::BINCODE,
                left,
            }),
        }
    }
}

/// Starts the decoding of a `T` under a budget.
struct Seed<'b, T>(&'b Budget, std::marker::PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Seed<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(Guarded::new(deserializer, self.0))
    }
}
