//! What each depth costs on this machine, from its plan and the machine's pace, before anything is trained.

use serde::Serialize;

use super::candidates::Candidate;
use crate::Result;
use crate::cache::{fill_batches, n_bytes};
use crate::data::{Corpus, Split};
use crate::freeze::FreezeMask;
use crate::measure::Pace;
use crate::model::Network;
use crate::plan::prefix::{compile_cached, compile_cached_forward, compile_prefixes, prefix_of};
use crate::plan::{Counts, Layout, Plan, StepOptions, compile};
use crate::tensor::DType;
use crate::train::{Epochs, Evaluator, TrainOptions, step_options};

/// What a run may take.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limits {
    pub seconds: Option<f64>,
    /// Of the device.
    pub memory_bytes: Option<u64>,
}

/// The cost of one depth.
#[derive(Clone, Debug, Serialize)]
pub struct DepthCost {
    pub freeze: String,
    pub n_frozen_layers: usize,
    pub trainable_parameters: usize,
    /// Trained values for each training row.
    pub parameters_per_row: f64,
    /// Planned FLOPs of a step, the mean over an epoch, as a share of those of a step that trains everything.
    pub flops_share: f64,
    /// Predicted time of a step, the mean over an epoch.
    pub step_seconds: f64,
    /// The frozen part's output in a cache; None where nothing is frozen, or it exceeds the cache's limit.
    pub cache: Option<CacheCost>,
    /// Predicted time of the whole run, evaluation included: cached where that is faster.
    pub run_seconds: f64,
    /// Planned peak memory of a step, or of an evaluation where that is more. A cache lies where there is room and is not
    /// in it.
    pub memory_bytes: u64,
    /// The heads' learning rate that the run should have.
    pub head_learning_rate: f32,
    /// Whether the run stays within the limits.
    pub fits: bool,
}

/// The cost of a depth whose frozen part is computed once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CacheCost {
    pub bytes: u64,
    pub fill_seconds: f64,
    pub step_seconds: f64,
}

/// What the costs are of.
pub struct CostOptions<'a> {
    pub train: &'a TrainOptions,
    pub compute: DType,
    /// Bytes that a cache may have at most; 0 for none.
    pub cache_limit_bytes: u64,
    pub limits: Limits,
}

/// The rows of a run as counts.
struct Workload {
    epoch: Vec<Counts>,
    /// Of one evaluation.
    eval: Vec<Counts>,
    /// Of filling a cache: training and evaluation rows.
    fill: Vec<Counts>,
    n_epochs: f64,
    n_evals: f64,
}

impl Workload {
    fn of(corpus: &Corpus, options: &TrainOptions) -> Result<Self> {
        let epochs = Epochs::new(options, corpus)?;
        let n_epochs = epochs.after(epochs.n_steps());
        let counts = |split: &Split, batches: Vec<Vec<usize>>| -> Vec<Counts> {
            batches.iter().map(|rows| Counts::of(&corpus.pack(split, rows))).collect()
        };
        let batches = options.epoch(corpus, 0)?.into_iter().flatten();
        let rows = (0..corpus.eval.len()).collect();
        let fill = [&corpus.train, &corpus.eval].map(|split| counts(split, fill_batches(split, 1)));
        Ok(Self {
            epoch: counts(&corpus.train, batches.collect()),
            eval: counts(&corpus.eval, Evaluator::batches(corpus, &corpus.eval, rows)?),
            fill: fill.concat(),
            n_epochs,
            // After every epoch, and at the end.
            n_evals: n_epochs.ceil(),
        })
    }
}

/// The cost of every candidate over the corpus's training rows.
///
/// # Errors
/// More steps than can be counted; a text that alone exceeds a limit of tokens.
pub fn costs(
    network: &Network,
    corpus: &Corpus,
    candidates: &[Candidate],
    pace: &Pace,
    options: &CostOptions,
) -> Result<Vec<DepthCost>> {
    let workload = Workload::of(corpus, options.train)?;
    let step = step_options(corpus, options.compute, options.train);
    let everything = compile(network, &FreezeMask::none(network.params.len()), &step);
    let all_flops = flops(&everything, &workload.epoch);
    let one = |candidate: &Candidate| {
        let cost = cost(network, corpus, candidate, pace, options, (&workload, &step));
        DepthCost { flops_share: cost.flops_share / all_flops, ..cost }
    };
    Ok(candidates.iter().map(one).collect())
}

