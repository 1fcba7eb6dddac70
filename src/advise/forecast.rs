//! What a sweep should take, before it begins.
//!
//! A trial is its session's opening, its steps and its evaluation. Steps and evaluations are predicted from their plans
//! by the machine's pace ([`Pace`]), batch by batch for the texts that a batch really has; opening is measured once.

use serde::Serialize;

use super::candidates::Candidate;
use super::counts;
use super::halving::{Planned, Rungs};
use super::opening::Opening;
use super::plans::{Compiler, TrainingPlans, room_bytes};
use super::sweep::{Subject, SweepOptions};
use crate::Result;
use crate::cache::Shelf;
use crate::data::Corpus;
use crate::measure::Pace;
use crate::model::{Group, Network};
use crate::plan::prefix::{Prefix, compile_prefixes};
use crate::plan::{Counts, Layout, StepOptions};
use crate::train::{Evaluator, step_options};

/// What a sweep should take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Steps of a trial at full length.
    pub n_steps: u64,
    /// Steps of a trial of the first rung, where that has shorter ones.
    pub n_short_steps: Option<u64>,
    /// All of it: trials and the filling of caches. Lowest and highest, by which depths survive.
    pub seconds: [f64; 2],
    /// Of these for caches.
    pub fill_seconds: [f64; 2],
    /// Every depth with every seed at full length, nothing cached.
    pub plain_seconds: f64,
    /// By depth, the most frozen first.
    pub depths: Vec<DepthForecast>,
}

/// What a trial of a depth should take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DepthForecast {
    pub freeze: String,
    /// Whether its frozen part is read from a cache.
    pub is_cached: bool,
    /// None where there are no shorter trials.
    pub short_seconds: Option<f64>,
    /// With the first seed.
    pub full_seconds: f64,
}

/// Seconds of trials.
pub(super) struct Prices {
    depths: Vec<DepthPrices>,
    fill: FillPrices,
}

/// One depth, cached and not.
struct DepthPrices {
    prefix: Option<Prefix>,
    cached: Option<TrialPrices>,
    plain: TrialPrices,
}

/// What the trials of a depth are made of.
struct TrialPrices {
    /// By seed: seconds of the steps up to each of the first epoch's, as far as a trial goes.
    steps: Vec<Vec<f64>>,
    evaluation: f64,
    /// Seconds before the first step.
    opening: f64,
}

/// What the batches hold that trials run, and those that fill caches.
struct Work {
    /// By seed, by step of the first epoch: its batches.
    steps: Vec<Vec<Vec<Counts>>>,
    evaluation: Vec<Counts>,
}

impl TrialPrices {
    fn seconds(&self, seed: usize, n_steps: u64) -> f64 {
        // Further epochs have the first one's texts in another order.
        let steps = &self.steps[seed];
        let of_epoch = steps.last().copied().unwrap_or(0.0);
        let n_epoch = steps.len().max(1) as u64;
        let rest = (n_steps % n_epoch).checked_sub(1).map_or(0.0, |at| steps[at as usize]);
        let steps = (n_steps / n_epoch) as f64 * of_epoch + rest;
        steps + self.evaluation + self.opening
    }
}

impl Work {
    fn of(corpus: &Corpus, options: &SweepOptions, n_steps: u64) -> Result<Self> {
        let of_seed = |&seed: &u64| {
            let trial = options.trial(seed, n_steps, n_steps);
            counts::epoch(corpus, &trial, n_steps as usize)
        };
        Ok(Self {
            steps: options.seeds.iter().map(of_seed).collect::<Result<_>>()?,
            evaluation: counts::evaluation(corpus)?,
        })
    }

    /// The trials that run `plans`.
    fn prices(&self, plans: &TrainingPlans, pace: &Pace, opening: &Opening) -> TrialPrices {
        let sums = |steps: &Vec<Vec<Counts>>| {
            let sum = |sum: &mut f64, batches: &Vec<Counts>| {
                *sum += plans.step_seconds(pace, batches);
                Some(*sum)
            };
            steps.iter().scan(0.0, sum).collect()
        };
        TrialPrices {
            steps: self.steps.iter().map(sums).collect(),
            evaluation: plans.evaluation_seconds(pace, &self.evaluation),
            opening: opening.seconds(room_bytes(&Layout::new(&plans.step))),
        }
    }
}

/// What filling takes, by the machine's pace.
struct FillPrices {
    network: Network,
    pace: Pace,
    step: StepOptions,
    /// By whether several caches are filled: the batches of training and of evaluation rows.
    batches: [[Vec<Counts>; 2]; 2],
}

impl FillPrices {
    fn of(subject: &Subject, step: StepOptions) -> Self {
        let of = |n_depths| counts::fill(subject.corpus, n_depths);
        Self {
            network: subject.network.clone(),
            pace: *subject.pace,
            step,
            batches: [of(1), of(2)],
        }
    }

    /// Seconds of one pass.
    fn seconds(&self, pass: &[Prefix]) -> f64 {
        let above: Vec<Group> = pass.iter().map(|prefix| prefix.above).collect();
        let plain = StepOptions::plain(self.step.capacity, self.step.compute);
        let batches = &self.batches[usize::from(pass.len() > 1)];
        let of_split = |(batches, options): (&Vec<Counts>, &StepOptions)| -> f64 {
            let plan = compile_prefixes(&self.network, &above, options);
            plan.map_or(0.0, |(plan, _)| {
                batches.iter().map(|counts| self.pace.forward_seconds(&plan, counts)).sum()
            })
        };
        batches.iter().zip([&self.step, &plain]).map(of_split).sum()
    }
}

