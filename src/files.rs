//! Writing files so that nothing half-written is ever seen; what they hold, as a hash; what a folder holds; where a
//! user's files are.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Writes `bytes` to `path` through a temporary file in the same folder, synced and then renamed. What a link
/// points to is replaced, not the link; a device or a pipe is written to.
///
/// # Errors
/// When the folder is missing or the file cannot be written; the temporary file is removed then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    // A file that is not there yet is written where its name stands, a link to nothing replaced.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if std::fs::metadata(&target).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return std::fs::write(&target, bytes).map_err(|e| Error::io(path, e));
    }
    let folder = match target.parent() {
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
    file.persist(&target).map_err(|e| Error::io(path, e.error))?;
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
