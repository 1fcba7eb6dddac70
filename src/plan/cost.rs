//! FLOPs and bytes of every op: the only place where such a formula is written down.
//!
//! FLOPs count two per multiply-add of a matrix product as it is executed (attention's backward pass
//! computes its scores again, and that is counted), and for the rest the arithmetic of the formula in
//! the op's documentation, a transcendental function being one. Drawing dropout masks is not counted.
//!
//! Bytes count each tensor that an op touches once (twice where it is updated in place), at the size
//! that a batch really has.

use std::ops::{Add, AddAssign};

use super::op::{Dropout, Op, Phase};
use super::{BufId, Capacity, Plan, Rows};
use crate::batch::{ABSENT_LABEL, Batch};
use crate::model::Pooling;

/// What a batch really holds; costs follow it, not the capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    pub tokens: usize,
    pub sequences: usize,
    /// Sum over the sequences of their lengths squared.
    pub sum_squares: usize,
    /// For each task the rows that take part, and those of them with a label.
    pub task_rows: Vec<TaskRows>,
}

/// Rows of one task in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRows {
    pub present: usize,
    pub labelled: usize,
}

impl Counts {
    /// The counts of `batch`.
    pub fn of(batch: &Batch) -> Self {
        let task_rows = batch.labels.iter().map(|labels| TaskRows {
            present: labels.iter().filter(|&&label| label != ABSENT_LABEL).count(),
            labelled: labels.iter().filter(|&&label| label >= 0).count(),
        });
        Self {
            tokens: batch.n_tokens(),
            sequences: batch.n_sequences(),
            sum_squares: batch.lengths().map(|length| length * length).sum(),
            task_rows: task_rows.collect(),
        }
    }

    /// A batch that fills the capacity, every row labelled for each of `n_tasks` tasks.
    pub fn full(capacity: Capacity, n_tasks: usize) -> Self {
        let Capacity { tokens, sequences, max_length } = capacity;
        let n_longest = tokens.checked_div(max_length).unwrap_or(0);
        let rest = tokens - n_longest * max_length;
        Self {
            tokens,
            sequences,
            sum_squares: n_longest * max_length * max_length + rest * rest,
            task_rows: vec![TaskRows { present: sequences, labelled: sequences }; n_tasks],
        }
    }
}

/// What an op, a phase or a step costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    pub flops: u64,
    pub bytes: u64,
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

/// Arithmetic per element of the ops that go over their data once, by the formulas of their
/// documentation.
mod per_element {
    /// Mean (1), centred square and its sum (3), normalise (2), scale and shift (2).
    pub const LAYERNORM_FWD: usize = 8;
    /// `g = dout gamma` (1), two sums (3), `rstd (g - mean - xhat mean)` (4).
    pub const LAYERNORM_BWD_DX: usize = 8;
    /// Multiply, add.
    pub const DGAMMA: usize = 2;
    /// Add.
    pub const DBETA: usize = 1;
    /// `0.5 x (1 + erf(x / √2))`: two products and a division, erf, an addition.
    pub const GELU_FWD: usize = 5;
    /// `Φ` (4), `φ` (4: square, scale, exp, scale), `x φ`, sum, product.
    pub const GELU_BWD: usize = 11;
    pub const TANH_FWD: usize = 1;
    /// `dout (1 - out²)`.
    pub const TANH_BWD: usize = 3;
    /// Scaling by `1 / (1 - p)`.
    pub const DROPOUT: usize = 1;
    /// Scale, maximum, subtract, exp, sum, divide: per score.
    pub const SOFTMAX_FWD: usize = 6;
    /// Scale, subtract the logarithm, exp: per score.
    pub const SOFTMAX_AGAIN: usize = 3;
    /// `Σ p dp` (2), `p (dp - Σ)`, scaled (3): per score.
    pub const SOFTMAX_BWD: usize = 5;
    /// Maximum, subtract, exp, sum: per logit; the gradient: divide, scale.
    pub const XENT: usize = 4;
    pub const XENT_GRADIENT: usize = 2;
    /// The sum of the logits; the gradient: subtract what all classes get.
    pub const XENT_SMOOTHING: usize = 1;
    pub const XENT_SMOOTHING_GRADIENT: usize = 1;
    /// Square, add.
    pub const NORM: usize = 2;
    /// First moment (3), second moment (4), root, correction, epsilon (3), division, rate, subtract (3).
    pub const ADAMW: usize = 13;
}

impl Plan {
    /// What `op` costs for a batch of these counts.
    pub fn cost(&self, op: &Op, counts: &Counts) -> Cost {
        Cost { flops: self.flops(op, counts) as u64, bytes: self.bytes(op, counts) as u64 }
    }

