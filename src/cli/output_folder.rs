//! Folders that commands write: a model whole or not at all, and nothing of anybody else's replaced.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::args::check_parent;
use crate::checkpoint;
use crate::files::lock::FolderLock;
use crate::files::manifest::{Manifest, NEXT, Owned};
use crate::model::ModelFolder;
use crate::model::folder::{CONFIG, WRITTEN_NAMES};
use crate::{Error, Result, files};

/// What lies beside the output while its contents are made: `.frostline-NAME-`, and random letters.
const BESIDE: &str = ".frostline-";

/// An output folder that this run alone writes into.
pub struct OutputFolder {
    /// As it was typed.
    typed: PathBuf,
    /// With links and `..` resolved, but for its own name.
    path: PathBuf,
    _lock: FolderLock,
}

/// Whether what is there may be replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Nothing of an earlier run.
    Refuse,
    /// An earlier run's model and checkpoints.
    Overwrite,
    /// An earlier run's model; the run goes on from its checkpoints.
    Resume,
}

impl OutputFolder {
    /// Takes the folder that `--output` names, before any work. `inputs` are files and folders that the run reads, each
    /// with the option that names it.
    ///
    /// # Errors
    /// A file in its place, a place that cannot be written, another run in it; an earlier model that is not to be
    /// replaced; files under the names that the run needs that are not ours; something of ours that the run reads.
    pub fn open(typed: &Path, existing: Existing, inputs: &[(&str, PathBuf)]) -> Result<Self> {
        check_parent("--output", typed)?;
        if typed.exists() && !typed.is_dir() {
            return Err(Error::content(typed, "--output: is a file, not a folder"));
        }
        if typed.is_symlink() && !typed.exists() {
            return Err(Error::content(typed, "--output: is a link to nothing"));
        }
        let (parent, name) = place_of(typed)?;
        let cannot = |error: &dyn std::fmt::Display| {
            let parent = parent.display();
            Error::content(typed, format!("--output: cannot be written to {parent}: {error}"))
        };
        let lock = FolderLock::take(&parent, &name).map_err(|error| match error {
            Error::Io { source, .. } => cannot(&source.kind()),
            other => other,
        })?;
        let path = parent.join(&name);
        let folder = OutputFolder { typed: typed.to_owned(), path, _lock: lock };
        folder.tell_of_unplaced(&parent, &name)?;
        if folder.path.is_dir() {
            folder.check_contents(existing, inputs)?;
        }
        Ok(folder)
    }

    fn check_contents(&self, existing: Existing, inputs: &[(&str, PathBuf)]) -> Result<()> {
        let owned = self.owned()?;
        let checkpoints = checkpoint::list(&self.path)?;
        let is_ours = owned.contains(CONFIG) || !checkpoints.is_empty();
        let is_there = |name: &&&str| self.path.join(name).symlink_metadata().is_ok();
        let foreign: Vec<&str> = (WRITTEN_NAMES.iter().filter(is_there))
            .filter(|name| !owned.contains(name))
            .copied()
            .collect();
        // Of a model that the run reads, moving it would be bad advice.
        let needed: Vec<PathBuf> = foreign.iter().map(|name| self.path.join(name)).collect();
        refuse_read(&self.typed, &needed, inputs)?;
        if !foreign.is_empty() {
            let files = foreign.join(", ");
            let problem = format!(
                "--output: holds {files}, which no run of frostline wrote, or which was edited since: move that, or \
                 name another folder"
            );
            return Err(Error::content(&self.typed, problem));
        }
        if is_ours && existing == Existing::Refuse {
            let cure = match checkpoints.is_empty() {
                true => "--overwrite",
                false => "--overwrite, or --resume to go on from its checkpoints",
            };
            return Err(Error::usage(format!(
                "--output {}: is there already, name another or add {cure}",
                self.typed.display()
            )));
        }
        let mut replaced: Vec<PathBuf> = owned.paths().map(|path| self.path.join(path)).collect();
        for (_, folder) in &checkpoints {
            let own = checkpoint::owned(folder)?;
            replaced.extend(own.paths().map(|path| folder.join(path)));
        }
        refuse_read(&self.typed, &replaced, inputs)
    }

    /// The files in the folder that are ours: by its list, or by their names where an older version, which made no
    /// lists, wrote a model.
    fn owned(&self) -> Result<Owned> {
        let has_own_settings = self.path.join("frostline.json").is_file();
        let is_model = has_own_settings
            && ModelFolder::open(&self.path).is_ok_and(|model| model.weights.is_some());
        Owned::of(&self.path, if is_model { WRITTEN_NAMES } else { &[] })
    }

