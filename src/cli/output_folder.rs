//! Model folders that commands write: whole or not at all.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::args::check_parent;
use crate::checkpoint::is_checkpoint_name;
use crate::{Error, Result, files};

/// Refuses, before any work, an output that could not be put in its place later.
///
/// # Errors
/// A file, a folder of other things, a model folder without `overwrite`, a place that cannot be written.
pub fn check(output: &Path, overwrite: bool) -> Result<()> {
    check_parent("--output", output)?;
    if output.is_file() {
        return Err(Error::content(output, "--output: is a file, not a folder"));
    }
    if output.exists() {
        check_replaceable(output, overwrite)?;
    }
    // Only to know early that it can be written: what is interrupted leaves nothing.
    beside(output).map(drop)
}

/// Refuses to replace a folder that is no model folder, and a model folder unless asked to.
fn check_replaceable(folder: &Path, overwrite: bool) -> Result<()> {
    let names = files::names(folder)?;
    if names.is_empty() {
        return Ok(());
    }
    let has_checkpoints = names.iter().any(|name| is_checkpoint_name(name));
    let has_others = names.iter().any(|name| !is_checkpoint_name(name));
    // What was cut off while it was put in place has no config.json, but always checkpoints.
    if has_others && !has_checkpoints && !folder.join("config.json").is_file() {
        let problem = "--output: holds files and no model (no config.json), name another folder";
        return Err(Error::content(folder, problem));
    }
    if !overwrite {
        let cure = if has_checkpoints {
            "--overwrite, or --resume to go on from its checkpoints"
        } else {
            "--overwrite"
        };
        return Err(Error::usage(format!(
            "--output {}: is there already, name another or add {cure}",
            folder.display()
        )));
    }
    Ok(())
}

/// A temporary folder beside the output.
fn beside(output: &Path) -> Result<TempDir> {
    if output.file_name().is_none() {
        return Err(Error::content(output, "--output: is no name for a new folder"));
    }
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .prefix(".frostline-")
        .permissions(files::folder_permissions())
        .tempdir_in(parent)
        .map_err(|e| {
            let problem =
                format!("--output: cannot be written to {}: {}", parent.display(), e.kind());
            Error::content(output, problem)
        })
}

/// Lets `write` fill a new folder, then puts it where `output` says.
///
/// # Errors
/// Those of `write`, which leave the output as it was; a folder that cannot be renamed.
pub fn place(output: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = beside(output)?;
    let written = beside.path().join("model");
    fs::create_dir(&written).map_err(|e| Error::io(&written, e))?;
    write(&written)?;
    if output.is_dir() && files::names(output)?.iter().any(|name| is_checkpoint_name(name)) {
        return move_into(&written, output);
    }
    let replaced = beside.path().join("replaced");
    let placed = match output.exists() {
        true => fs::rename(output, &replaced),
        false => Ok(()),
    };
    placed.and_then(|()| fs::rename(&written, output)).map_err(|e| {
        // Hours of training must not go with the temporary folder.
        let kept = beside.keep();
        Error::content(output, format!("cannot be put in place ({e}): see {}", kept.display()))
    })
}

/// Replaces the model in a folder with checkpoints, which stay. Whoever is cut off here leaves no folder that looks
/// like a model, and can go on from a checkpoint: the configuration goes first and comes last.
fn move_into(written: &Path, output: &Path) -> Result<()> {
    const CONFIG: &str = "config.json";
    let by_rank = |names: Vec<String>, config_first: bool| {
        let mut names: Vec<String> =
            names.into_iter().filter(|name| !is_checkpoint_name(name)).collect();
        names.sort_by_key(|name| (name == CONFIG) != config_first);
        names
    };
    for name in by_rank(files::names(output)?, true) {
        let path = output.join(name);
        let is_folder = path.is_dir() && !path.is_symlink();
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| Error::io(&path, e))?;
    }
    for name in by_rank(files::names(written)?, false) {
        let target = output.join(&name);
        fs::rename(written.join(&name), &target).map_err(|e| Error::io(&target, e))?;
    }
    Ok(())
}
