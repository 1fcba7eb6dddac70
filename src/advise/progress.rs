//! What is told of a sweep while it goes on.

use serde::Serialize;

use super::verdict::Trial;
use crate::Result;
use crate::train::{Observer, Snapshot};

/// Where a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SweepProgress {
    /// Steps of this trial that are done, and all of them.
    pub step: u64,
    pub n_steps: u64,
    /// What all steps and trials that are done should have taken, as predicted; filling caches is told apart
    /// ([`SweepObserver::fill`]).
    pub done_seconds: f64,
    /// What all that are left should take, the lowest and the highest.
    pub left_seconds: [f64; 2],
}

/// Told of what happens while a sweep goes on. Whatever it refuses ends the sweep.
pub trait SweepObserver {
    /// While caches are filled, of examples done of all.
    ///
    /// # Errors
    /// What ends the sweep; so for all that follows.
    fn fill(&mut self, n_done: usize, n_examples: usize) -> Result<()>;
    /// Before a trial's session is opened.
    ///
    /// # Errors
    /// As [`SweepObserver::fill`].
    fn begin(&mut self, trial: &UpcomingTrial) -> Result<()>;
    /// After every step.
    ///
    /// # Errors
    /// As [`SweepObserver::fill`].
    fn step(&mut self, progress: &SweepProgress) -> Result<()>;
    /// After a trial's evaluation.
    ///
    /// # Errors
    /// As [`SweepObserver::fill`].
    fn end(&mut self, trial: &Trial) -> Result<()>;
}

/// A trial that begins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpcomingTrial {
    pub rung: usize,
    pub freeze: String,
    pub seed: u64,
    pub n_steps: u64,
    pub predicted_seconds: f64,
}

/// Tells an observer of a trial's steps.
pub(super) struct Steps<'a> {
    /// Of the trial.
    pub n_steps: u64,
    /// Predicted, of the trials before it, of it, and of what follows it.
    pub done_seconds: f64,
    pub trial_seconds: f64,
    pub behind: [f64; 2],
    pub observer: &'a mut dyn SweepObserver,
}

impl Observer for Steps<'_> {
    fn between_steps(&mut self, snapshot: Snapshot) -> Result<()> {
        let (step, n_steps) = (snapshot.progress.n_steps, self.n_steps);
        let share = step as f64 / n_steps as f64;
        let done = share * self.trial_seconds;
        self.observer.step(&SweepProgress {
            step,
            n_steps,
            done_seconds: self.done_seconds + done,
            left_seconds: self.behind.map(|behind| behind + self.trial_seconds - done),
        })
    }
}
