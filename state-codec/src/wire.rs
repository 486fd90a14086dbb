//! Little-endian integers and length-prefixed text, read and written by hand.
//!
//! Owns the bytes of everything outside an entry's key and value. Knows no meaning of them.

/// The input ended before the item did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short;

/// Reads from the front of a slice and remembers how far it came.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Short> {
        if count > self.remaining() {
            return Err(Short);
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Short> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A `u32` length and that many bytes.
    pub(crate) fn block(&mut self) -> Result<&'a [u8], Short> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

/// Appends little-endian integers to a buffer.
pub(crate) trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_u128(&mut self, value: u128);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u128(&mut self, value: u128) {
        self.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_back() {
        let mut bytes = Vec::new();
        bytes.put_u8(1);
        bytes.put_u16(0x0203);
        bytes.put_u32(0x0405_0607);
        bytes.put_u64(8);
        bytes.put_u128(u128::MAX - 1);
        bytes.put_u32(2);
        bytes.extend_from_slice(b"ab");
        let mut cursor = Cursor::new(&bytes);
        assert_eq!(cursor.u8(), Ok(1));
        assert_eq!(cursor.u16(), Ok(0x0203));
        assert_eq!(cursor.u32(), Ok(0x0405_0607));
        assert_eq!(cursor.u64(), Ok(8));
        assert_eq!(cursor.u128(), Ok(u128::MAX - 1));
        assert_eq!(cursor.block(), Ok(&b"ab"[..]));
        assert_eq!(cursor.remaining(), 0);
        assert_eq!(cursor.position(), bytes.len());
    }

    #[test]
    fn a_claimed_length_is_not_believed() {
        let mut bytes = Vec::new();
        bytes.put_u32(u32::MAX);
        bytes.push(0);
        assert_eq!(Cursor::new(&bytes).block(), Err(Short));
        assert_eq!(Cursor::new(&[1]).u16(), Err(Short));
    }
}
