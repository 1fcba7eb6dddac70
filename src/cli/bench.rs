//! `frostline bench`: every freeze scenario on the same data, measured beside its prediction.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{ModelArgs, RunArgs, full_capacity, positive};
use super::bench_training::Trainings;
use super::data_args::{BatchArgs, DataArgs, MatrixArgs, hashes};
use super::exports::ExportArgs;
use super::forgetting::ForgettingArgs;
use super::step::Rates;
use super::train::options::TrainingArgs;
use super::workload::{Settings, Workload};
use super::{memory_probe, print, print_json, progress};
use crate::backend::cuda;
use crate::batch::Batch;
use crate::freeze::FreezeSpec;
use crate::measure::Ceilings;
use crate::measure::aa::against_itself;
use crate::measure::power::{Gauge, NvmlGauge};
use crate::measure::scenarios::{MeasureOptions, Scenario, measure, step_options};
use crate::model::hub::Need;
use crate::model::{Network, Source};
use crate::plan::Capacity;
use crate::plan::prefix::prefix_of;
use crate::report::environment::Environment;
use crate::report::{AgainstItself, Bench, Row, Shape, json as json_report, table};
use crate::session::{Device, Engine, Session};
use crate::{Error, Result};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  frostline bench --arch bert-base --task topic=4 --batch-size 8 --scenarios \
                  none,lower:6,backbone,all --rounds 10\n  frostline bench --model demo/minilm --task \
                  topic=demo/feedback_products.tsv --scenarios none,lower:3,backbone --train --forgetting \
                  chapter=demo/icd10_chapters.tsv"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Freeze specs to measure, separated by commas; none, the baseline, is always measured
    #[arg(long, value_name = "SPECS", value_delimiter = ',', default_value = "none,backbone,all")]
    scenarios: Vec<String>,
    #[command(flatten)]
    matrix: MatrixArgs,
    /// Measure each freeze a second time with its frozen part's output read from a cache, as train does from the
    /// second epoch on
    #[arg(long)]
    cached: bool,
    /// Measured steps of each scenario
    #[arg(long, default_value_t = 20, value_parser = positive)]
    rounds: usize,
    /// Steps of each scenario before them that do not count [default: until times are steady]
    #[arg(long)]
    warmup: Option<usize>,
    /// Measure the baseline against itself too, N times: intervals should hold 1
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", value_parser = positive)]
    aa: Option<usize>,
    /// Measure steps alone: neither peak memory, for which each scenario runs in a process of its own, nor energy, for
    /// which each goes on for seconds
    #[arg(long)]
    quick: bool,
    /// Measure only what this machine can do: its GEMM rate, its copy rate, the time of starting an op
    #[arg(long)]
    ceilings: bool,
    /// Train every scenario on the data too, and show what the freeze does to accuracy
    #[arg(long)]
    train: bool,
    /// With --train: trained model whose heads a scenario with a frozen head starts from [default:
    /// heads that are trained with the backbone frozen]
    #[arg(long, value_name = "DIR|NAME", requires = "train")]
    pub init: Option<PathBuf>,
    #[command(flatten)]
    forgetting: ForgettingArgs,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    pub rates: Rates,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

impl Args {
    /// The files of data that are read.
    fn inputs(&self) -> Vec<PathBuf> {
        [self.data.files(), self.forgetting.files()].concat()
    }
}

