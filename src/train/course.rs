//! What is decided of a run before anything is computed, so that what cannot be is said at once.

use super::best::Search;
use super::epochs::Epochs;
use super::loss::RowWeights;
use super::run::step_options;
use super::{SearchProgress, TrainOptions};
use crate::data::Corpus;
use crate::freeze::FreezeState;
use crate::model::Network;
use crate::plan::compile;
use crate::tensor::DType;
use crate::{Error, Result};

/// How long a run is, what begins when, what learns how fast and counts how much.
pub(super) struct Course {
    pub epochs: Epochs,
    /// Steps before each state.
    pub begins: Vec<u64>,
    /// What multiplies each parameter's base rate, in table order.
    pub rate_scales: Vec<f32>,
    /// None where every labelled row of a batch counts alike.
    pub weights: Option<RowWeights>,
}

impl Course {
    /// The course of a run over the corpus's training rows.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(
        options: &TrainOptions,
        corpus: &Corpus,
        network: &Network,
        states: &[FreezeState],
    ) -> Result<Self> {
        let step = step_options(corpus, DType::F32, options);
        let trains =
            |state: &FreezeState| !compile(network, &state.mask, &step).trained().is_empty();
        if !states.iter().any(trains) {
            return Err(Error::usage(
                "nothing trains under this freeze: let something train, or measure it with bench",
            ));
        }
        if let Some(best) = &options.best {
            Search::new(best, corpus, SearchProgress::default(), None)?;
        }
        let epochs = Epochs::new(options, corpus)?;
        Ok(Course {
            begins: begins(states, &epochs)?,
            rate_scales: options.rates.scales(
                network,
                options.learning_rate,
                options.head_learning_rate,
            )?,
            weights: match options.is_weighted() {
                true => Some(RowWeights::new(&options.loss, corpus)?),
                false => None,
            },
            epochs,
        })
    }
}

/// Finds what would end a run before its first step.
///
/// # Errors
/// States under which nothing trains or that do not follow each other, a best model to be looked for without rows to
/// evaluate on, rates and weights of what there is not, more steps than can be counted.
pub fn check(
    options: &TrainOptions,
    corpus: &Corpus,
    network: &Network,
    states: &[FreezeState],
) -> Result<()> {
    Course::new(options, corpus, network, states).map(|_| ())
}

/// Steps before each state.
fn begins(states: &[FreezeState], epochs: &Epochs) -> Result<Vec<u64>> {
    let mut begins: Vec<u64> = Vec::with_capacity(states.len());
    let n_steps = epochs.n_steps();
    let lengths = || match epochs.begin(1) {
        Some(first) => format!("the run has {n_steps} steps, its first epoch {first} steps"),
        None => format!("the run has {n_steps} steps"),
    };
    for state in states {
        let name = format!("{}:{}", state.begin, state.freeze);
        let begin = state.begin.step(|epoch| epochs.begin(epoch));
        let Some(begin) = begin.filter(|begin| *begin < n_steps || *begin == 0) else {
            return Err(Error::usage(format!(
                "--schedule: {name} begins behind the end: {}",
                lengths()
            )));
        };
        if begins.last().is_some_and(|last| begin <= *last) {
            return Err(Error::usage(format!(
                "--schedule: {name} does not begin behind the state before it: {}",
                lengths()
            )));
        }
        begins.push(begin);
    }
    Ok(begins)
}
