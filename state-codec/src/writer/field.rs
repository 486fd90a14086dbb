//! Keys and values as the writer takes them: bytes, or something with a codec; and what a section's
//! kind demands of its keys.

use crate::codec::Codec;
use crate::envelope::SectionKind;
use crate::error::WriteError;

/// What a section's kind demands of its keys.
pub(crate) fn key_fits(kind: SectionKind, key: &[u8]) -> bool {
    match kind {
        SectionKind::Value => key.is_empty(),
        SectionKind::Log => key.len() == 8,
        SectionKind::Map | SectionKind::Attic | SectionKind::Blob | SectionKind::Connection => true,
    }
}

/// A key or value that can append its bytes.
pub(super) trait Field {
    fn append(self, out: &mut Vec<u8>) -> Result<(), WriteError>;
}

/// Bytes as they are.
pub(super) struct Plain<'a>(&'a [u8]);

pub(super) fn plain(bytes: &[u8]) -> Plain<'_> {
    Plain(bytes)
}

impl Field for Plain<'_> {
    fn append(self, out: &mut Vec<u8>) -> Result<(), WriteError> {
        out.extend_from_slice(self.0);
        Ok(())
    }
}

/// A value and the codec for it.
pub(super) struct Coded<'a, C, T>(&'a T, std::marker::PhantomData<C>);

pub(super) fn coded<C, T>(value: &T) -> Coded<'_, C, T> {
    Coded(value, std::marker::PhantomData)
}

impl<C: Codec<T>, T> Field for Coded<'_, C, T> {
    fn append(self, out: &mut Vec<u8>) -> Result<(), WriteError> {
        Ok(C::encode(self.0, out)?)
    }
}
