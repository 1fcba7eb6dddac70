//! A data set as tokens: what training and measuring draw their batches from.

use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::even::even_batches;
use super::{BatchLimit, Dataset, Encoded, Example, Packer, TaskInfo, Tokenizer, epoch_order};
use crate::batch::{Batch, IGNORED_LABEL, PositionScheme};
use crate::files::hex;
use crate::{Error, Result};

/// Examples as tokens, with their labels.
pub struct Split {
    encoded: Encoded,
    examples: Vec<Example>,
}

impl Split {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Texts that were cut at the longest length.
    pub fn n_truncated(&self) -> usize {
        self.encoded.n_truncated
    }

    /// Tokens of one example.
    pub fn length(&self, example: usize) -> usize {
        self.encoded.sequence(example).0.len()
    }

    /// The text of an example, and the second one of a pair.
    pub fn text(&self, example: usize) -> (&str, Option<&str>) {
        let example = &self.examples[example];
        (&example.text, example.pair.as_deref())
    }

    /// The class of an example for a task, if it has one.
    pub fn class(&self, example: usize, task: usize) -> Option<usize> {
        self.examples[example].labels[task].map(|class| class as usize)
    }

    /// At most `most` examples, in order and evenly from the whole split: files are often sorted by label.
    pub fn spread(&self, most: usize) -> Vec<usize> {
        spread(self.len(), most)
    }

    /// The SHA-256 of all tokens, example by example.
    pub fn digest_of_tokens(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for example in 0..self.len() {
            let (ids, type_ids) = self.encoded.sequence(example);
            digest.update((ids.len() as u64).to_le_bytes());
            digest.update(bytemuck::cast_slice::<i32, u8>(ids));
            digest.update(bytemuck::cast_slice::<i32, u8>(type_ids));
        }
        digest.finalize().into()
    }

    /// The places of `examples` among themselves, the shortest text first: batches of texts of a length make no room for
    /// a long one that the others do not need.
    pub fn by_length(&self, examples: &[usize]) -> Vec<usize> {
        let mut places: Vec<usize> = (0..examples.len()).collect();
        places.sort_by_key(|place| self.length(examples[*place]));
        places
    }

    /// Tokens of all examples.
    pub fn n_tokens(&self) -> usize {
        self.lengths().into_iter().sum()
    }

    /// Tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.encoded.lengths()
    }
}

fn spread(n: usize, most: usize) -> Vec<usize> {
    let n_chosen = n.min(most);
    (0..n_chosen).map(|at| at * n / n_chosen).collect()
}

/// A tokenised data set.
pub struct Corpus {
    pub tasks: Vec<TaskInfo>,
    pub train: Split,
    pub eval: Split,
    positions: PositionScheme,
}

/// What the model says about its tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenRules {
    pub vocab_size: usize,
    pub max_length: usize,
    /// Rows of the token type table, 0 where the family has none and ignores the types.
    pub type_vocab_size: usize,
    pub positions: PositionScheme,
}

impl Corpus {
    /// Tokenises `dataset` with the tokenizer of `model_dir`; `progress` is told of texts done.
    ///
    /// # Errors
    /// A missing or broken tokenizer, or one whose ids the model does not have.
    pub fn new(
        dataset: Dataset,
        model_dir: &Path,
        rules: TokenRules,
        progress: impl Fn(usize) + Sync,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::open(model_dir)?;
        tokenizer.check_ids(rules.vocab_size)?;
        let split = |examples: Vec<Example>| {
            let texts: Vec<(&str, Option<&str>)> = (examples.iter())
                .map(|example| (example.text.as_str(), example.pair.as_deref()))
                .collect();
            let encoded = tokenizer.encode_pairs(&texts, rules.max_length, &progress)?;
            let highest = encoded.highest_type_id();
            if rules.type_vocab_size > 0 && highest >= rules.type_vocab_size as i32 {
                return Err(Error::content(
                    model_dir.join("tokenizer.json"),
                    format!(
                        "gives token type {highest}, but config.json's type_vocab_size is {}",
                        rules.type_vocab_size
                    ),
                ));
            }
            Ok(Split { encoded, examples })
        };
        Ok(Self {
            tasks: dataset.tasks,
            train: split(dataset.train)?,
            eval: split(dataset.eval)?,
            positions: rules.positions,
        })
    }

    /// Name and number of labels of each task, as a network wants them.
    pub fn task_sizes(&self) -> Vec<(String, usize)> {
        self.tasks.iter().map(|task| (task.name.clone(), task.labels.len())).collect()
    }

    /// The SHA-256 of all tokens and labels, and of the order in which they stand.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for split in [&self.train, &self.eval] {
            digest.update(split.digest_of_tokens());
            for example in &split.examples {
                for task in 0..self.tasks.len() {
                    digest.update(example.label(task).to_le_bytes());
                }
            }
        }
        hex(&digest.finalize())
    }

    /// The packer for this corpus.
    pub fn packer(&self, limit: BatchLimit) -> Packer {
        Packer { limit, positions: self.positions, n_tasks: self.tasks.len() }
    }

    /// The batches of one epoch over the training rows, as orders of examples.
    ///
    /// # Errors
    /// A text that alone exceeds a limit of tokens.
    pub fn epoch(&self, limit: BatchLimit, seed: u64, epoch: u64) -> Result<Vec<Vec<usize>>> {
        self.cut(&self.train, self.order(seed, epoch), limit)
    }

    /// As [`Corpus::epoch`], in batches of nearly equal numbers of tokens.
    ///
    /// # Errors
    /// As [`Corpus::epoch`].
    pub fn even_epoch(&self, limit: BatchLimit, seed: u64, epoch: u64) -> Result<Vec<Vec<usize>>> {
        even_batches(&self.order(seed, epoch), &self.train.lengths(), limit, seed ^ epoch)
    }

    /// The shuffled training rows of an epoch.
    fn order(&self, seed: u64, epoch: u64) -> Vec<usize> {
        let sources: Vec<usize> = self.train.examples.iter().map(|e| e.source).collect();
        epoch_order(&sources, seed, epoch)
    }

    /// Cuts examples of `split` into batches, in the order in which they are given.
    ///
    /// # Errors
    /// As [`Corpus::epoch`].
    pub fn cut(
        &self,
        split: &Split,
        order: Vec<usize>,
        limit: BatchLimit,
    ) -> Result<Vec<Vec<usize>>> {
        let ranges: Vec<Range<usize>> = self.packer(limit).batches(&order, &split.lengths())?;
        Ok(ranges.into_iter().map(|range| order[range].to_vec()).collect())
    }

    /// Packs the examples `indices` of `split`.
    pub fn pack(&self, split: &Split, indices: &[usize]) -> Batch {
        // The limit has done its work when the indices were cut.
        let packer = self.packer(BatchLimit::Sequences(indices.len().max(1)));
        packer.pack(indices, &split.encoded, |example, task| split.examples[example].label(task))
    }

    /// As [`Corpus::pack`], for a network of `n_tasks` tasks that may be others: no row has a label.
    pub fn pack_unlabelled(&self, split: &Split, indices: &[usize], n_tasks: usize) -> Batch {
        let limit = BatchLimit::Sequences(indices.len().max(1));
        let packer = Packer { n_tasks, ..self.packer(limit) };
        packer.pack(indices, &split.encoded, |_, _| IGNORED_LABEL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_chosen_from_the_whole_split() {
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(3, 3), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert!(spread(0, 4).is_empty() && spread(4, 0).is_empty());
    }
}
