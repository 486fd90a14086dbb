//! No codec at all: the value is its bytes.

use super::{Bytes, Codec, CodecError, CodecId};

/// Bytes as they are, number 0.
#[derive(Debug, Clone, Copy)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    const ID: CodecId = CodecId::RAW;

    fn encode(value: &Bytes, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&value.0);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Bytes, CodecError> {
        Ok(Bytes(bytes.to_vec()))
    }
}

impl Codec<String> for Raw {
    const ID: CodecId = CodecId::RAW;

    fn encode(value: &String, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<String, CodecError> {
        String::from_utf8(bytes.to_vec()).map_err(|error| CodecError::Decode {
            codec: CodecId::RAW,
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_is_the_bytes() {
        let mut out = vec![1];
        Raw::encode(&Bytes(vec![2, 3]), &mut out).unwrap();
        assert_eq!(out, [1, 2, 3]);
        assert_eq!(<Raw as Codec<Bytes>>::decode(&out), Ok(Bytes(out.clone())));
        assert!(<Raw as Codec<String>>::decode(&[0xFF]).is_err());
        assert_eq!(<Raw as Codec<String>>::decode(b"ok"), Ok("ok".to_owned()));
    }
}
