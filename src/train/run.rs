//! The loop.

use std::collections::BTreeMap;
use std::time::Instant;

use super::best::Search;
use super::legs::{Leg, compile_legs, leg_behind, trained_by};
use super::loss::RowWeights;
use super::{Evaluator, LogLine, Observer, Progress, Snapshot, Start, TrainOptions, TrainOutcome};
use crate::Result;
use crate::backend::{StepState, Timing};
use crate::batch::Batch;
use crate::cache::PrefixCache;
use crate::data::{BatchLimit, Corpus, Split};
use crate::freeze::FreezeState;
use crate::model::ParamId;
use crate::plan::{Capacity, Counts, Loss, StepOptions};
use crate::session::Session;
use crate::tensor::DType;

/// Trains what `states` leave on the corpus's training rows; evaluates after every epoch, or as the options say, and
/// at the end. A run that goes on from `start` ends as if it had never stopped; one with a cache ends as one without.
///
/// # Errors
/// States under which nothing trains or that do not follow each other, a best model to be looked for without rows to
/// evaluate on, a loss that is not finite, a device that fails, what the observer ends the run with.
pub fn train(
    session: &mut Session,
    corpus: &Corpus,
    states: &[FreezeState],
    options: &TrainOptions,
    (start, cache): (Start, Option<&PrefixCache>),
    observer: &mut dyn Observer,
) -> Result<TrainOutcome> {
    let step_options = step_options(corpus, session.compute(), options);
    let (per_epoch, n_steps) = options.n_steps(corpus)?;
    let weights = match options.is_weighted() {
        true => Some(RowWeights::new(&options.loss, corpus)?),
        false => None,
    };
    let search = match &options.best {
        Some(best) => Some(Search::new(best, corpus, start.progress.search.clone(), start.best)?),
        None => None,
    };
    let legs = compile_legs(
        session,
        states,
        &step_options,
        options,
        (per_epoch, n_steps),
        cache.is_some(),
    )?;
    if let Some(cache) = cache {
        let Capacity { tokens, sequences, .. } = step_options.capacity;
        session.set_prefix(cache.rows(), tokens.max(sequences))?;
    }
    for (id, moments) in start.moments {
        session.set_moments(id, moments)?;
    }
    let evaluator = match corpus.eval.is_empty() {
        true => None,
        false => Some(Evaluator::new(session, corpus, &corpus.eval)?),
    };
    let mut run = Run {
        corpus,
        options,
        step_options,
        per_epoch,
        n_steps,
        warmup_steps: options.warmup.steps(n_steps),
        legs,
        weights,
        cache,
        evaluator,
        search,
        progress: start.progress,
    };
    run.epochs(session, observer)?;
    Ok(run.outcome(session))
}

/// A run that goes on.
struct Run<'a> {
    corpus: &'a Corpus,
    options: &'a TrainOptions,
    step_options: StepOptions,
    /// Steps of an epoch.
    per_epoch: u64,
    /// Steps of the run.
    n_steps: u64,
    warmup_steps: u64,
    legs: Vec<Leg>,
    /// None where every labelled row of a batch counts alike.
    weights: Option<RowWeights>,
    cache: Option<&'a PrefixCache>,
    evaluator: Option<Evaluator<'a>>,
    search: Option<Search<'a>>,
    progress: Progress,
}

