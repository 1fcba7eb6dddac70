//! Dropout masks from a counter: the same bits on every backend, in both passes, never stored.
//!
//! One call of the generator gives 16 bytes, one for each of 16 elements; an element is dropped where
//! its byte is below `round(256 p)`. The scale of what stays follows that rounded probability, so that
//! the expectation is exact.
//!
//! Counters name a place in a sequence, not in the packed batch: a sequence's mask does not depend on
//! its neighbours' lengths.

use crate::philox::{key_of, philox};
use crate::plan::op::Dropout;

/// Elements of one generator call.
pub const GROUP: usize = 16;

/// Queries and keys of the block of attention probabilities that 32 generator calls serve.
pub const BLOCK_QUERIES: usize = 16;
pub const BLOCK_KEYS: usize = 32;
const LANES: u32 = 32;

/// The masks of one dropout site in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    key: [u32; 2],
    step: u32,
    site: u32,
    /// Bytes below this drop their element.
    threshold: u16,
}

impl Mask {
    /// The masks of `dropout` in step number `step`.
    pub fn new(dropout: Dropout, seed: u64, step: u64) -> Self {
        Mask {
            key: key_of(seed),
            step: step as u32,
            site: dropout.site,
            threshold: (dropout.p * 256.0).round() as u16,
        }
    }

    /// What kept elements are multiplied with.
    pub fn scale(&self) -> f32 {
        256.0 / (256.0 - f32::from(self.threshold))
    }

    fn bytes(&self, place: u32, sequence: u32, stream: u32) -> [u8; GROUP] {
        let words = philox(self.key, [place, sequence, self.site | stream << 16, self.step]);
        let mut bytes = [0; GROUP];
        for (word, out) in words.iter().zip(bytes.as_chunks_mut::<4>().0) {
            *out = word.to_le_bytes();
        }
        bytes
    }

    fn factors(&self, bytes: [u8; GROUP]) -> [f32; GROUP] {
        let scale = self.scale();
        bytes.map(|byte| if u16::from(byte) < self.threshold { 0.0 } else { scale })
    }

    /// Fills `factors` (0 or the scale) for row `row` of sequence `sequence`.
    #[inline]
    pub fn row(&self, sequence: usize, row: usize, factors: &mut [f32]) {
        let n_groups = factors.len().div_ceil(GROUP);
        for (group, out) in factors.chunks_mut(GROUP).enumerate() {
            let place = (row * n_groups + group) as u32;
            let values = self.factors(self.bytes(place, sequence as u32, 0));
            out.copy_from_slice(&values[..out.len()]);
        }
    }

    /// Fills `factors`, `[length, length]` row-major, for the probabilities of one head.
    ///
    /// A block of 16 queries and 32 keys takes 32 calls, numbered as the lanes of a warp hold the
    /// accumulators of `mma.m16n8k16`, so that a kernel draws just what it holds.
    pub fn probabilities(&self, sequence: usize, head: usize, length: usize, factors: &mut [f32]) {
        for query_block in 0..length.div_ceil(BLOCK_QUERIES) {
            for key_block in 0..length.div_ceil(BLOCK_KEYS) {
                let place = (query_block as u32) << 16 | key_block as u32;
                for lane in 0..LANES {
                    let stream = head as u32 + 1;
                    let bytes = self.bytes(place, sequence as u32 * LANES + lane, stream);
                    for (at, factor) in self.factors(bytes).into_iter().enumerate() {
                        let (query, key) = place_in_block(lane as usize, at);
                        let row = query_block * BLOCK_QUERIES + query;
                        let col = key_block * BLOCK_KEYS + key;
                        if row < length && col < length {
                            factors[row * length + col] = factor;
                        }
                    }
                }
            }
        }
    }
}

/// Query and key, within their block, of byte `at` of a lane: four tiles of 8 keys, in each the rows
/// `lane / 4` and 8 below, in each two neighbouring keys.
fn place_in_block(lane: usize, at: usize) -> (usize, usize) {
    let (tile, lower, right) = (at / 4, at / 2 % 2, at % 2);
    (lane / 4 + 8 * lower, tile * 8 + lane % 4 * 2 + right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Group;

    fn mask(p: f32) -> Mask {
        Mask::new(Dropout { p, site: 9, group: Group::Layer(0) }, 42, 3)
    }

    #[test]
    fn a_block_covers_every_place_once() {
        let mut seen = [[0; BLOCK_KEYS]; BLOCK_QUERIES];
        for lane in 0..LANES as usize {
            for at in 0..GROUP {
                let (query, key) = place_in_block(lane, at);
                seen[query][key] += 1;
            }
        }
        assert!(seen.iter().flatten().all(|&n| n == 1));
    }

    #[test]
    fn the_share_dropped_and_the_mean_are_right() {
        let n = 200;
        let mut factors = vec![f32::NAN; n * n];
        mask(0.1).probabilities(3, 1, n, &mut factors);
        let dropped = factors.iter().filter(|&&f| f == 0.0).count() as f32 / (n * n) as f32;
        // 26 of 256 bytes drop; five standard deviations of 40,000 draws.
        assert!((dropped - 26.0 / 256.0).abs() <= 0.0076, "{dropped}");
        let mean = factors.iter().sum::<f32>() / (n * n) as f32;
        assert!((mean - 1.0).abs() <= 0.0085, "{mean}");
    }

    #[test]
    fn rows_steps_sites_and_sequences_differ() {
        let row = |mask: Mask, sequence, row| {
            let mut factors = vec![f32::NAN; 70];
            mask.row(sequence, row, &mut factors);
            assert!(factors.iter().all(|f| f.is_finite()));
            factors
        };
        let base = row(mask(0.5), 0, 0);
        assert_eq!(base, row(mask(0.5), 0, 0));
        assert_ne!(base, row(mask(0.5), 0, 1));
        assert_ne!(base, row(mask(0.5), 1, 0));
        let other_step = Mask { step: 4, ..mask(0.5) };
        assert_ne!(base, row(other_step, 0, 0));
        let other_site = Mask { site: 10, ..mask(0.5) };
        assert_ne!(base, row(other_site, 0, 0));
    }
}
