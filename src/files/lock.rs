//! One run at a time in a folder. The system gives a lock back when the process ends, however it ends.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::identity;
use crate::{Error, Result};

/// The lock on an output folder, while it lives. It lies beside the folder, which may not be there yet.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// Locked for as long as it is open.
    _file: File,
}

impl FolderLock {
    /// Takes the lock of the folder called `name` in `parent`.
    ///
    /// # Errors
    /// Another process has it; a lock that cannot be written beside the folder.
    pub fn take(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(format!(".frostline-{name}.lock"));
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|e| Error::io(&path, e))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let folder = parent.join(name);
                    return Err(Error::content(folder, "another run is writing into it"));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
            // Whoever had it before removed it when it was done: then this is a lock on nothing.
            let own = file.metadata().map_err(|e| Error::io(&path, e))?;
            use std::os::unix::fs::MetadataExt;
            if identity(&path) == Some((own.dev(), own.ino())) {
                return Ok(FolderLock { path, _file: file });
            }
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // While it is still held: nobody can have taken it in between. What is left behind would do no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_left() {
        let parent = tempfile::tempdir().unwrap();
        let first = FolderLock::take(parent.path(), "out").unwrap();
        let error = FolderLock::take(parent.path(), "out").unwrap_err().to_string();
        assert!(error.contains("another run"), "{error}");
        let _other = FolderLock::take(parent.path(), "other").unwrap();
        drop(first);
        drop(FolderLock::take(parent.path(), "out").unwrap());
        assert_eq!(super::super::names(parent.path()).unwrap(), [".frostline-other.lock"]);
        // What a killed process left behind is nobody's lock.
        std::fs::write(parent.path().join(".frostline-out.lock"), "").unwrap();
        FolderLock::take(parent.path(), "out").unwrap();
    }
}
