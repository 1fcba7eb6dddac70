//! A packed batch: what one training step reads, as plain host arrays.

/// Label of a row that takes part in the forward pass of a head but not in its loss (PyTorch's
/// `ignore_index`). Its logits are computed.
pub const IGNORED_LABEL: i32 = -100;

/// Label of a row that has nothing to do with a task: the head computes nothing for it.
pub const ABSENT_LABEL: i32 = -1;

/// T tokens of B sequences, packed one after the other without padding.
///
/// Sequence `b` owns the tokens `cu_seqlens[b]..cu_seqlens[b + 1]`; no sequence is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[T]`, each in `0..vocab_size`.
    pub input_ids: Vec<i32>,
    /// Segment ids, `[T]`, each in `0..type_vocab_size` (all 0 where a model has no such table).
    pub token_type_ids: Vec<i32>,
    /// Rows of the position table, `[T]`; RoBERTa's start at `pad_token_id + 1`.
    pub position_ids: Vec<i32>,
    /// Ends of the sequences, `[B + 1]`, beginning with 0 and ending with T.
    pub cu_seqlens: Vec<i32>,
    /// For each task in the model's order: `[B]` classes, [`IGNORED_LABEL`] or [`ABSENT_LABEL`].
    pub labels: Vec<Vec<i32>>,
    /// For each task `[B]`: what the loss of each row is multiplied with before they are summed (rows without a label
    /// count for nothing). Empty where the loss of a task is the mean over its labelled rows.
    pub loss_weights: Vec<Vec<f32>>,
    /// Where the frozen prefix is cached: the cache's row of each token, `[T]`, or of each sequence, `[B]`, as the
    /// cache has them; else empty.
    pub prefix_rows: Vec<i32>,
}

impl Batch {
    /// T, the number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// B, the number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Lengths of the sequences, in order.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as usize)
    }

    /// The longest sequence, 0 for an empty batch.
    pub fn max_length(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }
}

/// How a family numbers the rows of its position table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionScheme {
    /// BERT, DistilBERT: 0, 1, 2, ...
    FromZero,
    /// RoBERTa and its kin: the n-th token that is not padding sits at `pad_id + n`, and a padding
    /// token at `pad_id` (transformers' `create_position_ids_from_input_ids`).
    AfterPadding { pad_id: i32 },
}

impl PositionScheme {
    /// Appends the positions of one sequence to `positions`.
    pub fn extend(self, input_ids: &[i32], positions: &mut Vec<i32>) {
        match self {
            PositionScheme::FromZero => positions.extend(0..input_ids.len() as i32),
            PositionScheme::AfterPadding { pad_id } => {
                let mut next = pad_id;
                positions.extend(input_ids.iter().map(|&id| {
                    if id == pad_id {
                        return pad_id;
                    }
                    next += 1;
                    next
                }));
            }
        }
    }
}