impl Prices {
    /// Predicts all depths of a subject; two sessions are opened for it, see [`Opening::measure`].
    ///
    /// # Errors
    /// A text that no batch holds, a device that lacks the memory or fails.
    pub fn of(subject: &Subject, options: &SweepOptions, n_steps: u64) -> Result<Self> {
        let Subject { network, corpus, pace, .. } = *subject;
        let step = step_options(corpus, subject.engine.compute, &options.train);
        let plain = StepOptions::plain(Evaluator::capacity(&corpus.eval), step.compute);
        let work = Work::of(corpus, options, n_steps)?;
        let opening = Opening::measure(subject, options)?;
        let compiler = Compiler::new(network, step, plain);
        let depth = |candidate: &Candidate| {
            let plans = compiler.depth(&candidate.mask);
            let prices = |of: &TrainingPlans| work.prices(of, pace, &opening);
            DepthPrices {
                prefix: plans.cut.as_ref().map(|cut| cut.prefix),
                cached: plans.cut.as_ref().map(|cut| prices(&cut.above)),
                plain: prices(&plans.plain),
            }
        };
        let depths = subject.candidates.iter().map(depth).collect();
        Ok(Self { depths, fill: FillPrices::of(subject, step) })
    }

    /// What a cache of a depth would hold.
    pub fn prefix(&self, depth: usize) -> Option<Prefix> {
        self.depths[depth].prefix
    }

    /// Seconds of a trial.
    pub fn trial(&self, trial: &Planned, is_cached: bool) -> f64 {
        let depth = &self.depths[trial.depth];
        let prices = depth.cached.as_ref().filter(|_| is_cached).unwrap_or(&depth.plain);
        prices.seconds(trial.seed, trial.n_steps)
    }

    /// Seconds of filling, the lowest and the highest: caches of the first rung, and where not all have room at once
    /// those of later rungs, of which it is not known what will still be there.
    fn filling(&self, subject: &Subject, rungs: &Rungs, shelf: &Shelf, uses: &[bool]) -> [f64; 2] {
        let first = rungs.first();
        let wanted = self.wanted(&first, uses);
        let passes = shelf.passes(subject.corpus, &wanted);
        let low = passes.iter().fold(0.0, |sum, pass| sum + self.fill.seconds(pass));
        if passes.len() < 2 {
            return [low; 2];
        }
        let again = |trial: &Planned| {
            let prefix = self.prefix(trial.depth).filter(|_| uses[trial.depth]);
            // The other seeds of a depth find what the first has filled.
            let is_first = trial.rung < 2 || trial.seed == 1;
            prefix.filter(|_| is_first).map_or(0.0, |prefix| self.fill.seconds(&[prefix]))
        };
        let depths: Vec<usize> = (0..rungs.n_depths).collect();
        let rung = first.first().map_or(0, |trial| trial.rung);
        [low, low + rungs.seconds_behind(rung, &depths, &again)[1]]
    }

    /// The caches that trials want, in their order.
    pub fn wanted(&self, trials: &[Planned], uses: &[bool]) -> Vec<Prefix> {
        let mut wanted: Vec<Prefix> = Vec::new();
        for depth in trials.iter().map(|trial| trial.depth).filter(|depth| uses[*depth]) {
            wanted.extend(self.prefix(depth).filter(|prefix| !wanted.contains(prefix)));
        }
        wanted
    }

    /// The sweep with the depths cached that `uses` says.
    pub fn forecast(
        &self,
        subject: &Subject,
        rungs: &Rungs,
        shelf: &Shelf,
        uses: &[bool],
    ) -> Forecast {
        let seconds = |trial: &Planned| self.trial(trial, uses[trial.depth]);
        let first = rungs.first();
        let depths: Vec<usize> = (0..rungs.n_depths).collect();
        let of_first: f64 = first.iter().map(seconds).sum();
        let rung = first.first().map_or(0, |trial| trial.rung);
        let behind = rungs.seconds_behind(rung, &depths, &seconds);
        let fill_seconds = self.filling(subject, rungs, shelf, uses);
        let at = |depth, seed, n_steps| Planned { rung: 0, depth, seed, n_steps };
        let plain = |depth: &usize| -> f64 {
            let of = |seed| self.trial(&at(*depth, seed, rungs.n_steps), false);
            (0..rungs.n_seeds).map(of).sum()
        };
        let n_short_steps = rungs.n_short_steps();
        Forecast {
            n_steps: rungs.n_steps,
            n_short_steps,
            seconds: [0, 1].map(|end| of_first + behind[end] + fill_seconds[end]),
            fill_seconds,
            plain_seconds: depths.iter().map(plain).sum(),
            depths: (depths.iter().zip(subject.candidates))
                .map(|(&depth, candidate)| DepthForecast {
                    freeze: candidate.freeze.clone(),
                    is_cached: uses[depth],
                    short_seconds: n_short_steps.map(|n| seconds(&at(depth, 0, n))),
                    full_seconds: seconds(&at(depth, 0, rungs.n_steps)),
                })
                .collect(),
        }
    }
}
