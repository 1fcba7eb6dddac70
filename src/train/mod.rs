//! Training with one freeze: epochs over a corpus, evaluation, and the proof that what was frozen did
//! not move.

pub mod evaluate;
pub mod metrics;
pub mod proof;
pub mod schedule;

use std::time::{Duration, Instant};

use serde::Serialize;

pub use self::evaluate::{Evaluator, Quality};
pub use self::proof::{FreezeProof, prove_frozen};
pub use self::schedule::{Schedule, Warmup};
use crate::backend::{StepState, Timing};
use crate::data::{BatchLimit, Corpus, Split};
use crate::freeze::FreezeMask;
use crate::plan::{Capacity, StepOptions};
use crate::session::{Session, Step};
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
    pub n_steps: u64,
    /// Of the training steps alone, without evaluation.
    pub train_time: Duration,
    /// On the evaluation rows after the last step; None where there are none.
    pub eval: Option<Quality>,
    /// Trained values.
    pub n_trained: usize,
    /// The parameters that trained, by the plan.
    pub trained: Vec<crate::model::ParamId>,
}

/// Trains what `mask` leaves on the corpus's training rows; evaluates after every epoch and at the
/// end.
///
/// # Errors
/// A mask under which nothing trains, a loss that is not finite, a device that fails.
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
    let warmup_steps = options.warmup.steps(n_steps);
    let mut outcome = TrainOutcome {
        log: Vec::new(),
        n_steps,
        train_time: Duration::ZERO,
        eval: None,
        n_trained: step.plan().n_trained_values(),
        trained,
    };
    let evaluator = match corpus.eval.is_empty() {
        true => None,
        false => Some(Evaluator::new(session, corpus, &corpus.eval)?),
    };
    let (mut done, mut epoch) = (0, 0);
    while done < n_steps {
        let begun = Instant::now();
        for indices in corpus.epoch(options.limit, options.seed, epoch)? {
            if done == n_steps {
                break;
            }
            let factor = options.schedule.factor(done, n_steps, warmup_steps);
            let line = one_step(session, &step, corpus, &indices, done + 1, factor, options)?;
            done += 1;
            let line = LogLine::Step {
                step: done,
                epoch: done as f64 / per_epoch as f64,
                loss: line.0,
                grad_norm: line.1,
                learning_rate: f64::from(options.learning_rate) * factor,
            };
            let n_tokens = indices.iter().map(|&i| corpus.train.length(i)).sum();
            observer.step(&line, n_tokens, n_steps);
            outcome.log.push(line);
        }
        outcome.train_time += begun.elapsed();
        epoch += 1;
        if let Some(evaluator) = &evaluator {
            let begun = Instant::now();
            let quality = evaluator.evaluate(session, done)?;
            let line = LogLine::Evaluation {
                step: done,
                epoch: done as f64 / per_epoch as f64,
                eval_loss: quality.loss(),
                eval_runtime: begun.elapsed().as_secs_f64(),
                eval: quality.clone(),
            };
            observer.evaluation(&line);
            outcome.log.push(line);
            outcome.eval = Some(quality);
        }
    }
    Ok(outcome)
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

fn one_step(
    session: &mut Session,
    step: &Step,
    corpus: &Corpus,
    indices: &[usize],
    number: u64,
    factor: f64,
    options: &TrainOptions,
) -> Result<(f32, Option<f32>)> {
    let batch = corpus.pack(&corpus.train, indices);
    let rate = |rate: f32| (f64::from(rate) * factor) as f32;
    let state = StepState {
        step: number,
        learning_rate: rate(options.learning_rate),
        head_learning_rate: rate(options.head_learning_rate),
        weight_decay: options.weight_decay,
        seed: options.seed,
    };
    let outcome = session.run(step, &batch, &state, Timing::Off)?;
    Ok((outcome.loss(), outcome.grad_norm))
}
