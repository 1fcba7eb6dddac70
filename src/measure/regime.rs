//! What bounds a step: arithmetic, memory, the optimizer's traffic, or the number of ops.

use serde::Serialize;

use super::Ceilings;
use crate::plan::{Counts, Family, Plan};

/// What most of a step's time should go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Ops whose arithmetic takes longer than their traffic: products of many rows.
    ComputeBound,
    /// Ops whose traffic takes longer.
    MemoryBound,
    /// The optimizer, whose traffic follows from the trained parameters and not from the batch.
    OptimizerBound,
    /// Starting ops: the work of most takes less time than that.
    LaunchBound,
}

impl Bound {
    /// All of them, in the order of [`Regime::shares`].
    pub const ALL: [Bound; 4] =
        [Bound::ComputeBound, Bound::MemoryBound, Bound::OptimizerBound, Bound::LaunchBound];

    /// The word that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Bound::ComputeBound => "compute-bound",
            Bound::MemoryBound => "memory-bound",
            Bound::OptimizerBound => "optimizer-bound",
            Bound::LaunchBound => "launch-bound",
        }
    }
}

/// How a plan's time divides by what bounds it, by the plan and the machine's ceilings alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regime {
    /// The largest share.
    pub bound: Bound,
    /// Shares in the order of [`Bound::ALL`]; they add up to 1.
    pub shares: [f64; 4],
}

impl Regime {
    /// The regime of `plan` on batches of these counts.
    pub fn of(plan: &Plan, counts: &[Counts], ceilings: &Ceilings) -> Self {
        let mut seconds = [0.0; 4];
        for counts in counts {
            for op in &plan.ops {
                let cost = plan.cost(op, counts);
                let (arithmetic, traffic) =
                    (ceilings.arithmetic_seconds(cost), ceilings.traffic_seconds(cost));
                let bound = match op.family() {
                    Family::Optimizer => Bound::OptimizerBound,
                    _ if arithmetic >= traffic => Bound::ComputeBound,
                    _ => Bound::MemoryBound,
                };
                seconds[bound as usize] += arithmetic.max(traffic);
                seconds[Bound::LaunchBound as usize] += ceilings.op_seconds;
            }
        }
        let total: f64 = seconds.iter().sum();
        let shares = seconds.map(|seconds| seconds / total);
        let largest = Bound::ALL
            .into_iter()
            .max_by(|a, b| shares[*a as usize].total_cmp(&shares[*b as usize]));
        Self { bound: largest.unwrap_or(Bound::ComputeBound), shares }
    }

    /// The share of its own bound.
    pub fn share(&self) -> f64 {
        self.shares[self.bound as usize]
    }
}
