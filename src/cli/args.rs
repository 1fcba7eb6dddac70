//! Options that several subcommands share.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::model_folder;
use crate::backend::cuda;
use crate::data;
use crate::model::hub::Need;
use crate::model::{Config, Network, Pooling, Source};
use crate::plan::Capacity;
use crate::session::{self, Engine};
use crate::tensor::DType;
use crate::{Error, Result};

/// The model: a folder, a name on the Hugging Face hub, or a published size.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {
    /// Model folder, as transformers or sentence-transformers writes it; or, where there is no such folder, a name on
    /// the Hugging Face hub, as org/name or org/name@revision: from the local cache, else downloaded into it
    #[arg(
        long,
        value_name = "DIR|NAME",
        required_unless_present = "arch",
        conflicts_with = "arch"
    )]
    pub model: Option<PathBuf>,
    /// Published size with random weights: bert-base, bert-large, roberta-base, roberta-large,
    /// distilbert-base, minilm-l6
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// How tokens become one vector [default: the model's own, else mean]
    #[arg(long, value_enum)]
    pub pooling: Option<Pooling>,
}

impl ModelArgs {
    /// Opens what was asked for, downloading what the command needs of it.
    ///
    /// # Errors
    /// An unknown size, a folder that is none, or as [`model_folder::open`].
    pub fn source(&self, need: Need) -> Result<Source> {
        match (&self.model, &self.arch) {
            (Some(model), _) => Ok(Source::Folder(model_folder::open("--model", model, need)?)),
            (None, Some(arch)) => Ok(Source::Published(Config::published(arch)?)),
            (None, None) => Err(Error::usage("give --model DIR or --arch NAME")),
        }
    }

    /// The same model by the folder that it was opened from.
    pub fn resolved(&self, source: &Source) -> Self {
        let model = match source {
            Source::Folder(folder) => Some(folder.dir.clone()),
            Source::Published(_) => None,
        };
        Self { model, arch: self.arch.clone(), pooling: self.pooling }
    }
}

/// Where to compute.
#[derive(clap::Args, Debug)]
pub struct DeviceArgs {
    /// Device to compute on
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Type of activations and matrices [default: f32 on the CPU, bf16 on cuda and emulated]
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeType>,
    /// The same as --dtype bf16
    #[arg(long, conflicts_with = "dtype")]
    pub bf16: bool,
    /// Replay steps as CUDA graphs, or launch kernel by kernel
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub graph: Switch,
    /// Threads of the CPU backend [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// What every command that computes takes at its end.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// Seed of everything that is random: new heads, the order of examples, dropout
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// TOML file with options; what is typed overrides it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    Auto,
    Cpu,
    Cuda,
    Emulated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    F32,
    Bf16,
}

impl DeviceArgs {
    /// Checks that the device is here, and sets the number of threads for the whole process.
    ///
    /// # Errors
    /// A device that this program cannot use, a type that the device does not compute in.
    pub fn prepare(&self) -> Result<Engine> {
        let graphs = self.graph == Switch::On;
        let device = match self.device {
            Device::Cpu => session::Device::Cpu,
            Device::Cuda => session::Device::Cuda { graphs },
            Device::Emulated => session::Device::Emulated { graphs },
            Device::Auto => match cuda::check_gpu() {
                Ok(()) => session::Device::Cuda { graphs },
                Err(why) => {
                    eprintln!("--device auto: computing on the CPU, since {why}");
                    session::Device::Cpu
                }
            },
        };
        let asked = self.dtype.or(self.bf16.then_some(ComputeType::Bf16));
        let compute = match (asked, device) {
            (Some(ComputeType::Bf16), session::Device::Cpu) => {
                let option = if self.bf16 { "--bf16" } else { "--dtype bf16" };
                return Err(Error::usage(format!("{option}: the CPU computes in f32 only")));
            }
            (Some(ComputeType::F32), _) | (None, session::Device::Cpu) => DType::F32,
            (Some(ComputeType::Bf16) | None, _) => DType::Bf16,
        };
        if let Some(n) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(n))
                .build_global()
                .map_err(|e| Error::Run(format!("--threads {n}: {e}")))?;
        }
        Ok(Engine { device, compute })
    }
}

