//! Caches as files, for later runs: each is named by a hash of everything that its values depend on, so that a stale
//! one is never found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Values;
use crate::data::Corpus;
use crate::files::hex;
use crate::mmap::MappedFile;
use crate::model::weights::{NamedTensor, WeightFile, write};
use crate::model::{Group, Network};
use crate::plan::prefix::Prefix;
use crate::session::Session;
use crate::{Error, Result};

/// The one tensor of a file.
const TENSOR: &str = "prefix";

/// The file of a cache in `folder`, by a hash of what the values depend on: the frozen parameters, the tokens, the
/// depth, the compute type and who computes (another device rounds otherwise).
pub(super) fn path_of(
    folder: &Path,
    session: &Session,
    corpus: &Corpus,
    prefix: &Prefix,
    values: &[Vec<f32>],
) -> PathBuf {
    let mut digest = Sha256::new();
    let network = session.network();
    let facts = format!(
        "frostline prefix 2 {} {:?} {:?} {:?} {:?}",
        session.backend_name(),
        session.compute(),
        prefix,
        network.pooling,
        network.config
    );
    digest.update(facts);
    add_values(&mut digest, network, values, prefix.above);
    for split in [&corpus.train, &corpus.eval] {
        digest.update(split.digest_of_tokens());
    }
    folder.join(format!("{}.safetensors", hex(&digest.finalize())))
}

/// Adds the parameters below `above` to a digest, by name and value; `values` are those of all, in table order.
pub fn add_values(digest: &mut Sha256, network: &Network, values: &[Vec<f32>], above: Group) {
    for (param, values) in network.params.iter().zip(values) {
        if param.group < above {
            digest.update(&param.name);
            digest.update(bytemuck::cast_slice::<f32, u8>(values));
        }
    }
}

/// The values of a file that is there and whole.
pub(super) fn stored(path: &Path, shape: [usize; 2]) -> Option<Values> {
    // Opening checks the header against the file's length.
    let file = WeightFile::open_file(path).ok()?;
    (file.shape(TENSOR) == Some(&shape)).then(|| map(path, shape).ok()).flatten()
}

/// Writes values to a file, and gives them as they lie there.
///
/// # Errors
/// A file or folder that cannot be written.
pub(super) fn store(path: &Path, shape: [usize; 2], values: Vec<f32>) -> Result<Values> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    write(path, &[NamedTensor::f32(TENSOR, shape.to_vec(), &values)])?;
    drop(values);
    map(path, shape)
}

/// A file's values where they lie.
struct Mapped {
    file: MappedFile,
    n_values: usize,
}

impl AsRef<[f32]> for Mapped {
    fn as_ref(&self) -> &[f32] {
        // The one tensor lies at the end, and its beginning was checked to be aligned.
        let bytes = self.file.bytes();
        bytemuck::cast_slice(&bytes[bytes.len() - self.n_values * size_of::<f32>()..])
    }
}

fn map(path: &Path, [n_rows, cols]: [usize; 2]) -> Result<Values> {
    let file = MappedFile::open(path)?;
    let n_bytes = n_rows * cols * size_of::<f32>();
    let values = file.bytes().len().checked_sub(n_bytes).map(|begin| &file.bytes()[begin..]);
    if values.is_none_or(|values| bytemuck::try_cast_slice::<u8, f32>(values).is_err()) {
        return Err(Error::content(path, "is no cache: its values are not aligned"));
    }
    Ok(Arc::new(Mapped { file, n_values: n_rows * cols }))
}
