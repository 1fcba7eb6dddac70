//! The cache's layout, as Hugging Face's libraries have it:
//!
//! ```text
//! models--org--name/refs/main                     the commit that the name means
//!                   snapshots/COMMIT/config.json  a link to
//!                   blobs/ETAG                    the content
//!                   .no_exist/COMMIT/vocab.txt    empty: that commit has no such file
//! ```

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::is_plain;
use crate::{Error, Result, files};

/// Begins the names of files that are not whole.
const UNFINISHED: &str = ".frostline-";

/// An unfinished file that nothing was written to for so long is left from a process that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// One repository in the cache.
pub struct Cached {
    folder: PathBuf,
}

/// Why a file did not come into the cache.
pub enum Interrupted {
    /// Said of its URL.
    Network(String),
    Disk(Error),
}

impl Cached {
    pub fn new(cache: &Path, repo: &str) -> Self {
        Self { folder: cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// The commit that the cache knows a revision as; a commit itself, where there is a snapshot of it.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let known = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let known = known.map(|text| text.trim().to_owned()).filter(|commit| is_plain(commit));
        known.or_else(|| self.snapshot(revision).is_dir().then(|| revision.to_owned()))
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether a file is there, and not only a link to nothing.
    pub fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Whether the hub was asked for a file that it does not have.
    pub fn is_known_absent(&self, commit: &str, file: &str) -> bool {
        self.absent(commit, file).is_file()
    }

    /// Notes that the hub does not have a file, if the cache can be written: without the note it is asked again.
    pub fn note_absent(&self, commit: &str, file: &str) {
        let path = self.absent(commit, file);
        let _ = create_parent(&path).map(|_| File::create(&path));
    }

    /// Notes which commit a revision is; a commit needs no note.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        files::write_atomically(&path, commit.as_bytes())
    }

    /// A blob that is there already, perhaps for another revision.
    pub fn blob(&self, etag: &str) -> Option<PathBuf> {
        Some(self.folder.join("blobs").join(etag)).filter(|path| path.is_file())
    }

    /// Writes a blob: beside its place first, and there only when as many bytes came as should, with the hash that
    /// `etag` is of large files. `tell` is told how many more bytes are here.
    ///
    /// # Errors
    /// A body that ends early or is another, a cache that cannot be written; nothing is left behind then.
    pub fn store(
        &self,
        etag: &str,
        n_bytes: Option<u64>,
        mut body: impl Read,
        tell: &mut dyn FnMut(u64),
    ) -> std::result::Result<PathBuf, Interrupted> {
        let path = self.folder.join("blobs").join(etag);
        let disk = |e: std::io::Error| Interrupted::Disk(Error::io(&path, e));
        create_parent(&path).map_err(Interrupted::Disk)?;
        let folder = self.folder.join("blobs");
        remove_abandoned(&folder);
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .suffix(".incomplete")
            .permissions(files::file_permissions())
            .tempfile_in(&folder)
            .map_err(|e| disk(e.kind().into()))?;
        let (mut digest, mut n_read) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 16];
        let expected = n_bytes.map(|n| format!(" of {n}")).unwrap_or_default();
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let problem = format!("broke off after {n_read}{expected} bytes ({e})");
                    return Err(Interrupted::Network(problem));
                }
            };
            file.write_all(&buffer[..n]).map_err(disk)?;
            digest.update(&buffer[..n]);
            n_read += n as u64;
            tell(n as u64);
        }
        if n_bytes.is_some_and(|n| n != n_read) {
            return Err(Interrupted::Network(format!("ended after {n_read}{expected} bytes")));
        }
        let sha256 = files::hex(&digest.finalize());
        // Small files bear git's hash, which is shorter.
        if etag.len() == sha256.len() && etag != sha256 {
            return Err(Interrupted::Network(format!("has the SHA-256 {sha256}, not {etag}")));
        }
        file.as_file().sync_all().map_err(disk)?;
        file.persist(&path).map_err(|e| disk(e.error))?;
        Ok(path)
    }

    /// Puts a blob into a commit's snapshot under its name there.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let parent = create_parent(&path)?;
        // From snapshots/COMMIT, and from as many folders below it as the name has.
        let mut target = PathBuf::from("../..");
        target.extend(file.matches('/').map(|_| ".."));
        let target = target.join("blobs").join(blob.file_name().unwrap_or_default());
        // Beside it first: a link to nothing may stand in its place.
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .make_in(parent, |beside| std::os::unix::fs::symlink(&target, beside))
            .and_then(|link| link.into_temp_path().persist(&path).map_err(|e| e.error))
            .map_err(|e| Error::io(&path, e))
    }
}

