//! A training step as a value: ops over numbered buffers, each written once.
//!
//! [`step`] writes the step in which everything trains; [`mod@prune`] deletes what a freeze makes
//! useless; [`prefix`] replaces what is cached by a look into the cache; [`hidden`] keeps what every layer gives;
//! [`fuse`] joins neighbours; [`mod@accumulate`] spreads a step over several batches; [`cost`] counts FLOPs and bytes;
//! [`layout`] gives every buffer its place; [`mod@print`] shows it all; [`verify`] checks that it is sound.
//!
//! A plan does no I/O and knows no device.

pub mod accumulate;
pub mod cost;
pub mod family;
pub mod fuse;
pub mod hidden;
pub mod layout;
pub mod op;
pub mod operands;
pub mod prefix;
pub mod print;
pub mod prune;
pub mod step;
pub mod verify;

use crate::batch::Batch;
use crate::freeze::FreezeMask;
use crate::model::{Group, Network, ParamId};
use crate::tensor::DType;

pub use cost::{Cost, Counts};
pub use family::Family;
pub use layout::Layout;
pub use op::{Op, Phase};
pub use prune::prune;
pub use step::{Loss, StepOptions, training_step};

/// Index into [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufId(pub usize);

/// The most that a batch may hold: what buffers are sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Capacity {
    pub tokens: usize,
    pub sequences: usize,
    /// Tokens of the longest sequence.
    pub max_length: usize,
}

impl Capacity {
    /// The least capacity that serves all of `batches`.
    pub fn of<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Self {
        let mut capacity = Capacity { tokens: 0, sequences: 0, max_length: 0 };
        for batch in batches {
            capacity.tokens = capacity.tokens.max(batch.n_tokens());
            capacity.sequences = capacity.sequences.max(batch.n_sequences());
            capacity.max_length = capacity.max_length.max(batch.max_length());
        }
        capacity
    }

    /// Whether `batch` fits.
    pub fn serves(&self, batch: &Batch) -> bool {
        batch.n_tokens() <= self.tokens
            && batch.n_sequences() <= self.sequences
            && batch.max_length() <= self.max_length
    }
}

/// What the rows of a buffer stand for; a batch decides how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One row a token: T.
    Tokens,
    /// One row a sequence: B.
    Sequences,
    /// B + 1: the ends of the sequences.
    SequenceEnds,
    Fixed(usize),
}

impl Rows {
    /// The number of rows for `tokens` tokens of `sequences` sequences.
    pub fn count(self, tokens: usize, sequences: usize) -> usize {
        match self {
            Rows::Tokens => tokens,
            Rows::Sequences => sequences,
            Rows::SequenceEnds => sequences + 1,
            Rows::Fixed(n) => n,
        }
    }
}

/// What a batch brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    InputIds,
    PositionIds,
    TokenTypeIds,
    CuSeqlens,
    /// Labels of a task, by its index.
    Labels(usize),
    /// What each row's loss of a task is multiplied with, in f32.
    LossWeights(usize),
    /// Rows of the cached prefix.
    PrefixRows,
}

/// What a buffer is for, and so where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Part of the batch.
    Input(Input),
    /// A parameter as the kernels read it (the compute type).
    Value(ParamId),
    /// The f32 master of a trained matrix whose compute type is narrower.
    Master(ParamId),
    /// The loss's gradient with respect to a parameter.
    Gradient(ParamId),
    /// The sum of such gradients over the batches of a step.
    GradientSum(ParamId),
    /// AdamW's first moment.
    Moment1(ParamId),
    /// AdamW's second moment.
    Moment2(ParamId),
    /// Made and used within a step.
    Transient,
    /// Made within a step and read after it: losses, logits, the gradient norm.
    Result,
}

/// A typed matrix that ops read and write.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// `l3.ffn.pre`; gradients are `d.` and the name, parameters their file's names.
    pub name: String,
    pub rows: Rows,
    pub cols: usize,
    pub dtype: DType,
    pub role: Role,
}

impl Buffer {
    /// Elements for `tokens` tokens of `sequences` sequences.
    pub fn n_elements(&self, tokens: usize, sequences: usize) -> usize {
        self.rows.count(tokens, sequences) * self.cols
    }
}

/// What a task leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskOutputs {
    pub task: String,
    /// `[B, C]`.
    pub logits: BufId,
    /// `[1]`, the mean cross-entropy over the labelled rows, or the sum by their weights.
    pub loss: BufId,
}

/// A place in the forward pass where it can be cut: what lies below reaches what lies above through these buffers
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontier {
    /// What begins above it.
    pub group: Group,
    pub hidden: BufId,
    /// The same in f32: `hidden` itself where activations are as wide.
    pub stream: BufId,
}

/// A step: ops in the order in which they run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub buffers: Vec<Buffer>,
    pub ops: Vec<Op>,
    pub capacity: Capacity,
    pub tasks: Vec<TaskOutputs>,
    /// The encoder's last hidden state, `[T, D]`.
    pub last_hidden: BufId,
    /// What the heads read, `[B, D]`, before dropout.
    pub pooled: BufId,
    /// From the bottom up.
    pub frontiers: Vec<Frontier>,
}

/// The step that runs: written in full, pruned by the freeze, fused.
pub fn compile(network: &Network, mask: &FreezeMask, options: &StepOptions) -> Plan {
    fuse::fuse(&prune(&training_step(network, options), network, mask))
}

impl Plan {
    /// The buffer with this id.
    pub fn buffer(&self, id: BufId) -> &Buffer {
        &self.buffers[id.0]
    }

    /// The buffers that the ops write or update.
    pub fn written(&self) -> impl Iterator<Item = BufId> {
        self.ops.iter().flat_map(|op| op.writes().into_iter().chain(op.updates()))
    }

    /// The parameters that this step changes, in the optimizer's order.
    pub fn trained(&self) -> Vec<ParamId> {
        let mut ids = Vec::new();
        for op in &self.ops {
            if let Op::AdamwStep { items, .. } = op {
                ids.extend(items.iter().filter_map(|item| match self.buffer(item.value).role {
                    Role::Value(id) => Some(id),
                    _ => None,
                }));
            }
        }
        ids
    }

    /// Gives every tensor that this step changes a rate of its own.
    pub fn set_rates(&mut self, rate: impl Fn(ParamId) -> op::TensorRate) {
        let buffers = &self.buffers;
        for op in &mut self.ops {
            if let Op::AdamwStep { items, .. } = op {
                for item in items {
                    if let Role::Value(id) = buffers[item.value.0].role {
                        item.rate = rate(id);
                    }
                }
            }
        }
    }

    /// The buffer of a parameter's gradient, if this step makes it.
    pub fn gradient(&self, param: ParamId) -> Option<BufId> {
        let role = Role::Gradient(param);
        let id = BufId(self.buffers.iter().position(|buffer| buffer.role == role)?);
        self.ops.iter().any(|op| op.writes().contains(&id)).then_some(id)
    }

    /// The gradient norm and the clipping factor, `[2]`, where the step clips.
    pub fn grad_norm(&self) -> Option<BufId> {
        self.ops.iter().find_map(|op| match op {
            Op::GradNorm { out, .. } => Some(*out),
            _ => None,
        })
    }

    /// Number of values that this step changes.
    pub fn n_trained_values(&self) -> usize {
        let values = self.ops.iter().filter_map(|op| match op {
            Op::AdamwStep { items, .. } => Some(items.iter().map(|item| item.value)),
            _ => None,
        });
        values.flatten().map(|id| self.buffer(id).n_elements(0, 0)).sum()
    }
}
