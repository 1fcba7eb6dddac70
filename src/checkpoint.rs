//! Checkpoints of a training run: `checkpoint-<step>/`, a model folder like any other, and beside the model what the
//! run needs to go on: AdamW's moments of what trained, the run's progress, and its settings.
//!
//! A folder appears under its name when it is whole and on disk. The dropout generator, the order of the data and the
//! learning rates are functions of seed and step, so that they need no place here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files::manifest::{MANIFEST, Manifest, Owned};
use crate::model::folder::{TrainedModel, WRITTEN_NAMES, write_model};
use crate::model::weights::{self, NamedTensor, SINGLE_FILE, WeightFile};
use crate::model::{Network, ParamId};
use crate::session::Session;
use crate::train::{Progress, Snapshot, Start};
use crate::{Error, Result, files};

const PREFIX: &str = "checkpoint-";
/// What is being written, or was when the process ended.
const UNFINISHED: &str = ".frostline-checkpoint-";
const OPTIMIZER: &str = "optimizer.safetensors";
const BEST: &str = "best.safetensors";
const RECORD: &str = "checkpoint.json";
/// The run's settings, under transformers' name for such a file.
const SETTINGS: &str = "training_args.json";

/// `checkpoint.json`: written last, with what the other files must be.
#[derive(Serialize, Deserialize)]
struct Record {
    progress: Progress,
    /// SHA-256 by file name.
    sha256: BTreeMap<String, String>,
}

/// A whole checkpoint.
pub struct Restored {
    pub folder: PathBuf,
    /// The values of what had trained.
    pub values: BTreeMap<ParamId, Vec<f32>>,
    pub start: Start,
}

/// The checkpoints in `output` with their steps, newest first. What has lost its record, or never had one, is none.
///
/// # Errors
/// A folder that cannot be read; one that is not there has none.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !output.is_dir() {
        return Ok(Vec::new());
    }
    let checkpoint = |name: String| {
        let number = number_of(&name)?;
        let path = output.join(name);
        path.join(RECORD).is_file().then_some((number, path))
    };
    let mut found: Vec<((u64, u64), PathBuf)> =
        files::names(output)?.into_iter().filter_map(checkpoint).collect();
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|((step, _), path)| (step, path)).collect())
}

/// The step in a checkpoint's name, and which of that step it is: `checkpoint-30` is the first, `checkpoint-30.2` the
/// second, whose step was done again while the first could not be replaced.
fn number_of(name: &str) -> Option<(u64, u64)> {
    let rest = name.strip_prefix(PREFIX)?;
    match rest.split_once('.') {
        None => Some((rest.parse().ok()?, 1)),
        Some((step, nth)) => Some((step.parse().ok()?, nth.parse().ok()?)),
    }
}

/// The name of a checkpoint with such numbers.
fn name_of(step: u64, nth: u64) -> String {
    if nth == 1 { format!("{PREFIX}{step}") } else { format!("{PREFIX}{step}.{nth}") }
}

/// The files of a checkpoint that are ours.
///
/// # Errors
/// A file that cannot be read.
pub fn owned(folder: &Path) -> Result<Owned> {
    // Older versions made no lists.
    let own = [WRITTEN_NAMES, &[OPTIMIZER, BEST, SETTINGS, RECORD]].concat();
    Owned::of(folder, if folder.join(RECORD).is_file() { &own } else { &[] })
}

/// Removes all checkpoints in `output`, and leaves what others have put into them.
///
/// # Errors
/// A folder that cannot be read or removed.
pub fn remove_all(output: &Path) -> Result<()> {
    remove_unfinished(output)?;
    list(output)?.iter().try_for_each(|(_, folder)| remove(folder))
}

/// Removes what killed runs left behind: folders that had no name yet under which anybody could find them, and what is
/// left of checkpoints that were being removed.
///
/// # Errors
/// As [`remove_all`].
pub fn remove_unfinished(output: &Path) -> Result<()> {
    if !output.is_dir() {
        return Ok(());
    }
    let names = files::names(output)?;
    let unfinished = names.iter().filter(|name| name.starts_with(UNFINISHED));
    unfinished.map(|name| output.join(name)).try_for_each(|folder| {
        std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))
    })?;
    let is_half =
        |folder: &PathBuf| folder.join(MANIFEST).is_file() && !folder.join(RECORD).is_file();
    let checkpoints = names.iter().filter(|name| number_of(name).is_some());
    let half = checkpoints.map(|name| output.join(name)).filter(is_half);
    half.into_iter().try_for_each(|folder| remove(&folder))
}

/// Removes all checkpoints but the `limit` newest.
///
/// # Errors
/// As [`remove_all`].
pub fn keep_newest(output: &Path, limit: usize) -> Result<()> {
    list(output)?.iter().skip(limit).try_for_each(|(_, folder)| remove(folder))
}

/// The record goes first: half a checkpoint is never taken for one.
fn remove(folder: &Path) -> Result<()> {
    files::remove_owned(folder, &owned(folder)?, RECORD)
}

