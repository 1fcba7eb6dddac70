//! `frostline advise`: where to put the frost line, from the data, the frozen encoder and the machine; and a sweep.

mod options;
mod proof;
mod watch;

use std::path::{Path, PathBuf};

use serde_json::json;

use self::options::{ExportArgs, LimitArgs};
use self::watch::Watch;
use super::args::{RunArgs, positive};
use super::bench::hashes;
use super::data_args::{BatchArgs, DataArgs, with_tokenizer};
use super::step::Rates;
use super::train::options::{CacheArgs, TrainingArgs};
use super::{model_folder, print, print_json};
use crate::advise::halving::Search;
use crate::advise::recommend::HEAD_RATE;
use crate::advise::rows::check;
use crate::advise::survey::{ModelAdvice, Question, survey};
use crate::cache::CachePlace;
use crate::data::Tokenizer;
use crate::files::write_atomically;
use crate::measure::Ceilings;
use crate::model::hub::Need;
use crate::model::params::head_tensor;
use crate::model::{Pooling, Source};
use crate::report::advice::Advice;
use crate::report::environment::Environment;
use crate::report::html::advice_page;
use crate::session::Engine;
use crate::train::{Metric, TrainOptions};
use crate::{Result, backend};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  frostline advise --model demo/minilm --task topic=demo/feedback_products.tsv --task \
                  sentiment=demo/feedback_products.tsv\n  frostline advise --model demo/minilm --task \
                  label=demo/icd10_chapters.tsv --budget 5min --prove --report advice.html"
)]
pub struct Args {
    /// Model folder, or a name on the Hugging Face hub, see frostline train --help; several are set side by side
    /// (repeatable)
    #[arg(long = "model", value_name = "DIR|NAME", required = true)]
    models: Vec<PathBuf>,
    /// How tokens become one vector [default: the model's own, else mean]
    #[arg(long, value_enum)]
    pooling: Option<Pooling>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Train at several depths and let the result decide: halving, every depth briefly and the best at length
    /// (successive halving); or full, every depth with every seed
    #[arg(
        long,
        value_enum,
        value_name = "SEARCH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "halving"
    )]
    prove: Option<Search>,
    /// Seeds of the sweep, counted from --seed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive, requires = "prove")]
    seeds: usize,
    /// What the sweep compares: accuracy or macro_f1 (means over the tasks), or of one task, as topic_macro_f1
    #[arg(long, value_name = "METRIC", default_value = "accuracy", value_parser = Metric::parse, requires = "prove")]
    metric: Metric,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    rates: Rates,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    fn options(&self) -> TrainOptions {
        let options = self.training.options(&self.batch, &self.rates, self.run.seed);
        // Heads are new here and bear more than an encoder does.
        let head_learning_rate = self.rates.head_learning_rate.unwrap_or(HEAD_RATE);
        TrainOptions { head_learning_rate, ..options }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let files = args.data.files();
    let inputs: Vec<&Path> = files.iter().chain(&args.run.config).map(PathBuf::as_path).collect();
    args.exports.check(&args.models, &inputs)?;
    args.cache.options(false, false)?;
    let engine = args.run.device.prepare()?;
    // Before any work: a model that is not there, or a download that is needed.
    let open = |model: &PathBuf| model_folder::open("--model", model, Need::All);
    let folders = args.models.iter().map(open).collect::<Result<Vec<_>>>()?;
    let ceilings = Ceilings::of(engine)?;
    let mut models = Vec::with_capacity(folders.len());
    for (name, folder) in args.models.iter().zip(folders) {
        let name = name.to_string_lossy().into_owned();
        models.push(advise(args, name, &Source::Folder(folder), engine, ceilings)?);
    }
    publish(args, engine, models)
}

/// All about one model.
fn advise(
    args: &Args,
    name: String,
    source: &Source,
    engine: Engine,
    ceilings: Ceilings,
) -> Result<ModelAdvice> {
    let corpus = args.data.corpus(source, args.batch.max_length, args.run.seed)?;
    check(&corpus)?;
    let network = source.network(&corpus.task_sizes(), args.pooling)?;
    let tokenizer = Tokenizer::open(&with_tokenizer(source)?.dir)?;
    let has_head = |task: &str| {
        source.weights().is_some_and(|file| file.contains(&head_tensor(task, "weight")))
    };
    let cache = args.cache.options(false, false)?;
    let train = args.options();
    let initial = source.initial_values(&network, args.run.seed)?;
    let mut session = engine.session(network.clone(), initial)?;
    let free_bytes = match session.free_bytes()? {
        Some(free) => Some(free),
        None => backend::host::available_bytes(),
    };
    let question = Question {
        model: name,
        network: &network,
        corpus: &corpus,
        tokenizer: &tokenizer,
        has_head: network.heads.iter().map(|head| has_head(&head.task)).collect(),
        train: &train,
        ceilings,
        cache_limit_bytes: if cache.place == CachePlace::Off { 0 } else { cache.limit_bytes },
        limits: args.limits.limits(free_bytes),
    };
    let watch = Watch::new();
    let advice = survey(&mut session, &question, &watch)?;
    watch.finish();
    // Its memory serves twice.
    drop(session);
    match args.prove {
        None => Ok(advice),
        Some(search) => proof::prove(args, advice, &question, (source, engine), (search, cache)),
    }
}

fn publish(args: &Args, engine: Engine, models: Vec<ModelAdvice>) -> Result<()> {
    let options = args.options();
    let settings = json!({
        "models": args.models.iter().map(|model| model.to_string_lossy()).collect::<Vec<_>>(),
        "tasks": args.data.tasks,
        "data": hashes(&args.data.files())?,
        "training": options,
        "prove": args.prove,
    });
    let advice = Advice { environment: Environment::of(engine)?, settings, models };
    let document = advice.document();
    match args.run.json {
        true => print_json(&document)?,
        false => print(&advice.text())?,
    }
    let ExportArgs { export_json, export_markdown, report } = &args.exports;
    if let Some(file) = export_json {
        write_atomically(file, format!("{document:#}\n").as_bytes())?;
    }
    if let Some(file) = export_markdown {
        write_atomically(file, advice.markdown().as_bytes())?;
    }
    if let Some(file) = report {
        write_atomically(file, advice_page(&advice).as_bytes())?;
    }
    Ok(())
}
