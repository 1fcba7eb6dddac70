//! `frostline train`: trains with one freeze, and writes a model folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::json;

use super::args::{ModelArgs, RunArgs, positive_count};
use super::data_args::{BatchArgs, DataArgs};
use super::step::Rates;
use super::{output_folder, print, print_json, progress};
use crate::freeze::FreezeSpec;
use crate::model::Source;
use crate::model::folder::{Settings, TaskSettings, TrainedModel, write_model};
use crate::session::Session;
use crate::train::evaluate::TaskQuality;
use crate::train::state::trainer_state;
use crate::train::{
    BestOptions, FreezeProof, LogLine, Metric, Observer, Quality, Schedule, TrainOptions,
    TrainOutcome, Warmup, prove_frozen, train,
};
use crate::{Result, files};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: frostline train --model demo/minilm \
                        --task topic=demo/feedback_products.tsv \
                        --task sentiment=demo/feedback_products.tsv \
                        --freeze lower:3 --head-learning-rate 1e-3 --output trained")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// Freeze spec, see frostline plan --help
    #[arg(long, value_name = "SPEC", default_value = "none")]
    freeze: String,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    rates: Rates,
    /// Folder to write: a model that can be loaded again, train_log.jsonl and trainer_state.json
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    output: PathBuf,
    /// Replace the output folder if it is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// How long to train, and how the rate changes.
#[derive(clap::Args, Debug)]
pub struct TrainingArgs {
    /// Epochs over the training rows
    #[arg(long, alias = "num_train_epochs", default_value_t = 3, value_parser = positive_count)]
    pub num_train_epochs: u64,
    /// Steps instead of epochs
    #[arg(long, alias = "max_steps", value_parser = positive_count)]
    pub max_steps: Option<u64>,
    /// Steps of warm-up; under 1 a share of all steps
    #[arg(long, aliases = ["warmup_steps", "warmup_ratio"], default_value = "0.1", value_parser = warmup)]
    pub warmup_steps: Warmup,
    /// Learning rate behind the warm-up
    #[arg(long, alias = "lr_scheduler_type", value_enum, default_value_t = Schedule::Linear)]
    pub lr_scheduler_type: Schedule,
}

/// When to evaluate, and which model to keep.
#[derive(clap::Args, Debug)]
struct EvaluationArgs {
    /// Evaluate every so many steps instead of after every epoch
    #[arg(long, alias = "eval_steps", value_name = "N", value_parser = positive_count)]
    eval_steps: Option<u64>,
    /// Write the model of the best evaluation instead of the last step's
    #[arg(long, alias = "load_best_model_at_end")]
    load_best_model_at_end: bool,
    /// Stop after so many evaluations in a row that were no better than the best
    #[arg(long, alias = "early_stopping_patience", value_name = "N", value_parser = positive_count)]
    early_stopping_patience: Option<u64>,
    /// What makes an evaluation the best: loss, accuracy or macro_f1 (means over the tasks), or of one task, as
    /// topic_macro_f1
    #[arg(
        long,
        alias = "metric_for_best_model",
        value_name = "METRIC",
        default_value = "loss",
        value_parser = Metric::parse
    )]
    metric_for_best_model: Metric,
}

impl EvaluationArgs {
    fn best(&self) -> Option<BestOptions> {
        let is_asked = self.load_best_model_at_end || self.early_stopping_patience.is_some();
        is_asked.then(|| BestOptions {
            metric: self.metric_for_best_model.clone(),
            patience: self.early_stopping_patience,
            keeps_values: self.load_best_model_at_end,
        })
    }
}

fn warmup(text: &str) -> std::result::Result<Warmup, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..1.0).contains(&ratio) => Ok(Warmup::Ratio(ratio)),
        Ok(steps) if steps >= 1.0 && steps.fract() == 0.0 && steps < 1e15 => {
            Ok(Warmup::Steps(steps as u64))
        }
        _ => Err("expected a share under 1, or a whole number of steps".into()),
    }
}