/// Writes the checkpoint of a snapshot into `output`, which is made if it is not there; `model` holds the snapshot's
/// values, `state` is its `trainer_state.json`.
///
/// # Errors
/// A folder that cannot be written, a device that fails; no checkpoint is there then.
pub fn write(
    output: &Path,
    snapshot: Snapshot,
    model: &TrainedModel,
    settings: &Value,
    state: &Value,
) -> Result<PathBuf> {
    std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    let beside = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(files::folder_permissions())
        .tempdir_in(output)
        .map_err(|e| Error::io(output, e))?;
    let folder = beside.path();
    write_model(folder, model)?;
    let network = &model.network;
    weights::write(
        &folder.join(OPTIMIZER),
        &moments(snapshot.session, network, snapshot.trained, model)?,
    )?;
    if let Some(best) = snapshot.best {
        let tensors: Vec<NamedTensor> =
            best.iter().map(|(id, values)| named(network, "", *id, values)).collect();
        weights::write(&folder.join(BEST), &tensors)?;
    }
    let json = |value: &Value| format!("{value:#}\n").into_bytes();
    files::write_atomically(&folder.join(SETTINGS), &json(settings))?;
    files::write_atomically(&folder.join("trainer_state.json"), &json(state))?;
    let mut record = Record { progress: snapshot.progress.clone(), sha256: BTreeMap::new() };
    for name in [SINGLE_FILE, OPTIMIZER, BEST, SETTINGS] {
        let path = folder.join(name);
        if path.exists() {
            record.sha256.insert(name.to_owned(), files::sha256_of(&path)?);
        }
    }
    let record = serde_json::to_vec(&record)
        .map_err(|e| Error::content(folder.join(RECORD), e.to_string()))?;
    files::write_atomically(&folder.join(RECORD), &record)?;
    let list = Manifest::of(folder)?;
    let (target, is_new) = place_for(output, snapshot.progress.n_steps, &list)?;
    if is_new {
        list.write(folder)?;
        files::sync_all(folder)?;
        std::fs::rename(folder, &target).map_err(|e| Error::io(&target, e))?;
        // The folder has left its temporary name: nothing is to be removed.
        let _ = beside.keep();
    } else {
        files::switch(folder, &list, &target, &owned(&target)?, RECORD)?;
    }
    files::sync(output)?;
    Ok(target)
}

/// Where the checkpoint of a step goes, and whether nothing is there yet. What an earlier run left of this step, or
/// others beside it, can be replaced or stay; where somebody has edited it, the checkpoint gets a name of its own.
fn place_for(output: &Path, step: u64, list: &Manifest) -> Result<(PathBuf, bool)> {
    let mut nth = 1;
    loop {
        let target = output.join(name_of(step, nth));
        if !target.exists() {
            return Ok((target, true));
        }
        if target.is_dir() && files::conflicts(list, &target, &owned(&target)?).is_empty() {
            return Ok((target, false));
        }
        nth += 1;
    }
}

/// Moments of what trained, and its values where the model's file holds rounded ones.
fn moments(
    session: &mut Session,
    network: &Network,
    trained: &[ParamId],
    model: &TrainedModel,
) -> Result<Vec<NamedTensor>> {
    let mut tensors = Vec::new();
    for &id in trained {
        let Some([moment1, moment2]) = session.moments(id)? else {
            continue;
        };
        tensors.push(named(network, "m.", id, &moment1));
        tensors.push(named(network, "v.", id, &moment2));
        if let (Some(values), true) = (&model.trained[id.0], model.rounds(id)?) {
            tensors.push(named(network, "value.", id, values));
        }
    }
    Ok(tensors)
}

fn named(network: &Network, prefix: &str, id: ParamId, values: &[f32]) -> NamedTensor {
    let param = network.param(id);
    NamedTensor::f32(format!("{prefix}{}", param.name), param.shape.clone(), values)
}

/// The newest checkpoint in `output` that is whole; `warn` is told of those that are passed over. None where there
/// is no checkpoint at all, or none that is whole.
///
/// # Errors
/// A whole checkpoint of a run with other settings.
pub fn newest(
    output: &Path,
    network: &Network,
    settings: &Value,
    mut warn: impl FnMut(String),
) -> Result<Option<Restored>> {
    for (_, folder) in list(output)? {
        match read(&folder, network) {
            Ok((restored, theirs)) => {
                check_settings(&folder, &theirs, settings)?;
                return Ok(Some(restored));
            }
            Err(error) => warn(format!("passed over: {error}")),
        }
    }
    Ok(None)
}

