//! What can be said of a training run on the command line.

use std::path::PathBuf;

use serde_json::json;

use crate::cache::{CacheOptions, CachePlace};
use crate::cli::args::{positive, positive_count};
use crate::cli::data_args::BatchArgs;
use crate::cli::step::{Rates, rate};
use crate::freeze::Glob;
use crate::train::{
    BestOptions, ClassWeights, LossOptions, Metric, RateRules, Schedule, TrainOptions, Warmup,
    Weights,
};
use crate::{Error, Result, files};

/// How long to train, and how the rate changes.
#[derive(clap::Args, Debug)]
pub struct TrainingArgs {
    /// Epochs over the training rows
    #[arg(long, alias = "num_train_epochs", default_value_t = 3, value_parser = positive_count)]
    pub num_train_epochs: u64,
    /// Steps instead of epochs
    #[arg(long, alias = "max_steps", value_parser = positive_count)]
    pub max_steps: Option<u64>,
    /// Give batches nearly equal numbers of tokens: neighbours of the shuffled epoch change places
    #[arg(long, alias = "even_batches")]
    pub even_batches: bool,
    /// Steps of warm-up; under 1 a share of all steps
    #[arg(long, aliases = ["warmup_steps", "warmup_ratio"], default_value = "0.1", value_parser = warmup)]
    pub warmup_steps: Warmup,
    /// Learning rate behind the warm-up
    #[arg(long, alias = "lr_scheduler_type", value_enum, default_value_t = Schedule::Linear)]
    pub lr_scheduler_type: Schedule,
}

/// What is written down while training goes on.
#[derive(clap::Args, Debug)]
pub struct LogArgs {
    /// Steps to a line of the log, which has their mean loss
    #[arg(long, alias = "logging_steps", value_name = "N", default_value_t = 1, value_parser = positive_count)]
    pub logging_steps: u64,
    /// Folder of TensorBoard event files, written as training goes on
    #[arg(long, alias = "logging_dir", value_name = "DIR")]
    pub logging_dir: Option<PathBuf>,
}

/// When to evaluate, and which model to keep.
#[derive(clap::Args, Debug)]
pub struct EvaluationArgs {
    /// Evaluate every so many steps instead of after every epoch
    #[arg(long, alias = "eval_steps", value_name = "N", value_parser = positive_count)]
    pub eval_steps: Option<u64>,
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
    pub metric_for_best_model: Metric,
}

impl EvaluationArgs {
    /// The options of the search; None where nobody asks for the best.
    pub fn best(&self) -> Option<BestOptions> {
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
            "even_batches": self.even_batches,
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
            even_batches: self.even_batches,
            batches_per_step: 1,
            loss: LossOptions::default(),
            frozen_dropout: false,
            n_epochs: self.num_train_epochs,
            max_steps: self.max_steps,
            learning_rate: rates.learning_rate,
            head_learning_rate: rates.of_heads(),
            rates: RateRules::default(),
            weight_decay: rates.regularizers.weight_decay,
            max_grad_norm: rates.regularizers.clip(),
            warmup: self.warmup_steps,
            schedule: self.lr_scheduler_type,
            logging_steps: 1,
            eval_steps: None,
            best: None,
            seed,
        }
    }
}

/// What is minimised, and over how many rows at a time.
#[derive(clap::Args, Debug)]
pub struct LossArgs {
    /// Batches of a step: their gradients are those of one batch with all their rows, in the memory of one
    #[arg(
        long,
        alias = "gradient_accumulation_steps",
        value_name = "N",
        default_value_t = 1,
        value_parser = positive
    )]
    pub gradient_accumulation_steps: usize,
    /// Share of each target that all labels get alike
    #[arg(
        long,
        alias = "label_smoothing_factor",
        value_name = "SHARE",
        default_value_t = 0.0,
        value_parser = smoothing
    )]
    label_smoothing_factor: f32,
    /// What a task's loss is multiplied with (repeatable) [default: 1]
    #[arg(long, alias = "task_weight", value_name = "TASK=WEIGHT", value_parser = task_weight)]
    task_weight: Vec<(String, f32)>,
    /// Weights of labels: balanced (as rare as they are), or LABEL:WEIGHT,... with 1 for the others; of one task, or of all
    /// that have such labels (repeatable)
    #[arg(
        long,
        alias = "class_weights",
        value_name = "[TASK=]WEIGHTS",
        value_parser = class_weights
    )]
    class_weights: Vec<ClassWeights>,
    /// Keep dropout on in the frozen part, as PyTorch does after model.train(); it then cannot be cached
    #[arg(long, alias = "frozen_dropout")]
    pub frozen_dropout: bool,
}

impl LossArgs {
    /// What counts how much.
    pub fn loss(&self) -> LossOptions {
        LossOptions {
            smoothing: self.label_smoothing_factor,
            task_weights: self.task_weight.clone(),
            class_weights: self.class_weights.clone(),
        }
    }
}

fn smoothing(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("expected a share from 0, under 1".into()),
    }
}

fn weight(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err(format!("`{text}`: expected a weight above 0")),
    }
}

