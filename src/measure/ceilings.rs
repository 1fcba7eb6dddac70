//! What a machine can do at most, and the times that plans should take on it.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::backend::cpu::Cpu;
use crate::philox::normal;
use crate::plan::{Counts, Op, Phase, Plan};

/// Two rates that no op of a step should beat by much.
///
/// An op whose operands stay in a cache between it and its neighbours may move more bytes a second
/// than memory does; the prediction then is too long.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// Of a large f32 matrix product.
    pub gemm_flops_per_second: f64,
    /// Bytes read and bytes written, together, of a pass over arrays that fit no cache.
    pub copy_bytes_per_second: f64,
}

/// Repeats after the warm-up, at least.
const MIN_REPEATS: usize = 5;
/// Time that repeats go on for.
const REPEAT_FOR: Duration = Duration::from_millis(300);

impl Ceilings {
    /// Measures this machine's processor, with the threads that ops use: about a second, and 512 MiB
    /// that are given back.
    ///
    /// Medians, not the best of the repeats: what is predicted from them is compared with medians.
    pub fn of_cpu() -> Self {
        Ceilings {
            gemm_flops_per_second: gemm_flops_per_second(),
            copy_bytes_per_second: copy_bytes_per_second(),
        }
    }

    /// Seconds of work by these rates: arithmetic and traffic overlap, so the longer of the two.
    fn seconds(&self, flops: u64, bytes: u64) -> f64 {
        let arithmetic = flops as f64 / self.gemm_flops_per_second;
        let traffic = bytes as f64 / self.copy_bytes_per_second;
        arithmetic.max(traffic)
    }
}

/// The product of BERT-base's feed-forward part for 1024 tokens.
fn gemm_flops_per_second() -> f64 {
    const M: usize = 1024;
    const N: usize = 3072;
    const K: usize = 768;
    let (a, b) = (normal(1, 0, M * K, 1.0), normal(1, 1, N * K, 1.0));
    let mut c = vec![0.0; M * N];
    let seconds = median_seconds(|| Cpu::product(&a, &b, K, &mut c));
    std::hint::black_box(&c);
    (2 * M * N * K) as f64 / seconds
}

/// STREAM's scale (McCalpin, 1995), which moves what a copy moves: a loop that no compiler makes into
/// a `memcpy`, whose streaming stores our ops do not have.
fn copy_bytes_per_second() -> f64 {
    /// 256 MiB an array: much more than a last cache holds.
    const N: usize = 64 << 20;
    /// As the pieces that the ops are cut into.
    const PIECE: usize = 16 << 10;
    let from = vec![1.0f32; N];
    let mut to = vec![0.0f32; N];
    let seconds = median_seconds(|| {
        let pieces = to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
        pieces.for_each(|(to, from)| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = 3.0 * from);
        });
    });
    std::hint::black_box(&to);
    (2 * N * size_of::<f32>()) as f64 / seconds
}

