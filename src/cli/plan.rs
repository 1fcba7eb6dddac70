//! `frostline plan`: the plan as text, with no device and no weights.

use super::args::{ComputeType, ModelArgs, full_capacity, network_for, positive};
use super::data_args::longest;
use super::step::rate;
use super::{print, print_json};
use crate::freeze::FreezeSpec;
use crate::measure::Ceilings;
use crate::measure::scale::{AllReduce, Cluster, ParallelStep};
use crate::model::Network;
use crate::model::hub::Need;
use crate::plan::accumulate::accumulate;
use crate::plan::prefix::compile_cached;
use crate::plan::{Counts, Layout, Loss, Phase, Plan, StepOptions, compile};
use crate::tensor::DType;
use crate::{Error, Result};

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
    /// Read the frozen part's output from a cache, as train does from the second epoch on
    #[arg(long)]
    cached: bool,
    /// Show only what --freeze removes and changes against this spec
    #[arg(long, value_name = "SPEC", conflicts_with = "json")]
    diff: Option<String>,
    /// Sequences of a batch
    #[arg(long, alias = "batch_size", alias = "per_device_train_batch_size", default_value_t = 32, value_parser = positive)]
    batch_size: usize,
    /// Tokens of every sequence [default: 128, or the model's longest if that is less]
    #[arg(long, alias = "max_length", value_parser = positive)]
    max_length: Option<usize>,
    /// Batches of a step: shows the last of them, which has the sums of gradients and the update
    #[arg(
        long,
        alias = "gradient_accumulation_steps",
        value_name = "N",
        default_value_t = 1,
        value_parser = positive
    )]
    gradient_accumulation_steps: usize,
    /// Keep dropout on in the frozen part
    #[arg(long, alias = "frozen_dropout", conflicts_with = "cached")]
    frozen_dropout: bool,
    /// Type of activations and matrices
    #[arg(long, value_enum, default_value_t = ComputeType::F32)]
    dtype: ComputeType,
    /// Clip gradients to this norm, 0 for no clipping
    #[arg(long, alias = "max_grad_norm", default_value_t = 1.0, value_parser = rate)]
    max_grad_norm: f32,
    #[command(flatten)]
    scale: ScaleArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// TOML file with options; what is typed overrides it
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

/// Training on several GPUs, on paper.
#[derive(clap::Args, Debug)]
struct ScaleArgs {
    /// Predict training on this many GPUs, a batch each: what gradients they exchange, and how long it takes
    #[arg(long, value_name = "N", requires = "interconnect", value_parser = positive)]
    gpus: Option<usize>,
    /// What a GPU can send to others, in GB/s each way
    #[arg(long, value_name = "GB/S", requires = "gpus", value_parser = speed)]
    interconnect: Option<f64>,
    /// GEMM rate of a GPU, as bench --ceilings measures it, for the time of a step
    #[arg(long, value_name = "GFLOP/S", requires_all = ["gpus", "bandwidth"], value_parser = speed)]
    gflops: Option<f64>,
    /// Copy rate of a GPU, likewise
    #[arg(long, value_name = "GB/S", requires_all = ["gpus", "gflops"], value_parser = speed)]
    bandwidth: Option<f64>,
}

/// Parses a finite number above zero.
fn speed(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a number above 0".into()),
    }
}

impl ScaleArgs {
    /// What the GPUs would do with a plan; None where nobody asks.
    fn predict(
        &self,
        plan: &Plan,
        counts: &Counts,
    ) -> Option<(Cluster, AllReduce, Option<ParallelStep>)> {
        let (n_gpus, interconnect) = self.gpus.zip(self.interconnect)?;
        let cluster = Cluster { n_gpus, interconnect_bytes_per_second: interconnect * 1e9 };
        let exchange = AllReduce::new(plan.n_trained_values() * size_of::<f32>(), cluster);
        let step = self.gflops.zip(self.bandwidth).map(|(gflops, bandwidth)| {
            let ceilings = Ceilings {
                gemm_flops_per_second: gflops * 1e9,
                copy_bytes_per_second: bandwidth * 1e9,
                op_seconds: 0.0,
            };
            ParallelStep::new(plan, counts, &ceilings, exchange)
        });
        Some((cluster, exchange, step))
    }

