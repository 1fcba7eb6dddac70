//! `frostline bench`: every freeze scenario on the same data, measured beside its prediction.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{ModelArgs, RunArgs, positive};
use super::bench_training::Trainings;
use super::data_args::DataArgs;
use super::exports::ExportArgs;
use super::step::Rates;
use super::train::TrainingArgs;
use super::workload::{Settings, Workload};
use super::{memory_probe, print, print_json, progress};
use crate::batch::Batch;
use crate::freeze::FreezeSpec;
use crate::measure::Ceilings;
use crate::measure::scenarios::{MeasureOptions, Scenario, measure, step_options};
use crate::model::Network;
use crate::plan::Capacity;
use crate::report::environment::Environment;
use crate::report::{Row, json as json_report, table};
use crate::session::Device;
use crate::{Error, Result};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: frostline bench --arch bert-base --task topic=4 --batch-size 8 \
                        --scenarios none,lower:6,backbone,all --rounds 10")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Freeze specs to measure, separated by commas; none, the baseline, is always measured
    #[arg(long, value_name = "SPECS", value_delimiter = ',', default_value = "none,backbone,all")]
    scenarios: Vec<String>,
    /// Measured steps of each scenario
    #[arg(long, default_value_t = 20, value_parser = positive)]
    rounds: usize,
    /// Steps of each scenario before them that do not count
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Train every scenario on the data too, and show what the freeze does to accuracy
    #[arg(long)]
    train: bool,
    /// With --train: trained model whose heads a scenario with a frozen head starts from [default:
    /// heads that are trained with the backbone frozen]
    #[arg(long, value_name = "DIR", requires = "train")]
    pub init: Option<PathBuf>,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    pub rates: Rates,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let specs = scenario_specs(&args.scenarios)?;
    let files = args.data.files();
    let inputs: Vec<&Path> = files.iter().chain(&args.run.config).map(PathBuf::as_path).collect();
    args.exports.check(args.model.model.as_ref(), &inputs)?;
    args.exports.check(args.init.as_ref(), &[])?;
    let engine = args.run.device.prepare()?;
    let source = args.model.source()?;
    let workload = Workload::open(&args.data, &source, args.run.seed)?;
    if args.train && matches!(workload, Workload::Synthetic { .. }) {
        return Err(Error::usage("--train needs data: give every task as NAME=FILE"));
    }
    let network = source.network(&workload.task_sizes(), args.model.pooling)?;
    let scenarios = (specs.iter())
        .map(|spec| Ok(Scenario { freeze: spec.text().to_owned(), mask: spec.mask(&network)? }))
        .collect::<Result<Vec<_>>>()?;
    let n_batches = args.rounds + args.warmup;
    let options = |capacity| step_options(capacity, engine.compute, args.rates.clip());
    let batches = workload.batches(&args.data, &network, n_batches, args.run.seed, options)?;
    let initial = source.initial_values(&network, args.run.seed)?;
    let mut trainings = match &workload {
        Workload::Real(corpus) if args.train => {
            Some(Trainings::new(args, engine, &source, &network, corpus, &initial)?)
        }
        _ => None,
    };

    let capacity = Capacity::of(&batches);
    let bar = progress::bar(scenarios.len() as u64, "measuring memory");
    let peaks: Vec<Option<usize>> = (scenarios.iter())
        .map(|scenario| {
            bar.inc(1);
            let clip = args.rates.clip();
            match engine.device {
                Device::Cpu => {
                    memory_probe::measure(&args.model, &network, &scenario.freeze, capacity, clip)
                }
                // A process's own memory says nothing of a device's.
                Device::Cuda { .. } | Device::Emulated { .. } => None,
            }
        })
        .collect();
    bar.finish_and_clear();
    let ceilings = Ceilings::of(engine)?;
    let options = args.rates.measured(args.rounds, args.warmup, args.run.seed);
    let n_steps = (args.rounds + args.warmup) * scenarios.len();
    let bar = progress::bar(n_steps as u64, "measuring steps");
    let mut session = engine.session(network.clone(), initial.clone())?;
    let measured = measure(&mut session, &scenarios, &batches, &ceilings, &options, |freeze| {
        bar.set_message(format!("measuring {freeze}"));
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    drop(session);

    let mut rows: Vec<Row> = measured
        .into_iter()
        .zip(peaks)
        .map(|(measurement, peak_measured)| Row { measurement, peak_measured, training: None })
        .collect();
    // What was measured is shown even if a training fails.
    let trained = match &mut trainings {
        Some(trainings) => train_rows(trainings, &scenarios, &mut rows),
        None => Ok(()),
    };
    let report = Report {
        environment: Environment::of(engine)?,
        network: &network,
        batches: &batches,
        ceilings: &ceilings,
        options: &options,
        rows: &rows,
    };
    report.publish(args)?;
    trained
}

fn train_rows(trainings: &mut Trainings, scenarios: &[Scenario], rows: &mut [Row]) -> Result<()> {
    for (scenario, row) in scenarios.iter().zip(rows) {
        row.training = trainings.run(scenario, &row.measurement)?;
    }
    Ok(())
}

/// The specs as typed, the baseline first, without white space around commas and without repetition.
fn scenario_specs(texts: &[String]) -> Result<Vec<FreezeSpec>> {
    let mut specs = vec![FreezeSpec::parse("none")?];
    for text in texts {
        let spec = FreezeSpec::parse(text.trim())?;
        if !specs.contains(&spec) {
            specs.push(spec);
        }
    }
    Ok(specs)
}

/// What was measured, and on what.
struct Report<'a> {
    environment: Environment,
    network: &'a Network,
    batches: &'a [Batch],
    ceilings: &'a Ceilings,
    options: &'a MeasureOptions,
    rows: &'a [Row],
}

