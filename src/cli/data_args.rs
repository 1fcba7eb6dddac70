//! Options about data, and the way from them to a corpus.

use std::path::PathBuf;

use serde_json::json;

use super::args::parse_task_size;
use super::progress;
use crate::data::{
    BatchLimit, Corpus, Dataset, TaskOutline, TaskSource, TokenRules, model_max_length,
    n_shared_texts,
};
use crate::model::{Config, ModelFolder, Source};
use crate::{Error, Result, files};

/// Where the labelled texts are.
#[derive(clap::Args, Debug)]
pub struct DataArgs {
    /// A task and its file (repeatable): CSV, TSV, JSON lines or Parquet (if built in); columns default to `text` (and
    /// `text_pair`, if it is there), and to the task's name or `label`
    #[arg(long = "task", value_name = "NAME=FILE[:TEXT[:LABEL]]", required = true)]
    pub tasks: Vec<String>,
    /// Evaluation rows of a task; else a `split` column, else --holdout
    #[arg(long = "eval", value_name = "NAME=FILE[:TEXT[:LABEL]]")]
    pub evals: Vec<String>,
    /// Share of rows held out for evaluation where no file or column says which
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub holdout: f64,
}

/// How texts are cut into batches.
#[derive(clap::Args, Clone, Debug)]
pub struct BatchArgs {
    /// Sequences of a batch
    #[arg(
        long,
        aliases = ["batch_size", "per_device_train_batch_size"],
        default_value_t = 32,
        value_parser = super::args::positive
    )]
    pub batch_size: usize,
    /// Fill batches up to this many tokens instead
    #[arg(long, alias = "batch_tokens", value_name = "N", value_parser = super::args::positive)]
    pub batch_tokens: Option<usize>,
    /// Cut texts to this many tokens [default: the model's longest, at most 512]
    #[arg(long, alias = "max_length", value_name = "N", value_parser = super::args::positive)]
    pub max_length: Option<usize>,
}

impl BatchArgs {
    /// How batches are cut.
    pub fn limit(&self) -> BatchLimit {
        match self.batch_tokens {
            Some(n) => BatchLimit::Tokens(n),
            None => BatchLimit::Sequences(self.batch_size),
        }
    }
}

/// Several sizes of batches, of which every pair is measured.
#[derive(clap::Args, Debug)]
pub struct MatrixArgs {
    /// Sequences of a batch; several sizes are separated by commas
    #[arg(
        long,
        aliases = ["batch_size", "per_device_train_batch_size"],
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "32",
        value_parser = super::args::positive
    )]
    batch_size: Vec<usize>,
    /// Fill batches up to this many tokens instead
    #[arg(
        long,
        alias = "batch_tokens",
        value_name = "N",
        conflicts_with = "batch_size",
        value_parser = super::args::positive
    )]
    batch_tokens: Option<usize>,
    /// Cut texts to this many tokens
    #[arg(
        long,
        alias = "max_length",
        value_name = "N,...",
        value_delimiter = ',',
        value_parser = super::args::positive
    )]
    max_length: Vec<usize>,
}

impl MatrixArgs {
    /// The lengths to cut to; None where none was given.
    pub fn lengths(&self) -> Vec<Option<usize>> {
        match self.max_length.as_slice() {
            [] => vec![None],
            lengths => distinct(lengths).map(Some).collect(),
        }
    }

    /// The batches of one length.
    pub fn of_length(&self, max_length: Option<usize>) -> Vec<BatchArgs> {
        let batch =
            |batch_size| BatchArgs { batch_size, batch_tokens: self.batch_tokens, max_length };
        match self.batch_tokens {
            Some(_) => vec![batch(1)],
            None => distinct(&self.batch_size).map(batch).collect(),
        }
    }
}

/// Each value once, in the order of the first.
fn distinct(values: &[usize]) -> impl Iterator<Item = usize> + '_ {
    let is_first = |at: &usize| !values[..*at].contains(&values[*at]);
    (0..values.len()).filter(is_first).map(|at| values[at])
}

impl DataArgs {
    /// The files that tasks name.
    pub fn files(&self) -> Vec<PathBuf> {
        let all = self.tasks.iter().chain(&self.evals);
        let named = all.filter(|text| !matches!(parse_task_size(text), Ok(Some(_))));
        named.filter_map(|text| TaskSource::parse(text).ok()).map(|source| source.path).collect()
    }

    /// Tells people on stderr of tasks that have no evaluation row while others have.
    pub fn warn_of_missing_evaluation(corpus: &Corpus) {
        for (at, task) in corpus.tasks.iter().enumerate() {
            let has_rows = (0..corpus.eval.len()).any(|row| corpus.eval.class(row, at).is_some());
            if !has_rows && !corpus.eval.is_empty() {
                eprintln!(
                    "task {0} has no evaluation rows: add --eval {0}=FILE, or a `split` column",
                    task.name
                );
            }
        }
    }

