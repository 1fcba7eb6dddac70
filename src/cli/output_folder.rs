//! Model folders that commands write: whole or not at all.

use std::path::Path;

use tempfile::TempDir;

use super::args::check_parent;
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
    let is_empty = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty && !folder.join("config.json").is_file() {
        let problem = "--output: holds files and no model (no config.json), name another folder";
        return Err(Error::content(folder, problem));
    }
    if !is_empty && !overwrite {
        return Err(Error::usage(format!(
            "--output {}: is there already, name another or add --overwrite",
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
    std::fs::create_dir(&written).map_err(|e| Error::io(&written, e))?;
    write(&written)?;
    let replaced = beside.path().join("replaced");
    let placed = match output.exists() {
        true => std::fs::rename(output, &replaced),
        false => Ok(()),
    };
    placed.and_then(|()| std::fs::rename(&written, output)).map_err(|e| {
        // Hours of training must not go with the temporary folder.
        let kept = beside.keep();
        Error::content(output, format!("cannot be put in place ({e}): see {}", kept.display()))
    })
}
