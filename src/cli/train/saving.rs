//! Checkpoints while training goes on.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

use serde_json::Value;

use super::bar::Bar;
use super::options::SaveArgs;
use crate::cli::interrupt::Interrupt;
use crate::data::Corpus;
use crate::model::folder::{Settings, TaskSettings, TrainedModel};
use crate::model::{ParamId, Source};
use crate::report::tensorboard::EventFile;
use crate::session::Session;
use crate::train::state::trainer_state;
use crate::train::{LogLine, Observer, Snapshot, TrainOptions};
use crate::{Error, Result, checkpoint};

/// What a run's model folders have in common.
pub struct Model<'a> {
    pub source: &'a Source,
    pub corpus: &'a Corpus,
    /// The spec or schedule as it was typed.
    pub freeze: &'a str,
    /// The values that the run started from, in table order.
    pub initial: &'a [Vec<f32>],
}

impl<'a> Model<'a> {
    /// The model as it is now, or with the values of an earlier time, of those that had trained then.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of(
        &self,
        session: &mut Session,
        trained: &[ParamId],
        earlier: Option<&BTreeMap<ParamId, Vec<f32>>>,
    ) -> Result<TrainedModel<'a>> {
        let network = session.network().clone();
        let mut values = vec![None; network.params.len()];
        for id in trained {
            values[id.0] = match earlier {
                Some(earlier) => earlier.get(id).cloned(),
                None => Some(session.value(*id)?),
            };
        }
        let labels = |labels: &[String]| TaskSettings { labels: labels.to_vec() };
        let tasks = self.corpus.tasks.iter().map(|task| (task.name.clone(), labels(&task.labels)));
        Ok(TrainedModel {
            origin: match self.source {
                Source::Folder(folder) => Some(folder),
                Source::Published(_) => None,
            },
            settings: Settings {
                pooling: Some(network.pooling),
                tasks: tasks.collect(),
                freeze: Some(self.freeze.to_owned()),
            },
            network,
            trained: values,
            initial: self.initial,
        })
    }
}

/// Shows a run and saves it.
pub struct Saver<'a> {
    pub bar: Bar,
    pub interrupt: Interrupt,
    pub save: &'a SaveArgs,
    pub output: &'a Path,
    pub model: &'a Model<'a>,
    pub options: &'a TrainOptions,
    /// Made when the first checkpoint asks for it.
    pub settings: &'a dyn Deref<Target = Value>,
    /// Whether checkpoints in the output folder are of an earlier run.
    pub is_fresh: bool,
    /// For TensorBoard.
    pub events: Option<EventFile>,
}

impl Saver<'_> {
    fn save(&mut self, snapshot: Snapshot) -> Result<()> {
        if std::mem::take(&mut self.is_fresh) {
            checkpoint::remove_all(self.output)?;
        }
        let model = self.model.of(snapshot.session, snapshot.trained, None)?;
        let state = trainer_state(self.options, snapshot.progress);
        let written = checkpoint::write(self.output, snapshot, &model, self.settings, &state)?;
        self.bar.say(&format!("wrote {}", written.display()));
        match self.save.save_total_limit {
            Some(limit) => checkpoint::keep_newest(self.output, limit),
            None => Ok(()),
        }
    }
}

impl Observer for Saver<'_> {
    fn step(&mut self, line: &LogLine, n_tokens: usize, n_steps: u64) {
        self.bar.step(line, n_tokens, n_steps);
    }

    fn evaluation(&mut self, line: &LogLine) {
        self.bar.evaluation(line);
    }

    fn freeze(&mut self, line: &LogLine) {
        self.bar.freeze(line);
    }

    fn logged(&mut self, line: &LogLine) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.write(line))
    }

    fn between_steps(&mut self, snapshot: Snapshot) -> Result<()> {
        let is_asked = self.interrupt.is_asked();
        if is_asked || self.save.is_due(snapshot.progress.n_steps, snapshot.is_epoch_end) {
            self.save(snapshot)?;
        }
        if !is_asked {
            return Ok(());
        }
        self.bar.finish();
        eprintln!("the same command with --resume goes on from there");
        Err(Error::Interrupted)
    }
}