impl Run<'_> {
    fn epochs(&mut self, session: &mut Session, observer: &mut dyn Observer) -> Result<()> {
        let first_epoch = self.progress.n_steps / self.per_epoch.max(1);
        for epoch in first_epoch.. {
            let done = (self.progress.n_steps - epoch * self.per_epoch) as usize;
            let steps = self.options.epoch(self.corpus, epoch)?;
            for batches in &steps[done..] {
                if self.progress.n_steps >= self.n_steps || self.is_settled() {
                    return Ok(());
                }
                self.step(session, batches, observer)?;
                self.evaluate_if_due(session, observer)?;
                observer.between_steps(Snapshot {
                    session,
                    progress: &self.progress,
                    trained: trained_by(&self.legs, self.progress.n_steps),
                    best: self.search.as_ref().and_then(Search::values),
                    is_epoch_end: self.progress.n_steps.is_multiple_of(self.per_epoch),
                })?;
            }
            if self.progress.n_steps >= self.n_steps {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One step over the examples of its batches.
    fn step(
        &mut self,
        session: &mut Session,
        batches: &[Vec<usize>],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let begun = Instant::now();
        let (options, done) = (self.options, self.progress.n_steps);
        let factor = options.schedule.factor(done, self.n_steps, self.warmup_steps);
        let batches = self.pack(batches);
        let leg = leg_behind(&self.legs, done);
        if leg.begin == done && self.legs.len() > 1 {
            let epoch = done as f64 / self.per_epoch as f64;
            let line = leg.line(session.network(), &self.step_options, &batches[0], epoch);
            observer.freeze(&line);
            observer.logged(&line)?;
            self.progress.log.push(line);
        }
        let progress = &mut self.progress;
        let (mut loss, mut grad_norm, mut n_tokens) = (0.0, None, 0);
        for (at, batch) in batches.iter().enumerate() {
            let step = leg.part(at, batches.len());
            let state = state(done + 1, at as u64, factor, options);
            let ran = session.run(step, batch, &state, Timing::Off)?;
            loss += ran.loss();
            grad_norm = ran.grad_norm;
            n_tokens += batch.n_tokens();
            progress.n_flops += step.plan().total_cost(&Counts::of(batch)).flops;
        }
        progress.n_steps += 1;
        progress.n_epochs = progress.n_steps as f64 / self.per_epoch as f64;
        progress.n_tokens += n_tokens;
        let (step, epoch) = (progress.n_steps, progress.n_epochs);
        let line = |loss| LogLine::Step {
            step,
            epoch,
            loss,
            grad_norm,
            learning_rate: f64::from(options.learning_rate) * factor,
        };
        progress.train_seconds += begun.elapsed().as_secs_f64();
        observer.step(&line(loss), n_tokens, self.n_steps);
        let (sum, n) = progress.unlogged;
        progress.unlogged = (sum + f64::from(loss), n + 1);
        let is_due = progress.n_steps.is_multiple_of(options.logging_steps);
        if is_due || progress.n_steps == self.n_steps {
            let (sum, n) = std::mem::take(&mut progress.unlogged);
            let line = line((sum / n as f64) as f32);
            observer.logged(&line)?;
            progress.log.push(line);
        }
        Ok(())
    }

    /// The batches of one step.
    fn pack(&self, batches: &[Vec<usize>]) -> Vec<Batch> {
        let pack = |indices: &Vec<usize>| {
            let mut batch = self.corpus.pack(&self.corpus.train, indices);
            if let Some(cache) = self.cache {
                batch.prefix_rows = cache.rows_of(&self.corpus.train, indices);
            }
            batch
        };
        let mut batches: Vec<Batch> = batches.iter().map(pack).collect();
        if let Some(weights) = &self.weights {
            weights.weigh(&mut batches);
        }
        batches
    }

    /// Evaluates the network as it is now if it is time to, and writes that down.
    fn evaluate_if_due(
        &mut self,
        session: &mut Session,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let n_done = self.progress.n_steps;
        let every = self.options.eval_steps.unwrap_or(self.per_epoch);
        let is_due = n_done.is_multiple_of(every) || n_done == self.n_steps;
        let Some(evaluator) = self.evaluator.as_ref().filter(|_| is_due) else {
            return Ok(());
        };
        let begun = Instant::now();
        let quality = evaluator.evaluate(session, n_done)?;
        let line = LogLine::Evaluation {
            step: n_done,
            epoch: self.progress.n_epochs,
            eval_loss: quality.loss(),
            eval_runtime: begun.elapsed().as_secs_f64(),
            eval: quality.clone(),
        };
        observer.evaluation(&line);
        observer.logged(&line)?;
        self.progress.log.push(line);
        if let Some(search) = &mut self.search {
            search.look_at(&quality, n_done, session, trained_by(&self.legs, n_done))?;
            self.progress.search = search.progress().clone();
        }
        self.progress.eval = Some(quality);
        Ok(())
    }

    /// Whether the search for the best has ended the run.
    fn is_settled(&self) -> bool {
        self.search.as_ref().is_some_and(Search::is_over)
    }

    fn outcome(self, session: &Session) -> TrainOutcome {
        let trained = trained_by(&self.legs, self.progress.n_steps).to_vec();
        let n_trained = trained.iter().map(|id| session.network().param(*id).n_elements()).sum();
        let best = self.search.and_then(Search::into_best);
        // Values that are kept are those of the best evaluation.
        let kept = best.as_ref().filter(|best| best.values.is_some());
        let eval = match kept {
            Some(best) => Some(best.eval.clone()),
            None => self.progress.eval.clone(),
        };
        TrainOutcome { progress: self.progress, eval, best, n_trained, trained }
    }
}

/// The options of the steps of a run.
pub fn step_options(corpus: &Corpus, compute: DType, options: &TrainOptions) -> StepOptions {
    StepOptions {
        dropout: true,
        frozen_dropout: options.frozen_dropout,
        max_grad_norm: options.max_grad_norm,
        loss: Loss { is_weighted: options.is_weighted(), smoothing: options.loss.smoothing },
        ..StepOptions::plain(largest_batch(&corpus.train, options.limit), compute)
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

/// The state of a batch of step `number`, whose learning rates are multiplied by `factor`.
fn state(number: u64, batch: u64, factor: f64, options: &TrainOptions) -> StepState {
    let rate = |rate: f32| (f64::from(rate) * factor) as f32;
    StepState {
        step: number,
        learning_rate: rate(options.learning_rate),
        head_learning_rate: rate(options.head_learning_rate),
        weight_decay: options.weight_decay,
        // Dropout draws by seed, step and place: the batches of a step must differ in one of them.
        seed: options.seed ^ (batch << 32),
    }
}

/// Values by parameter.
pub(super) fn values_of(
    session: &mut Session,
    params: &[ParamId],
) -> Result<BTreeMap<ParamId, Vec<f32>>> {
    params.iter().map(|id| Ok((*id, session.value(*id)?))).collect()
}
