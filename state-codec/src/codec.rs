//! How keys and values become bytes, behind a number that stands in the manifest.
//!
//! A codec knows nothing of frames, versions or digests. It refuses input that would cost more than
//! its length: see [`guard`].

mod bincode;
mod bytes;
mod cbor;
mod guard;
mod raw;
#[cfg(feature = "wincode")]
mod wincode;

pub use self::bincode::Bincode;
pub use self::bytes::Bytes;
pub use self::cbor::Cbor;
pub use self::raw::Raw;
#[cfg(feature = "wincode")]
pub use self::wincode::Wincode;
pub use guard::DEPTH_MAX;

/// Number of a codec in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodecId(pub u16);

impl CodecId {
    /// Bytes as they are.
    pub const RAW: Self = Self(0);
    /// bincode 2, `config::legacy()`: little-endian, fixed-width integers, `u64` lengths.
    pub const BINCODE: Self = Self(1);
    /// The same bytes as [`Self::BINCODE`], made by wincode.
    pub const WINCODE: Self = Self(2);
    /// CBOR (RFC 8949), structs as maps by field name.
    pub const CBOR: Self = Self(3);

    /// Whether the two write the same bytes, so that either reads what the other wrote.
    #[must_use]
    pub fn same_bytes(self, other: Self) -> bool {
        let plain = |codec| {
            if codec == Self::WINCODE {
                Self::BINCODE
            } else {
                codec
            }
        };
        plain(self) == plain(other)
    }
}

impl std::fmt::Display for CodecId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::RAW => f.write_str("raw"),
            Self::BINCODE => f.write_str("bincode"),
            Self::WINCODE => f.write_str("wincode"),
            Self::CBOR => f.write_str("cbor"),
            Self(other) => write!(f, "codec {other}"),
        }
    }
}

/// Codes values of one type.
pub trait Codec<T> {
    /// The codec's number in the manifest.
    const ID: CodecId;

    /// Appends the value's bytes. What was appended before an error is to be discarded.
    ///
    /// # Errors
    /// [`CodecError::Encode`] for a value that the codec cannot express.
    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads a value that fills `bytes` exactly.
    ///
    /// # Errors
    /// All but [`CodecError::Encode`].
    fn decode(bytes: &[u8]) -> Result<T, CodecError>;
}