pub fn run(args: &Args) -> Result<()> {
    if args.ceilings {
        return show_ceilings(args);
    }
    let specs = scenario_specs(&args.scenarios)?;
    let files = args.inputs();
    let inputs: Vec<&Path> = files.iter().chain(&args.run.config).map(PathBuf::as_path).collect();
    args.exports.check(args.model.model.as_ref(), &inputs)?;
    args.exports.check(args.init.as_ref(), &[])?;
    let lengths = args.matrix.lengths();
    let n_shapes: usize = lengths.iter().map(|length| args.matrix.of_length(*length).len()).sum();
    if args.train && n_shapes > 1 {
        return Err(Error::usage("--train takes one --batch-size and one --max-length"));
    }
    if !args.train && !args.forgetting.is_empty() {
        return Err(Error::usage("--forgetting asks what training does: add --train"));
    }
    let engine = args.run.device.prepare()?;
    let source = args.model.source(Need::All)?;
    let mut bencher: Option<Bencher> = None;
    let (mut shapes, mut rows, mut trained) = (Vec::new(), Vec::new(), Ok(()));
    for max_length in lengths {
        let workload = Workload::open(&args.data, max_length, &source, args.run.seed)?;
        if args.train && matches!(workload, Workload::Synthetic { .. }) {
            return Err(Error::usage("--train needs data: give every task as NAME=FILE"));
        }
        let sets = args.forgetting.read(&source, &args.data, max_length, args.run.seed)?;
        let bencher = match &bencher {
            Some(bencher) => bencher,
            None => bencher.insert(Bencher::new(args, engine, &source, &specs, &workload)?),
        };
        for batch in args.matrix.of_length(max_length) {
            let mut trainings = match &workload {
                Workload::Real { corpus, .. } if args.train => {
                    let (network, initial) = (&bencher.network, &bencher.initial);
                    let data = (&**corpus, sets.as_slice());
                    Some(Trainings::new(args, &batch, engine, &source, network, data, initial)?)
                }
                _ => None,
            };
            rows.extend(bencher.measure(&workload, &batch, &mut shapes)?);
            // What was measured is shown even if a training fails.
            if let Some(trainings) = &mut trainings {
                trained = train_rows(trainings, &bencher.scenarios, &mut rows);
            }
        }
    }
    if let Some(bencher) = bencher {
        bencher.publish(shapes, rows)?;
    }
    trained
}

/// `--ceilings`: what everything else is held against.
fn show_ceilings(args: &Args) -> Result<()> {
    let engine = args.run.device.prepare()?;
    let (environment, ceilings) = (Environment::of(engine)?, Ceilings::of(engine)?);
    if args.run.json {
        return print_json(&json!({ "environment": environment, "ceilings": ceilings }));
    }
    print(&format!("{}\n{}\n", environment.line(), ceilings.line()))
}

/// What all shapes have in common.
struct Bencher<'a> {
    args: &'a Args,
    model: ModelArgs,
    engine: Engine,
    network: Network,
    initial: Vec<Vec<f32>>,
    scenarios: Vec<Scenario>,
    ceilings: Ceilings,
    options: MeasureOptions,
}

impl<'a> Bencher<'a> {
    fn new(
        args: &'a Args,
        engine: Engine,
        source: &Source,
        specs: &[FreezeSpec],
        workload: &Workload,
    ) -> Result<Self> {
        let network = source.network(&workload.task_sizes(), args.model.pooling)?;
        let mut scenarios = Vec::new();
        for spec in specs {
            let (freeze, mask) = (spec.text().to_owned(), spec.mask(&network)?);
            let step = step_options(full_capacity(1, 1)?, engine.compute, None);
            let has_prefix = args.cached && prefix_of(&network, &mask, &step).is_some();
            scenarios.push(Scenario {
                freeze: freeze.clone(),
                mask: mask.clone(),
                is_cached: false,
            });
            if has_prefix {
                scenarios.push(Scenario { freeze, mask, is_cached: true });
            }
        }
        Ok(Self {
            args,
            model: args.model.resolved(source),
            engine,
            initial: source.initial_values(&network, args.run.seed)?,
            network,
            scenarios,
            ceilings: Ceilings::of(engine)?,
            options: MeasureOptions {
                with_energy: !args.quick,
                ..args.rates.measured(args.rounds, args.warmup, args.run.seed)
            },
        })
    }

