//! Training with one freeze: epochs over a corpus, evaluation, and the proof that what was frozen did
//! not move.

mod best;
pub mod evaluate;
pub mod metrics;
pub mod proof;
pub mod schedule;
pub mod state;

use std::time::{Duration, Instant};

use serde::Serialize;

use self::best::Search;
pub use self::best::{Best, BestOptions, Metric};
pub use self::evaluate::{Evaluator, Quality};
pub use self::proof::{FreezeProof, prove_frozen};
pub use self::schedule::{Schedule, Warmup};
use crate::backend::{StepState, Timing};
use crate::data::{BatchLimit, Corpus, Split};
use crate::freeze::FreezeMask;
use crate::plan::{Capacity, Counts, StepOptions};
use crate::session::Session;
use crate::tensor::DType;
use crate::{Error, Result};

/// How long to train, and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    pub limit: BatchLimit,
    pub n_epochs: u64,
    /// Ends training after this many steps, also before the epochs are done; more epochs are begun
    /// where the steps ask for them.
    pub max_steps: Option<u64>,
    pub learning_rate: f32,
    pub head_learning_rate: f32,
    pub weight_decay: f32,
    pub max_grad_norm: Option<f32>,
    pub warmup: Warmup,
    pub schedule: Schedule,
    /// Evaluate every so many steps instead of after every epoch; at the end in any case.
    pub eval_steps: Option<u64>,
    /// Which evaluation is the best, and what follows from it.
    pub best: Option<BestOptions>,
    pub seed: u64,
}

/// One line of the training log, with transformers' keys.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
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
}

/// Told of what happens while training goes on.
pub trait Observer {
    /// After every step; `n_tokens` is the batch's.
    fn step(&mut self, line: &LogLine, n_tokens: usize, n_steps: u64);
    /// After every evaluation.
    fn evaluation(&mut self, line: &LogLine);
}

/// What a training run gave.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    pub log: Vec<LogLine>,
    /// Steps that were done.
    pub n_steps: u64,
    pub n_epochs: f64,
    pub n_tokens: usize,
    /// Planned FLOPs of all steps.
    pub n_flops: u64,
    /// Of the training steps alone, without evaluation.
    pub train_time: Duration,
    /// On the evaluation rows, of the model that is kept: that of the last step, or the best; None where there
    /// are no such rows.
    pub eval: Option<Quality>,
    /// The best evaluation, if one is looked for.
    pub best: Option<Best>,
    /// Trained values.
    pub n_trained: usize,
    /// The parameters that trained, by the plan.
    pub trained: Vec<crate::model::ParamId>,
}