impl Report<'_> {
    /// Prints, then writes the files: what was measured is shown even if a disk is full.
    fn publish(&self, args: &Args) -> Result<()> {
        let document = self.document(args);
        if args.run.json {
            print_json(&document)?;
        } else {
            print(&self.text())?;
        }
        args.exports.write(&self.environment, &document, self.rows)
    }

    fn mean_tokens(&self) -> f64 {
        let n_tokens: usize = self.batches.iter().map(Batch::n_tokens).sum();
        n_tokens as f64 / self.batches.len() as f64
    }

    fn document(&self, args: &Args) -> serde_json::Value {
        let lengths = self.batches.iter().map(|batch| batch.lengths().collect());
        let own = json!({
            "pooling": self.network.pooling,
            "batch_size": args.data.batch_size,
            "batch_tokens": args.data.batch_tokens,
            "max_length": args.data.max_length,
            "mean_tokens": self.mean_tokens(),
            "batch_lengths": lengths.collect::<Vec<Vec<usize>>>(),
            "training": args.train.then(|| args.training.settings()),
        });
        let settings = json!(Settings::new(&args.model, &args.data, self.options, own));
        json_report::document(&self.environment, settings, self.ceilings, self.rows)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{}\n{} parameters, batches of {:.0} tokens in {} sequences, {} rounds; ceilings {:.0} \
             GFLOP/s, {:.1} GB/s\n\n{}\n{}",
            self.environment.line(),
            self.network.n_values(),
            self.mean_tokens(),
            self.batches[0].n_sequences(),
            self.options.n_rounds,
            self.ceilings.gemm_flops_per_second / 1e9,
            self.ceilings.copy_bytes_per_second / 1e9,
            table::time(self.rows).text(),
            table::memory(self.rows).text()
        );
        if let Some(quality) = table::quality(self.rows) {
            text += &format!("\n{}", quality.text());
        }
        for row in self.rows.iter().filter(|row| !row.measurement.outliers.is_empty()) {
            let times = &row.measurement.times_ms;
            let far: Vec<String> = (row.measurement.outliers.iter())
                .map(|&round| format!("{:.1} ms in round {}", times[round], round + 1))
                .collect();
            let freeze = &row.measurement.freeze;
            text += &format!("\noutliers of {freeze}, counted all the same: {}", far.join(", "));
        }
        text.trim_end().to_owned() + "\n"
    }
}
