//! The step of each freeze scenario, measured beside its prediction.
//!
//! All scenarios run in one session, round by round, in a new random order each round and on the same
//! batch, so that whatever the machine does hits all alike; ratios are taken round by round. A few more
//! rounds time every op, which is not free on a GPU.

use std::time::Instant;

use super::ceilings::{Ceilings, predicted_op_seconds, predicted_phase_seconds};
use super::findings::InputGradients;
use super::power::{self, Clocks, Energy, Gauge};
use super::prefix::CachedBatches;
use super::regime::Regime;
use super::stats::{Interval, median, median_interval, outliers, ratio_interval};
use crate::backend::{StepState, Timing};
use crate::batch::Batch;
use crate::data::SplitMix64;
use crate::freeze::FreezeMask;
use crate::plan::layout::MemoryUse;
use crate::plan::{Capacity, Cost, Counts, Family, Phase, StepOptions};
use crate::session::{Session, Step};
use crate::tensor::DType;
use crate::{Error, Result};

/// A freeze to be measured.
pub struct Scenario {
    /// The spec as it was typed.
    pub freeze: String,
    pub mask: FreezeMask,
    /// Whether its frozen prefix is read from a cache.
    pub is_cached: bool,
}

impl Scenario {
    /// What reports call it.
    pub fn name(&self) -> String {
        format!("{}{}", self.freeze, if self.is_cached { " cached" } else { "" })
    }
}

/// How to measure.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct MeasureOptions {
    /// Rounds that count.
    #[serde(rename = "rounds")]
    pub n_rounds: usize,
    /// Rounds before them that do not; None for as many as it takes until times are steady.
    #[serde(rename = "warmup")]
    pub n_warmup: Option<usize>,
    pub learning_rate: f32,
    pub head_learning_rate: f32,
    pub weight_decay: f32,
    /// None for no clipping.
    pub max_grad_norm: Option<f32>,
    pub seed: u64,
    /// Whether steps go on for some seconds more where their energy can be read.
    #[serde(skip)]
    pub with_energy: bool,
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
    /// Times by phase by the plan and the machine's ceilings, the mean over the rounds' batches.
    pub predicted_ms: [f64; 3],
    /// Medians by phase.
    pub phase_ms: [f64; 3],
    pub step_ms: Interval,
    /// The three phases together as the device counts them, without what the host does before and after.
    pub device_ms: Interval,
    /// Every round, in order.
    pub times_ms: Vec<f64>,
    /// Rounds whose time is far from the others'; they count all the same.
    pub outliers: Vec<usize>,
    pub speedup: Speedup,
    /// As planned.
    pub memory: MemoryUse,
    /// What bounds it, as planned.
    pub regime: Regime,
    /// Where its time goes, on one batch of middling size.
    pub ops: Vec<OpTime>,
    pub input_gradients: InputGradients,
    /// What it draws, where that could be read.
    pub energy: Option<Energy>,
}

impl Measurement {
    /// Planned FLOPs of a step.
    pub fn flops(&self) -> f64 {
        self.cost.iter().map(|cost| cost.flops as f64).sum()
    }

    /// Predicted time of a step.
    pub fn predicted_step_ms(&self) -> f64 {
        self.predicted_ms.iter().sum()
    }
}

/// All ops of one name.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct OpTime {
    pub op: &'static str,
    pub phase: Phase,
    pub family: Family,
    pub calls: usize,
    pub flops: u64,
    pub bytes: u64,
    pub predicted_ms: f64,
    /// Median over the rounds that timed every op.
    pub measured_ms: f64,
}

/// What measuring gave.
pub struct Measured {
    /// The first is the baseline.
    pub scenarios: Vec<Measurement>,
    /// Rounds that did not count.
    pub n_warmup: usize,
    /// Of the rounds that counted, where they could be read.
    pub clocks: Option<Clocks>,
}

/// Rounds that time every op.
const N_OP_ROUNDS: usize = 5;

/// Warm-up rounds, where nobody says how many: no more than these, and no fewer.
const MAX_WARMUP: usize = 20;
const MIN_WARMUP: usize = 3;

/// Times are steady once a round is not faster than the fastest before it by more than this share.
const STEADY: f64 = 0.02;

/// A scenario while it is being measured.
pub(super) struct Run<'a> {
    step: Step,
    cached: Option<CachedBatches<'a>>,
    pub times_ms: Vec<f64>,
    pub phases_ms: [Vec<f64>; 3],
    /// By op, a list a round.
    ops_ms: Vec<Vec<f64>>,
    n_steps: u64,
}

impl<'a> Run<'a> {
    pub(super) fn new(step: Step) -> Self {
        let (times_ms, phases_ms, ops_ms) = Default::default();
        Self { step, cached: None, times_ms, phases_ms, ops_ms, n_steps: 0 }
    }