    /// All scenarios on batches of one shape, which becomes the last of `shapes`.
    fn measure(
        &self,
        workload: &Workload,
        size: &BatchArgs,
        shapes: &mut Vec<Shape>,
    ) -> Result<Vec<Row>> {
        let (engine, clip) = (self.engine, self.args.rates.regularizers.clip());
        let step = |capacity| step_options(capacity, engine.compute, clip);
        let (n_rounds, seed) = (self.args.rounds, self.args.run.seed);
        let batches = workload.batches(size, &self.network, n_rounds, seed, step)?;
        let peaks = self.peaks(Capacity::of(&batches));
        let bar = progress::bar(1, "measuring steps");
        let mut session = engine.session(self.network.clone(), self.initial.clone())?;
        let (ceilings, options) = (&self.ceilings, &self.options);
        let mut gauge = self.gauge()?;
        let measured = measure(
            &mut session,
            &self.scenarios,
            &batches,
            ceilings,
            options,
            gauge.as_mut().map(|gauge| gauge as &mut dyn Gauge),
            |freeze, n_steps| {
                bar.set_length(n_steps as u64);
                bar.set_message(format!("measuring {freeze}"));
                bar.inc(1);
            },
        )?;
        bar.finish_and_clear();
        let aa = self.against_itself(&mut session, &batches)?;
        let n_tokens: usize = batches.iter().map(Batch::n_tokens).sum();
        let shape = shapes.len();
        shapes.push(Shape {
            batch_size: size.batch_tokens.is_none().then_some(size.batch_size),
            batch_tokens: size.batch_tokens,
            max_length: workload.max_length(),
            mean_tokens: n_tokens as f64 / batches.len() as f64,
            batch_lengths: batches.iter().map(|batch| batch.lengths().collect()).collect(),
            warmup_rounds: measured.n_warmup,
            clocks: measured.clocks,
            aa,
        });
        let rows = measured.scenarios.into_iter().zip(peaks).map(|(measurement, peak_measured)| {
            Row { shape, measurement, peak_measured, training: None }
        });
        Ok(rows.collect())
    }

    /// What reads a GPU's clocks and energy; without it a line says why, and they are left out.
    fn gauge(&self) -> Result<Option<NvmlGauge>> {
        if !matches!(self.engine.device, Device::Cuda { .. }) {
            return Ok(None);
        }
        let opened = NvmlGauge::open(&cuda::gpu_uuid()?);
        Ok(opened.map_err(|why| eprintln!("clocks and energy are not measured: {why}")).ok())
    }

    /// The A/A test, if asked for.
    fn against_itself(
        &self,
        session: &mut Session,
        batches: &[Batch],
    ) -> Result<Option<AgainstItself>> {
        let Some(n_repeats) = self.args.aa else { return Ok(None) };
        let bar = progress::bar(n_repeats as u64, "measuring the baseline against itself");
        let (baseline, options) = (&self.scenarios[0], &self.options);
        let intervals =
            against_itself(session, baseline, batches, options, n_repeats, || bar.inc(1))?;
        bar.finish_and_clear();
        AgainstItself::new(intervals).map(Some)
    }

    /// Peak memory of each scenario, each in a process of its own; unknown where it is not asked for.
    fn peaks(&self, capacity: Capacity) -> Vec<Option<usize>> {
        if self.args.quick {
            return vec![None; self.scenarios.len()];
        }
        let bar = progress::bar(self.scenarios.len() as u64, "measuring memory");
        let (model, clip) = (&self.model, self.args.rates.regularizers.clip());
        let peak = |scenario: &Scenario| {
            bar.inc(1);
            if scenario.is_cached {
                return None;
            }
            let (network, engine) = (&self.network, self.engine);
            memory_probe::measure(model, network, engine, &scenario.freeze, capacity, clip)
        };
        let peaks = self.scenarios.iter().map(peak).collect();
        bar.finish_and_clear();
        peaks
    }

    /// Prints, then writes the files: what was measured is shown even if a disk is full.
    fn publish(self, shapes: Vec<Shape>, rows: Vec<Row>) -> Result<()> {
        let own = json!({
            "pooling": self.network.pooling,
            "aa": self.args.aa,
            "data": hashes(&self.args.inputs())?,
            "training": self.args.train.then(|| self.args.training.settings()),
        });
        let args = self.args;
        let bench = Bench {
            environment: Environment::of(self.engine)?,
            settings: json!(Settings::new(&args.model, &args.data, &self.options, own)),
            ceilings: self.ceilings,
            n_values: self.network.n_values(),
            shapes,
            rows,
        };
        let document = json_report::document(&bench);
        if args.run.json {
            print_json(&document)?;
        } else {
            print(&table::text(&bench))?;
        }
        args.exports.write(&bench, &document)
    }
}

fn train_rows(trainings: &mut Trainings, scenarios: &[Scenario], rows: &mut [Row]) -> Result<()> {
    for (scenario, row) in scenarios.iter().zip(rows) {
        // A cache changes no result: the row above has it.
        if !scenario.is_cached {
            row.training = trainings.run(scenario, &row.measurement)?;
        }
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
