//! In words: where a freeze saves less than one would think, and why.

use super::scenarios::{Measurement, OpTime};
use crate::plan::{BufId, Counts, Op, Plan, Role};

/// Products and heads that pass a gradient on to what lies below them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct InputGradients {
    /// Weights that a gradient passes through.
    pub n: usize,
    /// Those among them that do not train: nothing of their own is computed, and yet they cost.
    pub n_frozen: usize,
    /// FLOPs of the ops that pass through frozen weights alone.
    pub frozen_flops: u64,
}

impl InputGradients {
    /// Those of `plan`; FLOPs on a batch of these counts.
    pub fn of(plan: &Plan, counts: &Counts) -> Self {
        let param = |buf: BufId| match plan.buffer(buf).role {
            Role::Value(param) => Some(param),
            _ => None,
        };
        let trained = plan.trained();
        let mut found = Self::default();
        for op in &plan.ops {
            let weights: Vec<BufId> = match op {
                Op::GemmDgrad { parts, .. } => parts.iter().map(|part| part.weight).collect(),
                Op::GemmGeluDgrad { weight, .. } => vec![*weight],
                Op::HeadDgrad { parts, .. } => parts.iter().map(|part| part.weight).collect(),
                _ => continue,
            };
            let is_frozen = |buf: &&BufId| !param(**buf).is_some_and(|id| trained.contains(&id));
            let n_frozen = weights.iter().filter(is_frozen).count();
            found.n += weights.len();
            found.n_frozen += n_frozen;
            if n_frozen == weights.len() {
                found.frozen_flops += plan.cost(op, counts).flops;
            }
        }
        found
    }
}

/// How far a measured speed-up may lie from its prediction without a word.
const NEAR: f64 = 0.05;

/// What is worth a sentence about `one`, measured beside `baseline`.
pub fn findings(one: &Measurement, baseline: &Measurement) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(text) = passes_through(one, baseline) {
        found.push(text);
    }
    if let Some(text) = missed(one, baseline) {
        found.push(text);
    }
    found
}

/// A freeze above something that trains: gradients must pass through what is frozen.
fn passes_through(one: &Measurement, baseline: &Measurement) -> Option<String> {
    let InputGradients { n, n_frozen, frozen_flops } = one.input_gradients;
    if n_frozen == 0 {
        return None;
    }
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let n_fewer = baseline.n_trained - one.n_trained;
    let (frozen, saved) =
        (n_fewer as f64 / baseline.n_trained as f64, 1.0 - 1.0 / one.speedup.predicted);
    let all: u64 = one.ops.iter().map(|op| op.flops).sum();
    Some(format!(
        "{} freezes {} of the trained values, and should save {} of a step: a gradient still passes through {n} \
         weights, {n_frozen} of them frozen above something that trains, with {} of the step's FLOPs",
        one.freeze,
        percent(frozen),
        percent(saved.max(0.0)),
        percent(frozen_flops as f64 / all as f64),
    ))
}

/// A measured speed-up that is not the predicted one, with the ops that lie furthest from where the
/// baseline's speed would put them.
fn missed(one: &Measurement, baseline: &Measurement) -> Option<String> {
    let (predicted, measured) = (one.speedup.predicted, one.speedup.measured);
    let quotient = measured.median / predicted;
    let is_within = measured.low <= predicted && predicted <= measured.high;
    if (quotient - 1.0).abs() <= NEAR || is_within {
        return None;
    }
    // How many times its floor the baseline takes: a scenario as far from its own would have met the prediction.
    let sum = |times: &[OpTime], of: fn(&OpTime) -> f64| times.iter().map(of).sum::<f64>();
    let usual = sum(&baseline.ops, |op| op.measured_ms) / sum(&baseline.ops, |op| op.predicted_ms);
    let excess =
        |op: &OpTime| (op.measured_ms - usual * op.predicted_ms) * (1.0 - quotient).signum();
    let most = one.ops.iter().max_by(|a, b| excess(a).total_cmp(&excess(b)))?;
    Some(format!(
        "{} was measured {:.2} times as fast where {predicted:.2} was predicted. Furthest off: {}, {:.2} ms \
         or {:.2} times its floor, where the baseline's step takes {usual:.2} times its own",
        one.freeze,
        measured.median,
        most.op,
        most.measured_ms,
        most.measured_ms / most.predicted_ms,
    ))
}
