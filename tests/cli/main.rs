//! The commands from end to end, as a user runs them: the binary, a folder with a tiny model and
//! small files of labelled text, and what is on stdout and on disk afterwards.

mod advise;
mod bench;
mod bench_data;
mod cache;
mod config_file;
mod export;
mod foreign_files;
mod freeze;
mod hub;
mod memory;
#[cfg(feature = "parquet")]
mod parquet;
mod plan;
mod predict;
mod profile;
mod resume;
mod shell;
mod step;
mod tensors;
mod train;
mod train_again;
mod train_best;
mod train_drift;
mod train_log;
mod train_loss;
mod train_output;
mod train_schedule;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

const TOPICS: [&str; 5] = ["battery", "camera", "phone", "screen", "song"];
const SENTIMENTS: [&str; 3] = ["bad", "fine", "good"];

/// A working folder with `model`, `reviews.csv` (columns text, topic, sentiment), and one file for
/// each task: `topics.tsv` (text, label) and `moods.jsonl` (text, sentiment).
struct Workspace(TempDir);

impl Workspace {
    /// Tests of most commands use bert-mean, whose model has 37 words, 11 positions, 2 token types,
    /// 16 columns, 2 heads, 3 layers of 36, a pooler, and heads `topic` (5) and `sentiment` (3).
    fn new() -> Self {
        Self::with_model("bert-mean")
    }

    /// With the model of another golden case; the words of bert-mean's tokenizer are fewer than any
    /// model's.
    fn with_model(case: &str) -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch");
        let workspace = Workspace(tempfile::tempdir().unwrap());
        fs::create_dir(workspace.path("model")).unwrap();
        for entry in fs::read_dir(golden.join(case)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name == "config.json" || name.starts_with("model") {
                fs::copy(entry.path(), workspace.path("model").join(name)).unwrap();
            }
        }
        let tokenizer = golden.join("bert-mean/tokenizer.json");
        fs::copy(tokenizer, workspace.path("model/tokenizer.json")).unwrap();
        let batch = golden.join(case).join("batch.safetensors");
        fs::copy(batch, workspace.path("batch.safetensors")).unwrap();

        let mut reviews = "text,topic,sentiment\n".to_owned();
        let (mut topics, mut moods) = ("text\tlabel\n".to_owned(), String::new());
        for opening in ["the", "this new", "a very fast"] {
            for topic in TOPICS {
                for sentiment in SENTIMENTS {
                    let text = format!("{opening} {topic} is {sentiment}");
                    reviews += &format!("{text},{topic},{sentiment}\n");
                    topics += &format!("{text}\t{topic}\n");
                    moods += &format!("{{\"text\": \"{text}\", \"sentiment\": \"{sentiment}\"}}\n");
                }
            }
        }
        workspace.write("reviews.csv", &reviews);
        workspace.write("topics.tsv", &topics);
        workspace.write("moods.jsonl", &moods);
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn read_json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// Names in a folder, hidden ones too.
    fn names(&self, folder: &str) -> BTreeSet<String> {
        fs::read_dir(self.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Runs frostline in the folder; arguments are separated by spaces.
    fn run(&self, arguments: &str) -> Output {
        self.run_all(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// The same for arguments with spaces in them.
    fn run_all(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// frostline in the folder, with an empty cache of models and no network.
    fn command(&self) -> Command {
        let mut command = Command::cargo_bin("frostline").unwrap();
        command.current_dir(self.0.path());
        command.env("HF_HOME", self.path("no-cache")).env("HF_HUB_OFFLINE", "1");
        for name in ["HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command that must work, and returns its stdout.
    #[track_caller]
    fn ok(&self, arguments: &str) -> String {
        stdout_of(&self.run(arguments), arguments)
    }

    /// Runs a command that must print one JSON document and nothing else.
    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments}: {error}\n{text}"))
    }

    /// Runs a command that must be refused with one error that names all of `named`, and must leave
    /// the working folder as it was.
    #[track_caller]
    fn refused(&self, arguments: &str, exit_status: i32, named: &[&str]) {
        let before = self.names(".");
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit_status), "{arguments}: {stderr}");
        let n_errors = stderr.lines().filter(|line| line.starts_with("error:")).count();
        assert_eq!(n_errors, 1, "{arguments}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments}: an error printed to stdout");
        for name in named {
            assert!(stderr.contains(name), "{arguments}: {name:?} is not named: {stderr}");
        }
        assert_eq!(self.names("."), before, "{arguments}");
    }
}

#[track_caller]
fn stdout_of(output: &Output, arguments: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The keys of a JSON object, in any order.
#[track_caller]
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Checks that an object has these keys and no other.
#[track_caller]
fn assert_keys(value: &Value, expected: &[&str]) {
    assert_eq!(keys(value), expected.iter().copied().collect());
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The words of a table's row, whatever its borders are made of.
fn words(row: &str) -> Vec<&str> {
    row.split([' ', '|', '\u{2502}']).filter(|word| !word.is_empty()).collect()
}

/// Values of one layer of bert-mean: four square projections and two LayerNorms, 16 wide, and the
/// feed-forward pair.
const LAYER: u64 = 4 * (16 * 16 + 16) + (36 * 16 + 36) + (16 * 36 + 16) + 2 * 32;
/// Tables of 37 words, 11 positions and 2 token types, and a LayerNorm.
const EMBEDDINGS: u64 = (37 + 11 + 2) * 16 + 32;
const POOLER: u64 = 16 * 16 + 16;
/// Head of 5 labels.
const TOPIC: u64 = 5 * (16 + 1);
/// Head of 3 labels.
const SENTIMENT: u64 = 3 * (16 + 1);
/// What trains where nothing is frozen: all but the pooler, which mean pooling does not use.
const ALL_TRAINED: u64 = EMBEDDINGS + 3 * LAYER + TOPIC + SENTIMENT;
