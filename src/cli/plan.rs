//! `frostline plan`: the plan as text, with no device and no weights.

use super::args::{ComputeType, ModelArgs, full_capacity, network_for, positive};
use super::data_args::longest;
use super::step::rate;
use super::{print, print_json};
use crate::Result;
use crate::freeze::FreezeSpec;
use crate::model::Network;
use crate::plan::{Counts, Layout, Phase, Plan, StepOptions, compile};
use crate::tensor::DType;

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: frostline plan --arch bert-base --freeze lower:6 --diff none")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A head and its number of labels (repeatable) [default: the model's own, else one of 2]
    #[arg(long = "task", value_name = "NAME=N")]
    tasks: Vec<String>,
    /// Freeze spec: none, all, backbone, embeddings, pooler, lower:N, layers:A..B, head:NAME,
    /// name:GLOB, keep:GLOB, joined by +
    #[arg(long, value_name = "SPEC", default_value = "none")]
    freeze: String,
    /// Show only what --freeze removes and changes against this spec
    #[arg(long, value_name = "SPEC", conflicts_with = "json")]
    diff: Option<String>,
    /// Sequences of a batch
    #[arg(long, alias = "batch_size", alias = "per_device_train_batch_size", default_value_t = 32, value_parser = positive)]
    batch_size: usize,
    /// Tokens of every sequence [default: 128, or the model's longest if that is less]
    #[arg(long, alias = "max_length", value_parser = positive)]
    max_length: Option<usize>,
    /// Type of activations and matrices
    #[arg(long, value_enum, default_value_t = ComputeType::F32)]
    dtype: ComputeType,
    /// Clip gradients to this norm, 0 for no clipping
    #[arg(long, alias = "max_grad_norm", default_value_t = 1.0, value_parser = rate)]
    max_grad_norm: f32,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// TOML file with options; what is typed overrides it
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let source = args.model.source()?;
    let network = network_for(&source, &args.tasks, args.model.pooling)?;
    let max_length = longest(args.max_length, &network.config, 128)?;
    let capacity = full_capacity(args.batch_size, max_length)?;
    let options = StepOptions {
        capacity,
        compute: match args.dtype {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::Bf16,
        },
        dropout: true,
        max_grad_norm: (args.max_grad_norm > 0.0).then_some(args.max_grad_norm),
    };
    let counts = Counts::full(capacity, network.heads.len());
    let plan = plan_for(&network, &args.freeze, &options)?;
    let layout = Layout::new(&plan);
    if args.json {
        return print_json(&document(args, &plan, &layout, &counts));
    }
    let title = |spec: &str| {
        format!(
            "freeze {spec}: {} sequences of {max_length} tokens, {}, trains {} of {} values\n\n",
            args.batch_size,
            options.compute.name(),
            plan.n_trained_values(),
            network.n_values()
        )
    };
    let Some(other_spec) = &args.diff else {
        return print(&(title(&args.freeze) + &plan.print(&layout, &counts)));
    };
    let other = plan_for(&network, other_spec, &options)?;
    print(&format!(
        "{}against {other_spec}: - gone, < before, > after, + new\n\n{}\n{}:\n{}\n{other_spec}:\n{}",
        title(&args.freeze),
        plan.print_diff(&other, &counts),
        args.freeze,
        plan.totals(&layout, &counts),
        other.totals(&Layout::new(&other), &counts)
    ))
}

fn plan_for(network: &Network, spec: &str, options: &StepOptions) -> Result<Plan> {
    let mask = FreezeSpec::parse(spec)?.mask(network)?;
    Ok(compile(network, &mask, options))
}

fn document(args: &Args, plan: &Plan, layout: &Layout, counts: &Counts) -> serde_json::Value {
    let phases: serde_json::Map<String, serde_json::Value> = (Phase::ALL.iter())
        .map(|phase| {
            let cost = plan.phase_cost(*phase, counts);
            (phase.name().to_owned(), serde_json::json!(cost))
        })
        .collect();
    serde_json::json!({
        "freeze": args.freeze,
        "capacity": plan.capacity,
        "trainable_parameters": plan.n_trained_values(),
        "phases": phases,
        "total": plan.total_cost(counts),
        "memory_bytes": layout.memory,
        "ops": plan.to_json(counts),
    })
}