    /// Reads and tokenises the data for a model, telling people on stderr what was read.
    ///
    /// # Errors
    /// What is wrong with a file, a column, a label, or the tokenizer.
    pub fn corpus(&self, source: &Source, max_length: Option<usize>, seed: u64) -> Result<Corpus> {
        let folder = with_tokenizer(source)?;
        if let Some(text) = self.tasks.iter().find(|t| matches!(parse_task_size(t), Ok(Some(_)))) {
            return Err(Error::usage(format!("--task {text}: expected NAME=FILE, not a number")));
        }
        let parse = |texts: &[String]| -> Result<Vec<TaskSource>> {
            texts.iter().map(|text| TaskSource::parse(text)).collect()
        };
        let (tasks, evals) = (parse(&self.tasks)?, parse(&self.evals)?);
        let known: Vec<(String, Vec<String>)> = (source.known_labels().into_iter())
            .filter(|(name, _)| tasks.iter().any(|task| task.name == *name))
            .collect();
        let known = (!known.is_empty()).then_some(known.as_slice());
        read_corpus(folder, (&tasks, &evals), known, (self.holdout, seed), max_length)
    }
}

/// The folder of a model that can read texts.
///
/// # Errors
/// A published size.
pub fn with_tokenizer(source: &Source) -> Result<&ModelFolder> {
    match source {
        Source::Folder(folder) => Ok(folder),
        Source::Published(_) => Err(Error::usage(
            "--arch has no tokenizer for a file: use --task NAME=N for synthetic tokens, or \
             --model DIR",
        )),
    }
}

/// Reads and tokenises the files of tasks and of their evaluation rows, telling people on stderr what was read.
///
/// # Errors
/// As [`Dataset::load`] and [`Corpus::new`].
pub fn read_corpus(
    folder: &ModelFolder,
    (tasks, evals): (&[TaskSource], &[TaskSource]),
    known_labels: Option<&[(String, Vec<String>)]>,
    (holdout, seed): (f64, u64),
    max_length: Option<usize>,
) -> Result<Corpus> {
    let dataset = Dataset::load(tasks, evals, holdout, seed, known_labels)?;
    for count in &dataset.sources {
        eprintln!(
            "{}: {} rows read, {} skipped ({} without text, {} without label), {} to train, \
             {} to evaluate",
            count.path.display(),
            count.rows_read,
            count.rows_skipped,
            count.blank_texts,
            count.unlabelled,
            count.train,
            count.eval
        );
    }
    for task in TaskOutline::of(&dataset) {
        eprintln!("{}", task.line());
        task.doubts.iter().for_each(|doubt| eprintln!("task {}: {doubt}", task.name));
    }
    match n_shared_texts(&dataset) {
        0 => {}
        n => eprintln!(
            "{n} evaluation rows have the text of a training row: figures on them flatter"
        ),
    }
    let rules = TokenRules {
        vocab_size: folder.config.vocab_size,
        max_length: longest_text(folder, max_length)?,
        type_vocab_size: folder.config.type_vocab_size,
        positions: folder.config.position_scheme(),
    };
    let n_texts = dataset.train.len() + dataset.eval.len();
    let bar = progress::bar(n_texts as u64, "tokenising");
    let corpus = Corpus::new(dataset, &folder.dir, rules, |n| bar.inc(n as u64))?;
    bar.finish_and_clear();
    let n_truncated = corpus.train.n_truncated() + corpus.eval.n_truncated();
    if n_truncated > 0 {
        eprintln!("{n_truncated} of {n_texts} texts were cut at {} tokens", rules.max_length);
    }
    Ok(corpus)
}

/// The longest sequence of texts: what was asked for, else what the model's tokenizer cuts to, at most 512.
///
/// # Errors
/// As [`longest`].
pub fn longest_text(folder: &ModelFolder, max_length: Option<usize>) -> Result<usize> {
    let own = model_max_length(&folder.dir)?.unwrap_or(usize::MAX);
    longest(max_length, &folder.config, own.min(512))
}

/// The longest sequence: what was asked for if the model can read it, else `default`.
///
/// # Errors
/// A length beyond the model's position table.
pub fn longest(asked: Option<usize>, config: &Config, default: usize) -> Result<usize> {
    let most = config.max_length();
    match asked {
        Some(n) if n > most => {
            Err(Error::usage(format!("--max-length {n}: the model reads at most {most} tokens")))
        }
        Some(n) => Ok(n),
        None => Ok(default.min(most)),
    }
}

/// The files that a command read, each once, with what `sha256sum` says of them.
///
/// # Errors
/// A file that can no longer be read.
pub fn hashes(files: &[PathBuf]) -> Result<Vec<serde_json::Value>> {
    let mut files: Vec<&PathBuf> = files.iter().collect();
    files.sort();
    files.dedup();
    let hash = |file: &PathBuf| {
        Ok(json!({ "file": file.to_string_lossy(), "sha256": files::sha256_of(file)? }))
    };
    files.into_iter().map(hash).collect()
}
