//! What each depth costs on this machine, from its plan and the machine's pace, before anything is trained.

use serde::Serialize;

use super::candidates::Candidate;
use super::counts;
use super::plans::{Compiler, Cut, DepthPlans, TrainingPlans};
use crate::Result;
use crate::cache::n_bytes;
use crate::data::Corpus;
use crate::freeze::FreezeMask;
use crate::measure::Pace;
use crate::model::Network;
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
    /// Whether it is cached.
    pub run_is_cached: bool,
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

/// What a run takes, filling a cache apart.
struct RunSeconds {
    whole: f64,
    /// A step, the mean over an epoch.
    step: f64,
}

/// What all candidates are weighed by.
struct Scales<'a> {
    corpus: &'a Corpus,
    pace: &'a Pace,
    options: &'a CostOptions<'a>,
    compiler: Compiler<'a>,
    /// Peak memory of an evaluation with nothing cached.
    eval_bytes: u64,
    /// The batches of an epoch, step by step, of one evaluation, and of filling a cache with the rows of both splits.
    epoch: Vec<Vec<Counts>>,
    eval: Vec<Counts>,
    fill: Vec<Counts>,
    n_epochs: f64,
    n_evals: f64,
    /// Of an epoch that trains everything.
    all_flops: f64,
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
    let scales = Scales::new(network, corpus, pace, options)?;
    Ok(candidates.iter().map(|candidate| scales.weigh(candidate)).collect())
}

impl<'a> Scales<'a> {
    fn new(
        network: &'a Network,
        corpus: &'a Corpus,
        pace: &'a Pace,
        options: &'a CostOptions,
    ) -> Result<Self> {
        let epochs = Epochs::new(options.train, corpus)?;
        let n_epochs = epochs.after(epochs.n_steps());
        let epoch = counts::epoch(corpus, options.train, usize::MAX)?;
        let step = step_options(corpus, options.compute, options.train);
        let forward = StepOptions::plain(Evaluator::capacity(&corpus.eval), options.compute);
        let compiler = Compiler::new(network, step, forward);
        let everything = compiler.depth(&FreezeMask::none(network.params.len()));
        Ok(Self {
            corpus,
            pace,
            options,
            eval_bytes: peak(&compiler.evaluation),
            compiler,
            all_flops: flops(&everything.plain, &epoch),
            epoch,
            eval: counts::evaluation(corpus)?,
            fill: counts::fill(corpus, 1).concat(),
            n_epochs,
            // After every epoch, and at the end.
            n_evals: n_epochs.ceil(),
        })
    }

    fn seconds(&self, plans: &TrainingPlans) -> RunSeconds {
        let step = |batches: &Vec<Counts>| plans.step_seconds(self.pace, batches);
        let epoch: f64 = self.epoch.iter().map(step).sum();
        let eval = plans.evaluation_seconds(self.pace, &self.eval);
        let whole = self.n_epochs * epoch + self.n_evals * eval;
        RunSeconds { whole, step: epoch / self.epoch.len() as f64 }
    }

    fn weigh(&self, candidate: &Candidate) -> DepthCost {
        let options = self.options;
        let DepthPlans { plain, cut } = self.compiler.depth(&candidate.mask);
        let plain_seconds = self.seconds(&plain);
        let (cache, cached_seconds) = cut.and_then(|cut| self.cached(&cut)).unzip();
        let run_seconds =
            cached_seconds.map_or(plain_seconds.whole, |cached| plain_seconds.whole.min(cached));
        let memory_bytes = peak(&plain.step).max(self.eval_bytes);
        let Limits { seconds: most_seconds, memory_bytes: most_bytes } = options.limits;
        let n_trained = plain.step.n_trained_values();
        DepthCost {
            freeze: candidate.freeze.clone(),
            n_frozen_layers: candidate.n_frozen_layers,
            trainable_parameters: n_trained,
            parameters_per_row: n_trained as f64 / self.corpus.train.len() as f64,
            flops_share: flops(&plain, &self.epoch) / self.all_flops,
            step_seconds: plain_seconds.step,
            cache,
            run_seconds,
            run_is_cached: run_seconds < plain_seconds.whole,
            memory_bytes,
            head_learning_rate: options.train.head_learning_rate * candidate.head_rate_scale,
            fits: most_seconds.is_none_or(|most| run_seconds <= most)
                && most_bytes.is_none_or(|most| memory_bytes <= most),
        }
    }

    /// The cache of a depth, and seconds of the whole run with it; None where it exceeds the limit.
    fn cached(&self, cut: &Cut) -> Option<(CacheCost, f64)> {
        let bytes = n_bytes(self.corpus, &cut.prefix);
        if bytes > self.options.cache_limit_bytes {
            return None;
        }
        let fill = |counts| self.pace.forward_seconds(&cut.below, counts);
        let fill_seconds = self.fill.iter().map(fill).sum();
        let RunSeconds { whole, step } = self.seconds(&cut.above);
        Some((CacheCost { bytes, fill_seconds, step_seconds: step }, fill_seconds + whole))
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

fn flops(plans: &TrainingPlans, steps: &[Vec<Counts>]) -> f64 {
    steps.iter().map(|batches| plans.step_flops(batches)).sum()
}
