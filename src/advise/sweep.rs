//! The proof: trainings at several depths, with what is frozen computed once, and what they say.
//!
//! Heads always train; depths differ in how much of the encoder does. The encoder begins with the same values whatever
//! the seed, so that trials of all seeds share the caches of its depths.

use std::time::Instant;

use serde::Serialize;

use super::candidates::Candidate;
use super::forecast::{Forecast, Prices};
use super::halving::{Planned, Rungs, Scored, Search};
use super::paired::paired_error;
use super::progress::{Steps, SweepObserver, UpcomingTrial};
use super::verdict::{TaskScore, Trial, Verdict, verdict};
use crate::cache::{CacheOptions, CachePlace, Shelf};
use crate::data::Corpus;
use crate::measure::Pace;
use crate::model::Network;
use crate::plan::prefix::Prefix;
use crate::session::{Engine, Session};
use crate::train::{Epochs, Metric, Start, TrainOptions, Warmup, check, step_options, train};
use crate::{Error, Result};

/// The values of a network, in table order, for a seed.
pub type InitialValues<'a> = &'a dyn Fn(u64) -> Result<Vec<Vec<f32>>>;

/// What a sweep is made over.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub engine: Engine,
    pub network: &'a Network,
    pub corpus: &'a Corpus,
    /// The most frozen first.
    pub candidates: &'a [Candidate],
    /// Below the heads the values are the same for all seeds.
    pub initial: InitialValues<'a>,
    pub pace: &'a Pace,
}

/// How a sweep is made.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// Of a trial at full length; its seed, evaluations and search for the best do not count.
    pub train: TrainOptions,
    /// One or more, each once.
    pub seeds: Vec<u64>,
    pub search: Search,
    /// What depths are compared by: a share of rows.
    pub metric: Metric,
    /// [`CachePlace::Auto`] caches where that should be faster.
    pub cache: CacheOptions,
    /// The freeze of a candidate that goes before others that are near the best: the one that is to be proven.
    pub keep: Option<String>,
}

impl SweepOptions {
    /// The options of a trial of `n_steps`, of the `n_full` that it has at full length. It is a whole training: its rate
    /// rises over the same share of it and falls to its end, where it is evaluated and nowhere else.
    pub(super) fn trial(&self, seed: u64, n_steps: u64, n_full: u64) -> TrainOptions {
        TrainOptions {
            max_steps: Some(n_steps),
            eval_steps: Some(n_steps),
            logging_steps: n_steps,
            best: None,
            warmup: match self.train.warmup {
                Warmup::Steps(n) if n_steps < n_full => Warmup::Ratio(n as f64 / n_full as f64),
                warmup => warmup,
            },
            seed,
            ..self.train.clone()
        }
    }
}

/// What a sweep gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepOutcome {
    pub search: Search,
    /// The metric's name.
    pub metric: String,
    pub seeds: Vec<u64>,
    /// Steps of a trial at full length, and the passes over the training rows that they are.
    pub n_steps: u64,
    pub n_epochs: f64,
    /// In the order in which they were made.
    pub trials: Vec<Trial>,
    pub verdict: Verdict,
    /// What was predicted before it began.
    pub forecast: Forecast,
    /// Of the trials that were made, as predicted.
    pub predicted_trial_seconds: f64,
    /// The same as measured.
    pub trial_seconds: f64,
    /// Of filling caches.
    pub fill_seconds: f64,
}

impl SweepOutcome {
    /// The trials of a depth that have the most steps of its own, by which it is judged.
    pub fn longest(&self, freeze: &str) -> Vec<&Trial> {
        let own = || self.trials.iter().filter(|trial| trial.freeze == freeze);
        let n_steps = own().map(|trial| trial.n_steps).max();
        own().filter(|trial| Some(trial.n_steps) == n_steps).collect()
    }
}

/// A sweep that can be made.
pub struct Sweep<'a> {
    subject: Subject<'a>,
    options: SweepOptions,
    rungs: Rungs,
    n_epochs: f64,
    prices: Prices,
    /// By depth, whether its frozen part is read from a cache.
    uses: Vec<bool>,
    /// Empty, with as much room as the forecast counts on.
    shelf: Shelf,
    forecast: Forecast,
}

