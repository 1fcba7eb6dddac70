//! `frostline memory-probe`, which `bench` runs for each scenario in a process of its own: only in a
//! fresh process does the growth of resident memory belong to one scenario alone.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::args::{DeviceArgs, ModelArgs, task_sizes};
use super::print_json;
use crate::Result;
use crate::backend::{StepState, Timing};
use crate::batch::Batch;
use crate::data::SplitMix64;
use crate::freeze::FreezeSpec;
use crate::measure::memory::PeakMeter;
use crate::measure::scenarios::step_options;
use crate::model::Network;
use crate::model::hub::Need;
use crate::plan::Capacity;
use crate::session::{Device, Engine, Session};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[arg(long = "task")]
    tasks: Vec<String>,
    #[arg(long)]
    freeze: String,
    #[arg(long)]
    tokens: usize,
    #[arg(long)]
    sequences: usize,
    #[arg(long)]
    longest: usize,
    #[arg(long)]
    max_grad_norm: Option<f32>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Prints the growth over two steps that fill the capacity, by what the system or the driver says.
pub fn run(args: &Args) -> Result<()> {
    let engine = args.device.prepare()?;
    let source = args.model.source(Need::All)?;
    let network = source.network(&task_sizes(&args.tasks)?, args.model.pooling)?;
    let mask = FreezeSpec::parse(&args.freeze)?.mask(&network)?;
    let capacity =
        Capacity { tokens: args.tokens, sequences: args.sequences, max_length: args.longest };
    let batch = filling(&network, capacity);
    let values = source.initial_values(&network, 0)?;
    let n_values_bytes = size_of::<f32>() * network.n_values();
    // Pages of the mapped file would count as resident.
    drop(source);
    let backend = engine.backend()?;
    let used_before = backend.used_bytes()?;
    let meter = PeakMeter::start();
    let mut session = Session::new(network, values, backend, engine.compute)?;
    let step =
        session.compile(&mask, &step_options(capacity, engine.compute, args.max_grad_norm))?;
    // All of the emulator's memory is there before its first step, which may take minutes.
    let n_steps = if engine.device.is_emulated() { 0 } else { 2 };
    for number in 1..=n_steps {
        let state = StepState {
            step: number,
            learning_rate: 0.0,
            head_learning_rate: 0.0,
            weight_decay: 0.0,
            seed: 0,
        };
        session.run(&step, &batch, &state, Timing::Off)?;
    }
    // Nothing is given back before the end, so that what a device holds now is the most that it held.
    let growth = match (used_before, session.used_bytes()?) {
        (Some(before), Some(now)) => Some(now.saturating_sub(before)),
        // The weights were there before the meter started.
        _ => meter.and_then(|meter| meter.growth_bytes()).map(|grown| grown + n_values_bytes),
    };
    print_json(&json!({ "peak_bytes": growth }))
}

/// A batch of random tokens that fills `capacity`: long sequences first, the rest as even as can be.
fn filling(network: &Network, capacity: Capacity) -> Batch {
    let mut random = SplitMix64::new(1);
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    let mut tokens_left = capacity.tokens;
    for sequence in 0..capacity.sequences {
        let n_behind = capacity.sequences - sequence - 1;
        let length = (tokens_left - n_behind).min(capacity.max_length);
        let ids: Vec<i32> =
            (0..length).map(|_| random.below(network.config.vocab_size) as i32).collect();
        network.config.position_scheme().extend(&ids, &mut batch.position_ids);
        batch.input_ids.extend(ids);
        tokens_left -= length;
        batch.cu_seqlens.push(batch.input_ids.len() as i32);
    }
    batch.token_type_ids = vec![0; batch.input_ids.len()];
    let labels =
        |n_labels| (0..capacity.sequences).map(|row| (row % n_labels) as i32).collect::<Vec<_>>();
    batch.labels = network.heads.iter().map(|head| labels(head.n_labels)).collect();
    batch
}

/// Runs the probe in a process of its own; None where that does not work. `model` is the folder of a model that was
/// named, which the probe then need not look up again.
pub fn measure(
    model: &ModelArgs,
    network: &Network,
    engine: Engine,
    freeze: &str,
    capacity: Capacity,
    max_grad_norm: Option<f32>,
) -> Option<usize> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    let device = match engine.device {
        Device::Cpu => "cpu",
        Device::Cuda { .. } => "cuda",
        Device::Emulated { .. } => "emulated",
    };
    command.arg("memory-probe").args(["--freeze", freeze, "--device", device]);
    command.args(["--dtype", engine.compute.name()]);
    if let Some(dir) = &model.model {
        command.arg("--model").arg(dir);
    }
    if let Some(arch) = &model.arch {
        command.args(["--arch", arch]);
    }
    command.args(["--pooling", network.pooling.name()]);
    for head in &network.heads {
        command.arg("--task").arg(format!("{}={}", head.task, head.n_labels));
    }
    let sizes = [
        ("--tokens", capacity.tokens),
        ("--sequences", capacity.sequences),
        ("--longest", capacity.max_length),
        ("--threads", rayon::current_num_threads()),
    ];
    for (option, n) in sizes {
        command.args([option, &n.to_string()]);
    }
    if let Some(norm) = max_grad_norm {
        command.args(["--max-grad-norm", &norm.to_string()]);
    }
    let output = command.stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        eprintln!("memory of {freeze} not measured: {}", message.trim());
        return None;
    }
    let document: Value = serde_json::from_slice(&output.stdout).ok()?;
    document.get("peak_bytes")?.as_u64().map(|bytes| bytes as usize)
}
