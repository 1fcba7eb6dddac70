//! Bad input through the binary: each gets one error that names the file, the field and the value,
//! the right exit status, no panic, and leaves nothing behind.
//!
//! Every row starts from a good model folder, batch and data file and breaks one thing.

mod batch;
mod data;
mod model;
mod options;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use tempfile::TempDir;

const GOOD_CSV: &str = "text,label\nthe camera is good,camera\nthe song was bad,song\n\
                        a very fine screen,camera\nnew song and player,song\n";

/// A model folder, a batch and a data file that are good until a row's edit breaks them, and the
/// command line that reads them.
struct Input {
    root: TempDir,
    arguments: Vec<String>,
}

/// One way to be wrong.
struct Bad {
    name: &'static str,
    exit_status: i32,
    /// What stderr must name, in any case of letters; `a|b` where one of both will do.
    named: Named,
    edit: fn(&mut Input),
}

type Named = &'static [&'static str];

/// A fault in the content of a file, or a file that is not there.
fn content(name: &'static str, named: Named, edit: fn(&mut Input)) -> Bad {
    Bad { name, exit_status: 1, named, edit }
}

/// An option or a spec that cannot be.
fn usage(name: &'static str, named: Named, edit: fn(&mut Input)) -> Bad {
    Bad { name, exit_status: 2, named, edit }
}

/// A device that is missing.
fn device(name: &'static str, named: Named, edit: fn(&mut Input)) -> Bad {
    Bad { name, exit_status: 3, named, edit }
}

#[derive(Clone)]
struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Raw {
    fn f32(shape: &[usize], values: &[f32]) -> Raw {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Raw { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    fn i64(shape: &[usize], values: &[i64]) -> Raw {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Raw { dtype: Dtype::I64, shape: shape.to_vec(), data }
    }

    fn set_f32(&mut self, place: usize, value: f32) {
        self.data[4 * place..][..4].copy_from_slice(&value.to_le_bytes());
    }

    fn set_i64(&mut self, place: usize, value: i64) {
        self.data[8 * place..][..8].copy_from_slice(&value.to_le_bytes());
    }
}

type File = BTreeMap<String, Raw>;

fn read(path: &Path) -> File {
    let bytes = fs::read(path).unwrap();
    let raw = |view: TensorView| Raw {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.into_iter().map(|(name, view)| (name, raw(view))).collect()
}

fn write(path: &Path, file: &File) {
    let views = file.iter().map(|(name, raw)| {
        (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

impl Input {
    /// The golden case bert-mean, whose model has 37 words, 11 positions, 16 columns, 2 heads,
    /// 3 layers, 2 token types, heads `topic` (5) and `sentiment` (3) and a pooler.
    fn new(arguments: &str) -> Input {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean");
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("model")).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(golden.join(file), root.path().join("model").join(file)).unwrap();
        }
        fs::copy(golden.join("batch.safetensors"), root.path().join("batch.safetensors")).unwrap();
        fs::write(root.path().join("data.csv"), GOOD_CSV).unwrap();
        Input { root, arguments: arguments.split_whitespace().map(str::to_owned).collect() }
    }

    fn step() -> Input {
        Input::new(
            "step --model model --batch batch.safetensors --task topic=5 --task sentiment=3 --pooling mean \
             --freeze none --device cpu --dtype f32 --dump out.safetensors",
        )
    }

    /// The heads of the golden file have other labels than the data, so a new task is trained.
    fn train() -> Input {
        Input::new(
            "train --model model --task area=data.csv --freeze none --max-steps 2 --batch-size 2 \
             --device cpu --output trained",
        )
    }

    fn bench() -> Input {
        Input::new(
            "bench --model model --task area=data.csv --scenarios none,all --rounds 1 --batch-size 2 \
             --device cpu --json",
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Gives the option that has `old` as its value the value `new`.
    fn argument(&mut self, old: &str, new: &str) {
        let place = self.arguments.iter().position(|argument| argument == old).unwrap();
        self.arguments[place] = new.to_owned();
    }

    /// Appends arguments.
    fn options(&mut self, more: &[&str]) {
        self.arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    }

    fn freeze(&mut self, spec: &str) {
        self.argument("none", spec);
    }

    fn config(&mut self, edit: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.path("model/config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
    }

    fn weights(&mut self, edit: impl FnOnce(&mut File)) {
        self.tensors("model/model.safetensors", edit);
    }

    fn weight(&mut self, name: &str, edit: impl FnOnce(&mut Raw)) {
        self.weights(|file| edit(file.get_mut(name).unwrap()));
    }

    fn batch(&mut self, name: &str, edit: impl FnOnce(&mut Raw)) {
        self.tensors("batch.safetensors", |file| edit(file.get_mut(name).unwrap()));
    }

    fn tensors(&mut self, path: &str, edit: impl FnOnce(&mut File)) {
        let path = self.path(path);
        let mut file = read(&path);
        edit(&mut file);
        write(&path, &file);
    }

    fn bytes(&mut self, path: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path(path);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// Everything that lies in the working folder.
    fn files(&self) -> BTreeSet<PathBuf> {
        let (mut files, mut folders) = (BTreeSet::new(), vec![self.root.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                files.insert(path);
            }
        }
        files
    }

    fn run(&self) -> Output {
        let mut command = Command::cargo_bin("frostline").unwrap();
        // A model that is not there must not be looked for elsewhere.
        command.env("HF_HOME", self.root.path().join("no-cache")).env("HF_HUB_OFFLINE", "1");
        command.current_dir(self.root.path()).args(&self.arguments).output().unwrap()
    }
}

/// What is wrong with the way in which a bad input was refused.
fn complaint(bad: &Bad, input: &Input) -> Option<String> {
    let before = input.files();
    let output = input.run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lower = stderr.to_lowercase();
    let mut faults = Vec::new();
    if output.status.code() != Some(bad.exit_status) {
        faults.push(format!("{}, expected {}", output.status, bad.exit_status));
    }
    let n_errors = stderr.lines().filter(|line| line.starts_with("error:")).count();
    if n_errors != 1 {
        faults.push(format!("{n_errors} lines begin with `error:`"));
    }
    if lower.contains("panicked") {
        faults.push("it panicked".to_owned());
    }
    for named in bad.named {
        if !named.split('|').any(|word| lower.contains(&word.to_lowercase())) {
            faults.push(format!("`{named}` is not named"));
        }
    }
    let after = input.files();
    if after != before {
        let left: Vec<_> = after.symmetric_difference(&before).collect();
        faults.push(format!("it left or removed {left:?}"));
    }
    (!faults.is_empty()).then(|| format!("{}: {}\n    {stderr}", bad.name, faults.join("; ")))
}

fn check(good: fn() -> Input, table: &[Bad]) {
    let mut complaints = Vec::new();
    for bad in table {
        let mut input = good();
        (bad.edit)(&mut input);
        complaints.extend(complaint(bad, &input));
    }
    assert!(
        complaints.is_empty(),
        "{} of {}:\n{}",
        complaints.len(),
        table.len(),
        complaints.join("\n")
    );
}

/// Without this, every other test here could pass by refusing everything.
#[test]
fn good_input_is_accepted() {
    for (input, output) in [
        (Input::step(), Some("out.safetensors")),
        (Input::train(), Some("trained/model.safetensors")),
        (Input::bench(), None),
    ] {
        let result = input.run();
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.success(), "{:?}: {stderr}", input.arguments);
        assert!(output.is_none_or(|name| input.path(name).exists()), "{:?}", input.arguments);
    }
}
