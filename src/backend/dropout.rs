//! Dropout masks from a counter: the same bits on every backend, in both passes, never stored.
//!
//! One call of the generator gives 16 bytes, one for each of 16 elements; an element is dropped where
//! its byte is below `round(256 p)`. The scale of what stays follows that rounded probability, so that
//! the expectation is exact.
//!
//! Counters name a place in a sequence, not in the packed batch: a sequence's mask does not depend on
//! its neighbours' lengths.

use crate::philox::{key_of, philox_lanes};
use crate::plan::op::Dropout;

/// Elements of one generator call.
pub const GROUP: usize = 16;

/// Queries and keys of the block of attention probabilities that 32 generator calls serve.
pub const BLOCK_QUERIES: usize = 16;
pub const BLOCK_KEYS: usize = 32;
const LANES: usize = 32;

/// The masks of one dropout site in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    key: [u32; 2],
    step: u32,
    site: u32,
    /// Bytes below this drop their element.
    threshold: u32,
    /// Number of what [`Mask::probabilities`] calls head 0.
    first_head: u32,
}

/// Bytes below this drop their element with probability `p`.
pub fn threshold(p: f32) -> u32 {
    (p * 256.0).round() as u32
}

impl Mask {
    /// The masks of `dropout` in step number `step`.
    pub fn new(dropout: Dropout, seed: u64, step: u64) -> Self {
        Mask {
            key: key_of(seed),
            step: step as u32,
            site: dropout.site,
            threshold: threshold(dropout.p),
            first_head: 0,
        }
    }

    /// The masks of the heads from `head` on, for whoever has only those.
    pub fn from_head(self, head: usize) -> Self {
        Mask { first_head: self.first_head + head as u32, ..self }
    }

    /// What kept elements are multiplied with.
    #[inline(always)]
    pub fn scale(&self) -> f32 {
        256.0 / (256.0 - self.threshold as f32)
    }

    /// Fills `factors` (0 or the scale) for row `row` of sequence `sequence`.
    #[inline(always)]
    pub fn row(&self, sequence: usize, row: usize, factors: &mut [f32]) {
        const GROUPS: usize = 8;
        let n_groups = factors.len().div_ceil(GROUP);
        let first = (row * n_groups) as u32;
        for (at, out) in factors.chunks_mut(GROUPS * GROUP).enumerate() {
            let place = first + (at * GROUPS) as u32;
            let counters = [
                std::array::from_fn(|group| place + group as u32),
                [sequence as u32; GROUPS],
                [self.site; GROUPS],
                [self.step; GROUPS],
            ];
            let words = philox_lanes(self.key, counters);
            let mut values = [0.0; GROUPS * GROUP];
            for (group, values) in values.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                for (at, value) in values.iter_mut().enumerate() {
                    *value = self.factor(words[at / 4][group] >> (at % 4 * 8));
                }
            }
            out.copy_from_slice(&values[..out.len()]);
        }
    }

    /// The factor that the lowest byte of `bits` decides.
    #[inline(always)]
    fn factor(&self, bits: u32) -> f32 {
        if bits & 0xFF < self.threshold { 0.0 } else { self.scale() }
    }

    /// Fills `factors`, `[length, length]` row-major, for the probabilities of one head.
    ///
    /// A block of 16 queries and 32 keys takes 32 calls, numbered as the lanes of a warp hold the
    /// accumulators of `mma.m16n8k16`, so that a kernel draws just what it holds.
    #[inline(always)]
    pub fn probabilities(&self, sequence: usize, head: usize, length: usize, factors: &mut [f32]) {
        for query_block in 0..length.div_ceil(BLOCK_QUERIES) {
            for key_block in 0..length.div_ceil(BLOCK_KEYS) {
                let block = self.block(sequence, head, query_block, key_block);
                let first_col = key_block * BLOCK_KEYS;
                let n_cols = BLOCK_KEYS.min(length - first_col);
                for (query, values) in block.iter().enumerate() {
                    let row = query_block * BLOCK_QUERIES + query;
                    if row < length {
                        let out = &mut factors[row * length + first_col..][..n_cols];
                        out.copy_from_slice(&values[..n_cols]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn block(
        &self,
        sequence: usize,
        head: usize,
        query_block: usize,
        key_block: usize,
    ) -> [[f32; BLOCK_KEYS]; BLOCK_QUERIES] {
        let place = (query_block as u32) << 16 | key_block as u32;
        // Stream 0 of a site belongs to rows.
        let stream = (self.first_head + head as u32 + 1) << 16;
        let counters = [
            [place; LANES],
            std::array::from_fn(|lane| (sequence * LANES + lane) as u32),
            [self.site | stream; LANES],
            [self.step; LANES],
        ];
        let words = philox_lanes(self.key, counters);
        let mut block = [[0.0; BLOCK_KEYS]; BLOCK_QUERIES];
        for at in 0..GROUP {
            for (lane, word) in words[at / 4].into_iter().enumerate() {
                let (query, key) = place_in_block(lane, at);
                block[query][key] = self.factor(word >> (at % 4 * 8));
            }
        }
        block
    }
}

/// Query and key, within their block, of byte `at` of a lane: four tiles of 8 keys, in each the rows
/// `lane / 4` and 8 below, in each two neighbouring keys.
#[inline(always)]
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
        for lane in 0..LANES {
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
    fn heads_can_be_counted_from_another_one() {
        let factors = |mask: Mask, head| {
            let mut factors = vec![f32::NAN; 40 * 40];
            mask.probabilities(2, head, 40, &mut factors);
            factors
        };
        assert_eq!(factors(mask(0.5).from_head(3), 1), factors(mask(0.5), 4));
        assert_ne!(factors(mask(0.5), 1), factors(mask(0.5), 4));
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
