//! Puts new contents into a folder that may hold older ones and other people's files, so that whoever is cut off at any
//! moment finds a model: the old one whole, the new one whole, or none that loads and the new one whole beside it.
//!
//! One file says that there is a model, its configuration. It goes first and comes last. New files are copied into their
//! places, so that where they come from stays whole until the end, and can be copied by hand: links to the same file
//! cannot.

use std::path::Path;

use super::manifest::{MANIFEST, Manifest, NEXT, Owned};
use super::{sync, sync_all};
use crate::{Error, Result};

/// A file on its way to its place.
const COPY: &str = ".frostline-copy";

/// Replaces what `owned` lists in `target`, which is made if it is missing, by the files of `from` that `list` has; `key`
/// is the file without which the rest is nothing. Everything else in `target` stays as it is.
///
/// # Errors
/// A file of the new contents whose name something in `target` has that is not ours, before anything is touched; a
/// file that cannot be written.
pub fn switch(from: &Path, list: &Manifest, target: &Path, owned: &Owned, key: &str) -> Result<()> {
    refuse_conflicts(list, target, owned)?;
    sync_all(from)?;
    step(|| std::fs::create_dir_all(target), target)?;
    failpoint();
    list.write_next(target)?;
    let is_list = |path: &&str| ![MANIFEST, NEXT].contains(path);
    let mut old: Vec<&str> = owned.paths().filter(is_list).collect();
    old.sort_by_key(|path| *path != key);
    for path in old {
        remove_file(target, path)?;
    }
    let copy = target.join(COPY);
    let mut new: Vec<&str> = list.paths().filter(is_list).collect();
    new.sort_by_key(|path| *path == key);
    for path in new {
        let to = target.join(path);
        if let Some(folder) = to.parent() {
            step(|| std::fs::create_dir_all(folder), folder)?;
        }
        // Under another name first: half a file would not be known as ours again.
        step(|| std::fs::copy(from.join(path), &copy).map(drop), &copy)?;
        sync(&copy)?;
        step(|| std::fs::rename(&copy, &to), &to)?;
    }
    let (next, now) = (target.join(NEXT), target.join(MANIFEST));
    step(|| std::fs::rename(&next, &now), &now)?;
    sync(target)
}

/// Removes what `owned` lists in a folder, `key` first, and the folders that are then empty; other files stay.
///
/// # Errors
/// A file that cannot be removed.
pub fn remove_owned(folder: &Path, owned: &Owned, key: &str) -> Result<()> {
    let mut paths: Vec<&str> = owned.paths().collect();
    // The list goes last: until then all is known to be ours.
    paths.sort_by_key(|path| (*path == MANIFEST, *path != key));
    for path in paths {
        remove_file(folder, path)?;
    }
    // A folder with other files in it stays.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

/// Adds a file that belongs to what a folder holds, `bytes` under the name `name`.
///
/// # Errors
/// Something of that name that is not ours; a file that cannot be written.
pub fn add_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let owned = Owned::of(folder, &[])?;
    let path = folder.join(name);
    if path.symlink_metadata().is_ok() && !owned.contains(name) {
        return Err(Error::content(path, "no run of frostline wrote it: move it"));
    }
    super::write_atomically(&path, bytes)?;
    let mut list = Manifest::read(folder)?.unwrap_or_default();
    list.add(folder, name)?;
    list.write(folder)
}

/// The paths of new files that are taken in `target` by what is not ours.
pub fn conflicts<'a>(list: &'a Manifest, target: &Path, owned: &Owned) -> Vec<&'a str> {
    let is_taken =
        |path: &&str| target.join(path).symlink_metadata().is_ok() && !owned.contains(path);
    list.paths().filter(is_taken).collect()
}

/// # Errors
/// There are such paths.
fn refuse_conflicts(list: &Manifest, target: &Path, owned: &Owned) -> Result<()> {
    let taken = conflicts(list, target, owned);
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::content(
        target,
        format!(
            "holds {}, which no run of frostline wrote, or which was edited since: move it",
            taken.join(", ")
        ),
    ))
}

fn remove_file(folder: &Path, path: &str) -> Result<()> {
    let file = folder.join(path);
    step(|| std::fs::remove_file(&file), &file)?;
    // Folders that we made, once nothing is left in them.
    let inside = Path::new(path).ancestors().skip(1).filter(|inside| *inside != Path::new(""));
    for inside in inside {
        if std::fs::remove_dir(folder.join(inside)).is_err() {
            break;
        }
    }
    Ok(())
}

/// One operation of a switch.
fn step(operation: impl FnOnce() -> std::io::Result<()>, path: &Path) -> Result<()> {
    failpoint();
    operation().map_err(|e| Error::io(path, e))
}

/// In builds that are not for release, tests end the process before the operation whose number, from 0, stands in
/// FROSTLINE_END_BEFORE, as a kill would.
fn failpoint() {
    #[cfg(debug_assertions)]
    {
        use std::sync::atomic::{AtomicU64, Ordering};
        static N_DONE: AtomicU64 = AtomicU64::new(0);
        let at = N_DONE.fetch_add(1, Ordering::Relaxed);
        let end = std::env::var("FROSTLINE_END_BEFORE").ok().and_then(|text| text.parse().ok());
        if end == Some(at) {
            std::process::abort();
        }
    }
}
