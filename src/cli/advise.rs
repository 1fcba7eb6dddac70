//! `frostline advise`: where to put the frost line, from the data, the frozen encoder and the machine; and a sweep.

mod options;
mod proof;
mod watch;

use std::path::{Path, PathBuf};

use serde_json::json;

use self::options::{LimitArgs, RateArgs};
use self::watch::Watch;
use super::args::{RunArgs, positive};
use super::data_args::{BatchArgs, DataArgs, hashes, with_tokenizer};
use super::exports::ReportArgs;
use super::interrupt::Interrupt;
use super::train::options::{CacheArgs, TrainingArgs};
use super::{model_folder, print, print_json};
use crate::advise::candidates::candidates;
use crate::advise::halving::Search;
use crate::advise::rows::check;
use crate::advise::survey::{ModelAdvice, Question, survey};
use crate::advise::sweep::check_metric;
use crate::advise::vectors::VectorStore;
use crate::cache::CachePlace;
use crate::data::{Corpus, Tokenizer};
use crate::measure::Ceilings;
use crate::model::hub::Need;
use crate::model::params::head_tensor;
use crate::model::{Network, Pooling, Source};
use crate::report::advice::Advice;
use crate::report::environment::Environment;
use crate::report::html::advice_page;
use crate::session::Engine;
use crate::train::{Metric, TrainOptions};
use crate::{Error, Result, backend};

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
    #[arg(long, value_name = "METRIC", default_value = "accuracy", value_parser = options::share_metric, requires = "prove")]
    metric: Metric,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    rates: RateArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    exports: ReportArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// The options of a run of a model of this width, whose heads are all there or not.
    fn options(&self, hidden_size: usize, has_heads: bool) -> TrainOptions {
        let rates = self.rates.of(hidden_size, has_heads);
        self.training.options(&self.batch, &rates, self.run.seed)
    }
}

/// A model with its data, ready to be looked at.
struct Prepared {
    name: String,
    source: Source,
    corpus: Corpus,
    network: Network,
    tokenizer: Tokenizer,
    has_head: Vec<bool>,
}

pub fn run(args: &Args) -> Result<()> {
    let files = args.data.files();
    let inputs: Vec<&Path> = files.iter().chain(&args.run.config).map(PathBuf::as_path).collect();
    args.models.iter().try_for_each(|model| args.exports.check(Some(model), &inputs))?;
    args.cache.options(false, false)?;
    let engine = args.run.device.prepare()?;
    // Whatever is wrong with any of them is said before work begins.
    let prepared =
        args.models.iter().map(|model| prepare(args, model)).collect::<Result<Vec<_>>>()?;
    let interrupt = args.prove.map(|_| Interrupt::listen()).transpose()?;
    let ceilings = Ceilings::of(engine)?;
    let mut models = Vec::with_capacity(prepared.len());
    let mut outcome = Ok(());
    for model in &prepared {
        match advise(args, model, engine, ceilings, interrupt.as_ref()) {
            Ok(advice) => models.push(advice),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
        if interrupt.as_ref().is_some_and(Interrupt::is_asked) {
            outcome = Err(Error::Interrupted);
            break;
        }
    }
    // What is done is shown, whatever became of the rest.
    if !models.is_empty() {
        publish(args, engine, models)?;
    }
    outcome
}

fn prepare(args: &Args, model: &Path) -> Result<Prepared> {
    let source = Source::Folder(model_folder::open("--model", model, Need::All)?);
    let corpus = args.data.corpus(&source, args.batch.max_length, args.run.seed)?;
    check(&corpus)?;
    if args.prove.is_some() {
        check_metric(&corpus, &args.metric)?;
        DataArgs::warn_of_missing_evaluation(&corpus);
    }
    let network = source.network(&corpus.task_sizes(), args.pooling)?;
    let has_head = |task: &str| {
        source.weights().is_some_and(|file| file.contains(&head_tensor(task, "weight")))
    };
    Ok(Prepared {
        name: model.to_string_lossy().into_owned(),
        tokenizer: Tokenizer::open(&with_tokenizer(&source)?.dir)?,
        has_head: network.heads.iter().map(|head| has_head(&head.task)).collect(),
        corpus,
        network,
        source,
    })
}

/// All about one model.
fn advise(
    args: &Args,
    model: &Prepared,
    engine: Engine,
    ceilings: Ceilings,
    interrupt: Option<&Interrupt>,
) -> Result<ModelAdvice> {
    let Prepared { name, source, corpus, network, tokenizer, has_head } = model;
    let cache = args.cache.options(false, false)?;
    let has_heads = has_head.iter().all(|has| *has);
    let train = args.options(network.config.hidden_size, has_heads);
    let mut depths = candidates(network)?;
    if args.rates.head_learning_rate.is_some() {
        // Whoever gives a rate means it.
        depths.iter_mut().for_each(|candidate| candidate.head_rate_scale = 1.0);
    }
    let values = source.initial_values(network, args.run.seed)?;
    let open = || VectorStore::open(&cache.folder, cache.limit_bytes, network, &values);
    let vectors = (cache.place == CachePlace::Disk).then(open).transpose()?;
    let mut session = engine.session(network.clone(), values)?;
    let free_bytes = session.free_bytes()?.or_else(backend::host::available_bytes);
    // The weights are there by now, and are part of what a step needs.
    let n_weight_bytes = network.n_values() * session.compute().size_bytes();
    let question = Question {
        model: name.clone(),
        network,
        corpus,
        tokenizer,
        has_head: has_head.clone(),
        candidates: &depths,
        train: &train,
        ceilings,
        cache_limit_bytes: if cache.place == CachePlace::Off { 0 } else { cache.limit_bytes },
        limits: args.limits.limits(free_bytes.map(|free| free + n_weight_bytes)),
        vectors: vectors.as_ref(),
    };
    let watch = Watch::new();
    let advice = survey(&mut session, &question, &watch)?;
    watch.finish();
    // Its memory serves twice.
    drop(session);
    match args.prove.zip(interrupt) {
        None => Ok(advice),
        Some((search, interrupt)) => {
            let how = (search, cache.clone());
            match proof::prove(args, advice.clone(), &question, (source, engine), how, interrupt) {
                Err(Error::Interrupted) => {
                    eprintln!("the sweep was interrupted: what follows is by the scores alone");
                    Ok(advice)
                }
                outcome => outcome,
            }
        }
    }
}

fn publish(args: &Args, engine: Engine, models: Vec<ModelAdvice>) -> Result<()> {
    let settings = json!({
        "models": args.models.iter().map(|model| model.to_string_lossy()).collect::<Vec<_>>(),
        "tasks": args.data.tasks,
        "evals": args.data.evals,
        "holdout": args.data.holdout,
        "data": hashes(&args.data.files())?,
        "max_length": args.batch.max_length,
        "pooling": args.pooling,
        "limits": args.limits.limits(None),
        "training": args.training.settings(),
        "batch": args.batch.limit(),
        "prove": args.prove,
        "seed": args.run.seed,
        "seeds": args.prove.map(|_| args.seeds),
        "metric": args.prove.map(|_| args.metric.name()),
    });
    let advice = Advice { environment: Environment::of(engine)?, settings, models };
    let document = advice.document();
    match args.run.json {
        true => print_json(&document)?,
        false => print(&advice.text())?,
    }
    args.exports.write(&document, || advice.markdown(), || advice_page(&advice))
}