    fn of(
        session: &mut Session,
        scenario: &Scenario,
        options: &StepOptions,
        batches: &'a [Batch],
    ) -> Result<Self> {
        if !scenario.is_cached {
            return Ok(Run::new(session.compile(&scenario.mask, options)?));
        }
        let Some((step, cached)) = CachedBatches::new(session, &scenario.mask, options, batches)?
        else {
            let name = &scenario.freeze;
            return Err(Error::usage(format!("{name}: nothing is frozen below what trains")));
        };
        Ok(Run { cached: Some(cached), ..Run::new(step) })
    }

    /// Runs one step, and says what it took.
    pub(super) fn step(
        &mut self,
        session: &mut Session,
        batch: &'a Batch,
        options: &MeasureOptions,
        timing: Timing,
    ) -> Result<(f64, crate::backend::StepTimes)> {
        self.n_steps += 1;
        let batch = match &self.cached {
            Some(cached) => cached.open(session, batch)?,
            None => batch,
        };
        let state = options.state(self.n_steps);
        let begun = Instant::now();
        let outcome = session.run(&self.step, batch, &state, timing)?;
        Ok((begun.elapsed().as_secs_f64() * 1e3, outcome.times))
    }
}

/// The step's options that measuring and the memory probe share: training as it really is.
pub fn step_options(capacity: Capacity, compute: DType, max_grad_norm: Option<f32>) -> StepOptions {
    StepOptions { dropout: true, max_grad_norm, ..StepOptions::plain(capacity, compute) }
}

/// Measures `scenarios`, the first of which is the baseline; round `i` runs on batch `i` modulo their
/// number. `gauge` is read between rounds, and around some seconds of each scenario's steps. `progress` is told before
/// every step what is measured and how many steps there will be, as far as is known.
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
    mut gauge: Option<&mut dyn Gauge>,
    mut progress: impl FnMut(&str, usize),
) -> Result<Measured> {
    assert!(!scenarios.is_empty() && !batches.is_empty() && options.n_rounds > 0);
    let step = step_options(Capacity::of(batches), session.compute(), options.max_grad_norm);
    let mut runs = (scenarios.iter())
        .map(|scenario| Run::of(session, scenario, &step, batches))
        .collect::<Result<Vec<_>>>()?;
    let mut random = SplitMix64::new(options.seed);
    let n_rounds_left = options.n_rounds + N_OP_ROUNDS;
    let mut n_warmup = 0;
    let mut fastest = f64::INFINITY;
    loop {
        let is_over = match options.n_warmup {
            Some(n) => n_warmup == n,
            None => n_warmup == MAX_WARMUP,
        };
        if is_over {
            break;
        }
        n_warmup += 1;
        let n_expected = options.n_warmup.unwrap_or(MIN_WARMUP).max(n_warmup) + n_rounds_left;
        let mut round_ms = 0.0;
        for at in shuffled(runs.len(), &mut random) {
            progress(&scenarios[at].name(), n_expected * runs.len());
            let largest = largest(batches);
            round_ms += runs[at].step(session, largest, options, Timing::Phases)?.0;
        }
        let is_steady = n_warmup >= MIN_WARMUP && round_ms >= (1.0 - STEADY) * fastest;
        if options.n_warmup.is_none() && is_steady {
            break;
        }
        fastest = fastest.min(round_ms);
    }
    let n_steps = (n_warmup + n_rounds_left) * runs.len();
    let mut readings = Vec::new();
    for round in 0..options.n_rounds {
        let batch = &batches[round % batches.len()];
        for at in shuffled(runs.len(), &mut random) {
            progress(&scenarios[at].name(), n_steps);
            one_round(session, &mut runs[at], batch, options)?;
        }
        readings.extend(gauge.as_mut().and_then(|gauge| gauge.read()));
    }
    let middling = middling(batches);
    for _ in 0..N_OP_ROUNDS {
        for at in shuffled(runs.len(), &mut random) {
            progress(&scenarios[at].name(), n_steps);
            let (_, times) = runs[at].step(session, middling, options, Timing::Ops)?;
            runs[at].ops_ms.push(times.ops.iter().map(|time| time.as_secs_f64() * 1e3).collect());
        }
    }
    let mut energies = vec![None; runs.len()];
    if let Some(gauge) = gauge.filter(|_| options.with_energy) {
        for (run, energy) in runs.iter_mut().zip(&mut energies) {
            let mut batches = batches.iter().cycle();
            *energy = power::energy(gauge, || {
                // There is a batch, and they never end.
                let batch = batches.next().expect("batches");
                run.step(session, batch, options, Timing::Off)?;
                Ok(batch.n_sequences())
            })?;
        }
    }
    // The batches of the rounds that counted.
    let counts: Vec<Counts> =
        (0..options.n_rounds).map(|round| Counts::of(&batches[round % batches.len()])).collect();
    let baseline_ms = runs[0].times_ms.clone();
    let mut measured: Vec<Measurement> = Vec::with_capacity(runs.len());
    for ((run, scenario), energy) in runs.into_iter().zip(scenarios).zip(energies) {
        let mut one =
            measurement(run, scenario, &counts, &Counts::of(middling), ceilings, options)?;
        one.energy = energy;
        if let Some(baseline) = measured.first() {
            one.speedup = Speedup {
                ideal: baseline.flops() / one.flops(),
                predicted: baseline.predicted_step_ms() / one.predicted_step_ms(),
                measured: ratio_interval(&baseline_ms, &one.times_ms, options.seed)?,
            };
        }
        measured.push(one);
    }
    Ok(Measured { scenarios: measured, n_warmup, clocks: Clocks::of(&readings) })
}