impl<'a> Sweep<'a> {
    /// Checks that a sweep can be made, and predicts what it takes; two sessions are opened for that, take two steps
    /// each, and are closed again.
    ///
    /// # Errors
    /// No rows to evaluate on, no candidates, no seeds or one twice, a metric that is no share or of no task, a kept
    /// depth that is no candidate, a cache that was asked for and has no room; what ends a training before its first
    /// step; a device that lacks the memory or fails.
    pub fn plan(subject: Subject<'a>, options: SweepOptions) -> Result<Self> {
        let keep = check_options(&subject, &options)?;
        let Subject { network, corpus, candidates, .. } = subject;
        let first = TrainOptions { seed: options.seeds[0], ..options.train.clone() };
        let epochs = Epochs::new(&first, corpus)?;
        let n_steps = epochs.n_steps();
        let n_epochs = epochs.after(n_steps);
        for candidate in candidates {
            let trial = options.trial(options.seeds[0], n_steps, n_steps);
            check(&trial, corpus, network, &[candidate.state()])?;
        }
        let rungs = Rungs {
            search: options.search,
            n_depths: candidates.len(),
            n_seeds: options.seeds.len(),
            n_steps,
            keep,
        };
        let prices = Prices::of(&subject, &options, n_steps)?;
        let shelf = Shelf::new(&options.cache, subject.engine.device);
        let takes = |depth| match prices.prefix(depth) {
            Some(prefix) => shelf.takes(corpus, &prefix),
            None => Ok(false),
        };
        let mut uses = (0..candidates.len()).map(takes).collect::<Result<Vec<bool>>>()?;
        let mut forecast = prices.forecast(&subject, &rungs, &shelf, &uses);
        if options.cache.place == CachePlace::Auto {
            let none = vec![false; uses.len()];
            let without = prices.forecast(&subject, &rungs, &shelf, &none);
            if without.seconds[1] < forecast.seconds[1] {
                (uses, forecast) = (none, without);
            }
        }
        Ok(Self { subject, options, rungs, n_epochs, prices, uses, shelf, forecast })
    }

    /// What it should take.
    pub fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// Makes it.
    ///
    /// # Errors
    /// A trial whose loss is not finite, evaluation rows without a label of the metric's tasks, a device that lacks the
    /// memory or fails, what the observer ends it with.
    pub fn run(&self, observer: &mut dyn SweepObserver) -> Result<SweepOutcome> {
        let mut run = Run {
            sweep: self,
            shelf: self.shelf.clone(),
            trials: Vec::new(),
            fill_seconds: 0.0,
            done_seconds: 0.0,
        };
        let mut planned = self.rungs.first();
        while let Some(rung) = planned.first().map(|trial| trial.rung) {
            let mut scored = Vec::with_capacity(planned.len());
            for at in 0..planned.len() {
                let trial = run.trial(&planned[at..], observer)?;
                observer.end(&trial)?;
                scored.push(Scored { depth: planned[at].depth, score: trial.score });
                run.trials.push(trial);
            }
            planned = self.rungs.next(rung, &scored, &|a, b| run.error_between(rung, a, b));
        }
        self.outcome(run)
    }

    fn seconds(&self, trial: &Planned) -> f64 {
        self.prices.trial(trial, self.uses[trial.depth])
    }

    fn outcome(&self, run: Run) -> Result<SweepOutcome> {
        let Run { trials, fill_seconds, .. } = run;
        let freezes: Vec<String> =
            self.subject.candidates.iter().map(|candidate| candidate.freeze.clone()).collect();
        let verdict = verdict(&trials, &freezes, self.rungs.n_steps, &self.options.metric);
        Ok(SweepOutcome {
            search: self.options.search,
            metric: self.options.metric.name(),
            seeds: self.options.seeds.clone(),
            n_steps: self.rungs.n_steps,
            n_epochs: self.n_epochs,
            verdict: verdict.ok_or_else(|| Error::Run("no depth was trained to the end".into()))?,
            forecast: self.forecast.clone(),
            predicted_trial_seconds: trials.iter().map(|trial| trial.predicted_seconds).sum(),
            trial_seconds: trials.iter().map(|trial| trial.seconds).sum(),
            fill_seconds,
            trials,
        })
    }
}

