//! Checkpoints of a training run: `checkpoint-<step>/`, a model folder like any other, and beside the model what the
//! run needs to go on: AdamW's moments of what trained, the run's progress, and its settings.
//!
//! A folder appears under its name when it is whole and on disk. The dropout generator, the order of the data and the
//! learning rates are functions of seed and step, so that they need no place here.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::model::folder::{TrainedModel, write_model};
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

/// The checkpoints in `output` with their steps, newest first.
///
/// # Errors
/// A folder that cannot be read; one that is not there has none.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !output.is_dir() {
        return Ok(Vec::new());
    }
    let checkpoint = |name: String| {
        let step = name.strip_prefix(PREFIX)?.parse().ok()?;
        let path = output.join(name);
        path.is_dir().then_some((step, path))
    };
    let mut found: Vec<(u64, PathBuf)> =
        files::names(output)?.into_iter().filter_map(checkpoint).collect();
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Whether a name in an output folder is that of a checkpoint, or of one that was never finished.
pub fn is_checkpoint_name(name: &str) -> bool {
    name.starts_with(PREFIX) || name.starts_with(UNFINISHED)
}

/// Removes all checkpoints in `output`.
///
/// # Errors
/// A folder that cannot be read or removed.
pub fn remove_all(output: &Path) -> Result<()> {
    remove_unfinished(output)?;
    list(output)?.iter().try_for_each(|(_, folder)| remove(folder))
}

/// Removes what killed runs left behind.
///
/// # Errors
/// As [`remove_all`].
pub fn remove_unfinished(output: &Path) -> Result<()> {
    if !output.is_dir() {
        return Ok(());
    }
    let names = files::names(output)?;
    let unfinished = names.iter().filter(|name| name.starts_with(UNFINISHED));
    unfinished.map(|name| output.join(name)).try_for_each(|folder| remove(&folder))
}

/// Removes all checkpoints but the `limit` newest.
///
/// # Errors
/// As [`remove_all`].
pub fn keep_newest(output: &Path, limit: usize) -> Result<()> {
    list(output)?.iter().skip(limit).try_for_each(|(_, folder)| remove(folder))
}

/// Takes the name away first: half a checkpoint is never seen under it.
fn remove(folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let unnamed = folder.with_file_name(format!("{UNFINISHED}removed-{name}"));
    std::fs::rename(folder, &unnamed)
        .and_then(|()| std::fs::remove_dir_all(&unnamed))
        .map_err(|e| Error::io(folder, e))
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
    sync_all(folder)?;
    let target = output.join(format!("{PREFIX}{}", snapshot.progress.n_steps));
    if target.exists() {
        // Of a run before this one, or damaged: the step was done again.
        remove(&target)?;
    }
    std::fs::rename(folder, &target).map_err(|e| Error::io(&target, e))?;
    // The folder has left its temporary name: nothing is to be removed.
    let _ = beside.keep();
    sync(output)?;
    Ok(target)
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

/// Puts a folder's files, and the folder itself, on disk.
fn sync_all(folder: &Path) -> Result<()> {
    for name in files::names(folder)? {
        let path = folder.join(name);
        if path.is_dir() { sync_all(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io(path, e))
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
fn check_settings(folder: &Path, theirs: &Value, ours: &Value) -> Result<()> {
    let empty = Map::new();
    let [theirs, ours] = [theirs, ours].map(|value| value.as_object().unwrap_or(&empty));
    for key in ours.keys().chain(theirs.keys()) {
        let [theirs, ours] = [theirs, ours].map(|map| map.get(key).unwrap_or(&Value::Null));
        if theirs != ours {
            return Err(Error::usage(format!(
                "--resume: {} was trained with {key} {theirs}, this run has {ours}",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// The SHA-256 of parameters' values, in table order.
pub fn digest_of_values(values: &[Vec<f32>]) -> String {
    let mut digest = Sha256::new();
    values.iter().for_each(|values| digest.update(bytemuck::cast_slice(values)));
    files::hex(&digest.finalize())
}
