//! The step of each freeze scenario, measured beside its prediction.
//!
//! All scenarios run in one session, round by round, in a new random order each round and on the same
//! batch, so that whatever the machine does hits all alike; ratios are taken round by round.

use std::time::Instant;

use super::ceilings::{Ceilings, predicted_seconds};
use super::stats::{Interval, median, median_interval, outliers, ratio_interval};
use crate::Result;
use crate::backend::{StepState, Timing};
use crate::batch::Batch;
use crate::data::SplitMix64;
use crate::freeze::FreezeMask;
use crate::plan::layout::MemoryUse;
use crate::plan::{Capacity, Cost, Counts, Phase, StepOptions};
use crate::session::{Session, Step};
use crate::tensor::DType;

/// A freeze to be measured.
pub struct Scenario {
    /// The spec as it was typed.
    pub freeze: String,
    pub mask: FreezeMask,
}

/// How to measure.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct MeasureOptions {
    /// Rounds that count.
    #[serde(rename = "rounds")]
    pub n_rounds: usize,
    /// Rounds before them that do not.
    #[serde(rename = "warmup")]
    pub n_warmup: usize,
    pub learning_rate: f32,
    pub head_learning_rate: f32,
    pub weight_decay: f32,
    /// None for no clipping.
    pub max_grad_norm: Option<f32>,
    pub seed: u64,
}

impl MeasureOptions {
    /// The state of step `step`, from 1.
    pub fn state(&self, step: u64) -> StepState {
        StepState {
            step,
            learning_rate: self.learning_rate,
            head_learning_rate: self.head_learning_rate,
            weight_decay: self.weight_decay,
            seed: self.seed,
        }
    }
}

/// How much faster than the baseline.
#[derive(Clone, Copy, Debug)]
pub struct Speedup {
    /// By FLOPs alone.
    pub ideal: f64,
    /// By the plan and the machine's ceilings.
    pub predicted: f64,
    /// Median over the rounds of the ratio, with its 95 % interval.
    pub measured: Interval,
}

/// One scenario's step.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub freeze: String,
    pub n_trained: usize,
    /// Planned cost of a step by phase, the mean over the rounds' batches.
    pub cost: [Cost; 3],
    /// Medians by phase.
    pub phase_ms: [f64; 3],
    pub step_ms: Interval,
    /// Every round, in order.
    pub times_ms: Vec<f64>,
    /// Rounds whose time is far from the others'; they count all the same.
    pub outliers: Vec<usize>,
    pub speedup: Speedup,
    /// As planned.
    pub memory: MemoryUse,
}

/// A scenario while it is being measured.
struct Run {
    step: Step,
    times_ms: Vec<f64>,
    phases_ms: [Vec<f64>; 3],
    n_steps: u64,
}

/// The step's options that measuring and the memory probe share: training as it really is.
pub fn step_options(capacity: Capacity, compute: DType, max_grad_norm: Option<f32>) -> StepOptions {
    StepOptions { capacity, compute, dropout: true, max_grad_norm }
}

/// Measures `scenarios`, the first of which is the baseline; round `i` runs on batch `i` modulo their
/// number. `progress` is told after every step.
///
/// # Errors
/// When the device fails or a loss is not finite.
///
/// # Panics
/// Without scenarios, batches or rounds.
pub fn measure(
    session: &mut Session,
    scenarios: &[Scenario],
    batches: &[Batch],
    ceilings: &Ceilings,
    options: &MeasureOptions,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Measurement>> {
    assert!(!scenarios.is_empty() && !batches.is_empty() && options.n_rounds > 0);
    let step = step_options(Capacity::of(batches), session.compute(), options.max_grad_norm);
    let mut runs = Vec::with_capacity(scenarios.len());
    for scenario in scenarios {
        runs.push(Run {
            step: session.compile(&scenario.mask, &step)?,
            times_ms: Vec::new(),
            phases_ms: Default::default(),
            n_steps: 0,
        });
    }
    let mut random = SplitMix64::new(options.seed);
    let mut order: Vec<usize> = (0..runs.len()).collect();
    for round in 0..options.n_warmup + options.n_rounds {
        random.shuffle(&mut order);
        let batch = &batches[round % batches.len()];
        for &at in &order {
            progress(&scenarios[at].freeze);
            one_round(session, &mut runs[at], batch, options, round >= options.n_warmup)?;
        }
    }
    // The batches of the rounds that counted.
    let counts: Vec<Counts> = (options.n_warmup..options.n_warmup + options.n_rounds)
        .map(|round| Counts::of(&batches[round % batches.len()]))
        .collect();
    let baseline = Prediction::of(&runs[0].step, &counts, ceilings);
    let baseline_ms = runs[0].times_ms.clone();
    runs.into_iter()
        .zip(scenarios)
        .enumerate()
        .map(|(at, (run, scenario))| {
            let prediction = Prediction::of(&run.step, &counts, ceilings);
            let measured = match at {
                0 => Interval { low: 1.0, median: 1.0, high: 1.0 },
                _ => ratio_interval(&baseline_ms, &run.times_ms, options.seed)?,
            };
            let [forward, backward, optimizer] = run.phases_ms;
            Ok(Measurement {
                freeze: scenario.freeze.clone(),
                n_trained: run.step.plan().n_trained_values(),
                cost: prediction.cost,
                phase_ms: [median(&forward)?, median(&backward)?, median(&optimizer)?],
                step_ms: median_interval(&run.times_ms, options.seed)?,
                outliers: outliers(&run.times_ms)?,
                times_ms: run.times_ms,
                speedup: Speedup {
                    ideal: baseline.flops() / prediction.flops(),
                    predicted: baseline.seconds / prediction.seconds,
                    measured,
                },
                memory: run.step.layout().memory,
            })
        })
        .collect()
}

fn one_round(
    session: &mut Session,
    run: &mut Run,
    batch: &Batch,
    options: &MeasureOptions,
    counts: bool,
) -> Result<()> {
    run.n_steps += 1;
    let state = options.state(run.n_steps);
    let begun = Instant::now();
    let outcome = session.run(&run.step, batch, &state, Timing::Phases)?;
    let elapsed = begun.elapsed();
    if counts {
        run.times_ms.push(elapsed.as_secs_f64() * 1e3);
        for (times, phase) in run.phases_ms.iter_mut().zip(outcome.times.phases) {
            times.push(phase.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// What the plan says of a step, the mean over several batches.
struct Prediction {
    cost: [Cost; 3],
    seconds: f64,
}

impl Prediction {
    fn of(step: &Step, counts: &[Counts], ceilings: &Ceilings) -> Self {
        let plan = step.plan();
        let mean = |phase| {
            let sum = counts
                .iter()
                .fold(Cost::default(), |sum, counts| sum + plan.phase_cost(phase, counts));
            let n = counts.len() as u64;
            Cost { flops: sum.flops / n, bytes: sum.bytes / n }
        };
        let seconds =
            counts.iter().map(|counts| predicted_seconds(plan, counts, ceilings)).sum::<f64>();
        Self { cost: Phase::ALL.map(mean), seconds: seconds / counts.len() as f64 }
    }

    fn flops(&self) -> f64 {
        self.cost.iter().map(|cost| cost.flops as f64).sum()
    }
}