/// Makes the folder that a file is to lie in, and returns it.
fn create_parent(path: &Path) -> Result<&Path> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    Ok(parent)
}

/// Removes what killed downloads have left. Whoever cannot be removed does no harm.
fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
        if is_ours && age.is_ok_and(|age| age.is_ok_and(|age| age > ABANDONED)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in a folder, none where there is no folder.
    fn names(folder: &Path) -> Vec<String> {
        files::names(folder).unwrap_or_default()
    }

    fn store(cached: &Cached, etag: &str, n_bytes: u64, body: &[u8]) -> Option<String> {
        match cached.store(etag, Some(n_bytes), body, &mut |_| {}) {
            Ok(_) => None,
            Err(Interrupted::Network(problem)) => Some(problem),
            Err(Interrupted::Disk(error)) => Some(error.to_string()),
        }
    }

    #[test]
    fn only_whole_blobs_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let cached = Cached::new(root.path(), "org/name");
        let blobs = root.path().join("models--org--name/blobs");
        assert!(store(&cached, "abc", 6, b"short").unwrap().contains("after 5 of 6 bytes"));
        assert!(store(&cached, "abc", 4, b"longer").unwrap().contains("after 6 of 4 bytes"));
        let sha256 = files::hex(&Sha256::digest(b"right"));
        assert!(store(&cached, &sha256, 5, b"wrong").unwrap().contains("SHA-256"));
        assert!(names(&blobs).is_empty(), "{:?}", names(&blobs));
        assert_eq!(store(&cached, &sha256, 5, b"right"), None);
        assert_eq!(names(&blobs), [sha256.as_str()]);
    }

    #[test]
    fn links_replace_links_to_nothing() {
        let root = tempfile::tempdir().unwrap();
        let cached = Cached::new(root.path(), "name");
        cached.link("c0", "1_Pooling/config.json", Path::new("absent")).unwrap();
        assert!(!cached.has("c0", "1_Pooling/config.json"));
        assert_eq!(store(&cached, "abc", 4, b"text"), None);
        let blob = cached.blob("abc").unwrap();
        cached.link("c0", "1_Pooling/config.json", &blob).unwrap();
        assert!(cached.has("c0", "1_Pooling/config.json"));
        assert_eq!(names(&cached.snapshot("c0").join("1_Pooling")), ["config.json"]);
    }

    #[test]
    fn revisions() {
        let root = tempfile::tempdir().unwrap();
        let cached = Cached::new(root.path(), "name");
        assert_eq!(cached.commit_of("main"), None);
        cached.set_ref("main", "c0").unwrap();
        assert_eq!(cached.commit_of("main").as_deref(), Some("c0"));
        assert_eq!(cached.commit_of("c0"), None, "no snapshot of it");
        fs::create_dir_all(cached.snapshot("c0")).unwrap();
        assert_eq!(cached.commit_of("c0").as_deref(), Some("c0"));
        // A damaged note must not lead out of the cache.
        fs::write(root.path().join("models--name/refs/main"), "../../..").unwrap();
        assert_eq!(cached.commit_of("main"), None);
    }

    #[test]
    fn what_was_abandoned_goes() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join(".frostline-a"), root.path().join(".frostline-b"));
        let other = root.path().join("abc");
        for path in [&old, &new, &other] {
            fs::write(path, "").unwrap();
        }
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED;
        for path in [&old, &other] {
            File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        }
        remove_abandoned(root.path());
        assert!(!old.exists() && new.exists() && other.exists());
    }
}
