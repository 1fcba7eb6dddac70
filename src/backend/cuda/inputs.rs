//! What a step reads beside parameters and activations: the step's state, the batch, and lists that
//! kernels would otherwise have to derive from it. One block of memory, filled on the host and copied
//! once a step.

use super::tiles;
use crate::backend::StepState;
use crate::batch::Batch;
use crate::plan::{Capacity, Input};

/// Bytes of `StepState` in `kernels/common.cuh`.
pub(super) const STATE_BYTES: usize = 64;

/// Places in the block are multiples of this many bytes.
const ALIGNMENT_BYTES: usize = 256;

/// An array of 32-bit words that kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Derived {
    /// Part of the batch as it is.
    Input(Input),
    /// Number of the sequence that each token belongs to, `[T]`.
    SequenceIds,
    /// Token numbers, sorted by their id and among equal ids by position, `[T]`.
    SegmentOrder(Input),
    /// [`tiles::pack`] of the batch.
    AttentionStrips,
    /// [`tiles::blocks`] of the batch.
    AttentionBlocks,
    /// For each of so many table rows where its tokens begin in that order, `[rows + 1]`.
    RowStart(Input, usize),
}

impl Derived {
    /// Elements at most.
    fn capacity(self, capacity: Capacity) -> usize {
        match self {
            Derived::Input(Input::Labels(_) | Input::LossWeights(_)) => capacity.sequences,
            Derived::Input(Input::CuSeqlens) => capacity.sequences + 1,
            // Of sequences, or of tokens.
            Derived::Input(Input::PrefixRows) => capacity.tokens.max(capacity.sequences),
            Derived::Input(_) | Derived::SequenceIds | Derived::SegmentOrder(_) => capacity.tokens,
            Derived::AttentionStrips => tiles::max_tiles(capacity) * tiles::TILE_WORDS,
            Derived::AttentionBlocks => tiles::max_blocks(capacity) * tiles::BLOCK_WORDS,
            Derived::RowStart(_, rows) => rows + 1,
        }
    }

    fn fill(self, batch: &Batch, attention: &AttentionLists) -> Vec<i32> {
        match self {
            Derived::Input(input) => input_of(batch, input).to_vec(),
            Derived::SequenceIds => {
                let lengths = batch.lengths().enumerate();
                lengths.flat_map(|(b, length)| std::iter::repeat_n(b as i32, length)).collect()
            }
            Derived::SegmentOrder(input) => order(input_of(batch, input)),
            Derived::AttentionStrips => attention.strips.clone(),
            Derived::AttentionBlocks => attention.blocks.clone(),
            Derived::RowStart(input, rows) => {
                let mut starts = vec![0; rows + 1];
                for &id in input_of(batch, input) {
                    starts[id as usize + 1] += 1;
                }
                for row in 0..rows {
                    starts[row + 1] += starts[row];
                }
                starts
            }
        }
    }
}

/// How the attention kernels share out a batch.
struct AttentionLists {
    strips: Vec<i32>,
    blocks: Vec<i32>,
}

impl AttentionLists {
    fn new(batch: &Batch) -> Self {
        AttentionLists {
            strips: tiles::pack(&batch.cu_seqlens),
            blocks: tiles::blocks(&batch.cu_seqlens),
        }
    }
}

fn input_of(batch: &Batch, input: Input) -> &[i32] {
    match input {
        Input::InputIds => &batch.input_ids,
        Input::PositionIds => &batch.position_ids,
        Input::TokenTypeIds => &batch.token_type_ids,
        Input::CuSeqlens => &batch.cu_seqlens,
        Input::Labels(task) => &batch.labels[task],
        // Kernels read these words as the f32 that they are.
        Input::LossWeights(task) => bytemuck::cast_slice(&batch.loss_weights[task]),
        Input::PrefixRows => &batch.prefix_rows,
    }
}

fn order(ids: &[i32]) -> Vec<i32> {
    let mut order: Vec<i32> = (0..ids.len() as i32).collect();
    order.sort_by_key(|&token| ids[token as usize]);
    order
}

