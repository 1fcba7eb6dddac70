//! What a run wrote into a folder, by name and SHA-256, so that nothing else in it is ever replaced or removed.
//!
//! The list lies beside what it lists. A file belongs to us while it is what the list says; one that somebody edited,
//! or put in its place, does not. While a folder's contents are being switched a second list, of what is to come, lies
//! beside the first, and a file of either is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{sha256_of, write_atomically};
use crate::{Error, Result};

/// The list of what is there.
pub const MANIFEST: &str = "frostline-manifest.json";
/// The list of what is to come, while contents are switched: beside the new contents, and in the folder that they go
/// into. Who copies the one to the other keeps the folder's own list.
pub const NEXT: &str = ".frostline-manifest-next.json";

/// The form of the list.
const VERSION: u32 = 1;

/// Files of a folder, by their paths from it with `/` between names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// SHA-256 by path.
    files: BTreeMap<String, String>,
}

impl Default for Manifest {
    fn default() -> Self {
        Manifest { version: VERSION, files: BTreeMap::new() }
    }
}

impl Manifest {
    /// Lists all that is in a folder which nobody else has written into.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut manifest = Manifest::default();
        for path in paths_below(folder)? {
            if path != MANIFEST && path != NEXT {
                let hash = sha256_of(&folder.join(&path))?;
                manifest.files.insert(path, hash);
            }
        }
        Ok(manifest)
    }

    /// The list in a folder; None where there is none.
    ///
    /// # Errors
    /// A list that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        read_list(&folder.join(MANIFEST))
    }

    /// Writes the list into its folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.write_as(folder, MANIFEST)
    }

    /// Writes it as the list of what is to come.
    ///
    /// # Errors
    /// As [`Manifest::write`].
    pub fn write_next(&self, folder: &Path) -> Result<()> {
        self.write_as(folder, NEXT)
    }

    fn write_as(&self, folder: &Path, name: &str) -> Result<()> {
        let path = folder.join(name);
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::content(&path, e.to_string()))?;
        write_atomically(&path, format!("{text}\n").as_bytes())
    }

    /// Adds a file of the folder as it is now.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn add(&mut self, folder: &Path, path: &str) -> Result<()> {
        self.files.insert(path.to_owned(), sha256_of(&folder.join(path))?);
        Ok(())
    }

    /// The paths that are listed.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

fn read_list(path: &Path) -> Result<Option<Manifest>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|e| Error::content(path, format!("is no list of files: {e}")))?;
    match manifest.version {
        VERSION => Ok(Some(manifest)),
        other => Err(Error::content(
            path,
            format!("version is {other}, this program knows {VERSION}: a newer one wrote it"),
        )),
    }
}

/// The files of a folder that may be replaced or removed, by their paths from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned(BTreeSet<String>);

impl Owned {
    /// Looks through a folder, which may be missing. Where there is no list, as in folders of older versions, the
    /// files of the names `unlisted` are ours, of those that are there.
    ///
    /// # Errors
    /// A folder or a file that cannot be read.
    pub fn of(folder: &Path, unlisted: &[&str]) -> Result<Self> {
        let lists = [MANIFEST, NEXT].map(|name| read_list(&folder.join(name)));
        let [now, next] = lists;
        let (now, next) = (now?, next?);
        let mut owned = BTreeSet::new();
        if now.is_none() && next.is_none() {
            let is_there = |name: &&&str| is_plain_file(&folder.join(name));
            owned.extend(unlisted.iter().filter(is_there).map(|name| (*name).to_owned()));
            return Ok(Owned(owned));
        }
        for (path, hash) in now.iter().chain(&next).flat_map(|list| &list.files) {
            let file = folder.join(path);
            if is_safe(path) && is_plain_file(&file) && sha256_of(&file)? == *hash {
                owned.insert(path.clone());
            }
        }
        for name in [MANIFEST, NEXT] {
            if is_plain_file(&folder.join(name)) {
                owned.insert(name.to_owned());
            }
        }
        Ok(Owned(owned))
    }

    /// Whether the file at this path is ours.
    pub fn contains(&self, path: &str) -> bool {
        self.0.contains(path)
    }

    /// All paths, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Whether a path stays below the folder that it is from: a list may have been edited.
fn is_safe(path: &str) -> bool {
    let is_name = |part: std::path::Component| matches!(part, std::path::Component::Normal(_));
    Path::new(path).components().all(is_name)
}

/// Whether something is a file and no link.
pub(super) fn is_plain_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// The paths of all files below a folder, links not followed.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn paths_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(inside) = folders.pop() {
        for name in super::names(&folder.join(&inside))? {
            let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
            let kind = std::fs::symlink_metadata(folder.join(&path))
                .map_err(|e| Error::io(folder.join(&path), e))?;
            if kind.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_edited_added_or_linked_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("1_Pooling")).unwrap();
        for name in ["config.json", "model.safetensors", "1_Pooling/config.json", "linked"] {
            std::fs::write(at(name), name).unwrap();
        }
        Manifest::of(folder.path()).unwrap().write(folder.path()).unwrap();
        std::fs::write(at("config.json"), "edited").unwrap();
        std::fs::write(at("notes.txt"), "mine").unwrap();
        std::fs::remove_file(at("linked")).unwrap();
        std::fs::write(at("elsewhere"), "linked").unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("linked")).unwrap();
        let owned = Owned::of(folder.path(), &["notes.txt"]).unwrap();
        let paths: Vec<&str> = owned.paths().collect();
        assert_eq!(paths, ["1_Pooling/config.json", MANIFEST, "model.safetensors"]);
    }

    #[test]
    fn a_list_reaches_no_file_outside_its_folder() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("out");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(outer.path().join("dear"), "dear").unwrap();
        let hash = sha256_of(&outer.path().join("dear")).unwrap();
        let list = serde_json::json!({ "version": 1, "files": { "../dear": hash } });
        std::fs::write(folder.join(MANIFEST), list.to_string()).unwrap();
        let owned = Owned::of(&folder, &[]).unwrap();
        assert_eq!(owned.paths().collect::<Vec<_>>(), [MANIFEST]);
    }

    #[test]
    fn without_a_list_the_names_of_older_versions_are_ours() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "notes.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let owned = Owned::of(folder.path(), &["config.json", "frostline.json"]).unwrap();
        assert_eq!(owned.paths().collect::<Vec<_>>(), ["config.json"]);
        let absent = folder.path().join("absent");
        assert_eq!(Owned::of(&absent, &["config.json"]).unwrap(), Owned::default());
    }
}