    /// Lets `write` fill a new folder, then puts what it wrote in place of what was ours before.
    ///
    /// # Errors
    /// Those of `write`, which leave the output as it was; a folder that cannot be written, which leaves the new
    /// contents beside it.
    pub fn place(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let beside = self.beside()?;
        let written = beside.path().join("model");
        fs::create_dir(&written).map_err(|e| Error::io(&written, e))?;
        write(&written)?;
        let list = Manifest::of(&written)?;
        // Last: what has a list is whole.
        list.write_next(&written)?;
        let placed = (self.owned())
            .and_then(|owned| files::switch(&written, &list, &self.path, &owned, CONFIG));
        placed.map_err(|error| {
            // Hours of training must not go with the temporary folder.
            let kept = beside.keep().join("model");
            let cure = how_to_take(&kept, &self.typed);
            Error::content(&self.typed, format!("{error}; the new model {cure}"))
        })
    }

    /// Adds a file to the model that was placed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        files::add_file(&self.path, name, bytes)
    }

    fn beside(&self) -> Result<TempDir> {
        let (parent, name) = place_of(&self.path)?;
        tempfile::Builder::new()
            .prefix(&format!("{BESIDE}{name}-"))
            .permissions(files::folder_permissions())
            .tempdir_in(&parent)
            .map_err(|e| Error::io(&parent, e))
    }

    /// Says where a run lies that was ended while it put its model in place.
    fn tell_of_unplaced(&self, parent: &Path, name: &str) -> Result<()> {
        for model in unplaced(parent, name)? {
            eprintln!(
                "{}: an earlier run ended before its model was in place; the new model {}",
                self.typed.display(),
                how_to_take(&model, &self.typed)
            );
        }
        Ok(())
    }
}

/// Whole models that killed runs left beside the folder called `name` in `parent`.
fn unplaced(parent: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let prefix = format!("{BESIDE}{name}-");
    let names = files::names(parent)?.into_iter().filter(|one| one.starts_with(&prefix));
    let models = names.map(|one| parent.join(one).join("model"));
    Ok(models.filter(|model| model.join(NEXT).is_file()).collect())
}

/// What to say where a folder holds no model: where one lies that belongs there, if it does.
pub fn unplaced_hint(folder: &Path) -> Option<String> {
    let (parent, name) = place_of(folder).ok()?;
    let model = unplaced(&parent, &name).ok()?.into_iter().next()?;
    let cure = how_to_take(&model, folder);
    Some(format!("a run ended before its model was in place: it {cure}"))
}

/// Where a whole model lies, and the line that puts it into the folder that it was made for.
fn how_to_take(model: &Path, folder: &Path) -> String {
    let (from, to) = (model.display(), folder.display());
    format!("is whole in {from}: `mkdir -p {to} && cp -r {from}/. {to}` takes it")
}

/// The folder that holds a folder, links and `..` resolved, and its name in there.
fn place_of(folder: &Path) -> Result<(PathBuf, String)> {
    // What is there may be called `.` or `x/..`, or be a link.
    let resolved = match folder.canonicalize() {
        Ok(resolved) => resolved,
        Err(_) => {
            let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            let name = folder.file_name();
            let name = name
                .ok_or_else(|| Error::content(folder, "--output: is no name for a new folder"))?;
            parent.canonicalize().map_err(|e| Error::io(parent, e))?.join(name)
        }
    };
    let name = resolved.file_name().map(|name| name.to_string_lossy().into_owned());
    match (resolved.parent(), name) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name)),
        _ => Err(Error::content(folder, "--output: is no name for a folder")),
    }
}

/// Refuses files to be replaced or removed that the run reads, under whatever name.
fn refuse_read(output: &Path, replaced: &[PathBuf], inputs: &[(&str, PathBuf)]) -> Result<()> {
    for (option, input) in inputs {
        let read = match input.is_dir() {
            true => {
                let names = files::names(input)?.into_iter();
                names.map(|name| input.join(name)).filter(|path| path.is_file()).collect()
            }
            false => vec![input.clone()],
        };
        let identities: Vec<_> = read.iter().filter_map(|path| files::identity(path)).collect();
        let is_read = |file: &&PathBuf| {
            files::identity(file).is_some_and(|identity| identities.contains(&identity))
        };
        if let Some(file) = replaced.iter().find(is_read) {
            return Err(Error::usage(format!(
                "--output {}: would replace {}, which {option} {} reads, name another folder",
                output.display(),
                file.display(),
                input.display()
            )));
        }
    }
    Ok(())
}
