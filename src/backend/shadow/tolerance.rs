//! How far a kernel may be from the reference, given exactly the inputs that the reference had.

use crate::plan::{BufId, Op, Plan};
use crate::tensor::DType;

/// Rounding of f32: 6e-8 at most, added up over the sums of an op.
const F32: f64 = 2e-6;

/// Rounding of an output to bf16, of 8 bits, is 2^-8 = 3.9e-3 at most; sums before it are in f32 over exact products.
const BF16: f64 = 4e-3;

/// Steps of a reduction that a tensor core does at a time.
const MMA_DEPTH: f64 = 16.0;

/// How many times as far as all values together a single one may be off: errors of one size are as good as never five
/// times their mean, and here they are of sizes that differ.
const SINGLE: f64 = 10.0;

/// The same where the error is the rounding of an output to bf16, which has a bound: that bound, and as much again for
/// what came before it, of which the approximations in GELU are the largest part.
const SINGLE_ROUNDED: f64 = 2.0;

/// The error and the deviation that `output` of an op may have over `n_tokens` tokens.
pub(super) fn tolerances(plan: &Plan, op: &Op, output: BufId, n_tokens: usize) -> [f64; 2] {
    let (error, single) = match (op, plan.buffer(output).dtype) {
        // Differences of nearly equal sums: the key's gradient of a head that looks everywhere alike.
        (Op::AttentionBwd { .. }, DType::Bf16) => (1e-2, SINGLE),
        (Op::AttentionBwd { .. }, _) => (1e-5, SINGLE),
        // Probabilities are rounded to bf16 before they meet the values.
        (Op::AttentionFwd { .. }, DType::Bf16) => (8e-3, SINGLE),
        (_, DType::Bf16) => (BF16, SINGLE_ROUNDED),
        (_, _) => (F32 + truncation(depth(plan, op, n_tokens)), SINGLE),
    };
    [error, single * error]
}

/// Tensor cores do not round while they add up: the products of an instruction and its accumulator are aligned to the
/// largest of their exponents, and bits below the accumulator's 24 are cut off (Fasi et al., 2021). What is cut off the
/// products cancels, for they have both signs; what is cut off the accumulator is always towards zero and adds up: one
/// unit of 2^-24 at most for each instruction along the reduction.
fn truncation(depth: usize) -> f64 {
    (depth as f64 / MMA_DEPTH).ceil() * 2_f64.powi(-24)
}

/// The length of the reduction over bf16 operands whose f32 result an op writes; 0 where tensor cores do none.
fn depth(plan: &Plan, op: &Op, n_tokens: usize) -> usize {
    let is_bf16 = |buf: &BufId| plan.buffer(*buf).dtype == DType::Bf16;
    match op {
        Op::GemmWgrad { x, .. } if is_bf16(x) => n_tokens,
        Op::AttentionFwd { q, n_heads, .. } if is_bf16(q) => plan.buffer(*q).cols / n_heads,
        _ => 0,
    }
}