/// Checks that a metric can compare depths on the evaluation rows of a corpus.
///
/// # Errors
/// No such rows, none with a label of the metric's task, no such task, a metric that is no share of rows.
pub fn check_metric(corpus: &Corpus, metric: &Metric) -> Result<()> {
    if corpus.eval.is_empty() {
        return Err(Error::usage(
            "no rows to compare depths on: give --eval, a `split` column or --holdout",
        ));
    }
    let name = metric.name();
    if *metric == Metric::Loss {
        return Err(Error::usage(
            "depths are compared by accuracy or macro_f1, whose error on so many rows is known: that of a loss is not",
        ));
    }
    let Some(task) = metric.task() else { return Ok(()) };
    let Some(at) = corpus.tasks.iter().position(|known| known.name == task) else {
        let known: Vec<&str> = corpus.tasks.iter().map(|task| task.name.as_str()).collect();
        return Err(Error::usage(format!(
            "metric {name}: no task {task}; there are {}",
            known.join(", ")
        )));
    };
    match (0..corpus.eval.len()).any(|row| corpus.eval.class(row, at).is_some()) {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "metric {name}: none of the evaluation rows has a label of {task}"
        ))),
    }
}

/// Gives the index of the depth that is kept.
fn check_options(subject: &Subject, options: &SweepOptions) -> Result<Option<usize>> {
    check_metric(subject.corpus, &options.metric)?;
    if subject.candidates.is_empty() {
        return Err(Error::usage("a sweep needs a depth to train at"));
    }
    let mut seeds = options.seeds.clone();
    seeds.sort_unstable();
    seeds.dedup();
    if seeds.is_empty() || seeds.len() < options.seeds.len() {
        return Err(Error::usage(format!(
            "the seeds of a sweep are one or more, each once, not {:?}",
            options.seeds
        )));
    }
    if options.train.frozen_dropout
        && !matches!(options.cache.place, CachePlace::Auto | CachePlace::Off)
    {
        return Err(Error::usage(
            "--cache: with --frozen-dropout the frozen part gives something else every time: use --cache off",
        ));
    }
    let Some(keep) = &options.keep else {
        return Ok(None);
    };
    let found = subject.candidates.iter().position(|candidate| candidate.freeze == *keep);
    match found {
        Some(_) => Ok(found),
        None => Err(Error::usage(format!("{keep} is not among the depths of the sweep"))),
    }
}

/// A sweep that goes on.
struct Run<'a> {
    sweep: &'a Sweep<'a>,
    shelf: Shelf,
    trials: Vec<Trial>,
    fill_seconds: f64,
    /// Predicted, of the trials that are done.
    done_seconds: f64,
}

