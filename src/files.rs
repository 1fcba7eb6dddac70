//! Writing files so that nothing half-written is ever seen.

use std::io::Write;
use std::path::Path;

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
        .permissions(readable())
        .tempfile_in(folder)
        .map_err(|e| Error::io(path, e.kind().into()))?;
    file.write_all(bytes).map_err(|e| Error::io(path, e))?;
    file.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    file.persist(&target).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// What an ordinary new file gets; temporary files are private by default.
fn readable() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}

/// What an ordinary new folder gets.
pub fn folder_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o755)
}
