//! What no plan tells of a trial and is measured instead: what comes before its first step.

use std::time::Instant;

use super::candidates::Candidate;
use super::plans::room_bytes;
use super::sweep::{Subject, SweepOptions};
use crate::Result;
use crate::backend::{StepState, Timing};
use crate::batch::Batch;
use crate::plan::StepOptions;
use crate::session::{Session, Step};
use crate::train::{Observer, Start, TrainOptions, step_options, train};

/// What is measured once for all trials.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    /// Of values, session and compilation.
    base_seconds: f64,
    /// Of room for gradients, moments and activations, by bytes.
    seconds_per_byte: f64,
}

impl Opening {
    /// Opens trials of the depths that train least and most, and takes two steps in each.
    ///
    /// # Errors
    /// What ends a training before its first step, a device that lacks the memory or fails.
    pub fn measure(subject: &Subject, options: &SweepOptions) -> Result<Self> {
        let least = open(subject, options, &subject.candidates[0])?;
        let most = &subject.candidates[subject.candidates.len() - 1];
        let most = open(subject, options, most)?;
        let n_bytes = most.room_bytes.saturating_sub(least.room_bytes);
        let seconds = most.seconds - least.seconds;
        let seconds_per_byte = if n_bytes > 0 { seconds.max(0.0) / n_bytes as f64 } else { 0.0 };
        let least_room = seconds_per_byte * least.room_bytes as f64;
        Ok(Self { base_seconds: (least.seconds - least_room).max(0.0), seconds_per_byte })
    }

    /// Seconds before the first step of a trial that needs so many bytes beside the weights.
    pub fn seconds(&self, room_bytes: usize) -> f64 {
        self.base_seconds + self.seconds_per_byte * room_bytes as f64
    }
}

/// One trial's opening.
struct Opened {
    seconds: f64,
    room_bytes: usize,
}

/// Opens a trial.
fn open(subject: &Subject, options: &SweepOptions, candidate: &Candidate) -> Result<Opened> {
    let (corpus, seed) = (subject.corpus, options.seeds[0]);
    let begun = Instant::now();
    let values = (subject.initial)(seed)?;
    let mut session = subject.engine.session(subject.network.clone(), values)?;
    // A training of no steps is all that comes before the first.
    let no_steps = TrainOptions { best: None, max_steps: Some(0), ..options.train.clone() };
    let start = (Start::default(), None);
    train(&mut session, corpus, &[candidate.state()], &no_steps, start, &mut Nobody)?;
    let mut seconds = begun.elapsed().as_secs_f64();
    // The first step touches memory and loads kernels, the second is one like all others. Their loss is unweighted here,
    // which takes next to nothing.
    let step = StepOptions {
        loss: Default::default(),
        ..step_options(corpus, session.compute(), &options.train)
    };
    let step = session.compile(&candidate.mask, &step)?;
    let first = &options.train.epoch(corpus, 0)?[0][0];
    let batch = corpus.pack(&corpus.train, first);
    let first = timed(&mut session, &step, &batch)?;
    seconds += (first - timed(&mut session, &step, &batch)?).max(0.0);
    Ok(Opened { seconds, room_bytes: room_bytes(step.layout()) })
}

/// Seconds of a step that learns nothing.
fn timed(session: &mut Session, step: &Step, batch: &Batch) -> Result<f64> {
    let begun = Instant::now();
    session.run(step, batch, &StepState::FORWARD, Timing::Off)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Nobody is told of a training of no steps.
struct Nobody;

impl Observer for Nobody {}