/// Trains what `mask` leaves on the corpus's training rows; evaluates after every epoch, or as the options say, and
/// at the end.
///
/// # Errors
/// A mask under which nothing trains, a best model to be looked for without rows to evaluate on, a loss that is not
/// finite, a device that fails.
pub fn train(
    session: &mut Session,
    corpus: &Corpus,
    mask: &FreezeMask,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<TrainOutcome> {
    let step = session.compile(mask, &step_options(corpus, session.compute(), options))?;
    let trained = step.plan().trained();
    if trained.is_empty() {
        return Err(Error::usage(
            "nothing trains under this freeze: let something train, or measure it with bench",
        ));
    }
    let per_epoch = corpus.epoch(options.limit, options.seed, 0)?.len() as u64;
    let n_steps = match options.max_steps {
        Some(n) => n,
        None => options.n_epochs.checked_mul(per_epoch).ok_or_else(|| {
            Error::usage(format!("--num-train-epochs {}: too many to count", options.n_epochs))
        })?,
    };
    let mut search = match &options.best {
        Some(best) => Some(Search::new(best, corpus)?),
        None => None,
    };
    let warmup_steps = options.warmup.steps(n_steps);
    let mut outcome = TrainOutcome {
        log: Vec::new(),
        n_steps: 0,
        n_epochs: 0.0,
        n_tokens: 0,
        n_flops: 0,
        train_time: Duration::ZERO,
        eval: None,
        best: None,
        n_trained: step.plan().n_trained_values(),
        trained,
    };
    let evaluator = match corpus.eval.is_empty() {
        true => None,
        false => Some(Evaluator::new(session, corpus, &corpus.eval)?),
    };
    'training: for epoch in 0.. {
        for indices in corpus.epoch(options.limit, options.seed, epoch)? {
            let begun = Instant::now();
            let done = outcome.n_steps;
            let factor = options.schedule.factor(done, n_steps, warmup_steps);
            let batch = corpus.pack(&corpus.train, &indices);
            let ran = session.run(&step, &batch, &state(done + 1, factor, options), Timing::Off)?;
            outcome.n_steps += 1;
            outcome.n_epochs = outcome.n_steps as f64 / per_epoch as f64;
            outcome.n_tokens += batch.n_tokens();
            outcome.n_flops += step.plan().total_cost(&Counts::of(&batch)).flops;
            let line = LogLine::Step {
                step: outcome.n_steps,
                epoch: outcome.n_epochs,
                loss: ran.loss(),
                grad_norm: ran.grad_norm,
                learning_rate: f64::from(options.learning_rate) * factor,
            };
            outcome.train_time += begun.elapsed();
            observer.step(&line, batch.n_tokens(), n_steps);
            outcome.log.push(line);
            let is_over = outcome.n_steps == n_steps;
            let is_due = outcome.n_steps.is_multiple_of(options.eval_steps.unwrap_or(per_epoch));
            if let (Some(evaluator), true) = (&evaluator, is_due || is_over) {
                evaluate(evaluator, session, &mut outcome, observer)?;
                if let (Some(search), Some(quality)) = (&mut search, &outcome.eval)
                    && search.look_at(quality, outcome.n_steps, session, &outcome.trained)?
                {
                    break 'training;
                }
            }
            if is_over {
                break 'training;
            }
        }
    }
    if let Some(best) = search.and_then(Search::into_best) {
        outcome.eval = Some(best.eval.clone());
        outcome.best = Some(best);
    }
    Ok(outcome)
}

/// Evaluates the network as it is now, and writes that down.
fn evaluate(
    evaluator: &Evaluator,
    session: &mut Session,
    outcome: &mut TrainOutcome,
    observer: &mut dyn Observer,
) -> Result<()> {
    let begun = Instant::now();
    let quality = evaluator.evaluate(session, outcome.n_steps)?;
    let line = LogLine::Evaluation {
        step: outcome.n_steps,
        epoch: outcome.n_epochs,
        eval_loss: quality.loss(),
        eval_runtime: begun.elapsed().as_secs_f64(),
        eval: quality.clone(),
    };
    observer.evaluation(&line);
    outcome.log.push(line);
    outcome.eval = Some(quality);
    Ok(())
}

/// The step's options for the largest batch that the corpus can give.
fn step_options(corpus: &Corpus, compute: DType, options: &TrainOptions) -> StepOptions {
    StepOptions {
        capacity: largest_batch(&corpus.train, options.limit),
        compute,
        dropout: true,
        max_grad_norm: options.max_grad_norm,
    }
}

/// The most that any batch of `split` under `limit` can hold.
pub fn largest_batch(split: &Split, limit: BatchLimit) -> Capacity {
    let mut lengths = split.lengths();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let max_length = lengths.first().copied().unwrap_or(0);
    match limit {
        BatchLimit::Sequences(n) => Capacity {
            tokens: lengths.iter().take(n).sum(),
            sequences: n.min(lengths.len()),
            max_length,
        },
        BatchLimit::Tokens(n) => {
            let mut n_tokens = 0;
            let shortest_first = lengths.iter().rev();
            let sequences = shortest_first
                .take_while(|&&length| {
                    n_tokens += length;
                    n_tokens <= n
                })
                .count();
            Capacity { tokens: n.min(lengths.iter().sum()), sequences, max_length }
        }
    }
}

/// The state of step `number`, whose learning rates are multiplied by `factor`.
fn state(number: u64, factor: f64, options: &TrainOptions) -> StepState {
    let rate = |rate: f32| (f64::from(rate) * factor) as f32;
    StepState {
        step: number,
        learning_rate: rate(options.learning_rate),
        head_learning_rate: rate(options.head_learning_rate),
        weight_decay: options.weight_decay,
        seed: options.seed,
    }
}
