//! `frostline profile`: where the time of a step goes, op by op and kernel by kernel.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{ModelArgs, RunArgs, check_output_file, positive};
use super::data_args::{BatchArgs, DataArgs};
use super::step::Rates;
use super::workload::{Settings, Workload};
use super::{print, print_json, progress};
use crate::backend::cuda;
use crate::batch::Batch;
use crate::files::write_atomically;
use crate::freeze::FreezeSpec;
use crate::measure::Ceilings;
use crate::measure::profile::{Profile, profile};
use crate::measure::scenarios::{MeasureOptions, Scenario, step_options};
use crate::model::hub::Need;
use crate::report::environment::Environment;
use crate::report::profile as report;
use crate::session::{Device, Engine};
use crate::{Error, Result};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: frostline profile --arch bert-base --task topic=4 --batch-size 8 \
                        --freeze lower:6 --against none --trace step.json"
)]
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
    /// Show beside it the step of this spec, and which ops are gone
    #[arg(long, value_name = "SPEC")]
    against: Option<String>,
    /// Measured steps; times are their medians [default: 10; 1 on the emulator]
    #[arg(long, value_parser = positive)]
    rounds: Option<usize>,
    /// Steps before them that do not count [default: 2; 0 on the emulator]
    #[arg(long)]
    warmup: Option<usize>,
    /// Write a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Steps A to B - 1, warm-up included and counted from 0, that a profiler records which waits for it (nsys
    /// profile -c cudaProfilerApi, ncu --profile-from-start off)
    #[arg(long, value_name = "A:B", value_parser = steps)]
    profile_steps: Option<Range<usize>>,
    #[command(flatten)]
    rates: Rates,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let specs = (std::iter::once(&args.freeze).chain(&args.against))
        .map(|text| FreezeSpec::parse(text))
        .collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.trace {
        let files = args.data.files();
        let inputs: Vec<&Path> =
            files.iter().chain(&args.run.config).map(PathBuf::as_path).collect();
        check_output_file("--trace", path, args.model.model.as_ref(), &inputs)?;
    }
    let engine = args.run.device.prepare()?;
    if engine.device.is_emulated() && args.trace.is_some() {
        return Err(Error::usage("--trace: the emulator's times say nothing of a GPU"));
    }
    if args.profile_steps.is_some() && engine.device == Device::Cpu {
        return Err(Error::usage(
            "--profile-steps: only profilers of GPUs wait for it, see --device",
        ));
    }
    let source = args.model.source(Need::All)?;
    let workload = Workload::open(&args.data, args.batch.max_length, &source, args.run.seed)?;
    let network = source.network(&workload.task_sizes(), args.model.pooling)?;
    let scenarios = (specs.iter())
        .map(|spec| {
            let (freeze, mask) = (spec.text().to_owned(), spec.mask(&network)?);
            Ok(Scenario { freeze, mask, is_cached: false })
        })
        .collect::<Result<Vec<_>>>()?;
    let step = |capacity| step_options(capacity, engine.compute, args.rates.regularizers.clip());
    let batches = workload.batches(&args.batch, &network, 1, args.run.seed, step)?;
    let batch = &batches[0];
    let values = source.initial_values(&network, args.run.seed)?;
    let ceilings = Ceilings::of(engine)?;
    // The emulator's times mean nothing, and its counts are the same in every round.
    let (n_rounds, n_warmup) = match engine.device {
        Device::Emulated { .. } => (args.rounds.unwrap_or(1), args.warmup.unwrap_or(0)),
        Device::Cpu | Device::Cuda { .. } => (args.rounds.unwrap_or(10), args.warmup.unwrap_or(2)),
    };
    if let Some(steps) = args.profile_steps.as_ref().filter(|one| one.end > n_warmup + n_rounds) {
        return Err(Error::usage(format!(
            "--profile-steps {}:{}: there are {} steps, {n_warmup} of --warmup and {n_rounds} of --rounds",
            steps.start,
            steps.end,
            n_warmup + n_rounds
        )));
    }
    let options = args.rates.measured(n_rounds, Some(n_warmup), args.run.seed);
    let mut session = engine.session(network, values)?;
    let n_steps = ((n_rounds + n_warmup) * scenarios.len()) as u64;
    let bar = progress::bar(n_steps, "profiling");
    let capture = args.profile_steps.as_ref();
    let profiles =
        profile(&mut session, &scenarios, batch, &ceilings, &options, capture, |freeze| {
            bar.set_message(format!("profiling {freeze}"));
            bar.inc(1);
        })?;
    bar.finish_and_clear();
    if let Some(path) = &args.trace {
        write_trace(path, &profiles)?;
    }
    let run = Run { engine, capability: capability(engine)?, batch, ceilings, options };
    if args.run.json {
        print_json(&document(args, &run, &profiles)?)
    } else {
        print(&text(&run, &profiles)?)
    }
}

