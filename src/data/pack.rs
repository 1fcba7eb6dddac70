//! Orders of epochs, and examples packed into batches without padding.

use std::ops::Range;

use super::random::SplitMix64;
use super::tokenize::Encoded;
use crate::batch::{Batch, PositionScheme};
use crate::{Error, Result};

/// How much goes into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum BatchLimit {
    /// This many sequences; the last batch of an epoch may have fewer.
    Sequences(usize),
    /// As many sequences as have at most this many tokens together.
    Tokens(usize),
}

/// The order of an epoch, as indices of examples: each exactly once.
///
/// `sources[i]` is the source of example `i`. The examples of a source are shuffled by seed and
/// epoch, and the sources are interleaved in proportion to their sizes, so that every stretch of
/// the order, and so every batch, mixes the sources in that proportion, give or take an example.
pub fn epoch_order(sources: &[usize], seed: u64, epoch: u64) -> Vec<usize> {
    let n_sources = sources.iter().max().map_or(0, |&last| last + 1);
    let mut by_source = vec![Vec::new(); n_sources];
    for (example, &source) in sources.iter().enumerate() {
        by_source[source].push(example);
    }
    let epoch_seed = SplitMix64::stream(seed, epoch).next_u64();
    let mut places = Vec::with_capacity(sources.len());
    for (source, examples) in by_source.iter_mut().enumerate() {
        SplitMix64::stream(epoch_seed, source as u64).shuffle(examples);
        // Example k of n stands at (k + 1/2) / n of the epoch.
        let n = examples.len() as u128;
        places.extend((0..n).zip(examples).map(|(k, example)| (2 * k + 1, n, source, *example)));
    }
    places.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
    places.into_iter().map(|(.., example)| example).collect()
}

/// The error of a batch of `limit` tokens that cannot hold a sequence of `length`.
pub fn batch_too_small(limit: usize, length: usize) -> Error {
    Error::usage(format!("--batch-tokens {limit}: a sequence of {length} tokens does not fit"))
}

/// What stays the same from batch to batch.
#[derive(Clone, Copy, Debug)]
pub struct Packer {
    pub limit: BatchLimit,
    /// How the model numbers positions.
    pub positions: PositionScheme,
    /// Number of tasks.
    pub n_tasks: usize,
}

impl Packer {
    /// Cuts an order into batches, as ranges of `order`. `lengths[i]` is the number of tokens of
    /// example `i`.
    ///
    /// # Errors
    /// [`Error::Usage`] if the limit is 0, or a sequence alone has more tokens than it allows.
    pub fn batches(&self, order: &[usize], lengths: &[usize]) -> Result<Vec<Range<usize>>> {
        match self.limit {
            BatchLimit::Sequences(0) | BatchLimit::Tokens(0) => {
                Err(Error::usage("a batch of at most 0 holds nothing; expected 1 or more"))
            }
            BatchLimit::Sequences(limit) => Ok((0..order.len())
                .step_by(limit)
                .map(|start| start..order.len().min(start.saturating_add(limit)))
                .collect()),
            BatchLimit::Tokens(limit) => {
                let mut batches = Vec::new();
                let (mut start, mut n_tokens) = (0, 0);
                for (end, &example) in order.iter().enumerate() {
                    let length = lengths[example];
                    if length > limit {
                        return Err(batch_too_small(limit, length));
                    }
                    if n_tokens + length > limit {
                        batches.push(start..end);
                        (start, n_tokens) = (end, 0);
                    }
                    n_tokens += length;
                }
                if start < order.len() {
                    batches.push(start..order.len());
                }
                Ok(batches)
            }
        }
    }

    /// Packs the examples `indices` into one batch, in that order.
    ///
    /// `label_of(example, task)` is the class, [`ABSENT_LABEL`](crate::batch::ABSENT_LABEL) or
    /// [`IGNORED_LABEL`](crate::batch::IGNORED_LABEL); for labelled data
    /// [`Example::label`](super::Example::label) has it.
    pub fn pack(
        &self,
        indices: &[usize],
        encoded: &Encoded,
        label_of: impl Fn(usize, usize) -> i32,
    ) -> Batch {
        let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
        for &example in indices {
            let (ids, type_ids) = encoded.sequence(example);
            batch.input_ids.extend_from_slice(ids);
            batch.token_type_ids.extend_from_slice(type_ids);
            self.positions.extend(ids, &mut batch.position_ids);
            batch.cu_seqlens.push(batch.input_ids.len() as i32);
        }
        batch.labels = (0..self.n_tasks)
            .map(|task| indices.iter().map(|&example| label_of(example, task)).collect())
            .collect();
        batch
    }
}

