//! The `--train` part of `bench`: what each freeze does to accuracy, and the proof of freezing.

use std::path::Path;

use super::bench::Args;
use super::data_args::{BatchArgs, DataArgs};
use super::model_folder;
use super::train::Bar;
use crate::data::Corpus;
use crate::freeze::{FreezeMask, FreezeSpec, FreezeState};
use crate::measure::scenarios::{Measurement, Scenario};
use crate::model::hub::Need;
use crate::model::{Group, Network, ParamId, Source};
use crate::report::Training;
use crate::session::{Engine, Session};
use crate::train::forgetting::ForgettingSet;
use crate::train::retention::Before;
use crate::train::{Evaluator, Start, TrainOptions, TrainOutcome, prove_frozen, train};
use crate::{Error, Result};

/// Trains the scenarios of one `bench`, all from the same start.
pub struct Trainings<'a> {
    engine: Engine,
    source: &'a Source,
    network: &'a Network,
    corpus: &'a Corpus,
    initial: &'a [Vec<f32>],
    options: TrainOptions,
    /// Whether heads come from `--init`, whatever the model's own file holds.
    has_init: bool,
    /// Values of trained heads in table order, once a scenario has asked for them.
    heads: Option<Vec<Vec<f32>>>,
    /// The encoder before training, where `--forgetting` asks what becomes of it.
    before: Option<Before<'a>>,
}

impl<'a> Trainings<'a> {
    /// Reads the heads of `--init` and measures the encoder on `sets`, so that what is wrong with them is known before
    /// anything trains.
    ///
    /// # Errors
    /// A folder whose labels or pooling are not those of this run, a set that no probe can be fitted on.
    pub fn new(
        args: &'a Args,
        batch: &BatchArgs,
        engine: Engine,
        source: &'a Source,
        network: &'a Network,
        (corpus, sets): (&'a Corpus, &'a [ForgettingSet]),
        initial: &'a [Vec<f32>],
    ) -> Result<Self> {
        DataArgs::warn_of_missing_evaluation(corpus);
        let options = args.training.options(batch, &args.rates, args.run.seed);
        let heads = args.init.as_deref().map(|dir| heads_of(dir, network, corpus, initial));
        let heads = heads.transpose()?;
        let before = match sets {
            [] => None,
            sets => {
                let mut session = engine.session(network.clone(), initial.to_vec())?;
                Some(Before::of(&mut session, corpus, sets, true)?)
            }
        };
        Ok(Self {
            engine,
            source,
            network,
            corpus,
            initial,
            options,
            has_init: args.init.is_some(),
            heads,
            before,
        })
    }

    /// Trains one scenario; None where nothing trains.
    ///
    /// A scenario that freezes a head while something else trains starts with that head trained: a
    /// frozen random head would say nothing.
    ///
    /// # Errors
    /// A run that fails, or a frozen tensor that changed.
    pub fn run(&mut self, scenario: &Scenario, of: &Measurement) -> Result<Option<Training>> {
        if of.n_trained == 0 {
            return Ok(None);
        }
        let given: Vec<ParamId> = head_params(self.network)
            .filter(|id| scenario.mask.is_frozen(*id) && (self.has_init || !self.is_in_file(*id)))
            .collect();
        let mut start = self.initial.to_vec();
        if !given.is_empty() {
            let heads = self.trained_heads()?;
            for id in &given {
                start[id.0].clone_from(&heads[id.0]);
            }
        }
        eprintln!("training with {} frozen", scenario.freeze);
        let mut session = self.engine.session(self.network.clone(), start.clone())?;
        let freezes_a_head = head_params(self.network).any(|id| scenario.mask.is_frozen(id));
        let eval = Evaluator::new(&mut session, self.corpus, &self.corpus.eval)?;
        let before = match freezes_a_head {
            true => Some(eval.evaluate(&mut session, 0)?),
            false => None,
        };
        let outcome = self.train(&mut session, &scenario.mask)?;
        // A head that was trained first is held against the values that it was given.
        let file = self.source.weights();
        let proof = prove_frozen(&mut session, &outcome.trained, file, &start, &given)?;
        let n_steps = outcome.progress.n_steps;
        let retention = match &self.before {
            Some(before) => Some(before.compare(&mut session, &start)?),
            None => None,
        };
        Ok(Some(Training {
            eval: eval.evaluate(&mut session, n_steps)?,
            train: Evaluator::new(&mut session, self.corpus, &self.corpus.train)?
                .evaluate(&mut session, n_steps)?,
            before,
            seconds: outcome.progress.train_seconds,
            log: outcome.progress.log,
            n_proven: proof.n_tensors,
            retention,
        }))
    }

    fn is_in_file(&self, id: ParamId) -> bool {
        let name = &self.network.param(id).name;
        self.source.weights().is_some_and(|file| file.contains(name))
    }

    /// Heads from `--init`, or trained with the backbone frozen.
    fn trained_heads(&mut self) -> Result<&[Vec<f32>]> {
        let heads = match self.heads.take() {
            Some(heads) => heads,
            None => {
                eprintln!(
                    "training the heads with the backbone frozen, for scenarios that freeze one"
                );
                let mask = FreezeSpec::parse("backbone")?.mask(self.network)?;
                let mut session =
                    self.engine.session(self.network.clone(), self.initial.to_vec())?;
                self.train(&mut session, &mask)?;
                self.network.param_ids().map(|id| session.value(id)).collect::<Result<_>>()?
            }
        };
        Ok(self.heads.insert(heads))
    }

    fn train(&self, session: &mut Session, mask: &FreezeMask) -> Result<TrainOutcome> {
        let mut bar = Bar::quiet();
        let states = [FreezeState::always("", mask.clone())];
        let outcome = train(
            session,
            self.corpus,
            &states,
            &self.options,
            (Start::default(), None),
            &mut bar,
        )?;
        bar.finish();
        Ok(outcome)
    }
}

fn head_params(network: &Network) -> impl Iterator<Item = ParamId> + '_ {
    network.param_ids().filter(|id| matches!(network.param(*id).group, Group::Head(_)))
}

/// `initial` with the heads of the model in `dir`.
fn heads_of(
    dir: &Path,
    network: &Network,
    corpus: &Corpus,
    initial: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>> {
    let folder = model_folder::open("--init", dir, Need::All)?;
    if folder.pooling != network.pooling {
        let (theirs, ours) = (folder.pooling.name(), network.pooling.name());
        let problem = format!("--init: its heads were trained on {theirs} pooling, not {ours}");
        return Err(Error::content(dir, problem));
    }
    for task in &corpus.tasks {
        let labels = folder.settings.tasks.get(&task.name).map(|settings| &settings.labels);
        if labels != Some(&task.labels) {
            let theirs = labels.map_or("none".into(), |labels| labels.join(", "));
            let problem = format!(
                "--init: labels of task {} are {theirs}, those of the data are {}",
                task.name,
                task.labels.join(", ")
            );
            return Err(Error::content(dir, problem));
        }
    }
    let file = folder.weights()?;
    let mut values = initial.to_vec();
    for id in head_params(network) {
        let param = network.param(id);
        values[id.0] = file.read_f32(&param.name, &param.shape)?;
    }
    Ok(values)
}
