//! The ops. Each variant names its operands; [`super::operands`] says which of them are read, written,
//! or left out.
//!
//! One op, one name: the variant, the reference function, the CPU function, the kernel symbol and the
//! report row are all called as [`Op::name`] says.

use super::BufId;
use crate::model::{Group, Pooling};

/// The part of a step that an op belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Forward,
    Backward,
    Optimizer,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Phase; 3] = [Phase::Forward, Phase::Backward, Phase::Optimizer];

    /// The word that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Optimizer => "optimizer",
        }
    }
}

/// One place in the network where dropout acts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element.
    pub p: f32,
    /// Separates the random streams of the sites of one network.
    pub site: u32,
    /// The part of the network whose dropout it is; prune switches it off below the frost line.
    pub group: Group,
}

/// One product of a [`Op::GemmFwd`]: `out = x · weightᵀ + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmFwdPart {
    pub weight: BufId,
    pub bias: BufId,
    pub out: BufId,
}

/// One product of a [`Op::GemmDgrad`]: `dout · weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmDgradPart {
    pub dout: BufId,
    pub weight: BufId,
}

/// One product of a [`Op::GemmWgrad`]: `dweight = doutᵀ · x`, and perhaps `dbias`, the column sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmWgradPart {
    pub dout: BufId,
    pub dweight: BufId,
    pub dbias: Option<BufId>,
}

/// One head of a [`Op::HeadDgrad`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadDgradPart {
    pub dlogits: BufId,
    pub weight: BufId,
    pub labels: BufId,
    /// Index of the task.
    pub task: usize,
}

/// One tensor of an [`Op::GradAccumulate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradAccumulateItem {
    pub grad: BufId,
    pub sum: BufId,
}

/// One tensor of an [`Op::AdamwStep`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwItem {
    pub value: BufId,
    pub master: Option<BufId>,
    pub grad: BufId,
    pub moment1: BufId,
    pub moment2: BufId,
    /// Whether weight decay applies.
    pub decays: bool,
    /// Whether the head's learning rate applies.
    pub is_head: bool,
    pub rate: TensorRate,
}

/// What sets one tensor's update apart from that of its neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorRate {
    /// Multiplies the learning rate.
    pub scale: f32,
    /// Steps of the run in which the tensor did not train: AdamW's bias correction counts the others, as
    /// `torch.optim.AdamW` counts the steps of each parameter.
    pub skipped_steps: u32,
}

impl Default for TensorRate {
    /// The learning rate as it is, from the first step on.
    fn default() -> Self {
        TensorRate { scale: 1.0, skipped_steps: 0 }
    }
}

/// The tables that [`Op::EmbedFwd`] sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbedTables {
    pub input_ids: BufId,
    pub word: BufId,
    pub position_ids: BufId,
    pub position: BufId,
    /// Ids and table, None where the family has no token types.
    pub token_type: Option<(BufId, BufId)>,
}

