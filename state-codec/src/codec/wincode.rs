//! The fast codec: wincode, which writes bincode's version 1 bytes without going through serde.
//!
//! It has a number of its own because its types need other derives. It bounds what it reserves by
//! the input but not its depth, so recursive types are refused.

use std::any::TypeId;
use std::cell::Cell;

use ::wincode::config::{self, Configuration, DefaultConfig};
use ::wincode::{SchemaReadOwned, SchemaWrite};

use super::{Codec, CodecError, CodecId};
use crate::shape::{Shape, shape_of};

/// wincode with its default configuration, number 2.
#[derive(Debug, Clone, Copy)]
pub struct Wincode;

impl<T> Codec<T> for Wincode
where
    T: Shape + 'static + SchemaWrite<DefaultConfig, Src = T> + SchemaReadOwned<DefaultConfig>,
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
        refuse_recursive::<T>()?;
        config::deserialize_exact(bytes, Configuration::default()).map_err(|error| {
            CodecError::Decode {
                codec: CodecId::WINCODE,
                reason: error.to_string(),
            }
        })
    }
}

thread_local! {
    /// The types that were last found not to be recursive: describing one for each entry would cost
    /// more than decoding it.
    static BOUNDED: Cell<[Option<TypeId>; 4]> = const { Cell::new([None; 4]) };
}

fn refuse_recursive<T: Shape + 'static>() -> Result<(), CodecError> {
    let asked = Some(TypeId::of::<T>());
    let mut bounded = BOUNDED.get();
    if bounded.contains(&asked) {
        return Ok(());
    }
    // Only a type inside itself is described by a reference.
    if shape_of::<T>().contains('^') {
        return Err(CodecError::Recursive {
            codec: CodecId::WINCODE,
        });
    }
    bounded.rotate_right(1);
    bounded[0] = asked;
    BOUNDED.set(bounded);
    Ok(())
}