/// The block of one bound plan: which arrays it holds, and where.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    arrays: Vec<(Derived, usize)>,
    n_bytes: usize,
}

impl Inputs {
    /// The offset of an array in the block, where it is given a place if it has none.
    pub fn place(&mut self, array: Derived, capacity: Capacity) -> usize {
        if let Some((_, offset)) = self.arrays.iter().find(|(other, _)| *other == array) {
            return *offset;
        }
        let offset = self.n_bytes.max(STATE_BYTES).next_multiple_of(ALIGNMENT_BYTES);
        self.n_bytes = offset + array.capacity(capacity) * size_of::<i32>();
        self.arrays.push((array, offset));
        offset
    }

    /// Bytes of the block.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes.max(STATE_BYTES)
    }

    /// The block for a batch and a step; what a batch leaves free is -1.
    pub fn fill(&self, batch: &Batch, state: &StepState) -> Vec<u8> {
        let mut block = vec![0xFF; self.n_bytes()];
        let attention = AttentionLists::new(batch);
        let words = state_words(batch, &attention, state);
        block[..STATE_BYTES].copy_from_slice(bytemuck::cast_slice(&words));
        for (array, offset) in &self.arrays {
            let values = array.fill(batch, &attention);
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            block[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        block
    }
}

/// `StepState` of `kernels/common.cuh`, field by field.
fn state_words(
    batch: &Batch,
    attention: &AttentionLists,
    state: &StepState,
) -> [u32; STATE_BYTES / 4] {
    let [seed_low, seed_high] = crate::philox::key_of(state.seed);
    let mut words = [0; STATE_BYTES / 4];
    let fields = [
        batch.n_tokens() as u32,
        batch.n_sequences() as u32,
        state.step as u32,
        seed_low,
        seed_high,
        state.learning_rate.to_bits(),
        state.head_learning_rate.to_bits(),
        state.weight_decay.to_bits(),
        (attention.strips.len() / tiles::TILE_WORDS) as u32,
        (attention.blocks.len() / tiles::BLOCK_WORDS) as u32,
    ];
    words[..fields.len()].copy_from_slice(&fields);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch {
            input_ids: vec![5, 2, 5, 0, 2, 5],
            token_type_ids: vec![0; 6],
            position_ids: vec![0, 1, 2, 0, 1, 2],
            cu_seqlens: vec![0, 3, 4, 6],
            labels: vec![vec![0, 1, -100]],
            ..Batch::default()
        }
    }

    #[test]
    fn lists_follow_the_batch() {
        let attention = AttentionLists::new(&batch());
        let fill = |array: Derived| array.fill(&batch(), &attention);
        assert_eq!(fill(Derived::SequenceIds), [0, 0, 0, 1, 2, 2]);
        assert_eq!(fill(Derived::SegmentOrder(Input::InputIds)), [3, 1, 4, 0, 2, 5]);
        assert_eq!(fill(Derived::RowStart(Input::InputIds, 7)), [0, 1, 1, 3, 3, 3, 6, 6]);
    }

    #[test]
    fn the_block_holds_state_and_arrays_apart() {
        let capacity = Capacity { tokens: 8, sequences: 4, max_length: 4 };
        let mut inputs = Inputs::default();
        let ids = inputs.place(Derived::Input(Input::InputIds), capacity);
        let ends = inputs.place(Derived::Input(Input::CuSeqlens), capacity);
        assert_eq!(inputs.place(Derived::Input(Input::InputIds), capacity), ids);
        assert_eq!((ids, ends), (256, 512));
        let state = StepState {
            step: 2,
            learning_rate: 0.5,
            head_learning_rate: 0.25,
            weight_decay: 0.0,
            seed: 1 << 32 | 7,
        };
        let block = inputs.fill(&batch(), &state);
        let word = |at: usize| i32::from_le_bytes(block[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8), word(12), word(16)), (6, 3, 2, 7, 1));
        assert_eq!((word(ids), word(ids + 4), word(ids + 24)), (5, 2, -1));
        assert_eq!((word(ends), word(ends + 12)), (0, 6));
        assert_eq!(f32::from_bits(word(24) as u32), 0.25);
    }
}
