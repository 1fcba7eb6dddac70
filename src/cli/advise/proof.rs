//! `--prove`: the sweep, and what it makes of the advice.

use indicatif::ProgressBar;

use super::Args;
use crate::advise::costs::Limits;
use crate::advise::figures::{duration, megabytes};
use crate::advise::halving::Search;
use crate::advise::heads::head_advice;
use crate::advise::progress::{SweepObserver, SweepProgress, UpcomingTrial};
use crate::advise::revise::{agreement, revise};
use crate::advise::survey::{ModelAdvice, Question};
use crate::advise::sweep::{Subject, Sweep, SweepOptions};
use crate::advise::verdict::Trial;
use crate::cache::CacheOptions;
use crate::cli::interrupt::Interrupt;
use crate::cli::progress;
use crate::model::Source;
use crate::session::Engine;
use crate::train::step_options;
use crate::{Error, Result};

/// Sweeps over the depths that stay within the limits, and lets the result decide.
///
/// # Errors
/// No depth within the limits; as [`Sweep::plan`] and [`Sweep::run`].
pub fn prove(
    args: &Args,
    advice: ModelAdvice,
    question: &Question,
    (source, engine): (&Source, Engine),
    (search, cache): (Search, CacheOptions),
    interrupt: &Interrupt,
) -> Result<ModelAdvice> {
    let fits = |freeze: &str| advice.costs.iter().any(|cost| cost.freeze == freeze && cost.fits);
    let mut depths = question.candidates.to_vec();
    depths.retain(|candidate| fits(&candidate.freeze));
    if depths.is_empty() {
        let limit =
            |name: &str, value: Option<String>| value.map(|value| format!("{name} {value}"));
        let Limits { seconds, memory_bytes } = question.limits;
        let seconds =
            seconds.filter(|most| advice.costs.iter().any(|cost| cost.run_seconds > *most));
        let memory_bytes =
            memory_bytes.filter(|most| advice.costs.iter().any(|cost| cost.memory_bytes > *most));
        let time = limit("a budget of", seconds.map(duration));
        let memory = limit("memory of", memory_bytes.map(megabytes));
        return Err(Error::usage(format!(
            "{}: no depth stays within {}, there is nothing to prove (--budget, --max-memory)",
            advice.model,
            [time, memory].into_iter().flatten().collect::<Vec<_>>().join(" and ")
        )));
    }
    let first = args.run.seed;
    let options = SweepOptions {
        train: question.train.clone(),
        seeds: (0..args.seeds as u64).map(|at| first.wrapping_add(at)).collect(),
        search,
        metric: args.metric.clone(),
        cache,
        keep: advice.recommendation.freeze.clone(),
    };
    let subject = Subject {
        engine,
        network: question.network,
        corpus: question.corpus,
        candidates: &depths,
        initial: &|seed| source.initial_values(question.network, seed),
        pace: &advice.pace,
    };
    let sweep = Sweep::plan(subject, options)?;
    let forecast = sweep.forecast();
    let range = range(forecast.seconds);
    let plain = duration(forecast.plain_seconds);
    eprintln!(
        "the sweep should take {range}; every depth with every seed and nothing cached, {plain}"
    );
    let mut bar = SweepBar::new(interrupt);
    let outcome = sweep.run(&mut bar)?;
    bar.finish();
    let curves: Vec<_> = advice.tasks.iter().map(|task| &task.curve).collect();
    let recommendation = revise(&advice.recommendation, &outcome, &advice.costs);
    let freeze = recommendation.freeze.as_deref();
    let step = step_options(question.corpus, engine.compute, question.train);
    Ok(ModelAdvice {
        head: head_advice(question.network, &advice.signals, freeze, &step)?,
        recommendation,
        agreement: agreement(&outcome, &depths, &curves, advice.probe_pooling()),
        sweep: Some(outcome),
        ..advice
    })
}

/// The least and the most, where people would tell them apart.
fn range([least, most]: [f64; 2]) -> String {
    match (duration(least), duration(most)) {
        (least, most) if least == most => most,
        (least, most) => format!("{least} to {most}"),
    }
}

/// A sweep as it goes, for people: a bar on a terminal, a line a training everywhere.
struct SweepBar<'a> {
    interrupt: &'a Interrupt,
    bar: Option<ProgressBar>,
    trial: String,
    /// Of the trainings that are done: as predicted, and as measured.
    done_seconds: [f64; 2],
}

impl<'a> SweepBar<'a> {
    fn new(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, bar: None, trial: String::new(), done_seconds: [0.0; 2] }
    }

    fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Ctrl-C, asked between two steps.
    fn check(&self) -> Result<()> {
        match self.interrupt.is_asked() {
            true => {
                self.finish();
                Err(Error::Interrupted)
            }
            false => Ok(()),
        }
    }
}

impl SweepObserver for SweepBar<'_> {
    fn fill(&mut self, n_done: usize, n_examples: usize) -> Result<()> {
        let bar = self.bar.get_or_insert_with(|| progress::bar(n_examples as u64, "caching"));
        bar.set_message("caching");
        bar.set_length(n_examples as u64);
        bar.set_position(n_done as u64);
        self.check()
    }

    fn begin(&mut self, trial: &UpcomingTrial) -> Result<()> {
        let UpcomingTrial { freeze, seed, n_steps, .. } = trial;
        self.trial = format!("{freeze}, seed {seed}, {n_steps} steps");
        self.check()
    }

    fn step(&mut self, progress: &SweepProgress) -> Result<()> {
        let SweepProgress { step, n_steps, left_seconds, .. } = *progress;
        // What has been slower than predicted will be.
        let [predicted, measured] = self.done_seconds;
        let factor = if predicted > 0.0 { measured / predicted } else { 1.0 };
        let left = range(left_seconds.map(|seconds| factor * seconds));
        let bar = self.bar.get_or_insert_with(|| progress::bar(n_steps, ""));
        bar.set_length(n_steps);
        bar.set_position(step);
        bar.set_message(format!("{} (sweep: {left} left)", self.trial));
        self.check()
    }

    fn end(&mut self, trial: &Trial) -> Result<()> {
        self.done_seconds[0] += trial.predicted_seconds;
        self.done_seconds[1] += trial.seconds;
        let tasks: Vec<String> = (trial.tasks.iter())
            .filter_map(|task| Some(format!("{} {:.3}", task.task, task.accuracy?)))
            .collect();
        self.say(&format!(
            "{}: {} in {} (predicted {})",
            self.trial,
            tasks.join(", "),
            duration(trial.seconds),
            duration(trial.predicted_seconds)
        ));
        Ok(())
    }
}
