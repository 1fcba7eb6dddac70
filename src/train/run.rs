//! The loop.

use std::collections::BTreeMap;
use std::time::Instant;

use super::best::Search;
use super::course::Course;
use super::epochs::Epochs;
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
    let course = Course::new(options, corpus, session.network(), states)?;
    let search = match &options.best {
        Some(best) => Some(Search::new(best, corpus, start.progress.search.clone(), start.best)?),
        None => None,
    };
    let legs = compile_legs(session, states, &step_options, options, &course, cache.is_some())?;
    if let Some(cache) = cache {
        let Capacity { tokens, sequences, .. } = step_options.capacity;
        let evaluated = Evaluator::capacity(&corpus.eval);
        let capacity = [tokens, sequences, evaluated.tokens, evaluated.sequences];
        session.set_prefix(cache.rows(), capacity.into_iter().max().unwrap_or(0))?;
    }
    for (id, moments) in start.moments {
        session.set_moments(id, moments)?;
    }
    let evaluator = match (corpus.eval.is_empty(), cache) {
        (true, _) => None,
        (false, None) => Some(Evaluator::new(session, corpus, &corpus.eval)?),
        (false, Some(cache)) => Some(Evaluator::cached(session, corpus, cache)?),
    };
    let mut run = Run {
        corpus,
        options,
        step_options,
        warmup_steps: options.warmup.steps(course.epochs.n_steps()),
        epochs: course.epochs,
        legs,
        weights: course.weights,
        cache,
        evaluator,
        search,
        progress: start.progress,
    };
    run.go(session, observer)?;
    Ok(run.outcome(session))
}

/// A run that goes on.
struct Run<'a> {
    corpus: &'a Corpus,
    options: &'a TrainOptions,
    step_options: StepOptions,
    epochs: Epochs,
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
    fn go(&mut self, session: &mut Session, observer: &mut dyn Observer) -> Result<()> {
        let (first_epoch, mut done) = self.epochs.place(self.progress.n_steps);
        for epoch in first_epoch.. {
            if self.is_over() {
                return Ok(());
            }
            let steps = self.options.epoch(self.corpus, epoch)?;
            for batches in &steps[std::mem::take(&mut done) as usize..] {
                if self.is_over() {
                    return Ok(());
                }
                self.step(session, batches, observer)?;
                self.evaluate_if_due(session, observer)?;
                observer.between_steps(Snapshot {
                    session,
                    progress: &self.progress,
                    trained: trained_by(&self.legs, self.progress.n_steps),
                    best: self.search.as_ref().and_then(Search::values),
                    is_epoch_end: self.epochs.is_end(self.progress.n_steps),
                })?;
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
        let factor = options.schedule.factor(done, self.epochs.n_steps(), self.warmup_steps);
        let batches = self.pack(batches);
        let leg = leg_behind(&self.legs, done);
        if leg.begin == done && self.legs.len() > 1 {
            let epoch = self.epochs.after(done);
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
        progress.n_epochs = self.epochs.after(progress.n_steps);
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
        observer.step(&line(loss), n_tokens, self.epochs.n_steps());
        let (sum, n) = progress.unlogged;
        progress.unlogged = (sum + f64::from(loss), n + 1);
        let is_due = progress.n_steps.is_multiple_of(options.logging_steps);
        if is_due || progress.n_steps == self.epochs.n_steps() {
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
                batch.prefix_rows = cache.train_rows(self.corpus, indices);
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
        let is_due = match self.options.eval_steps {
            Some(every) => n_done.is_multiple_of(every),
            None => self.epochs.is_end(n_done),
        };
        let is_due = is_due || n_done == self.epochs.n_steps();
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
            eval: quality.without_hits(),
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

    /// Whether all steps are done, or the search for the best has ended the run.
    fn is_over(&self) -> bool {
        self.progress.n_steps >= self.epochs.n_steps()
            || self.search.as_ref().is_some_and(Search::is_over)
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
        seed: seed_of(options.seed, batch),
    }
}

/// Dropout draws by seed, step and place: the batches of a step must differ in one of them.
fn seed_of(seed: u64, batch: u64) -> u64 {
    seed ^ (batch << 32)
}

/// Values by parameter.
pub(super) fn values_of(
    session: &mut Session,
    params: &[ParamId],
) -> Result<BTreeMap<ParamId, Vec<f32>>> {
    params.iter().map(|id| Ok((*id, session.value(*id)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::dropout::Mask;
    use crate::model::Group;
    use crate::plan::op::Dropout;

    /// The batches of a step draw masks of their own, as those of different steps do.
    #[test]
    fn no_two_batches_draw_the_same() {
        let site = Dropout { p: 0.5, site: 3, group: Group::Embeddings };
        let drawn = |step: u64, batch: u64| {
            let seed = seed_of(42, batch);
            let mut factors = [f32::NAN; 64];
            Mask::new(site, seed, step).row(0, 0, &mut factors);
            factors.map(f32::to_bits)
        };
        let all = [drawn(1, 0), drawn(1, 1), drawn(1, 2), drawn(2, 0), drawn(2, 1)];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(seed_of(42, 0), 42, "a step of one batch draws by the seed itself");
    }
}
