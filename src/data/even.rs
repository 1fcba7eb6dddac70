//! Batches of nearly equal numbers of tokens, so that steps take nearly equal time.
//!
//! Packed batches have no padding to save; what their sizes cost is the spread between them. Order stays random: only
//! neighbours within a window of the shuffled epoch change places.

use super::BatchLimit;
use super::pack::batch_too_small;
use super::random::SplitMix64;
use crate::Result;

/// Batches whose examples may change places with one another.
const WINDOW_BATCHES: usize = 64;

/// Examples beyond the next that may fill a batch of so many tokens.
const LOOK_AHEAD: usize = 64;

/// Cuts a shuffled order into batches under `limit`, each example in one of them; the same for the same seed.
///
/// A limit of sequences deals the texts of a window, longest first, to whichever batch has the fewest tokens and still
/// room. A limit of tokens fills each batch with the first texts that still fit.
///
/// # Errors
/// As [`Packer::batches`](super::Packer::batches).
pub fn even_batches(
    order: &[usize],
    lengths: &[usize],
    limit: BatchLimit,
    seed: u64,
) -> Result<Vec<Vec<usize>>> {
    match limit {
        BatchLimit::Sequences(n) => Ok(deal(order, lengths, n.max(1), seed)),
        BatchLimit::Tokens(n) => fill(order, lengths, n),
    }
}

fn deal(order: &[usize], lengths: &[usize], n: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut batches = Vec::with_capacity(order.len().div_ceil(n));
    for (number, window) in (0..).zip(order.chunks(n * WINDOW_BATCHES)) {
        let mut dealt: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); window.len().div_ceil(n)];
        // The last batch of an epoch may be a remainder, which stays one.
        let room = |at: usize| n.min(window.len() - at * n);
        let mut by_length = window.to_vec();
        by_length.sort_by_key(|&example| std::cmp::Reverse(lengths[example]));
        for example in by_length {
            let open = (0..dealt.len()).filter(|&at| dealt[at].1.len() < room(at));
            // Tokens in proportion to the room, so that a remainder does not take the longest texts alone.
            let emptiest = open.min_by_key(|&at| dealt[at].0 * n / room(at));
            // A window has as much room as examples.
            let (tokens, batch) = &mut dealt[emptiest.unwrap_or(0)];
            *tokens += lengths[example];
            batch.push(example);
        }
        // A full remainder stays last; the others in an order that says nothing of their sizes.
        let n_full = dealt.iter().take_while(|(_, batch)| batch.len() == n).count();
        SplitMix64::stream(seed, number).shuffle(&mut dealt[..n_full]);
        batches.extend(dealt.into_iter().map(|(_, batch)| batch));
    }
    batches
}

fn fill(order: &[usize], lengths: &[usize], limit: usize) -> Result<Vec<Vec<usize>>> {
    let mut rest: std::collections::VecDeque<usize> = order.iter().copied().collect();
    let mut batches = Vec::new();
    while let Some(first) = rest.pop_front() {
        if lengths[first] > limit {
            return Err(batch_too_small(limit, lengths[first]));
        }
        let (mut batch, mut tokens) = (vec![first], lengths[first]);
        let mut at = 0;
        while at < rest.len().min(LOOK_AHEAD) {
            if tokens + lengths[rest[at]] <= limit {
                tokens += lengths[rest[at]];
                // `at` is inside.
                batch.extend(rest.remove(at));
            } else {
                at += 1;
            }
        }
        batches.push(batch);
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(batch: &[usize], lengths: &[usize]) -> usize {
        batch.iter().map(|&example| lengths[example]).sum()
    }

    proptest! {
        #[test]
        fn every_example_is_in_one_batch(
            lengths in prop::collection::vec(1_usize..60, 1..700),
            n in 1_usize..40,
            seed in any::<u64>(),
        ) {
            let order: Vec<usize> = (0..lengths.len()).rev().collect();
            for limit in [BatchLimit::Sequences(n), BatchLimit::Tokens(60 + 7 * n)] {
                let batches = even_batches(&order, &lengths, limit, seed).unwrap();
                let mut all = batches.concat();
                all.sort_unstable();
                prop_assert_eq!(&all, &(0..lengths.len()).collect::<Vec<_>>());
                match limit {
                    BatchLimit::Sequences(n) => {
                        let (last, full) = batches.split_last().unwrap();
                        prop_assert!(full.iter().all(|batch| batch.len() == n) && last.len() <= n);
                    }
                    BatchLimit::Tokens(n) => {
                        prop_assert!(batches.iter().all(|batch| tokens(batch, &lengths) <= n));
                    }
                }
                prop_assert_eq!(batches, even_batches(&order, &lengths, limit, seed).unwrap());
            }
        }
    }

    /// Shares of the mean: the largest batch over the mean one.
    fn spread(batches: &[Vec<usize>], lengths: &[usize]) -> f64 {
        let full = &batches[..batches.len() - 1];
        let sizes: Vec<f64> = full.iter().map(|batch| tokens(batch, lengths) as f64).collect();
        let mean = sizes.iter().sum::<f64>() / sizes.len() as f64;
        sizes.iter().map(|size| (size / mean - 1.0).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn sizes_hardly_differ() {
        let mut random = SplitMix64::new(5);
        let lengths: Vec<usize> =
            (0..3000).map(|_| 3 + random.below(12) * random.below(12)).collect();
        let order: Vec<usize> = (0..lengths.len()).collect();
        let plain: Vec<Vec<usize>> = order.chunks(32).map(<[usize]>::to_vec).collect();
        let even = even_batches(&order, &lengths, BatchLimit::Sequences(32), 1).unwrap();
        let (before, after) = (spread(&plain, &lengths), spread(&even, &lengths));
        // Windows differ: the mean of 2048 lengths of this spread by a share of 0.02 and less.
        assert!(before > 0.2 && after <= 0.04, "{before} {after}");
        let even = even_batches(&order, &lengths, BatchLimit::Tokens(1024), 1).unwrap();
        assert!(spread(&even, &lengths) <= 0.01, "{}", spread(&even, &lengths));
        assert!(even_batches(&order, &lengths, BatchLimit::Tokens(100), 1).is_err());
    }
}