/// The shape of a batch that is made up for a benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthetic {
    pub n_sequences: usize,
    /// Tokens of every sequence.
    pub length: usize,
    /// Ids are uniform in `0..vocab_size`, the padding id left out.
    pub vocab_size: usize,
    pub pad_id: Option<usize>,
    /// Number of classes of each task; labels are uniform.
    pub n_labels: Vec<usize>,
    pub positions: PositionScheme,
}

/// A batch of random tokens and labels, the same for the same shape and seed. Segment ids are 0, as
/// they are for single texts, and every row has a label for every task.
///
/// # Errors
/// [`Error::Usage`] if there is nothing to draw from: no sequence, token, id or class.
pub fn synthetic(shape: &Synthetic, seed: u64) -> Result<Batch> {
    let pad_id = shape.pad_id.filter(|&pad_id| pad_id < shape.vocab_size);
    let n_ids = shape.vocab_size - usize::from(pad_id.is_some());
    for (value, what) in [
        (shape.n_sequences, "sequences"),
        (shape.length, "tokens a sequence"),
        (n_ids, "token ids beside the padding"),
        (shape.n_labels.iter().copied().min().unwrap_or(1), "labels of a task"),
    ] {
        if value == 0 {
            return Err(Error::usage(format!("synthetic data with 0 {what}; expected 1 or more")));
        }
    }
    let mut random = SplitMix64::stream(seed, 0);
    let n_tokens = shape.n_sequences * shape.length;
    let mut batch = Batch { token_type_ids: vec![0; n_tokens], ..Batch::default() };
    for _ in 0..n_tokens {
        let drawn = random.below(n_ids);
        let id = drawn + usize::from(pad_id.is_some_and(|pad_id| drawn >= pad_id));
        batch.input_ids.push(id as i32);
    }
    for sequence in batch.input_ids.chunks(shape.length) {
        shape.positions.extend(sequence, &mut batch.position_ids);
    }
    batch.cu_seqlens = (0..=shape.n_sequences).map(|b| (b * shape.length) as i32).collect();
    for (task, &n_labels) in (1..).zip(&shape.n_labels) {
        let mut random = SplitMix64::stream(seed, task);
        batch.labels.push((0..shape.n_sequences).map(|_| random.below(n_labels) as i32).collect());
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{ABSENT_LABEL, IGNORED_LABEL};

    fn packer(limit: BatchLimit) -> Packer {
        Packer { limit, positions: PositionScheme::FromZero, n_tasks: 2 }
    }

    /// Texts of given lengths whose tokens all differ.
    fn encoded(lengths: &[usize]) -> Encoded {
        let mut next = 0;
        let sequences: Vec<Vec<i32>> = lengths
            .iter()
            .map(|&length| {
                next += length as i32;
                (next - length as i32..next).collect()
            })
            .collect();
        Encoded::from_sequences(&sequences)
    }

    #[test]
    fn one_source_is_just_shuffled() {
        let order = epoch_order(&[0; 50], 1, 0);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(order, sorted);
        assert_eq!(order, epoch_order(&[0; 50], 1, 0));
        assert_ne!(order, epoch_order(&[0; 50], 1, 1));
        assert_ne!(order, epoch_order(&[0; 50], 2, 0));
        assert!(epoch_order(&[], 1, 0).is_empty());
    }

    #[test]
    fn an_order_is_the_same_on_every_machine() {
        // From an independent program; resumed runs and published results rest on it.
        let expected = [1, 6, 0, 2, 7, 5, 4, 8, 3];
        assert_eq!(epoch_order(&[0, 0, 0, 0, 0, 0, 1, 1, 1], 42, 0), expected);
    }

    #[test]
    fn sequence_limit_and_last_batch() {
        let order = [3, 1, 4, 0, 2];
        let batches = |limit| packer(limit).batches(&order, &[7; 5]).unwrap();
        assert_eq!(batches(BatchLimit::Sequences(2)), [0..2, 2..4, 4..5]);
        for limit in [5, usize::MAX] {
            let whole = batches(BatchLimit::Sequences(limit));
            assert_eq!((whole.len(), whole[0].clone()), (1, 0..5));
        }
        assert!(packer(BatchLimit::Sequences(2)).batches(&[], &[]).unwrap().is_empty());
    }

    #[test]
    fn token_limit() {
        let lengths = [5, 3, 2, 4, 6];
        let batches = |limit, order: &[usize]| {
            packer(BatchLimit::Tokens(limit)).batches(order, &lengths).map_err(|e| e.to_string())
        };
        assert_eq!(batches(8, &[0, 1, 2, 3, 4]), Ok(vec![0..2, 2..4, 4..5]));
        assert_eq!(batches(6, &[4, 3, 2, 0]), Ok(vec![0..1, 1..3, 3..4]));
        let message = batches(5, &[0, 4]).unwrap_err();
        assert!(message.contains("sequence of 6 tokens") && message.contains("--batch-tokens 5"));
        assert!(batches(8, &[]).unwrap().is_empty());
    }

    #[test]
    fn limits_of_zero_are_refused() {
        for limit in [BatchLimit::Sequences(0), BatchLimit::Tokens(0)] {
            let error = packer(limit).batches(&[0], &[1]).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{error}");
        }
    }

    #[test]
    fn packs_tokens_positions_and_labels() {
        let encoded = Encoded::from_sequences(&[vec![5, 1, 6], vec![7], vec![8, 9]]);
        let labels = [[4, ABSENT_LABEL], [0, 1], [IGNORED_LABEL, 2]];
        let mut packer = packer(BatchLimit::Sequences(9));
        let batch = packer.pack(&[2, 0], &encoded, |example, task| labels[example][task]);
        assert_eq!(batch.input_ids, [8, 9, 5, 1, 6]);
        assert_eq!(batch.token_type_ids, [0; 5]);
        assert_eq!(batch.position_ids, [0, 1, 0, 1, 2]);
        assert_eq!(batch.cu_seqlens, [0, 2, 5]);
        assert_eq!(batch.labels, [[IGNORED_LABEL, 4], [2, ABSENT_LABEL]]);
        packer.positions = PositionScheme::AfterPadding { pad_id: 1 };
        let batch = packer.pack(&[0, 1], &encoded, |_, _| 0);
        assert_eq!(batch.position_ids, [2, 1, 3, 2]);
        assert_eq!(packer.pack(&[], &encoded, |_, _| 0).cu_seqlens, [0]);
    }

    #[test]
    fn synthetic_batches() {
        let shape = Synthetic {
            n_sequences: 300,
            length: 7,
            vocab_size: 5,
            pad_id: Some(1),
            n_labels: vec![3, 2],
            positions: PositionScheme::AfterPadding { pad_id: 1 },
        };
        let batch = synthetic(&shape, 4).unwrap();
        assert_eq!(batch, synthetic(&shape, 4).unwrap());
        assert_ne!(batch, synthetic(&shape, 5).unwrap());
        assert_eq!((batch.n_sequences(), batch.n_tokens()), (300, 2100));
        assert!(batch.lengths().all(|length| length == 7));
        assert!(batch.position_ids.chunks(7).all(|positions| positions == [2, 3, 4, 5, 6, 7, 8]));
        let counts = |values: &[i32], n: i32| -> Vec<usize> {
            assert!(values.iter().all(|value| (0..n).contains(value)));
            (0..n).map(|i| values.iter().filter(|&&value| value == i).count()).collect()
        };
        let ids = counts(&batch.input_ids, 5);
        assert_eq!(ids[1], 0, "padding");
        // 525 expected with a standard deviation of 20: 100 is five of them.
        assert!([0, 2, 3, 4].iter().all(|&id| ids[id].abs_diff(525) <= 100), "{ids:?}");
        // 100 and 150 expected with standard deviations of 8.2 and 8.7: 45 is five of them.
        assert!(counts(&batch.labels[0], 3).iter().all(|count| count.abs_diff(100) <= 45));
        assert!(counts(&batch.labels[1], 2).iter().all(|count| count.abs_diff(150) <= 45));

        let without_padding = Synthetic { pad_id: None, ..shape.clone() };
        let batch = synthetic(&without_padding, 4).unwrap();
        assert!(counts(&batch.input_ids, 5)[1] > 0);
        let outside = Synthetic { pad_id: Some(5), ..shape.clone() };
        assert_eq!(synthetic(&outside, 4).unwrap().input_ids, batch.input_ids);

        for empty in [
            Synthetic { n_sequences: 0, ..shape.clone() },
            Synthetic { length: 0, ..shape.clone() },
            Synthetic { vocab_size: 0, ..shape.clone() },
            Synthetic { vocab_size: 2, n_labels: vec![2, 0], ..shape.clone() },
            Synthetic { vocab_size: 1, pad_id: Some(0), ..shape.clone() },
        ] {
            assert!(matches!(synthetic(&empty, 4), Err(Error::Usage(_))), "{empty:?}");
        }
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_example_once_and_every_token(
            examples in prop::collection::vec((1usize..9, 0usize..3), 0..60),
            limit in prop_oneof![
                (1usize..70).prop_map(BatchLimit::Sequences),
                (8usize..40).prop_map(BatchLimit::Tokens),
            ],
            seed in any::<u64>(),
            epoch in 0u64..5,
        ) {
            let (lengths, sources): (Vec<_>, Vec<_>) = examples.into_iter().unzip();
            let encoded = encoded(&lengths);
            let packer = packer(limit);
            let order = epoch_order(&sources, seed, epoch);
            let mut ids = Vec::new();
            let mut examples = Vec::new();
            for range in packer.batches(&order, &lengths).unwrap() {
                let indices = &order[range];
                let batch = packer.pack(indices, &encoded, |example, task| (example + task) as i32);
                prop_assert_eq!(batch.cu_seqlens[0], 0);
                prop_assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, batch.n_tokens());
                prop_assert_eq!(
                    batch.lengths().collect::<Vec<_>>(),
                    indices.iter().map(|&i| lengths[i]).collect::<Vec<_>>()
                );
                for (&example, ends) in indices.iter().zip(batch.cu_seqlens.windows(2)) {
                    let tokens = ends[0] as usize..ends[1] as usize;
                    prop_assert_eq!(&batch.input_ids[tokens.clone()], encoded.sequence(example).0);
                    let positions = batch.position_ids[tokens].iter().copied();
                    prop_assert!(positions.eq(0..ends[1] - ends[0]));
                }
                for task in 0..2 {
                    let labels = indices.iter().map(|&i| (i + task) as i32);
                    prop_assert!(batch.labels[task].iter().copied().eq(labels));
                }
                match limit {
                    BatchLimit::Sequences(limit) => prop_assert!(batch.n_sequences() <= limit),
                    BatchLimit::Tokens(limit) => prop_assert!(batch.n_tokens() <= limit),
                }
                examples.extend_from_slice(indices);
                ids.extend(batch.input_ids);
            }
            examples.sort_unstable();
            ids.sort_unstable();
            prop_assert_eq!(examples, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert_eq!(ids, (0..lengths.iter().sum::<usize>() as i32).collect::<Vec<_>>());
        }

        #[test]
        fn every_stretch_mixes_the_sources_in_proportion(
            sizes in prop::collection::vec(0usize..40, 1..4),
            seed in any::<u64>(),
        ) {
            let sources: Vec<usize> =
                sizes.iter().enumerate().flat_map(|(source, &n)| vec![source; n]).collect();
            let order = epoch_order(&sources, seed, 0);
            for end in 0..=order.len() {
                for (source, &size) in sizes.iter().enumerate() {
                    let found = order[..end].iter().filter(|&&i| sources[i] == source).count();
                    let due = (end * size) as f64 / order.len().max(1) as f64;
                    // Each other source is at most half an example off where this one stands.
                    prop_assert!((found as f64 - due).abs() <= sizes.len() as f64 / 2.0 + 0.5);
                }
            }
        }
    }
}
