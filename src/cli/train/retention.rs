//! `train --drift` and `--forgetting`: what training changed, measured before it begins and after it.

use serde_json::Value;

use crate::Result;
use crate::cli::forgetting::ForgettingArgs;
use crate::cli::output_folder::OutputFolder;
use crate::data::Corpus;
use crate::model::params::head_tensor;
use crate::model::{Network, ParamId, Source};
use crate::report::retention::{HeadState, RunRetention, TaskRetention};
use crate::session::Engine;
use crate::train::forgetting::ForgettingSet;
use crate::train::retention::Before;
use crate::train::{Evaluator, Quality};

/// What else to measure.
#[derive(clap::Args, Debug)]
pub struct RetentionArgs {
    /// Measure how far training moves each part of the network (weights, and CKA of what it says of texts), the gap
    /// between training and evaluation rows, and tasks before training; also written as drift.json
    #[arg(long)]
    drift: bool,
    #[command(flatten)]
    pub forgetting: ForgettingArgs,
}

/// A run before its training.
pub struct Watch<'a> {
    engine: Engine,
    network: &'a Network,
    corpus: &'a Corpus,
    initial: &'a [Vec<f32>],
    before: Before<'a>,
    /// None where there are no evaluation rows, or nobody asked.
    quality: Option<Quality>,
}

impl<'a> Watch<'a> {
    /// Measures a model with the values `initial`; None where nobody asked.
    ///
    /// It does so in a session of its own, so that training is what it would be without.
    ///
    /// # Errors
    /// When the device lacks the memory or fails, or a probe cannot be fitted.
    pub fn begin(
        args: &RetentionArgs,
        engine: Engine,
        network: &'a Network,
        initial: &'a [Vec<f32>],
        corpus: &'a Corpus,
        sets: &'a [ForgettingSet],
    ) -> Result<Option<Self>> {
        if !args.drift && sets.is_empty() {
            return Ok(None);
        }
        eprintln!("measuring the model before training");
        let mut session = engine.session(network.clone(), initial.to_vec())?;
        let before = Before::of(&mut session, corpus, sets, args.drift)?;
        let quality = match args.drift && !corpus.eval.is_empty() {
            true => Some(
                Evaluator::new(&mut session, corpus, &corpus.eval)?.evaluate(&mut session, 0)?,
            ),
            false => None,
        };
        Ok(Some(Self { engine, network, corpus, initial, before, quality }))
    }

    /// Measures the model that was written: its `values`, in table order, of which those of `trained` trained, and
    /// the quality that it was evaluated to have.
    ///
    /// # Errors
    /// As [`Watch::begin`].
    pub fn end(
        self,
        source: &Source,
        values: Vec<Vec<f32>>,
        trained: &[ParamId],
        quality: Option<&Quality>,
    ) -> Result<RunRetention> {
        eprintln!("measuring the model after training");
        let mut session = self.engine.session(self.network.clone(), values)?;
        let retention = self.before.compare(&mut session, self.initial)?;
        let tasks = match self.quality.zip(quality) {
            Some((before, after)) => {
                let corpus = self.corpus;
                let rows = corpus.train.spread(corpus.eval.len());
                let on_train = Evaluator::of_rows(&mut session, corpus, &corpus.train, rows)?;
                Some(TaskRetention {
                    before,
                    after: after.clone(),
                    train: on_train.evaluate(&mut session, 0)?,
                    heads: heads(self.network, source, trained),
                })
            }
            None => None,
        };
        Ok(RunRetention { retention, tasks })
    }
}

fn heads(network: &Network, source: &Source, trained: &[ParamId]) -> Vec<HeadState> {
    let file = source.weights();
    let state = |head: &crate::model::params::Head| HeadState {
        is_in_model: file.is_some_and(|file| file.contains(&head_tensor(&head.task, "weight"))),
        is_frozen: ![head.linear.weight, head.linear.bias].iter().any(|id| trained.contains(id)),
    };
    network.heads.iter().map(state).collect()
}

/// Writes `drift.json` beside the model.
///
/// # Errors
/// When it cannot be written.
pub fn write(folder: &OutputFolder, run: &RunRetention) -> Result<()> {
    let document = Value::Object(RunRetention::document(Some(run)));
    folder.add_file("drift.json", format!("{document:#}\n").as_bytes())
}