impl TrainingArgs {
    /// The options as JSON, for a report.
    pub fn settings(&self) -> serde_json::Value {
        json!({
            "num_train_epochs": self.num_train_epochs,
            "max_steps": self.max_steps,
            "warmup_steps": match self.warmup_steps {
                Warmup::Ratio(ratio) => json!(ratio),
                Warmup::Steps(steps) => json!(steps),
            },
            "lr_scheduler_type": self.lr_scheduler_type,
        })
    }

    /// The options of a run.
    pub fn options(&self, batch: &BatchArgs, rates: &Rates, seed: u64) -> TrainOptions {
        TrainOptions {
            limit: batch.limit(),
            n_epochs: self.num_train_epochs,
            max_steps: self.max_steps,
            learning_rate: rates.learning_rate,
            head_learning_rate: rates.of_heads(),
            weight_decay: rates.weight_decay,
            max_grad_norm: rates.clip(),
            warmup: self.warmup_steps,
            schedule: self.lr_scheduler_type,
            eval_steps: None,
            best: None,
            seed,
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let spec = FreezeSpec::parse(&args.freeze)?;
    let engine = args.run.device.prepare()?;
    output_folder::check(&args.output, args.overwrite)?;
    let source = args.model.source()?;
    let corpus = args.data.corpus(&source, args.batch.max_length, args.run.seed)?;
    DataArgs::warn_of_missing_evaluation(&corpus);
    let network = source.network(&corpus.task_sizes(), args.model.pooling)?;
    for (task, _) in source.known_labels() {
        if !corpus.tasks.iter().any(|known| known.name == task) {
            eprintln!("the model's head `{task}` is left out: no --task names it");
        }
    }
    let mask = spec.mask(&network)?;
    let initial = source.initial_values(&network, args.run.seed)?;
    let n_values = network.n_values();
    let mut session = engine.session(network, initial.clone())?;
    let options = TrainOptions {
        eval_steps: args.evaluation.eval_steps,
        best: args.evaluation.best(),
        ..args.training.options(&args.batch, &args.rates, args.run.seed)
    };
    let mut observer = Bar::new();
    let outcome = train(&mut session, &corpus, &mask, &options, &mut observer)?;
    observer.finish();
    let proof = prove_frozen(&mut session, &outcome.trained, source.weights(), &initial, &[])?;

    let origin = match &source {
        Source::Folder(folder) => Some(folder),
        Source::Published(_) => None,
    };
    let network = session.network().clone();
    let best = outcome.best.as_ref().and_then(|best| best.values.as_ref());
    let kept = |session: &mut Session, id| match best {
        Some(values) => Ok(values[&id].clone()),
        None => session.value(id),
    };
    let labels = |labels: &[String]| TaskSettings { labels: labels.to_vec() };
    let model = TrainedModel {
        network: &network,
        origin,
        settings: Settings {
            pooling: Some(network.pooling),
            tasks: BTreeMap::from_iter(
                corpus.tasks.iter().map(|task| (task.name.clone(), labels(&task.labels))),
            ),
            freeze: Some(args.freeze.clone()),
        },
        trained: (network.param_ids())
            .map(|id| outcome.trained.contains(&id).then(|| kept(&mut session, id)).transpose())
            .collect::<Result<_>>()?,
        initial: &initial,
    };
    write_folder(&args.output, &model, &options, &outcome)?;
    report(args, &outcome, proof, n_values)
}

/// Writes everything beside, then puts it in its place.
fn write_folder(
    output: &Path,
    model: &TrainedModel,
    options: &TrainOptions,
    outcome: &TrainOutcome,
) -> Result<()> {
    output_folder::place(output, |written| {
        write_model(written, model)?;
        let lines: Vec<String> = outcome.log.iter().map(|line| json!(line).to_string()).collect();
        let log = lines.join("\n") + "\n";
        files::write_atomically(&written.join("train_log.jsonl"), log.as_bytes())?;
        let state = format!("{:#}\n", trainer_state(options, outcome));
        files::write_atomically(&written.join("trainer_state.json"), state.as_bytes())
    })
}

fn report(args: &Args, outcome: &TrainOutcome, proof: FreezeProof, n_values: usize) -> Result<()> {
    let seconds = outcome.train_time.as_secs_f64();
    if args.run.json {
        return print_json(&json!({
            "output": args.output.to_string_lossy(),
            "freeze": args.freeze,
            "steps": outcome.n_steps,
            "train_runtime": seconds,
            "train_steps_per_second": outcome.n_steps as f64 / seconds,
            "trainable_parameters": outcome.n_trained,
            "parameters": n_values,
            "eval": outcome.eval,
            "confusion": outcome.eval.as_ref().map(confusion),
            "best": outcome.best.as_ref().map(|best| json!({
                "metric": args.evaluation.metric_for_best_model.name(),
                "value": best.value,
                "step": best.step,
                "kept": best.values.is_some(),
            })),
            "frozen": proof,
        }));
    }
    let mut text = format!(
        "trained {} of {n_values} values for {} steps in {seconds:.1} s\n",
        outcome.n_trained, outcome.n_steps
    );
    if let Some(best) = &outcome.best {
        let name = args.evaluation.metric_for_best_model.name();
        let kept = if best.values.is_some() { ", which is kept" } else { "" };
        text += &format!("best {name}: {:.4}, after step {}{kept}\n", best.value, best.step);
    }
    if let Some(quality) = &outcome.eval {
        text += &format!("{}\n", quality_line(quality));
    }
    text += &format!(
        "{} tensors that did not train ({} values) are equal to the model's own, byte for byte\nwrote \
         {}\n",
        proof.n_tensors,
        proof.n_values,
        args.output.display()
    );
    print(&text)
}

/// What the shares of right answers hide: which label was taken for which.
fn confusion(quality: &Quality) -> serde_json::Value {
    let one = |task: &TaskQuality| {
        let value = json!({ "mcc": task.confusion.mcc(), "counts": task.confusion.counts() });
        (task.task.clone(), value)
    };
    quality.tasks.iter().map(one).collect::<serde_json::Map<_, _>>().into()
}

/// `topic: accuracy 0.790, macro-F1 0.776, MCC 0.732; ...`.
fn quality_line(quality: &Quality) -> String {
    let share = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let task = |task: &TaskQuality| {
        let (accuracy, macro_f1) = (task.confusion.accuracy(), task.confusion.macro_f1());
        let (name, mcc) = (&task.task, share(task.confusion.mcc()));
        format!("{name}: accuracy {}, macro-F1 {}, MCC {mcc}", share(accuracy), share(macro_f1))
    };
    quality.tasks.iter().map(task).collect::<Vec<_>>().join("; ")
}

/// Shows training as it goes: a bar on a terminal, a line an epoch everywhere.
pub struct Bar {
    bar: Option<ProgressBar>,
    begun: Instant,
    n_tokens: usize,
    is_quiet: bool,
}

impl Bar {
    /// Begins the clock.
    pub fn new() -> Self {
        Self { bar: None, begun: Instant::now(), n_tokens: 0, is_quiet: false }
    }

    /// Without the line an epoch, for a run among others.
    pub fn quiet() -> Self {
        Self { is_quiet: true, ..Self::new() }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl Observer for Bar {
    fn step(&mut self, line: &LogLine, n_tokens: usize, n_steps: u64) {
        let bar = self.bar.get_or_insert_with(|| progress::bar(n_steps, "training"));
        self.n_tokens += n_tokens;
        let rate = self.n_tokens as f64 / self.begun.elapsed().as_secs_f64();
        if let LogLine::Step { loss, .. } = line {
            bar.set_message(format!("loss {loss:.3}, {rate:.0} tokens/s"));
        }
        bar.inc(1);
    }

    fn evaluation(&mut self, line: &LogLine) {
        if let (LogLine::Evaluation { epoch, eval, .. }, false) = (line, self.is_quiet) {
            let text = format!("epoch {epoch:.2}: {}", quality_line(eval));
            match &self.bar {
                Some(bar) => bar.suspend(|| eprintln!("{text}")),
                None => eprintln!("{text}"),
            }
        }
    }
}