/// A checkpoint and its settings.
fn read(folder: &Path, network: &Network) -> Result<(Restored, Value)> {
    let path = folder.join(RECORD);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|e| Error::content(&path, e.to_string()))?;
    for (name, expected) in &record.sha256 {
        let path = folder.join(name);
        if files::sha256_of(&path)? != *expected {
            return Err(Error::content(path, "is damaged: its SHA-256 is not the recorded one"));
        }
    }
    let path = folder.join(SETTINGS);
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let settings =
        serde_json::from_slice(&text).map_err(|e| Error::content(&path, e.to_string()))?;

    let model = WeightFile::open_file(&folder.join(SINGLE_FILE))?;
    let optimizer = WeightFile::open_file(&folder.join(OPTIMIZER))?;
    let best = match record.sha256.contains_key(BEST) {
        true => Some(WeightFile::open_file(&folder.join(BEST))?),
        false => None,
    };
    let mut values = BTreeMap::new();
    let mut start = Start { progress: record.progress, ..Start::default() };
    start.best = best.as_ref().map(|_| BTreeMap::new());
    for (id, param) in network.param_ids().zip(&network.params) {
        let of = |prefix: &str| format!("{prefix}{}", param.name);
        if let (Some(file), Some(kept)) = (&best, &mut start.best)
            && file.contains(&param.name)
        {
            kept.insert(id, file.read_f32(&param.name, &param.shape)?);
        }
        if !optimizer.contains(&of("m.")) {
            continue;
        }
        let [moment1, moment2] = [of("m."), of("v.")];
        let moments = [
            optimizer.read_f32(&moment1, &param.shape)?,
            optimizer.read_f32(&moment2, &param.shape)?,
        ];
        start.moments.insert(id, moments);
        let value = match optimizer.contains(&of("value.")) {
            true => optimizer.read_f32(&of("value."), &param.shape)?,
            false => model.read_f32(&param.name, &param.shape)?,
        };
        values.insert(id, value);
    }
    Ok((Restored { folder: folder.to_owned(), values, start }, settings))
}

/// A run goes on only as the run that it was.
///
/// # Errors
/// The options that differ, each with both values.
fn check_settings(folder: &Path, theirs: &Value, ours: &Value) -> Result<()> {
    let mut differences = Vec::new();
    compare("", theirs, ours, &mut differences);
    // What is drawn from another seed, heads and held-out rows, is other as well.
    if differences.iter().any(|one| one.starts_with("--seed ")) {
        differences.retain(|one| one.starts_with("--"));
    }
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "--resume: {} was trained with {}",
            folder.display(),
            differences.join("; with ")
        ))),
    }
}

/// What settings are called on the command line.
const OPTIONS: [(&str, &str); 18] = [
    ("freeze", "--freeze or --schedule"),
    ("tasks", "--task"),
    ("pooling", "--pooling"),
    ("limit", "--batch-size or --batch-tokens"),
    ("even_batches", "--even-batches"),
    ("batches_per_step", "--gradient-accumulation-steps"),
    ("smoothing", "--label-smoothing-factor"),
    ("task_weights", "--task-weight"),
    ("class_weights", "--class-weights"),
    ("frozen_dropout", "--frozen-dropout"),
    ("n_epochs", "--num-train-epochs"),
    ("max_steps", "--max-steps"),
    ("layer_decay", "--layer-lr-decay"),
    ("by_name", "--param-learning-rate"),
    ("warmup", "--warmup-steps"),
    ("schedule", "--lr-scheduler-type"),
    ("best", "--load-best-model-at-end and what it goes by"),
    ("metric", "--metric-for-best-model"),
];

/// Notes what differs between two values of the setting `key`, of objects key by key.
fn compare(key: &str, theirs: &Value, ours: &Value, differences: &mut Vec<String>) {
    if theirs == ours {
        return;
    }
    if let (Value::Object(theirs), Value::Object(ours)) = (theirs, ours) {
        let added = ours.keys().filter(|key| !theirs.contains_key(*key));
        for key in theirs.keys().chain(added) {
            let [theirs, ours] = [theirs, ours].map(|map| map.get(key).unwrap_or(&Value::Null));
            compare(key, theirs, ours, differences);
        }
        return;
    }
    let named = OPTIONS.iter().find(|(setting, _)| *setting == key).map(|(_, option)| *option);
    differences.push(match (key, named) {
        ("model_sha256", _) => "another --model".to_owned(),
        ("data_sha256", _) => "other data, or texts that were cut elsewhere".to_owned(),
        (_, named) => {
            let option =
                named.map_or_else(|| format!("--{}", key.replace('_', "-")), str::to_owned);
            format!("{option} {}, this run has {}", shown(theirs), shown(ours))
        }
    });
}

/// A setting as it was typed: rates are f32, which JSON widens.
fn shown(value: &Value) -> String {
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(number) => (number as f32).to_string(),
        None => value.to_string(),
    }
}

/// The SHA-256 of parameters' values, in table order.
pub fn digest_of_values(values: &[Vec<f32>]) -> String {
    let mut digest = Sha256::new();
    values.iter().for_each(|values| digest.update(bytemuck::cast_slice(values)));
    files::hex(&digest.finalize())
}