    fn text(&self, plan: &Plan, counts: &Counts) -> String {
        let Some((cluster, exchange, step)) = self.predict(plan, counts) else {
            return String::new();
        };
        let mut text = format!(
            "\non {} GPUs, a batch each: {:.3} MB of gradients, {:.3} MB out of and into every GPU, {:.3} ms at \
             {} GB/s\n",
            cluster.n_gpus,
            exchange.gradient_bytes as f64 / 1e6,
            exchange.bytes_a_gpu / 1e6,
            exchange.seconds * 1e3,
            cluster.interconnect_bytes_per_second / 1e9
        );
        text += &match step {
            Some(step) => format!(
                "a step takes {:.3} ms alone, {:.3} ms with the exchange behind it ({:.1} % efficient), {:.3} ms \
                 with the exchange under the backward pass ({:.1} %)\n",
                step.single_seconds * 1e3,
                step.seconds * 1e3,
                step.efficiency * 100.0,
                step.overlapped_seconds * 1e3,
                step.overlapped_efficiency * 100.0
            ),
            None => "--gflops and --bandwidth, as `frostline bench --ceilings` measures them, add the time of a \
                     step\n"
                .to_owned(),
        };
        text
    }

    fn document(&self, plan: &Plan, counts: &Counts) -> serde_json::Value {
        let Some((cluster, exchange, step)) = self.predict(plan, counts) else {
            return serde_json::Value::Null;
        };
        serde_json::json!({
            "gpus": cluster.n_gpus,
            "interconnect_bytes_per_second": cluster.interconnect_bytes_per_second,
            "all_reduce": exchange,
            "step": step,
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    let source = args.model.source(Need::Config)?;
    let network = network_for(&source, &args.tasks, args.model.pooling)?;
    let max_length = longest(args.max_length, &network.config, 128)?;
    let capacity = full_capacity(args.batch_size, max_length)?;
    let compute = match args.dtype {
        ComputeType::F32 => DType::F32,
        ComputeType::Bf16 => DType::Bf16,
    };
    let n_batches = args.gradient_accumulation_steps;
    let options = StepOptions {
        dropout: true,
        frozen_dropout: args.frozen_dropout,
        loss: Loss { is_weighted: n_batches > 1, ..Loss::default() },
        max_grad_norm: (args.max_grad_norm > 0.0).then_some(args.max_grad_norm),
        ..StepOptions::plain(capacity, compute)
    };
    let counts = Counts::full(capacity, network.heads.len());
    let plan = match args.cached {
        true => cached_plan_for(&network, &args.freeze, &options)?,
        false => plan_for(&network, &args.freeze, &options)?,
    };
    let last_of = |plan: Plan| if n_batches > 1 { accumulate(&plan).last } else { plan };
    let plan = last_of(plan);
    let layout = Layout::new(&plan);
    if args.json {
        return print_json(&document(args, &plan, &layout, &counts));
    }
    let title = |spec: &str| {
        format!(
            "freeze {spec}{}{}: {} sequences of {max_length} tokens, {}, trains {} of {} values\n\n",
            if args.cached { ", its output cached" } else { "" },
            match n_batches {
                1 => String::new(),
                n => format!(", the last of {n} batches of a step"),
            },
            args.batch_size,
            options.compute.name(),
            plan.n_trained_values(),
            network.n_values()
        )
    };
    let Some(other_spec) = &args.diff else {
        let text = title(&args.freeze) + &plan.print(&layout, &counts);
        return print(&(text + &args.scale.text(&plan, &counts)));
    };
    let other = last_of(plan_for(&network, other_spec, &options)?);
    let other_layout = Layout::new(&other);
    print(&format!(
        "{}against {other_spec}: - gone, < before, > after, + new\n\n{}\n{}:\n{}{}\n{other_spec}:\n{}{}",
        title(&args.freeze),
        plan.print_diff(&other, &counts),
        args.freeze,
        plan.totals(&layout, &counts),
        args.scale.text(&plan, &counts),
        other.totals(&other_layout, &counts),
        args.scale.text(&other, &counts)
    ))
}

fn plan_for(network: &Network, spec: &str, options: &StepOptions) -> Result<Plan> {
    let mask = FreezeSpec::parse(spec)?.mask(network)?;
    Ok(compile(network, &mask, options))
}

fn cached_plan_for(network: &Network, spec: &str, options: &StepOptions) -> Result<Plan> {
    let mask = FreezeSpec::parse(spec)?.mask(network)?;
    compile_cached(network, &mask, options).ok_or_else(|| {
        Error::usage(format!("--cached: nothing is frozen below what trains under {spec}"))
    })
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
        "cached": args.cached,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "capacity": plan.capacity,
        "trainable_parameters": plan.n_trained_values(),
        "phases": phases,
        "total": plan.total_cost(counts),
        "memory_bytes": layout.memory,
        "data_parallel": args.scale.document(plan, counts),
        "ops": plan.to_json(counts),
    })
}
