//! Writing files so that nothing half-written is ever seen, and nothing lost that somebody else wrote; what they hold, as
//! a hash; what a folder holds; where a user's files are.

pub mod lock;
pub mod manifest;
mod switch;

pub use self::switch::{add_file, conflicts, remove_owned, switch};

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Writes `bytes` to `path` through a temporary file in the same folder, synced and then renamed. A link is replaced, and
/// what it points to stays as it is; a device or a pipe, at the end of a link too, is written to.
///
/// # Errors
/// When the folder is missing or the file cannot be written; the temporary file is removed then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return std::fs::write(path, bytes).map_err(|e| Error::io(path, e));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".frostline-")
        .permissions(file_permissions())
        .tempfile_in(folder)
        .map_err(|e| Error::io(path, e.kind().into()))?;
    file.write_all(bytes).map_err(|e| Error::io(path, e))?;
    file.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// What an ordinary new file gets; temporary files are private by default.
pub fn file_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}

/// What an ordinary new folder gets.
pub fn folder_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o755)
}

/// The SHA-256 of a file, as `sha256sum` writes it.
///
/// # Errors
/// A file that cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    std::io::copy(&mut file, &mut digest).map_err(|e| Error::io(path, e))?;
    Ok(hex(&digest.finalize()))
}

/// Two hexadecimal digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts a folder's files, and the folder itself, on disk.
///
/// # Errors
/// A file that cannot be read, a disk that fails.
pub fn sync_all(folder: &Path) -> Result<()> {
    for name in names(folder)? {
        let path = folder.join(name);
        if path.is_dir() { sync_all(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

/// Puts a file, or the names in a folder, on disk.
///
/// # Errors
/// As [`sync_all`].
pub fn sync(path: &Path) -> Result<()> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io(path, e))
}

/// What a file is, whatever name or link it is reached by: its device and its number there. None where there is none.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The names in a folder, hidden ones too.
///
/// # Errors
/// A folder that cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect::<std::io::Result<_>>().map_err(|e| Error::io(folder, e))
}

/// Where programs keep what they can compute or fetch again (XDG Base Directory Specification); None where there is
/// no home folder.
pub fn user_cache() -> Option<PathBuf> {
    match std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => Some(std::env::home_dir()?.join(".cache")),
    }
}

/// A path whose `~` at the beginning, alone or before a slash, is the home folder; others (`~user` too) as they are.
pub fn expand_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_folder_has_a_short_name() {
        let home = std::env::home_dir().unwrap();
        let expanded = |path: &str| expand_home(path.into());
        assert_eq!(expanded("~/models"), home.join("models"));
        assert_eq!(expanded("~"), home);
        for path in ["~user/models", "/a/~/b", "a", "./~"] {
            assert_eq!(expanded(path), Path::new(path));
        }
    }
}