/// One operation. Shapes follow the letters of the crate's documentation; every matrix is row-major.
///
/// A field of type `Option<BufId>` among the outputs is one that pruning may drop.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[t] = word[id] + position[p] + token_type[y]`, `[T, D]`.
    EmbedFwd { tables: EmbedTables, out: BufId },
    /// `out[r] = cache[rows[r]]`, `[T, D]` or `[B, D]`: what the frozen prefix computed for these tokens or sequences
    /// in an earlier pass, kept in f32. `stream` as in [`Op::LayernormFwd`].
    PrefixLoad { rows: BufId, out: BufId, stream: Option<BufId> },
    /// `out = LayerNorm(dropout(x) + residual)`, `[T, D]`; saves `xhat` `[T, D]` and `rstd` `[T]`.
    ///
    /// `stream` is `out` once more, in f32, where activations are narrower: the next LayerNorm adds it up,
    /// so that the residual stream is not rounded at every layer (PyTorch's autocast keeps it in f32 too).
    LayernormFwd {
        x: BufId,
        residual: Option<BufId>,
        dropout: Option<Dropout>,
        gamma: BufId,
        beta: BufId,
        eps: f32,
        out: BufId,
        stream: Option<BufId>,
        xhat: Option<BufId>,
        rstd: Option<BufId>,
    },
    /// [`Op::EmbedFwd`] and [`Op::LayernormFwd`] in one pass.
    EmbedLayernormFwd {
        tables: EmbedTables,
        gamma: BufId,
        beta: BufId,
        eps: f32,
        out: BufId,
        stream: Option<BufId>,
        xhat: Option<BufId>,
        rstd: Option<BufId>,
    },
    /// `out = x` with dropped elements 0 and the others scaled by `1 / (1 - p)`.
    DropoutFwd { x: BufId, dropout: Dropout, out: BufId },
    /// For each part `out = x · weightᵀ + bias`: `x` `[M, K]`, weight `[N, K]`, out `[M, N]`.
    GemmFwd { x: BufId, parts: Vec<GemmFwdPart> },
    /// `out = gelu(x)` with `gelu(x) = x Φ(x)` (Hendrycks and Gimpel, 2016), exact.
    GeluFwd { x: BufId, out: BufId },
    /// [`Op::GemmFwd`] and [`Op::GeluFwd`]; `pre`, GELU's input, is kept where its gradient needs it.
    GemmGeluFwd { x: BufId, weight: BufId, bias: BufId, pre: Option<BufId>, out: BufId },
    /// `out = tanh(x)`.
    TanhFwd { x: BufId, out: BufId },
    /// Per sequence and head `out = dropout(softmax(q·kᵀ / √Dh)) · v`, `[T, D]`; saves `lse` `[T, H]`,
    /// the logarithm of each row's sum of exponentials.
    AttentionFwd {
        q: BufId,
        k: BufId,
        v: BufId,
        cu_seqlens: BufId,
        n_heads: usize,
        dropout: Option<Dropout>,
        out: BufId,
        lse: Option<BufId>,
    },
    /// One vector per sequence, `[B, D]`: the mean over its tokens, or its first token; in f32 unless a
    /// product reads it.
    PoolFwd { x: BufId, cu_seqlens: BufId, pooling: Pooling, out: BufId },
    /// `logits = x · weightᵀ + bias`, `[B, C]`, for the rows that take part in task `task`.
    HeadFwd { x: BufId, weight: BufId, bias: BufId, labels: BufId, task: usize, logits: BufId },
    /// The sum over the labelled rows of their cross-entropy times their weight, `[1]` (0 if there is no such row), and
    /// its gradient; without `weights`, `[B]`, the mean. `smoothing` is the share of each target that all classes get
    /// alike (Szegedy et al., 2016), as `torch.nn.CrossEntropyLoss` has it. Weights are of rows: where both are used,
    /// PyTorch's class weights also weigh the classes of the smoothed part among each other, and these do not.
    XentFwd {
        logits: BufId,
        labels: BufId,
        weights: Option<BufId>,
        smoothing: f32,
        task: usize,
        loss: BufId,
        dlogits: Option<BufId>,
    },

    /// `dx = Σ dlogits · weight` over the heads, `[B, D]`.
    HeadDgrad { parts: Vec<HeadDgradPart>, dx: BufId },
    /// `dweight = dlogitsᵀ · x`, `dbias` the column sums of `dlogits`, over the labelled rows.
    HeadWgrad {
        x: BufId,
        dlogits: BufId,
        labels: BufId,
        task: usize,
        dweight: Option<BufId>,
        dbias: Option<BufId>,
    },
    /// `dx[t]`, `[T, D]` in f32, of [`Op::PoolFwd`].
    PoolBwd { dout: BufId, cu_seqlens: BufId, pooling: Pooling, dx: BufId },
    /// `dx = dout (1 - out²)`.
    TanhBwd { out: BufId, dout: BufId, dx: BufId },
    /// `dx`: the sum of the `dout` through the mask of [`Op::DropoutFwd`], drawn again.
    DropoutBwd { dout: Vec<BufId>, dropout: Dropout, dx: BufId },
    /// `dx = dout (Φ(x) + x φ(x))`.
    GeluBwd { x: BufId, dout: BufId, dx: BufId },
    /// `dx = Σ dout · weight` over the parts, `[M, K]`.
    GemmDgrad { parts: Vec<GemmDgradPart>, dx: BufId },
    /// [`Op::GemmDgrad`] of one part and [`Op::GeluBwd`].
    GemmGeluDgrad { dout: BufId, weight: BufId, pre: BufId, dx: BufId },
    /// For each part `dweight = doutᵀ · x`, `[N, K]`.
    GemmWgrad { x: BufId, parts: Vec<GemmWgradPart> },
    /// `dbias`, `[N]`: the column sums of `dout`.
    BiasGrad { dout: BufId, dbias: BufId },
    /// The gradient at LayerNorm's sum, from the sum of the `dout`: `dresidual`, and `dx`, the same
    /// through the dropout mask. Without dropout both are one buffer, `dx`.
    LayernormBwdDx {
        dout: Vec<BufId>,
        xhat: BufId,
        rstd: BufId,
        gamma: BufId,
        dropout: Option<Dropout>,
        dx: Option<BufId>,
        dresidual: Option<BufId>,
    },
    /// `dgamma = Σ dout · xhat`, `dbeta = Σ dout` over the rows.
    LayernormBwdParams {
        dout: Vec<BufId>,
        xhat: BufId,
        dgamma: Option<BufId>,
        dbeta: Option<BufId>,
    },
    /// [`Op::LayernormBwdDx`] and [`Op::LayernormBwdParams`] in one pass.
    LayernormBwd {
        dout: Vec<BufId>,
        xhat: BufId,
        rstd: BufId,
        gamma: BufId,
        dropout: Option<Dropout>,
        dx: Option<BufId>,
        dresidual: Option<BufId>,
        dgamma: Option<BufId>,
        dbeta: Option<BufId>,
    },
    /// The gradients of [`Op::AttentionFwd`], probabilities computed again from `lse`. The one op with
    /// several gradient targets, which share most of their work. The inner product of a query's output and its
    /// gradient, which the softmax needs, is summed as `Σ p dp`: exact also where the output was rounded
    /// to bf16, and the output need not be saved.
    AttentionBwd {
        dout: BufId,
        lse: BufId,
        q: BufId,
        k: BufId,
        v: BufId,
        cu_seqlens: BufId,
        n_heads: usize,
        dropout: Option<Dropout>,
        dq: Option<BufId>,
        dk: Option<BufId>,
        dv: Option<BufId>,
    },
    /// `dtable[id] = Σ dx[t]` over the tokens with that id, all other rows 0; `padding_row` stays 0.
    EmbedWgrad { dx: BufId, ids: BufId, padding_row: Option<usize>, dtable: BufId },

    /// `sum += grad`, or `sum = grad` where it `begins`: the gradients of a step over several batches.
    GradAccumulate { items: Vec<GradAccumulateItem>, begins: bool },
    /// `out = [norm, factor]`: the global norm of `grads` and `min(1, max_norm / (norm + 1e-6))`.
    GradNorm { grads: Vec<BufId>, max_norm: f32, out: BufId },
    /// AdamW (Loshchilov and Hutter, 2019) as `torch.optim.AdamW`, gradients scaled by the clipping
    /// factor where there is one, in place.
    AdamwStep { items: Vec<AdamwItem>, clip: Option<BufId> },
}