/// A key or value cannot be coded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The codec cannot express the value.
    #[error("{codec} cannot encode this value: {reason}; change its type")]
    Encode {
        /// The codec.
        codec: CodecId,
        /// The codec's own words.
        reason: String,
    },
    /// The bytes are no value of this type.
    #[error("{codec} cannot decode these bytes: {reason}; they were written for another type")]
    Decode {
        /// The codec.
        codec: CodecId,
        /// The codec's own words.
        reason: String,
    },
    /// Bytes follow the value.
    #[error("{codec}: {left} bytes follow the value; they were written for another type")]
    Trailing {
        /// The codec.
        codec: CodecId,
        /// How many.
        left: usize,
    },
    /// The type is one that this codec cannot decode within bounds.
    #[error("{codec} cannot bound the depth of a recursive type; use another codec for it")]
    Recursive {
        /// The codec.
        codec: CodecId,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Plan {
        Free,
        Paid { until: u64 },
        Trial(u8, char),
        Named(String),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Everything {
        name: String,
        plan: Vec<Plan>,
        blob: Bytes,
        maybe: Option<i128>,
        map: BTreeMap<u32, (bool, f64)>,
        boxed: Box<u16>,
        array: [u8; 3],
        nested: Option<Box<Self>>,
    }

    fn everything() -> Everything {
        let inner = Everything {
            name: String::new(),
            plan: vec![],
            blob: Bytes::default(),
            maybe: None,
            map: BTreeMap::new(),
            boxed: Box::new(0),
            array: [0; 3],
            nested: None,
        };
        Everything {
            name: "Ünïcode".to_owned(),
            plan: vec![
                Plan::Free,
                Plan::Paid { until: u64::MAX },
                Plan::Trial(1, 'ß'),
                Plan::Named("x".to_owned()),
            ],
            blob: Bytes(vec![0, 255, 7]),
            maybe: Some(i128::from(i64::MIN)),
            map: BTreeMap::from([(1, (true, 0.5)), (2, (false, -0.0))]),
            boxed: Box::new(9),
            array: [1, 2, 3],
            nested: Some(Box::new(inner)),
        }
    }

    fn check<C: Codec<Everything>>() {
        let mut bytes = vec![0xEE];
        C::encode(&everything(), &mut bytes).unwrap();
        let bytes = &bytes[1..];
        assert_eq!(C::decode(bytes), Ok(everything()));
        for length in 0..bytes.len() {
            assert!(
                C::decode(&bytes[..length]).is_err(),
                "{} cut at {length}",
                C::ID
            );
        }
        let longer = [bytes, &[0]].concat();
        assert_eq!(
            C::decode(&longer),
            Err(CodecError::Trailing {
                codec: C::ID,
                left: 1
            })
        );
    }

    #[test]
    fn every_serde_form_goes_through_bincode() {
        check::<Bincode>();
    }

    #[test]
    fn every_serde_form_goes_through_cbor() {
        check::<Cbor>();
    }

    fn bytes<C: Codec<T>, T>(value: T) -> Vec<u8> {
        let mut out = Vec::new();
        C::encode(&value, &mut out).unwrap();
        out
    }

    /// The table in docs/snapshot-format.md, row by row.
    #[test]
    fn values_are_coded_as_the_document_says() {
        assert_eq!(bytes::<Bincode, _>(0x0102_i16), [2, 1]);
        assert_eq!(bytes::<Cbor, _>(-1_i16), [0x20]);
        assert_eq!(
            bytes::<Cbor, _>(u64::MAX),
            [0x1B, 255, 255, 255, 255, 255, 255, 255, 255]
        );
        let big = [&[0xC2, 0x49, 1][..], &[0; 8]].concat();
        assert_eq!(bytes::<Cbor, _>(1_u128 << 64), big);
        assert_eq!(bytes::<Bincode, _>(1.0_f32), 1.0_f32.to_le_bytes());
        assert_eq!(
            bytes::<Cbor, _>(1.5_f64),
            [&[0xFB][..], &1.5_f64.to_be_bytes()].concat()
        );
        assert_eq!(bytes::<Bincode, _>(true), [1]);
        assert_eq!(bytes::<Cbor, _>(true), [0xF5]);
        assert_eq!(bytes::<Bincode, _>('ß'), [0xC3, 0x9F]);
        assert_eq!(bytes::<Cbor, _>('ß'), [0x18, 0xDF]);
        assert_eq!(
            bytes::<Bincode, _>("ab".to_owned()),
            [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']
        );
        assert_eq!(bytes::<Cbor, _>("ab".to_owned()), [0x62, b'a', b'b']);
        assert_eq!(
            bytes::<Bincode, _>(Bytes(vec![7])),
            [1, 0, 0, 0, 0, 0, 0, 0, 7]
        );
        assert_eq!(bytes::<Cbor, _>(Bytes(vec![7])), [0x41, 7]);
        assert_eq!(bytes::<Bincode, _>(()), [0; 0]);
        assert_eq!(bytes::<Cbor, _>(()), [0x80]);
        assert_eq!(bytes::<Bincode, _>([None, Some(5_u8)]), [0, 1, 5]);
        assert_eq!(bytes::<Cbor, _>([None, Some(5_u8)]), [0x82, 0xF6, 5]);
        assert_eq!(bytes::<Bincode, _>(vec![5_u8]), [1, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(bytes::<Cbor, _>(vec![5_u8]), [0x81, 5]);
        let map = BTreeMap::from([(1_u8, 2_u8)]);
        assert_eq!(
            bytes::<Bincode, _>(map.clone()),
            [1, 0, 0, 0, 0, 0, 0, 0, 1, 2]
        );
        assert_eq!(bytes::<Cbor, _>(map), [0xA1, 1, 2]);
        assert_eq!(bytes::<Bincode, _>((1_u8, 2_u8)), [1, 2]);
        assert_eq!(bytes::<Cbor, _>((1_u8, 2_u8)), [0x82, 1, 2]);
        let paid = Plan::Paid { until: 3 };
        assert_eq!(
            bytes::<Bincode, _>(paid.clone()),
            [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        let in_cbor = [&[0xA1, 0x64][..], b"Paid", &[0xA1, 0x65], b"until", &[3]].concat();
        assert_eq!(bytes::<Cbor, _>(paid), in_cbor);
        assert_eq!(
            bytes::<Cbor, _>(Plan::Free),
            [&[0x64][..], b"Free"].concat()
        );
        let in_cbor = [&[0xA1, 0x65][..], b"Trial", &[0x82, 1, 0x18, 0xDF]].concat();
        assert_eq!(bytes::<Cbor, _>(Plan::Trial(1, 'ß')), in_cbor);
        let in_cbor = [&[0xA1, 0x65][..], b"Named", &[0x61, b'x']].concat();
        assert_eq!(bytes::<Cbor, _>(Plan::Named("x".to_owned())), in_cbor);
    }
}