pub(super) fn shuffled(n: usize, random: &mut SplitMix64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    random.shuffle(&mut order);
    order
}

/// The batch of most tokens: a warm-up on it touches all memory that a round will.
pub(super) fn largest(batches: &[Batch]) -> &Batch {
    batches.iter().max_by_key(|batch| batch.n_tokens()).unwrap_or(&batches[0])
}

/// The batch whose number of tokens is the median.
fn middling(batches: &[Batch]) -> &Batch {
    let mut by_size: Vec<&Batch> = batches.iter().collect();
    by_size.sort_by_key(|batch| batch.n_tokens());
    by_size[by_size.len() / 2]
}

pub(super) fn one_round<'a>(
    session: &mut Session,
    run: &mut Run<'a>,
    batch: &'a Batch,
    options: &MeasureOptions,
) -> Result<()> {
    let (elapsed_ms, outcome) = run.step(session, batch, options, Timing::Phases)?;
    run.times_ms.push(elapsed_ms);
    for (times, phase) in run.phases_ms.iter_mut().zip(outcome.phases) {
        times.push(phase.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// The measurement of a scenario, as fast as itself.
fn measurement(
    run: Run,
    scenario: &Scenario,
    counts: &[Counts],
    op_counts: &Counts,
    ceilings: &Ceilings,
    options: &MeasureOptions,
) -> Result<Measurement> {
    let plan = run.step.plan();
    let n = counts.len();
    let mean_cost = |phase| {
        let sum =
            counts.iter().fold(Cost::default(), |sum, counts| sum + plan.phase_cost(phase, counts));
        Cost { flops: sum.flops / n as u64, bytes: sum.bytes / n as u64 }
    };
    let mean_ms = |phase| {
        let seconds: f64 = (counts.iter())
            .map(|counts| predicted_phase_seconds(plan, phase, counts, ceilings))
            .sum();
        seconds * 1e3 / n as f64
    };
    let [forward, backward, optimizer] = &run.phases_ms;
    let device_ms: Vec<f64> =
        (0..forward.len()).map(|at| forward[at] + backward[at] + optimizer[at]).collect();
    Ok(Measurement {
        freeze: scenario.name(),
        n_trained: plan.n_trained_values(),
        cost: Phase::ALL.map(mean_cost),
        predicted_ms: Phase::ALL.map(mean_ms),
        phase_ms: [median(forward)?, median(backward)?, median(optimizer)?],
        step_ms: median_interval(&run.times_ms, options.seed)?,
        device_ms: median_interval(&device_ms, options.seed)?,
        outliers: outliers(&run.times_ms)?,
        speedup: Speedup {
            ideal: 1.0,
            predicted: 1.0,
            measured: Interval { low: 1.0, median: 1.0, high: 1.0 },
        },
        memory: run.step.layout().memory,
        regime: Regime::of(plan, counts, ceilings),
        ops: op_times(&run, op_counts, ceilings)?,
        input_gradients: InputGradients::of(plan, op_counts),
        times_ms: run.times_ms,
        energy: None,
    })
}

/// The ops of a step by name, in the order of their first.
fn op_times(run: &Run, counts: &Counts, ceilings: &Ceilings) -> Result<Vec<OpTime>> {
    let plan = run.step.plan();
    let mut times: Vec<OpTime> = Vec::new();
    for first in &plan.ops {
        if times.iter().any(|time| time.op == first.name()) {
            continue;
        }
        let is_of = |at: &usize| plan.ops[*at].name() == first.name();
        let ops: Vec<usize> = (0..plan.ops.len()).filter(is_of).collect();
        let mut cost = Cost::default();
        let mut predicted_ms = 0.0;
        for op in ops.iter().map(|&at| &plan.ops[at]) {
            cost += plan.cost(op, counts);
            predicted_ms += 1e3 * predicted_op_seconds(plan, op, counts, ceilings);
        }
        let rounds: Vec<f64> =
            run.ops_ms.iter().map(|round| ops.iter().map(|&at| round[at]).sum()).collect();
        times.push(OpTime {
            op: first.name(),
            phase: first.phase(),
            family: first.family(),
            calls: ops.len(),
            flops: cost.flops,
            bytes: cost.bytes,
            predicted_ms,
            measured_ms: median(&rounds)?,
        });
    }
    Ok(times)
}
