//! Families of ops: those whose kernels stand in one file and do one kind of work.

use super::Op;

/// A kind of work, called as the file under `kernels/` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Embedding,
    Gemm,
    Attention,
    Layernorm,
    Elementwise,
    Head,
    Optimizer,
}

impl Family {
    /// All families, in the order of a step.
    pub const ALL: [Family; 7] = [
        Family::Embedding,
        Family::Gemm,
        Family::Attention,
        Family::Layernorm,
        Family::Elementwise,
        Family::Head,
        Family::Optimizer,
    ];

    /// The word that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Family::Embedding => "embedding",
            Family::Gemm => "gemm",
            Family::Attention => "attention",
            Family::Layernorm => "layernorm",
            Family::Elementwise => "elementwise",
            Family::Head => "head",
            Family::Optimizer => "optimizer",
        }
    }
}

impl Op {
    /// The family that the op's kernels belong to.
    pub fn family(&self) -> Family {
        match self {
            Op::EmbedFwd { .. }
            | Op::EmbedLayernormFwd { .. }
            | Op::PrefixLoad { .. }
            | Op::EmbedWgrad { .. } => Family::Embedding,
            Op::GemmFwd { .. }
            | Op::GemmGeluFwd { .. }
            | Op::GemmDgrad { .. }
            | Op::GemmGeluDgrad { .. }
            | Op::GemmWgrad { .. } => Family::Gemm,
            Op::AttentionFwd { .. } | Op::AttentionBwd { .. } => Family::Attention,
            Op::LayernormFwd { .. }
            | Op::LayernormBwdDx { .. }
            | Op::LayernormBwdParams { .. }
            | Op::LayernormBwd { .. } => Family::Layernorm,
            Op::DropoutFwd { .. }
            | Op::DropoutBwd { .. }
            | Op::GeluFwd { .. }
            | Op::GeluBwd { .. }
            | Op::TanhFwd { .. }
            | Op::TanhBwd { .. }
            | Op::BiasGrad { .. } => Family::Elementwise,
            Op::PoolFwd { .. }
            | Op::PoolBwd { .. }
            | Op::HeadFwd { .. }
            | Op::HeadDgrad { .. }
            | Op::HeadWgrad { .. }
            | Op::XentFwd { .. } => Family::Head,
            Op::GradAccumulate { .. } | Op::GradNorm { .. } | Op::AdamwStep { .. } => {
                Family::Optimizer
            }
        }
    }
}
