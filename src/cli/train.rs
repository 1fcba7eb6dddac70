//! `frostline train`: trains with one freeze or a schedule of them, and writes a model folder.

mod bar;
mod opening;
pub mod options;
mod report;
mod retention;
mod saving;

use std::cell::LazyCell;
use std::path::PathBuf;

use serde_json::{Value, json};

pub use self::bar::Bar;
use self::options::{
    CacheArgs, EvaluationArgs, LogArgs, LossArgs, RateArgs, SaveArgs, TrainingArgs,
};
use self::retention::{RetentionArgs, Watch};
use self::saving::{Model, Saver};
use super::args::{ModelArgs, RunArgs};
use super::data_args::{BatchArgs, DataArgs};
use super::interrupt::Interrupt;
use super::output_folder::{Existing, OutputFolder};
use super::progress;
use super::step::Rates;
use crate::data::Corpus;
use crate::freeze::{FreezeSchedule, FreezeSpec};
use crate::model::folder::write_model;
use crate::model::hub::Need;
use crate::model::{Network, Pooling};
use crate::report::retention::RunRetention;
use crate::report::tensorboard::EventFile;
use crate::train::state::trainer_state;
use crate::train::{
    Epochs, Start, TrainOptions, TrainOutcome, check, prove_frozen, step_options, train,
};
use crate::{Result, cache, checkpoint, files};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  frostline train --model demo/minilm --task topic=demo/feedback_products.tsv --task \
                  sentiment=demo/feedback_products.tsv --freeze lower:3 --head-learning-rate 1e-3 --output trained\n  \
                  frostline train --model demo/minilm --task topic=demo/feedback_products.tsv --drift --forgetting \
                  chapter=demo/icd10_chapters.tsv --output trained"
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// Freeze spec, see frostline plan --help
    #[arg(long, value_name = "SPEC", default_value = "none", conflicts_with = "schedule")]
    freeze: String,
    /// Freeze specs that follow each other, each from an epoch or a step (@) on, counted from 0:
    /// "0:backbone 1:lower:4 @500:none"; heads first, then everything (LP-FT): "0:backbone 1:none"
    #[arg(long, value_name = "STATES")]
    schedule: Option<String>,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    loss: LossArgs,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    rates: Rates,
    #[command(flatten)]
    param_rates: RateArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    save: SaveArgs,
    /// Folder to write: a model that can be loaded again, train_log.jsonl and trainer_state.json
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    output: PathBuf,
    /// Replace what an earlier run wrote into the output folder; other files in it stay
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    fn schedule(&self) -> Result<FreezeSchedule> {
        match &self.schedule {
            Some(text) => FreezeSchedule::parse(text),
            None => Ok(FreezeSchedule::of(FreezeSpec::parse(&self.freeze)?)),
        }
    }

    fn existing(&self) -> Existing {
        match (self.overwrite, self.save.resume) {
            (_, true) => Existing::Resume,
            (true, false) => Existing::Overwrite,
            (false, false) => Existing::Refuse,
        }
    }

    /// What the run reads, with the options that name it.
    fn inputs(&self) -> Vec<(&'static str, PathBuf)> {
        let mut inputs: Vec<_> =
            self.model.model.iter().map(|path| ("--model", path.clone())).collect();
        inputs.extend(self.data.files().into_iter().map(|path| ("--task or --eval", path)));
        let others = self.retention.forgetting.files().into_iter();
        inputs.extend(others.map(|path| ("--forgetting", path)));
        inputs.extend(self.run.config.iter().map(|path| ("--config", path.clone())));
        inputs
    }

    fn options(&self) -> TrainOptions {
        TrainOptions {
            batches_per_step: self.loss.gradient_accumulation_steps,
            loss: self.loss.loss(),
            frozen_dropout: self.loss.frozen_dropout,
            rates: self.param_rates.rules(),
            logging_steps: self.log.logging_steps,
            eval_steps: self.evaluation.eval_steps,
            best: self.evaluation.best(),
            ..self.training.options(&self.batch, &self.rates, self.run.seed)
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let schedule = args.schedule()?;
    let cache_options = args.cache.options(args.schedule.is_some(), args.loss.frozen_dropout)?;
    let engine = args.run.device.prepare()?;
    let output = OutputFolder::open(&args.output, args.existing(), &args.inputs())?;
    let source = args.model.source(Need::All)?;
    // Not before: a download has nothing to finish when it is interrupted.
    let interrupt = Interrupt::listen()?;
    let corpus = args.data.corpus(&source, args.batch.max_length, args.run.seed)?;
    DataArgs::warn_of_missing_evaluation(&corpus);
    let network = source.network(&corpus.task_sizes(), args.model.pooling)?;
    for (task, _) in source.known_labels() {
        if !corpus.tasks.iter().any(|known| known.name == task) {
            eprintln!("the model's head `{task}` is left out: no --task names it");
        }
    }
    let (length, seed) = (args.batch.max_length, args.run.seed);
    let sets = args.retention.forgetting.read(&source, &args.data, length, seed)?;
    let states = schedule.apply(&network)?;
    let freeze = schedule.to_string();
    let options = args.options();
    check(&options, &corpus, &network, &states)?;
    opening::lines(&network, &states[0].mask, &source).iter().for_each(|line| eprintln!("{line}"));
    let initial = source.initial_values(&network, args.run.seed)?;
    let pooling = network.pooling;
    // Hashing model and data takes a while: only a checkpoint needs it.
    let settings = LazyCell::new(|| settings(&freeze, &options, &corpus, pooling, &initial));
    let mut values = initial.clone();
    let start = match args.save.resume {
        true => resume(args, &network, &settings, &mut values)?,
        false => Start::default(),
    };
    let watch = Watch::begin(&args.retention, engine, &network, &initial, &corpus, &sets)?;
    let mut session = engine.session(network.clone(), values)?;
    let decision = {
        let bar = progress::bar((corpus.train.len() + corpus.eval.len()) as u64, "caching");
        let step = step_options(&corpus, session.compute(), &options);
        let epochs = Epochs::new(&options, &corpus)?;
        let n_epochs = epochs.after(epochs.n_steps());
        let (how, mask) = ((&cache_options, engine.device, n_epochs), &states[0].mask);
        let decision = cache::decide(&mut session, &corpus, mask, &step, how, &initial, |n| {
            bar.inc(n as u64)
        })?;
        bar.finish_and_clear();
        decision
    };
    eprintln!("{}", decision.text);
    let model = Model { source: &source, corpus: &corpus, freeze: &freeze, initial: &initial };
    let mut saver = Saver {
        bar: Bar::new(start.progress.n_steps),
        interrupt,
        save: &args.save,
        output: &args.output,
        model: &model,
        options: &options,
        settings: &settings,
        is_fresh: !args.save.resume,
        events: args.log.logging_dir.as_deref().map(EventFile::create).transpose()?,
    };
    let outcome = train(
        &mut session,
        &corpus,
        &states,
        &options,
        (start, decision.cache.as_ref()),
        &mut saver,
    )?;
    saver.bar.finish();
    let proof = prove_frozen(&mut session, &outcome.trained, source.weights(), &initial, &[])?;
    let best = outcome.best.as_ref().and_then(|best| best.values.as_ref());
    let trained = model.of(&mut session, &outcome.trained, best)?;
    output.place(|written| {
        write_model(written, &trained)?;
        write_log(written, &options, &outcome)
    })?;
    // The model is safe by now, whatever becomes of the rest; and its memory serves twice.
    drop(session);
    let values = trained.trained.into_iter().zip(&initial);
    let values = values.map(|(trained, initial)| trained.unwrap_or_else(|| initial.clone()));
    let quality = outcome.eval.as_ref();
    let measured = watch.map(|watch| -> Result<RunRetention> {
        let run = watch.end(&source, values.collect(), &outcome.trained, quality)?;
        retention::write(&output, &run)?;
        Ok(run)
    });
    // Whatever became of that, people are told of the training.
    let (retention, fault) = match measured.transpose() {
        Ok(retention) => (retention, Ok(())),
        Err(error) => (None, Err(error)),
    };
    report::report(args, &outcome, proof, &freeze, retention.as_ref())?;
    fault
}

/// Where the run goes on, its values among `values`.
fn resume(
    args: &Args,
    network: &Network,
    settings: &Value,
    values: &mut [Vec<f32>],
) -> Result<Start> {
    checkpoint::remove_unfinished(&args.output)?;
    let found = checkpoint::newest(&args.output, network, settings, |line| eprintln!("{line}"))?;
    let Some(found) = found else {
        eprintln!("no checkpoint in {}: beginning", args.output.display());
        return Ok(Start::default());
    };
    eprintln!("going on from {}", found.folder.display());
    for (id, value) in found.values {
        values[id.0] = value;
    }
    Ok(found.start)
}

/// What a checkpoint must agree with this run in.
fn settings(
    freeze: &str,
    options: &TrainOptions,
    corpus: &Corpus,
    pooling: Pooling,
    initial: &[Vec<f32>],
) -> Value {
    json!({
        "freeze": freeze,
        "tasks": corpus.tasks.iter().map(|task| &task.name).collect::<Vec<_>>(),
        "pooling": pooling.name(),
        "model_sha256": checkpoint::digest_of_values(initial),
        "data_sha256": corpus.digest(),
        "options": options,
    })
}

/// The log and its summary beside the model.
fn write_log(
    written: &std::path::Path,
    options: &TrainOptions,
    outcome: &TrainOutcome,
) -> Result<()> {
    let progress = &outcome.progress;
    let lines: Vec<String> = progress.log.iter().map(|line| line.shown().to_string()).collect();
    let log = lines.join("\n") + "\n";
    files::write_atomically(&written.join("train_log.jsonl"), log.as_bytes())?;
    let state = format!("{:#}\n", trainer_state(options, progress));
    files::write_atomically(&written.join("trainer_state.json"), state.as_bytes())
}