/// `A:B`, half-open and not empty.
fn steps(text: &str) -> std::result::Result<Range<usize>, String> {
    let (start, end) = text.split_once(':').ok_or("two numbers with a colon, as 2:5")?;
    let number =
        |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number of steps"));
    let steps: Range<usize> = number(start)?..number(end)?;
    if steps.is_empty() { Err("no step lies between the two".into()) } else { Ok(steps) }
}

/// What the profiles were taken with.
struct Run<'a> {
    engine: Engine,
    /// Of the GPU whose occupancy is shown.
    capability: (u32, u32),
    batch: &'a Batch,
    ceilings: Ceilings,
    options: MeasureOptions,
}

/// The GPU at hand; beside the emulator, an H100.
fn capability(engine: Engine) -> Result<(u32, u32)> {
    match engine.device {
        Device::Cuda { .. } => cuda::gpu_capability(),
        Device::Cpu | Device::Emulated { .. } => Ok((9, 0)),
    }
}

fn write_trace(path: &Path, profiles: &[Profile]) -> Result<()> {
    let text = report::trace(profiles).to_string();
    write_atomically(path, text.as_bytes())
}

fn document(args: &Args, run: &Run, profiles: &[Profile]) -> Result<serde_json::Value> {
    let is_timed = !run.engine.device.is_emulated();
    let own = json!({
        "tokens": run.batch.n_tokens(),
        "sequences": run.batch.n_sequences(),
    });
    let one = |profile| report::document(profile, run.capability, is_timed);
    Ok(json!({
        "environment": Environment::of(run.engine)?,
        "settings": Settings::new(&args.model, &args.data, &run.options, own),
        "ceilings": is_timed.then_some(run.ceilings),
        "occupancy_on_compute_capability": run.capability,
        "profiles": profiles.iter().map(one).collect::<Vec<_>>(),
    }))
}

fn text(run: &Run, profiles: &[Profile]) -> Result<String> {
    let is_emulated = run.engine.device.is_emulated();
    let mut text = format!(
        "{}\n{} tokens in {} sequences; ",
        Environment::of(run.engine)?.line(),
        run.batch.n_tokens(),
        run.batch.n_sequences()
    );
    text += &if is_emulated {
        "counts of one step, occupancy on an H100\n".to_owned()
    } else {
        format!(
            "medians of {} steps, each op timed by itself; {} (updates in place, and operands still in a cache, \
             beat the GB/s)\n",
            run.options.n_rounds,
            run.ceilings.line()
        )
    };
    for profile in profiles {
        text += &format!("\nfreeze {}\n", profile.freeze);
        if is_emulated {
            text += &report::counts_table(profile, run.capability);
        } else {
            text += &report::ops_table(profile);
            text += &report::kernels_table(profile, run.capability);
        }
    }
    if let [profile, other] = profiles {
        text += &format!("\n{} against {}\n", profile.freeze, other.freeze);
        text += &report::against_table(profile, other, !is_emulated);
    }
    Ok(text)
}