fn task_weight(text: &str) -> std::result::Result<(String, f32), String> {
    let (task, value) = text.split_once('=').ok_or("expected TASK=WEIGHT")?;
    Ok((task.to_owned(), weight(value)?))
}

fn class_weights(text: &str) -> std::result::Result<ClassWeights, String> {
    // Names of tasks have no colon. A label with `=` in it needs its task in front.
    let (task, rest) = match text.split_once('=') {
        Some((task, rest)) if !task.contains(':') => (Some(task.to_owned()), rest),
        _ => (None, text),
    };
    if rest == "balanced" {
        return Ok(ClassWeights { task, weights: Weights::Balanced });
    }
    let one = |item: &str| {
        let (label, value) =
            item.rsplit_once(':').ok_or("expected balanced or LABEL:WEIGHT,...")?;
        Ok((label.to_owned(), weight(value)?))
    };
    let given: std::result::Result<_, String> = rest.split(',').map(one).collect();
    Ok(ClassWeights { task, weights: Weights::Given(given?) })
}

/// Rates of single parameters.
#[derive(clap::Args, Debug)]
pub struct RateArgs {
    /// Each layer learns at this share of the rate of the layer above it, the embeddings at the least
    #[arg(long, alias = "layer_lr_decay", value_name = "SHARE", value_parser = share)]
    layer_lr_decay: Option<f32>,
    /// Learning rate of tensors by name, `*` for any characters (repeatable; the last that matches counts)
    #[arg(long, alias = "param_learning_rate", value_name = "GLOB=RATE", value_parser = glob_rate)]
    param_learning_rate: Vec<(Glob, f32)>,
}

impl RateArgs {
    /// The rules of a run.
    pub fn rules(&self) -> RateRules {
        RateRules { layer_decay: self.layer_lr_decay, by_name: self.param_learning_rate.clone() }
    }
}

fn share(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a share above 0, at most 1".into()),
    }
}

fn glob_rate(text: &str) -> std::result::Result<(Glob, f32), String> {
    let (glob, value) = text.split_once('=').ok_or("expected GLOB=RATE")?;
    Ok((Glob::new(glob), rate(value)?))
}

/// When to save the run, so that it can go on.
#[derive(clap::Args, Debug)]
pub struct SaveArgs {
    /// When checkpoints are written into the output folder; Ctrl-C writes one in any case
    #[arg(long, alias = "save_strategy", value_enum, default_value_t = SaveStrategy::No)]
    save_strategy: SaveStrategy,
    /// Steps between checkpoints, for --save-strategy steps (which this implies) [default: 500]
    #[arg(long, alias = "save_steps", value_name = "N", value_parser = positive_count)]
    save_steps: Option<u64>,
    /// Keep only so many of the newest checkpoints
    #[arg(long, alias = "save_total_limit", value_name = "N", value_parser = positive)]
    pub save_total_limit: Option<usize>,
    /// Go on from the newest checkpoint in the output folder that is whole; begin if there is none
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SaveStrategy {
    No,
    Epoch,
    Steps,
}

impl SaveArgs {
    /// Whether a checkpoint is due after `n_steps` steps.
    pub fn is_due(&self, n_steps: u64, is_epoch_end: bool) -> bool {
        match (self.save_strategy, self.save_steps) {
            (_, Some(every)) => n_steps.is_multiple_of(every),
            (SaveStrategy::Steps, None) => n_steps.is_multiple_of(500),
            (SaveStrategy::Epoch, None) => is_epoch_end,
            (SaveStrategy::No, None) => false,
        }
    }
}

/// What of the frozen part is kept from epoch to epoch.
#[derive(clap::Args, Debug)]
pub struct CacheArgs {
    /// Compute what lies below all that trains once per text, and keep it; for advise, disk keeps every layer's vectors of
    /// the texts that probes read too
    #[arg(long, value_enum, default_value_t = CachePlace::Auto)]
    cache: CachePlace,
    /// Folder of --cache disk [default: frostline in the user's cache folder]
    #[arg(long, alias = "cache_dir", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Megabytes that a cache may have at most
    #[arg(long, alias = "cache_limit", value_name = "MB", default_value_t = 20_000)]
    cache_limit: u64,
}

impl CacheArgs {
    /// The options of a run; `auto` is off under a schedule, which moves the frost line, and where dropout acts below
    /// it, so that no two passes give the same.
    ///
    /// # Errors
    /// A cache that is asked for beside one of these.
    pub fn options(&self, has_schedule: bool, frozen_dropout: bool) -> Result<CacheOptions> {
        let why_not = if has_schedule {
            Some("a --schedule moves what is frozen")
        } else if frozen_dropout {
            Some("with --frozen-dropout the frozen part gives something else every time")
        } else {
            None
        };
        let place = match (why_not, self.cache) {
            (None, place) => place,
            (Some(_), CachePlace::Auto | CachePlace::Off) => CachePlace::Off,
            (Some(why), _) => return Err(Error::usage(format!("--cache: {why}: use --cache off"))),
        };
        let folder = self.cache_dir.clone().unwrap_or_else(|| {
            files::user_cache().unwrap_or_else(std::env::temp_dir).join("frostline")
        });
        Ok(CacheOptions { place, folder, limit_bytes: self.cache_limit.saturating_mul(1_000_000) })
    }
}