impl Run<'_> {
    /// Makes the first of the trials that are left of a rung.
    fn trial(&mut self, rest: &[Planned], observer: &mut dyn SweepObserver) -> Result<Trial> {
        let (sweep, planned) = (self.sweep, &rest[0]);
        let (subject, options) = (&sweep.subject, &sweep.options);
        let candidate = &subject.candidates[planned.depth];
        let seed = options.seeds[planned.seed];
        let predicted_seconds = sweep.seconds(planned);
        observer.begin(&UpcomingTrial {
            rung: planned.rung,
            freeze: candidate.freeze.clone(),
            seed,
            n_steps: planned.n_steps,
            predicted_seconds,
        })?;
        let begun = Instant::now();
        let values = (subject.initial)(seed)?;
        let mut session = subject.engine.session(subject.network.clone(), values)?;
        let filling = Instant::now();
        let prefix = sweep.prices.prefix(planned.depth).filter(|_| sweep.uses[planned.depth]);
        if let Some(prefix) = prefix.filter(|prefix| self.shelf.find(prefix).is_none()) {
            self.fill(&mut session, seed, (prefix, rest), observer)?;
        }
        let filling = filling.elapsed().as_secs_f64();
        let cache = prefix.and_then(|prefix| self.shelf.find(&prefix));
        let trial_options = options.trial(seed, planned.n_steps, sweep.rungs.n_steps);
        let head_learning_rate = trial_options.head_learning_rate * candidate.head_rate_scale;
        let trial_options = TrainOptions { head_learning_rate, ..trial_options };
        let mut steps = Steps {
            n_steps: planned.n_steps,
            done_seconds: self.done_seconds,
            trial_seconds: predicted_seconds,
            behind: self.seconds_behind(rest),
            observer,
        };
        let start = (Start::default(), cache);
        let states = [candidate.state()];
        let outcome =
            train(&mut session, subject.corpus, &states, &trial_options, start, &mut steps);
        // Several trainings in one command: which of them it was.
        let outcome = outcome.map_err(|error| match error {
            Error::Run(text) => Error::Run(format!("{}, seed {seed}: {text}", candidate.freeze)),
            other => other,
        })?;
        drop(session);
        let seconds = begun.elapsed().as_secs_f64() - filling;
        self.fill_seconds += filling;
        self.done_seconds += predicted_seconds;
        let measured = outcome
            .eval
            .and_then(|quality| Some((options.metric.of(&quality)?, TaskScore::all(quality))));
        let (score, tasks) = measured.ok_or_else(|| {
            let metric = options.metric.name();
            Error::usage(format!("{metric}: none of the evaluation rows has a label of it"))
        })?;
        Ok(Trial {
            rung: planned.rung,
            freeze: candidate.freeze.clone(),
            seed,
            n_steps: planned.n_steps,
            score,
            tasks,
            is_cached: cache.is_some(),
            predicted_seconds,
            seconds,
        })
    }

    /// Fills the cache of a trial, and of those behind it as far as there is room.
    fn fill(
        &mut self,
        session: &mut Session,
        seed: u64,
        (first, rest): (Prefix, &[Planned]),
        observer: &mut dyn SweepObserver,
    ) -> Result<()> {
        let Sweep { subject, options, prices, uses, .. } = self.sweep;
        let wanted = prices.wanted(rest, uses);
        debug_assert_eq!(wanted.first(), Some(&first));
        let step = step_options(subject.corpus, session.compute(), &options.train);
        let values = match options.cache.place {
            // A file's name depends on them.
            CachePlace::Disk => (subject.initial)(seed)?,
            _ => Vec::new(),
        };
        let n_examples = subject.corpus.train.len() + subject.corpus.eval.len();
        let mut n_done = 0;
        let mut progress = |n: usize| {
            n_done += n;
            observer.fill(n_done, n_examples)
        };
        self.shelf.fill(session, subject.corpus, &wanted, &step, &values, &mut progress)
    }

    /// See [`paired_error`], of two depths on a rung.
    fn error_between(&self, rung: usize, these: usize, those: usize) -> Option<f64> {
        let of = |depth: usize| -> Vec<&Trial> {
            let freeze = &self.sweep.subject.candidates[depth].freeze;
            let is_of = |trial: &&Trial| trial.rung == rung && trial.freeze == *freeze;
            self.trials.iter().filter(is_of).collect()
        };
        paired_error(&self.sweep.options.metric, &of(these), &of(those))
    }

    /// What follows the first of the trials that are left of a rung.
    fn seconds_behind(&self, rest: &[Planned]) -> [f64; 2] {
        let sweep = self.sweep;
        let seconds = |trial: &Planned| sweep.seconds(trial);
        let of_rung: f64 = rest[1..].iter().map(seconds).sum();
        let rung = rest[0].rung;
        // Those that are done are on the rung too.
        let done = self.trials.iter().filter(|trial| trial.rung == rung).filter_map(|trial| {
            sweep.subject.candidates.iter().position(|one| one.freeze == trial.freeze)
        });
        let mut depths: Vec<usize> = done.chain(rest.iter().map(|trial| trial.depth)).collect();
        depths.sort_unstable();
        depths.dedup();
        sweep.rungs.seconds_behind(rung, &depths, &seconds).map(|behind| of_rung + behind)
    }
}
