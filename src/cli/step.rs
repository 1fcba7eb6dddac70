//! `frostline step`: the parity door. Steps on a given batch, and everything that they computed.

use std::path::PathBuf;

use super::args::{ModelArgs, RunArgs, check_output_file, positive_count, task_sizes};
use super::{batch_file, print, print_json};
use crate::Result;
use crate::backend::{StepState, Timing};
use crate::freeze::FreezeSpec;
use crate::measure::scenarios::MeasureOptions;
use crate::model::hub::Need;
use crate::model::weights::{self, NamedTensor};
use crate::plan::{Capacity, StepOptions};
use crate::session::{Session, Step, StepOutcome};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: frostline step --model minilm --batch batch.safetensors \
                        --task topic=5 --freeze lower:3 --dump out.safetensors")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// safetensors with input_ids, attention_mask, labels.<task> and perhaps token_type_ids
    #[arg(long, value_name = "FILE")]
    batch: PathBuf,
    /// A head and its number of labels (repeatable)
    #[arg(long = "task", value_name = "NAME=N", required = true)]
    tasks: Vec<String>,
    /// Freeze spec, see frostline plan --help
    #[arg(long, value_name = "SPEC", default_value = "none")]
    freeze: String,
    /// Number of steps, all on the same batch
    #[arg(long, default_value_t = 1, value_parser = positive_count)]
    steps: u64,
    #[command(flatten)]
    rates: Rates,
    /// safetensors to write: losses, logits and gradients of the first step, and with several steps
    /// the parameters after the last
    #[arg(long, value_name = "FILE")]
    dump: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

/// AdamW's settings.
#[derive(clap::Args, Debug)]
pub struct Rates {
    /// Learning rate
    #[arg(long, alias = "learning_rate", default_value_t = 5e-5, value_parser = rate)]
    pub learning_rate: f32,
    /// Learning rate of the heads [default: the learning rate]
    #[arg(long, alias = "head_learning_rate", value_parser = rate)]
    pub head_learning_rate: Option<f32>,
    #[command(flatten)]
    pub regularizers: Regularizers,
}

/// What keeps values and updates small.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Regularizers {
    /// Weight decay of everything but biases and LayerNorm parameters
    #[arg(long, alias = "weight_decay", default_value_t = 0.01, value_parser = rate)]
    pub weight_decay: f32,
    /// Clip gradients to this global norm, 0 for no clipping
    #[arg(long, alias = "max_grad_norm", default_value_t = 1.0, value_parser = rate)]
    max_grad_norm: f32,
}

impl Regularizers {
    /// The norm to clip to.
    pub fn clip(&self) -> Option<f32> {
        (self.max_grad_norm > 0.0).then_some(self.max_grad_norm)
    }
}

impl Rates {
    /// How `bench` and `profile` measure with these rates.
    pub fn measured(&self, n_rounds: usize, n_warmup: Option<usize>, seed: u64) -> MeasureOptions {
        MeasureOptions {
            n_rounds,
            n_warmup,
            learning_rate: self.learning_rate,
            head_learning_rate: self.of_heads(),
            weight_decay: self.regularizers.weight_decay,
            max_grad_norm: self.regularizers.clip(),
            seed,
            with_energy: true,
        }
    }

    /// The heads' learning rate.
    pub fn of_heads(&self) -> f32 {
        self.head_learning_rate.unwrap_or(self.learning_rate)
    }
}

/// Parses a finite number that is not negative.
pub fn rate(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number from 0".into()),
    }
}

pub fn run(args: &Args) -> Result<()> {
    let tasks = task_sizes(&args.tasks)?;
    let spec = FreezeSpec::parse(&args.freeze)?;
    let engine = args.run.device.prepare()?;
    check_output_file("--dump", &args.dump, args.model.model.as_ref(), &[&args.batch])?;
    let source = args.model.source(Need::All)?;
    let network = source.network(&tasks, args.model.pooling)?;
    let mask = spec.mask(&network)?;
    let batch = batch_file::read(&args.batch, &network)?;
    let values = source.initial_values(&network, args.run.seed)?;

    let mut session = engine.session(network.clone(), values)?;
    let options = StepOptions {
        max_grad_norm: args.rates.regularizers.clip(),
        ..StepOptions::plain(Capacity::of([&batch]), session.compute())
    };
    let step = session.compile(&mask, &options)?;
    let state = |number| StepState {
        step: number,
        learning_rate: args.rates.learning_rate,
        head_learning_rate: args.rates.of_heads(),
        weight_decay: args.rates.regularizers.weight_decay,
        seed: args.run.seed,
    };
    let first = session.run(&step, &batch, &state(1), Timing::Off)?;
    let mut dump = first_step(&mut session, &step, &first)?;
    let mut last = first.clone();
    for number in 2..=args.steps {
        last = session.run(&step, &batch, &state(number), Timing::Off)?;
    }
    if args.steps > 1 {
        for id in network.param_ids() {
            let param = network.param(id);
            let name = format!("param.{}", param.name);
            dump.push(NamedTensor::f32(name, param.shape.clone(), &session.value(id)?));
        }
    }
    weights::write(&args.dump, &dump)?;
    report(args, &session, &first, &last)
}

/// Losses, logits and gradients of the first step.
fn first_step(
    session: &mut Session,
    step: &Step,
    outcome: &StepOutcome,
) -> Result<Vec<NamedTensor>> {
    let network = session.network().clone();
    let mut dump = vec![NamedTensor::f32("loss", vec![1], &[outcome.loss()])];
    for (task, head) in network.heads.iter().enumerate() {
        let loss = format!("loss.{}", head.task);
        dump.push(NamedTensor::f32(loss, vec![1], &[outcome.losses[task]]));
        let logits = session.logits(step, task)?;
        let shape = vec![logits.len() / head.n_labels, head.n_labels];
        dump.push(NamedTensor::f32(format!("logits.{}", head.task), shape, &logits));
    }
    for id in network.param_ids() {
        if let Some(gradient) = session.gradient(step, id)? {
            let param = network.param(id);
            let name = format!("grad.{}", param.name);
            dump.push(NamedTensor::f32(name, param.shape.clone(), &gradient));
        }
    }
    Ok(dump)
}

fn report(args: &Args, session: &Session, first: &StepOutcome, last: &StepOutcome) -> Result<()> {
    let tasks = session.network().task_names();
    if args.run.json {
        let losses = |outcome: &StepOutcome| -> serde_json::Map<String, serde_json::Value> {
            let named = tasks.iter().zip(&outcome.losses);
            named.map(|(task, loss)| ((*task).to_owned(), serde_json::json!(loss))).collect()
        };
        return print_json(&serde_json::json!({
            "dump": args.dump.to_string_lossy(),
            "steps": args.steps,
            "loss": first.loss(),
            "losses": losses(first),
            "last_losses": losses(last),
            "grad_norm": first.grad_norm,
        }));
    }
    let named = tasks.iter().zip(&first.losses);
    let losses: Vec<String> = named.map(|(task, loss)| format!("{task} {loss:.6}")).collect();
    let mut text = format!("loss {:.6} ({})\n", first.loss(), losses.join(", "));
    if args.steps > 1 {
        text += &format!("loss before step {}: {:.6}\n", args.steps, last.loss());
    }
    print(&format!("{text}wrote {}\n", args.dump.display()))
}