    /// What a whole phase costs.
    pub fn phase_cost(&self, phase: Phase, counts: &Counts) -> Cost {
        let ops = self.ops.iter().filter(|op| op.phase() == phase);
        ops.fold(Cost::default(), |sum, op| sum + self.cost(op, counts))
    }

    /// What the step costs.
    pub fn total_cost(&self, counts: &Counts) -> Cost {
        Phase::ALL.iter().fold(Cost::default(), |sum, &phase| sum + self.phase_cost(phase, counts))
    }

    fn elements(&self, buf: BufId, counts: &Counts) -> usize {
        self.buffer(buf).n_elements(counts.tokens, counts.sequences)
    }

    fn flops(&self, op: &Op, counts: &Counts) -> usize {
        let elements = |buf: BufId| self.elements(buf, counts);
        let cols = |buf: BufId| self.buffer(buf).cols;
        // `a` is [M, n]; the product with n columns on one side costs 2 M n times the other side.
        let matmul = |a: BufId, n: usize| 2 * elements(a) * n;
        let layernorm_bwd_dx =
            |x: BufId, n_dout: usize| elements(x) * (per_element::LAYERNORM_BWD_DX + n_dout - 1);
        let dropout_of_dx = |dropout: &Option<Dropout>, dx: &Option<BufId>| match (dropout, dx) {
            (Some(_), Some(dx)) => elements(*dx) * per_element::DROPOUT,
            _ => 0,
        };
        let layernorm_bwd_params = |x: BufId, dgamma: &Option<BufId>, dbeta: &Option<BufId>| {
            let dgamma = if dgamma.is_some() { per_element::DGAMMA } else { 0 };
            let dbeta = if dbeta.is_some() { per_element::DBETA } else { 0 };
            elements(x) * (dgamma + dbeta)
        };
        match op {
            Op::EmbedFwd { tables, out } => elements(*out) * tables.n_additions(),
            Op::PrefixLoad { .. } => 0,
            Op::LayernormFwd { residual, dropout, out, .. } => {
                let extra = usize::from(residual.is_some())
                    + if dropout.is_some() { per_element::DROPOUT } else { 0 };
                elements(*out) * (per_element::LAYERNORM_FWD + extra)
            }
            Op::EmbedLayernormFwd { tables, out, .. } => {
                elements(*out) * (tables.n_additions() + per_element::LAYERNORM_FWD)
            }
            Op::DropoutFwd { out, .. } => elements(*out) * per_element::DROPOUT,
            Op::GemmFwd { x, parts } => parts.iter().map(|part| matmul(*x, cols(part.out))).sum(),
            Op::GeluFwd { out, .. } => elements(*out) * per_element::GELU_FWD,
            Op::GemmGeluFwd { x, out, .. } => {
                matmul(*x, cols(*out)) + elements(*out) * per_element::GELU_FWD
            }
            Op::TanhFwd { out, .. } => elements(*out) * per_element::TANH_FWD,
            Op::AttentionFwd { out, n_heads, dropout, .. } => {
                let scores = n_heads * counts.sum_squares;
                let dropout = if dropout.is_some() { per_element::DROPOUT } else { 0 };
                4 * counts.sum_squares * cols(*out) + scores * (per_element::SOFTMAX_FWD + dropout)
            }
            Op::PoolFwd { pooling, x, out, .. } => match pooling {
                Pooling::Mean => elements(*x) + elements(*out),
                Pooling::Cls | Pooling::Pooler => 0,
            },
            Op::HeadFwd { weight, task, .. } => {
                2 * counts.task_rows[*task].present * elements(*weight)
            }
            Op::XentFwd { logits, smoothing, task, dlogits, .. } => {
                let (mut each, mut gradient) = (per_element::XENT, per_element::XENT_GRADIENT);
                if *smoothing > 0.0 {
                    each += per_element::XENT_SMOOTHING;
                    gradient += per_element::XENT_SMOOTHING_GRADIENT;
                }
                let gradient = if dlogits.is_some() { gradient } else { 0 };
                counts.task_rows[*task].labelled * cols(*logits) * (each + gradient)
            }
            Op::HeadDgrad { parts, .. } => (parts.iter())
                .map(|part| 2 * counts.task_rows[part.task].labelled * elements(part.weight))
                .sum(),
            Op::HeadWgrad { x, dlogits, task, dweight, dbias, .. } => {
                let n_rows = counts.task_rows[*task].labelled;
                let dweight = if dweight.is_some() { 2 * cols(*x) } else { 0 };
                n_rows * cols(*dlogits) * (dweight + usize::from(dbias.is_some()))
            }
            Op::PoolBwd { pooling, dout, .. } => match pooling {
                Pooling::Mean => elements(*dout),
                Pooling::Cls | Pooling::Pooler => 0,
            },
            Op::TanhBwd { dx, .. } => elements(*dx) * per_element::TANH_BWD,
            Op::DropoutBwd { dx, dout, .. } => {
                elements(*dx) * (per_element::DROPOUT + dout.len() - 1)
            }
            Op::GeluBwd { dx, .. } => elements(*dx) * per_element::GELU_BWD,
            Op::GemmDgrad { parts, dx } => {
                parts.iter().map(|part| matmul(part.dout, cols(*dx))).sum()
            }
            Op::GemmGeluDgrad { dout, dx, .. } => {
                matmul(*dout, cols(*dx)) + elements(*dx) * per_element::GELU_BWD
            }
            Op::GemmWgrad { x, parts } => (parts.iter())
                .map(|part| {
                    let dbias = part.dbias.map_or(0, |_| elements(part.dout));
                    matmul(part.dout, cols(*x)) + dbias
                })
                .sum(),
            Op::BiasGrad { dout, .. } => elements(*dout),
            Op::LayernormBwdDx { dout, xhat, dropout, dx, .. } => {
                layernorm_bwd_dx(*xhat, dout.len()) + dropout_of_dx(dropout, dx)
            }
            Op::LayernormBwdParams { dout, xhat, dgamma, dbeta } => {
                layernorm_bwd_params(*xhat, dgamma, dbeta) + elements(*xhat) * (dout.len() - 1)
            }
            Op::LayernormBwd { dout, xhat, dropout, dx, dgamma, dbeta, .. } => {
                layernorm_bwd_dx(*xhat, dout.len())
                    + layernorm_bwd_params(*xhat, dgamma, dbeta)
                    + dropout_of_dx(dropout, dx)
            }
            Op::AttentionBwd { dout, n_heads, dropout, dq, dk, dv, .. } => {
                let width = cols(*dout);
                let needs_scores = dq.is_some() || dk.is_some();
                // The scores again, then the gradient of the probabilities, then what is asked for.
                let n_products = 1
                    + usize::from(needs_scores)
                    + [dq, dk, dv].iter().filter(|target| target.is_some()).count();
                let per_score = per_element::SOFTMAX_AGAIN
                    + if needs_scores { per_element::SOFTMAX_BWD } else { 0 }
                    + if dropout.is_some() { per_element::DROPOUT } else { 0 };
                2 * n_products * counts.sum_squares * width
                    + n_heads * counts.sum_squares * per_score
            }
            Op::EmbedWgrad { dx, .. } => elements(*dx),
            // Beginning is a copy.
            Op::GradAccumulate { begins: true, .. } => 0,
            Op::GradAccumulate { items, begins: false } => {
                items.iter().map(|item| elements(item.grad)).sum()
            }
            Op::GradNorm { grads, .. } => {
                grads.iter().map(|&grad| elements(grad) * per_element::NORM).sum()
            }
            Op::AdamwStep { items, clip } => (items.iter())
                .map(|item| {
                    let extra = usize::from(item.decays) + usize::from(clip.is_some());
                    elements(item.grad) * (per_element::ADAMW + extra)
                })
                .sum(),
        }
    }

