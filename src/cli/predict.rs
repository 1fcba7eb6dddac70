//! `frostline predict`: what a model's heads say of texts.

mod output;
mod texts;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::args::{DeviceArgs, ModelArgs, check_output_file, positive};
use super::data_args::longest_text;
use super::progress;
use crate::data::{BatchLimit, Packer, Tokenizer};
use crate::model::Source;
use crate::model::hub::Need;
use crate::predict::Predictor;
use crate::{Error, Result};
use output::{Embeddings, Format, Output};
use texts::Texts;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  frostline predict --model trained reviews.csv:comment --format csv\n  \
                        echo 'the screen is great' | frostline predict --model trained\n  \
                        frostline predict --model demo/minilm texts.txt --embeddings texts.npy"
)]
pub struct Args {
    /// Texts: a CSV, TSV, JSON lines or Parquet (if built in) file and its column [default: text, with text_pair if it
    /// is there], or two joined by + for pairs; of any other file, and of stdin (-), each line is a text
    #[arg(value_name = "FILE[:COLUMN]", default_value = "-", hide_default_value = true)]
    texts: String,
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences of a batch
    #[arg(
        long,
        aliases = ["batch_size", "per_device_eval_batch_size"],
        default_value_t = 32,
        value_parser = positive
    )]
    batch_size: usize,
    /// Cut texts to this many tokens [default: the model's longest, at most 512]
    #[arg(long, alias = "max_length", value_name = "N", value_parser = positive)]
    max_length: Option<usize>,
    /// How labels and probabilities are printed
    #[arg(long, value_enum, default_value_t = Format::Table, conflicts_with = "json")]
    format: Format,
    /// Write the pooled vectors, [texts, width] in f32: a .safetensors or .npy file
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// The same as --format jsonl
    #[arg(long)]
    json: bool,
    /// TOML file with options; what is typed overrides it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The head of a network that has none of its own; nobody reads it.
const NO_TASK: &str = "none";

pub fn run(args: &Args) -> Result<()> {
    let mut texts = Texts::open(&args.texts)?;
    let mut embeddings = args.embeddings.as_deref().map(Embeddings::new).transpose()?;
    if let Some(path) = &args.embeddings {
        let inputs: Vec<&Path> = texts.path().into_iter().chain(args.config.as_deref()).collect();
        check_output_file("--embeddings", path, args.model.model.as_ref(), &inputs)?;
    }
    let engine = args.device.prepare()?;
    let source = args.model.source(Need::All)?;
    let Source::Folder(folder) = &source else {
        return Err(Error::usage("--arch: its weights are random; name a trained --model"));
    };
    let tasks = source.known_labels();
    if tasks.is_empty() && embeddings.is_none() {
        let problem = "names no task with labels in frostline.json: train it first, or ask for --embeddings alone";
        return Err(Error::content(&folder.dir, problem));
    }
    refuse_untrained_heads(&source, &tasks)?;
    let mut sizes: Vec<(String, usize)> =
        tasks.iter().map(|(task, labels)| (task.clone(), labels.len())).collect();
    if sizes.is_empty() {
        sizes.push((NO_TASK.to_owned(), 2));
    }
    let network = source.network(&sizes, args.model.pooling)?;
    let max_length = longest_text(folder, args.max_length)?;
    let tokenizer = Tokenizer::open(&folder.dir)?;
    tokenizer.check_ids(network.config.vocab_size)?;
    let packer = Packer {
        limit: BatchLimit::Sequences(args.batch_size),
        positions: network.config.position_scheme(),
        n_tasks: sizes.len(),
    };
    let values = source.initial_values(&network, 0)?;
    let mut predictor = Predictor::new(engine.session(network, values)?, packer);

    let format = if args.json { Format::Jsonl } else { args.format };
    let mut output = Output::new(format, &tasks);
    // Rows on a terminal are progress enough.
    let bar = (texts.n_rows())
        .filter(|_| !std::io::stdout().is_terminal())
        .map(|n| progress::bar(n as u64, "predicting"));
    let (mut n_texts, mut n_tokens, mut n_truncated) = (0, 0, 0);
    let begun = Instant::now();
    while let Some(chunk) = texts.next()? {
        let chunk: Vec<(&str, Option<&str>)> =
            chunk.iter().map(|(text, pair)| (text.as_str(), pair.as_deref())).collect();
        let encoded = tokenizer.encode_pairs(&chunk, max_length, |_| {})?;
        let predictions = predictor.predict(&encoded)?;
        n_texts += chunk.len();
        n_tokens += encoded.lengths().iter().sum::<usize>();
        n_truncated += encoded.n_truncated;
        if let Some(bar) = &bar {
            bar.inc(chunk.len() as u64);
        }
        if let Some(embeddings) = &mut embeddings {
            embeddings.add(&predictions);
        }
        let first: Vec<&str> = chunk.iter().map(|(text, _)| *text).collect();
        let goes_on = tasks.is_empty() || output.rows(&first, &predictions)?;
        if !goes_on {
            break;
        }
    }
    bar.iter().for_each(indicatif::ProgressBar::finish_and_clear);
    if let Some(embeddings) = embeddings {
        embeddings.write()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let rate = |n: usize| n as f64 / seconds;
    if n_truncated > 0 {
        eprintln!("{n_truncated} of {n_texts} texts were cut to {max_length} tokens");
    }
    eprintln!(
        "{n_texts} texts of {n_tokens} tokens in {seconds:.2} s: {:.0} texts/s, {:.0} tokens/s",
        rate(n_texts),
        rate(n_tokens)
    );
    Ok(())
}

/// A head that the weights lack would say something random.
fn refuse_untrained_heads(source: &Source, tasks: &[(String, Vec<String>)]) -> Result<()> {
    let Source::Folder(folder) = source else { return Ok(()) };
    for (task, _) in tasks {
        let name = crate::model::params::head_tensor(task, "weight");
        if !folder.weights()?.contains(&name) {
            let problem = format!("frostline.json names task {task}, and there is no {name}");
            return Err(Error::content(&folder.dir, problem));
        }
    }
    Ok(())
}
