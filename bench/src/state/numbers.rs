//! Cheap numbers for choosing keys.

/// A xorshift generator: uniform enough to choose keys, and cheap beside a write.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero; the odd factor spreads small seeds.
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high half of a product instead of a remainder: no division.
        ((u128::from(self.0) * u128::from(limit)) >> 64) as u64
    }
}
