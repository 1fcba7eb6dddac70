//! Training with one freeze or a schedule of them: epochs over a corpus, evaluation, and the proof that what was
//! frozen did not move; what training did to the rest, and to what the encoder knew ([`retention`]).

mod best;
mod course;
pub mod drift;
pub mod epochs;
pub mod evaluate;
pub mod forgetting;
mod legs;
pub mod loss;
pub mod metrics;
pub mod proof;
mod rates;
pub mod retention;
mod run;
pub mod schedule;
pub mod state;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::best::{Best, BestOptions, Metric, SearchProgress};
pub use self::course::check;
pub use self::epochs::Epochs;
pub use self::evaluate::{Evaluator, Quality};
pub use self::loss::{ClassWeights, LossOptions, Weights};
pub use self::proof::{FreezeProof, prove_frozen};
pub use self::rates::RateRules;
pub use self::run::{largest_batch, step_options, train};
pub use self::schedule::{Schedule, Warmup};
use crate::Result;
use crate::data::{BatchLimit, Corpus};
use crate::model::ParamId;
use crate::session::Session;

/// How long to train, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainOptions {
    pub limit: BatchLimit,
    /// Whether batches have nearly equal numbers of tokens.
    pub even_batches: bool,
    /// Batches of a step.
    pub batches_per_step: usize,
    pub loss: LossOptions,
    /// Whether dropout acts in the frozen part too.
    pub frozen_dropout: bool,
    pub n_epochs: u64,
    /// Ends training after this many steps, also before the epochs are done; more epochs are begun
    /// where the steps ask for them.
    pub max_steps: Option<u64>,
    pub learning_rate: f32,
    pub head_learning_rate: f32,
    /// Rates of single parameters.
    pub rates: RateRules,
    pub weight_decay: f32,
    pub max_grad_norm: Option<f32>,
    pub warmup: Warmup,
    pub schedule: Schedule,
    /// Steps to a line of the log, which has their mean loss.
    pub logging_steps: u64,
    /// Evaluate every so many steps instead of after every epoch; at the end in any case.
    pub eval_steps: Option<u64>,
    /// Which evaluation is the best, and what follows from it.
    pub best: Option<BestOptions>,
    pub seed: u64,
}

impl TrainOptions {
    /// The steps of an epoch, each of one batch or of several.
    ///
    /// # Errors
    /// A text that alone exceeds a limit of tokens.
    pub fn epoch(&self, corpus: &Corpus, epoch: u64) -> Result<Vec<Vec<Vec<usize>>>> {
        let batches = match self.even_batches {
            true => corpus.even_epoch(self.limit, self.seed, epoch)?,
            false => corpus.epoch(self.limit, self.seed, epoch)?,
        };
        Ok(batches.chunks(self.batches_per_step).map(<[_]>::to_vec).collect())
    }

    /// Whether rows bring their weights in the loss: where these are not all alike, and where a mean goes over several
    /// batches.
    fn is_weighted(&self) -> bool {
        self.loss.is_weighted() || self.batches_per_step > 1
    }
}

/// One line of the training log, with transformers' keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogLine {
    Step {
        step: u64,
        epoch: f64,
        loss: f32,
        #[serde(skip_serializing_if = "Option::is_none")]
        grad_norm: Option<f32>,
        learning_rate: f64,
    },
    Evaluation {
        step: u64,
        epoch: f64,
        /// The sum over the tasks of the mean cross-entropy over their rows.
        eval_loss: f64,
        /// Wall-clock seconds of the evaluation.
        eval_runtime: f64,
        eval: Quality,
    },
    /// From the next step on something else is frozen.
    Freeze {
        /// Steps before it.
        step: u64,
        epoch: f64,
        freeze: String,
        /// Values that train from here.
        trainable_parameters: usize,
        /// Planned FLOPs of the next step, as a share of those of the same step with nothing frozen.
        flops_share: f64,
        /// Planned peak memory.
        memory_bytes: usize,
    },
}

impl LogLine {
    /// The line as logs and reports show it: an evaluation's counts are left out, its shares stay.
    pub fn shown(&self) -> serde_json::Value {
        let mut value = serde_json::json!(self);
        if let Some(fields) = value.as_object_mut() {
            fields.remove("kind");
            if let LogLine::Evaluation { eval, .. } = self {
                fields.insert("eval".to_owned(), eval.shares());
            }
        }
        value
    }
}

/// Where a run is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps that were done.
    pub n_steps: u64,
    pub n_epochs: f64,
    pub n_tokens: usize,
    /// Planned FLOPs of all steps.
    pub n_flops: u64,
    /// Of the training steps alone, without evaluation.
    pub train_seconds: f64,
    pub log: Vec<LogLine>,
    /// The sum of the losses since the last line of the log, and their number.
    pub unlogged: (f64, u64),
    /// The last evaluation.
    pub eval: Option<Quality>,
    pub search: SearchProgress,
}

/// Where a run goes on, beside the values that its session was opened with.
#[derive(Clone, Debug, Default)]
pub struct Start {
    pub progress: Progress,
    /// AdamW's moments of what trained.
    pub moments: BTreeMap<ParamId, [Vec<f32>; 2]>,
    /// The values of the best evaluation, where they are kept.
    pub best: Option<BTreeMap<ParamId, Vec<f32>>>,
}

/// A run between two steps.
pub struct Snapshot<'a> {
    pub session: &'a mut Session,
    pub progress: &'a Progress,
    /// What has trained so far, in table order.
    pub trained: &'a [ParamId],
    /// The values of the best evaluation, where they are kept.
    pub best: Option<&'a BTreeMap<ParamId, Vec<f32>>>,
    /// Whether an epoch ended with the last step.
    pub is_epoch_end: bool,
}

/// Told of what happens while training goes on.
pub trait Observer {
    /// After every step; `n_tokens` is the batch's.
    fn step(&mut self, _line: &LogLine, _n_tokens: usize, _n_steps: u64) {}
    /// After every evaluation.
    fn evaluation(&mut self, _line: &LogLine) {}
    /// For every line that the log gets.
    ///
    /// # Errors
    /// What ends the run.
    fn logged(&mut self, _line: &LogLine) -> Result<()> {
        Ok(())
    }
    /// When a schedule freezes something else.
    fn freeze(&mut self, _line: &LogLine) {}
    /// After every step and what followed from it.
    ///
    /// # Errors
    /// What ends the run.
    fn between_steps(&mut self, _snapshot: Snapshot) -> Result<()> {
        Ok(())
    }
}

/// What a training run gave.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    pub progress: Progress,
    /// On the evaluation rows, of the model that is kept: that of the last step, or the best; None where there
    /// are no such rows.
    pub eval: Option<Quality>,
    /// The best evaluation, if one is looked for.
    pub best: Option<Best>,
    /// Trained values.
    pub n_trained: usize,
    /// The parameters that trained, by the plans, in table order.
    pub trained: Vec<ParamId>,
}