    fn bytes(&self, op: &Op, counts: &Counts) -> usize {
        let elements = |buf: BufId| self.elements(buf, counts);
        let size = |buf: BufId| elements(buf) * self.buffer(buf).dtype.size_bytes();
        let all = |bufs: Vec<BufId>| bufs.into_iter().map(size).sum::<usize>();
        let touched = all(op.reads()) + all(op.writes()) + 2 * all(op.updates());
        match op {
            // A gather reads one row of each table per token, not the tables.
            Op::EmbedFwd { tables, out } | Op::EmbedLayernormFwd { tables, out, .. } => {
                let gathered = size(*out) * (tables.n_additions() + 1);
                touched - all(tables.tables()) + gathered
            }
            // The cache's rows are f32, whatever they become.
            Op::PrefixLoad { out, .. } => touched + elements(*out) * size_of::<f32>(),
            // A value that is rounded from its master is written and not read.
            Op::AdamwStep { items, .. } => {
                let rounded = items.iter().filter(|item| item.master.is_some());
                touched - rounded.map(|item| size(item.value)).sum::<usize>()
            }
            // The first tokens alone.
            Op::PoolFwd { pooling: Pooling::Cls | Pooling::Pooler, x, out, .. } => {
                touched - size(*x) + size(*out)
            }
            _ => touched,
        }
    }

    /// Rows of a buffer for these counts.
    pub fn n_rows(&self, buf: BufId, counts: &Counts) -> usize {
        let rows: Rows = self.buffer(buf).rows;
        rows.count(counts.tokens, counts.sequences)
    }
}

impl super::op::EmbedTables {
    /// The parameter tables.
    pub fn tables(&self) -> Vec<BufId> {
        [self.word, self.position]
            .into_iter()
            .chain(self.token_type.map(|(_, table)| table))
            .collect()
    }

    fn n_additions(&self) -> usize {
        self.tables().len() - 1
    }
}