/// `NAME=N`: a task without data.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSize {
    pub name: String,
    pub n_labels: usize,
}

/// Parses `NAME=N`; None where what stands behind the sign is no number.
///
/// # Errors
/// No sign, or a name that no tensor could bear.
pub fn parse_task_size(text: &str) -> Result<Option<TaskSize>> {
    let Some((name, size)) = text.split_once('=') else {
        return Err(Error::usage(format!("--task {text}: expected NAME=N or NAME=FILE")));
    };
    data::check_task_name(name)?;
    Ok(size.parse().ok().map(|n_labels| TaskSize { name: name.to_owned(), n_labels }))
}

/// Parses tasks that must all be `NAME=N`.
///
/// # Errors
/// As [`parse_task_size`], and a task whose size is no number.
pub fn task_sizes(texts: &[String]) -> Result<Vec<(String, usize)>> {
    let one = |text: &String| match parse_task_size(text)? {
        Some(task) => Ok((task.name, task.n_labels)),
        None => Err(Error::usage(format!(
            "--task {text}: expected NAME=N, N the number of labels (2 or more)"
        ))),
    };
    texts.iter().map(one).collect()
}

/// The network of a command that needs no data: the tasks that were named, else the model's own,
/// else one of two labels.
///
/// # Errors
/// As [`Source::network`].
pub fn network_for(source: &Source, tasks: &[String], pooling: Option<Pooling>) -> Result<Network> {
    let mut sizes = task_sizes(tasks)?;
    if sizes.is_empty() {
        sizes = (source.known_labels().into_iter())
            .map(|(task, labels)| (task, labels.len()))
            .collect();
    }
    if sizes.is_empty() {
        sizes.push(("task".to_owned(), 2));
    }
    source.network(&sizes, pooling)
}

/// The capacity of `n_sequences` sequences of `length` tokens.
///
/// # Errors
/// More tokens than 32-bit offsets can count.
pub fn full_capacity(n_sequences: usize, length: usize) -> Result<Capacity> {
    match n_sequences.checked_mul(length).filter(|&tokens| i32::try_from(tokens).is_ok()) {
        Some(tokens) => Ok(Capacity { tokens, sequences: n_sequences, max_length: length }),
        None => Err(Error::usage(format!(
            "--batch-size {n_sequences}: {n_sequences} sequences of {length} tokens are more than \
             {} tokens",
            i32::MAX
        ))),
    }
}

/// Refuses a file that could not be written later because its folder is missing.
///
/// # Errors
/// The folder is not there.
pub fn check_parent(option: &str, path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.is_dir() => Err(Error::content(
            path,
            format!("{option}: the folder {} is missing", parent.display()),
        )),
        _ => Ok(()),
    }
}

/// Refuses, before any work, a file that could not be written later: its folder is missing, a folder stands in its
/// place, or the command reads it (as part of the model's folder, or as one of `inputs`; links are followed).
///
/// # Errors
/// As said.
pub fn check_output_file(
    option: &str,
    path: &Path,
    model: Option<&PathBuf>,
    inputs: &[&Path],
) -> Result<()> {
    check_parent(option, path)?;
    // What is not there yet is nobody's.
    let Ok(target) = path.canonicalize() else { return Ok(()) };
    if target.is_dir() {
        return Err(Error::content(path, format!("{option}: is a folder, not a file")));
    }
    let of_model = model.into_iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
    let mut read = of_model.flatten().map(|entry| entry.path());
    let same = |other: &Path| other.canonicalize().is_ok_and(|other| other == target);
    if target.is_file() && (read.any(|file| same(&file)) || inputs.iter().any(|file| same(file))) {
        return Err(Error::usage(format!(
            "{option} {}: would overwrite a file that is read, name another",
            path.display()
        )));
    }
    Ok(())
}

/// Parses a whole number from 1.
pub fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number from 1".into()),
    }
}

/// Parses a whole number from 1, in 64 bits.
pub fn positive_count(text: &str) -> std::result::Result<u64, String> {
    positive(text).map(|n| n as u64)
}