impl Op {
    /// The op's name, everywhere.
    pub fn name(&self) -> &'static str {
        match self {
            Op::EmbedFwd { .. } => "embed_fwd",
            Op::PrefixLoad { .. } => "prefix_load",
            Op::LayernormFwd { .. } => "layernorm_fwd",
            Op::EmbedLayernormFwd { .. } => "embed_layernorm_fwd",
            Op::DropoutFwd { .. } => "dropout_fwd",
            Op::GemmFwd { .. } => "gemm_fwd",
            Op::GeluFwd { .. } => "gelu_fwd",
            Op::GemmGeluFwd { .. } => "gemm_gelu_fwd",
            Op::TanhFwd { .. } => "tanh_fwd",
            Op::AttentionFwd { .. } => "attention_fwd",
            Op::PoolFwd { .. } => "pool_fwd",
            Op::HeadFwd { .. } => "head_fwd",
            Op::XentFwd { .. } => "xent_fwd",
            Op::HeadDgrad { .. } => "head_dgrad",
            Op::HeadWgrad { .. } => "head_wgrad",
            Op::PoolBwd { .. } => "pool_bwd",
            Op::TanhBwd { .. } => "tanh_bwd",
            Op::DropoutBwd { .. } => "dropout_bwd",
            Op::GeluBwd { .. } => "gelu_bwd",
            Op::GemmDgrad { .. } => "gemm_dgrad",
            Op::GemmGeluDgrad { .. } => "gemm_gelu_dgrad",
            Op::GemmWgrad { .. } => "gemm_wgrad",
            Op::BiasGrad { .. } => "bias_grad",
            Op::LayernormBwdDx { .. } => "layernorm_bwd_dx",
            Op::LayernormBwdParams { .. } => "layernorm_bwd_params",
            Op::LayernormBwd { .. } => "layernorm_bwd",
            Op::AttentionBwd { .. } => "attention_bwd",
            Op::EmbedWgrad { .. } => "embed_wgrad",
            Op::GradAccumulate { .. } => "grad_accumulate",
            Op::GradNorm { .. } => "grad_norm",
            Op::AdamwStep { .. } => "adamw_step",
        }
    }

    /// The phase that the op counts towards.
    pub fn phase(&self) -> Phase {
        match self {
            Op::EmbedFwd { .. }
            | Op::PrefixLoad { .. }
            | Op::LayernormFwd { .. }
            | Op::EmbedLayernormFwd { .. }
            | Op::DropoutFwd { .. }
            | Op::GemmFwd { .. }
            | Op::GeluFwd { .. }
            | Op::GemmGeluFwd { .. }
            | Op::TanhFwd { .. }
            | Op::AttentionFwd { .. }
            | Op::PoolFwd { .. }
            | Op::HeadFwd { .. }
            | Op::XentFwd { .. } => Phase::Forward,
            Op::GradNorm { .. } | Op::AdamwStep { .. } => Phase::Optimizer,
            _ => Phase::Backward,
        }
    }
}