/// The cost of one candidate; its share of FLOPs is still their number.
fn cost(
    network: &Network,
    corpus: &Corpus,
    candidate: &Candidate,
    pace: &Pace,
    options: &CostOptions,
    (workload, step): (&Workload, &StepOptions),
) -> DepthCost {
    let seconds = |plan: &Plan, batches: &[Counts]| -> f64 {
        batches.iter().map(|counts| pace.seconds(plan, counts)).sum()
    };
    let n_batches = workload.epoch.len() as f64;
    let plan = compile(network, &candidate.mask, step);
    let epoch_seconds = seconds(&plan, &workload.epoch);
    let forward = StepOptions::plain(Evaluator::capacity(&corpus.eval), options.compute);
    let everything = FreezeMask::all(network.params.len());
    let eval = compile(network, &everything, &forward);
    let eval_seconds = workload.n_evals * seconds(&eval, &workload.eval);
    let mut run_seconds = workload.n_epochs * epoch_seconds + eval_seconds;
    let cache = prefix_of(network, &candidate.mask, step).and_then(|prefix| {
        let bytes = n_bytes(corpus, &prefix);
        let cached = compile_cached(network, &candidate.mask, step)?;
        let (fill, _) = compile_prefixes(network, &[prefix.above], &forward)?;
        let eval = compile_cached_forward(network, prefix.above, &forward)?;
        let cost = CacheCost {
            bytes,
            fill_seconds: seconds(&fill, &workload.fill),
            step_seconds: seconds(&cached, &workload.epoch) / n_batches,
        };
        let epochs = workload.n_epochs * n_batches * cost.step_seconds;
        let evals = workload.n_evals * seconds(&eval, &workload.eval);
        let cached_run = cost.fill_seconds + epochs + evals;
        (bytes <= options.cache_limit_bytes).then_some((cost, cached_run))
    });
    let cache = cache.map(|(cost, cached_run)| {
        run_seconds = run_seconds.min(cached_run);
        cost
    });
    let memory_bytes = peak(&plan).max(peak(&eval));
    let Limits { seconds: most_seconds, memory_bytes: most_bytes } = options.limits;
    DepthCost {
        freeze: candidate.freeze.clone(),
        n_frozen_layers: candidate.n_frozen_layers,
        trainable_parameters: plan.n_trained_values(),
        parameters_per_row: plan.n_trained_values() as f64 / corpus.train.len() as f64,
        flops_share: flops(&plan, &workload.epoch),
        step_seconds: epoch_seconds / n_batches,
        cache,
        run_seconds,
        memory_bytes,
        head_learning_rate: options.train.head_learning_rate * candidate.head_rate_scale,
        fits: most_seconds.is_none_or(|most| run_seconds <= most)
            && most_bytes.is_none_or(|most| memory_bytes <= most),
    }
}

fn peak(plan: &Plan) -> u64 {
    Layout::new(plan).memory.total() as u64
}

/// The least frozen candidate whose step needs no more than the limit, else the most frozen.
///
/// # Panics
/// Without candidates.
pub(super) fn least_frozen<'a>(
    network: &Network,
    corpus: &Corpus,
    candidates: &'a [Candidate],
    options: &CostOptions,
) -> &'a Candidate {
    let step = step_options(corpus, options.compute, options.train);
    let fits = |candidate: &&Candidate| {
        let bytes = peak(&compile(network, &candidate.mask, &step));
        options.limits.memory_bytes.is_none_or(|most| bytes <= most)
    };
    candidates.iter().rev().find(fits).unwrap_or(&candidates[0])
}

fn flops(plan: &Plan, batches: &[Counts]) -> f64 {
    batches.iter().map(|counts| plan.total_cost(counts).flops as f64).sum()
}
