//! Numbers from a seed, so that a failure repeats. The unit tests of other packages have this file among their own, since they do
//! not need the rest of the harness.

/// Numbers from a seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// A number from 0 to less than `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