/// The median time of a call (the upper one of two), after one that does not count.
fn median_seconds(mut f: impl FnMut()) -> f64 {
    f();
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < MIN_REPEATS || start.elapsed() < REPEAT_FOR {
        let call = Instant::now();
        f();
        times.push(call.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// The time of one op on a batch of these counts: the larger of FLOPs by the product's rate and bytes
/// by the copy's.
pub fn predicted_op_seconds(plan: &Plan, op: &Op, counts: &Counts, ceilings: &Ceilings) -> f64 {
    let cost = plan.cost(op, counts);
    ceilings.seconds(cost.flops, cost.bytes)
}

/// The time of a phase: the sum over its ops.
pub fn predicted_phase_seconds(
    plan: &Plan,
    phase: Phase,
    counts: &Counts,
    ceilings: &Ceilings,
) -> f64 {
    let ops = plan.ops.iter().filter(|op| op.phase() == phase);
    ops.map(|op| predicted_op_seconds(plan, op, counts, ceilings)).sum()
}

/// The time of a step: the sum over its phases.
pub fn predicted_seconds(plan: &Plan, counts: &Counts, ceilings: &Ceilings) -> f64 {
    let phases = Phase::ALL.into_iter();
    phases.map(|phase| predicted_phase_seconds(plan, phase, counts, ceilings)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParamId;
    use crate::plan::op::{AdamwItem, GemmFwdPart};
    use crate::plan::{BufId, Buffer, Capacity, Role, Rows};
    use crate::tensor::DType;

    /// A product `[T, 8] · [16, 8]ᵀ`, GELU forward and backward over `[T, 16]`, AdamW over `[16, 8]`.
    fn small_plan() -> Plan {
        let buffer = |name: &str, rows, cols, role| Buffer {
            name: name.into(),
            rows,
            cols,
            dtype: DType::F32,
            role,
        };
        let param = ParamId(0);
        let buffers = vec![
            buffer("x", Rows::Tokens, 8, Role::Transient),
            buffer("w", Rows::Fixed(16), 8, Role::Value(param)),
            buffer("b", Rows::Fixed(16), 1, Role::Value(ParamId(1))),
            buffer("pre", Rows::Tokens, 16, Role::Transient),
            buffer("act", Rows::Tokens, 16, Role::Transient),
            buffer("d.pre", Rows::Tokens, 16, Role::Transient),
            buffer("d.w", Rows::Fixed(16), 8, Role::Gradient(param)),
            buffer("m.w", Rows::Fixed(16), 8, Role::Moment1(param)),
            buffer("v.w", Rows::Fixed(16), 8, Role::Moment2(param)),
        ];
        let [x, weight, bias, pre, act, dpre, grad, moment1, moment2] = std::array::from_fn(BufId);
        let item = AdamwItem {
            value: weight,
            master: None,
            grad,
            moment1,
            moment2,
            decays: false,
            is_head: false,
        };
        let ops = vec![
            Op::GemmFwd { x, parts: vec![GemmFwdPart { weight, bias, out: pre }] },
            Op::GeluFwd { x: pre, out: act },
            Op::GeluBwd { x: pre, dout: act, dx: dpre },
            Op::AdamwStep { items: vec![item], clip: None },
        ];
        let capacity = Capacity { tokens: 10, sequences: 2, max_length: 5 };
        Plan { buffers, ops, capacity, tasks: Vec::new(), last_hidden: act }
    }

    #[test]
    fn the_longer_of_arithmetic_and_traffic_counts_op_by_op() {
        let plan = small_plan();
        let counts = Counts { tokens: 10, sequences: 2, sum_squares: 50, task_rows: Vec::new() };
        let ceilings = Ceilings { gemm_flops_per_second: 1000.0, copy_bytes_per_second: 2000.0 };
        let phase = |phase| predicted_phase_seconds(&plan, phase, &counts, &ceilings);
        let close = |found: f64, expected: f64| {
            // A few roundings of numbers of order 1.
            assert!((found - expected).abs() <= 1e-14, "{found}, not {expected}");
        };
        // Product: 2 10 16 8 = 2560 FLOPs, 4 (80 + 128 + 16 + 160) = 1536 bytes: arithmetic, 2.56 s.
        // GELU: 160 5 = 800 FLOPs, 4 320 = 1280 bytes: arithmetic, 0.8 s.
        close(phase(Phase::Forward), 2.56 + 0.8);
        // Its gradient: 160 11 = 1760 FLOPs, 4 480 = 1920 bytes: arithmetic, 1.76 s.
        close(phase(Phase::Backward), 1.76);
        // AdamW: 128 13 = 1664 FLOPs, 4 128 (1 + 2 3) = 3584 bytes: traffic, 1.792 s.
        close(phase(Phase::Optimizer), 1.792);
        close(predicted_seconds(&plan, &counts, &ceilings), 2.56 + 0.8 + 1.76 + 1.792);
        // A hundred times the arithmetic, and all ops are traffic: 8320 bytes.
        let fast = Ceilings { gemm_flops_per_second: 1e5, ..ceilings };
        close(predicted_seconds(&plan, &counts, &fast), 8320.0 / 2000.0);
        // Half the tokens: of the four ops only AdamW stays what it is.
        let half = Counts { tokens: 5, ..counts.clone() };
        close(predicted_op_seconds(&plan, &plan.ops[0], &half, &ceilings), 1.28);
        close(predicted_op_seconds(&plan, &plan.ops[3], &half, &ceilings), 1.792);
    }

    #[test]
    fn this_machine_has_ceilings() {
        let ceilings = Ceilings::of_cpu();
        // Far below the slowest machine, far above the fastest; neither 0 nor infinity nor NaN.
        for rate in [ceilings.gemm_flops_per_second, ceilings.copy_bytes_per_second] {
            assert!((1e7..=1e16).contains(&rate), "{ceilings:?}");
        }
    }
}
