//! Vectors of the probed rows, behind every layer: computed in one forward pass, or found in the file that an earlier
//! advice left. They are the untrained encoder's, so that nothing that is asked about it changes them.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::data::Corpus;
use crate::features::{Features, LayerVectors, layer_vectors};
use crate::files::hex;
use crate::model::Group;
use crate::model::weights::{NamedTensor, WeightFile, write};
use crate::session::Session;
use crate::{Error, Result};

/// Where vectors are kept.
#[derive(Clone, Copy)]
pub struct VectorStore<'a> {
    pub folder: &'a Path,
    /// The values that the session was opened with.
    pub values: &'a [Vec<f32>],
}

/// Where vectors came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Computed,
    /// Computed, and kept in this file.
    Written(PathBuf),
    Found(PathBuf),
}

/// The vectors of some training rows, see [`layer_vectors`]; `progress` is told of rows computed.
///
/// A file is named by a hash of all that the values depend on: the encoder's parameters and shape, the rows' tokens, the
/// compute type and who computes. One that is not whole is written anew.
///
/// # Errors
/// As [`layer_vectors`]; a file that cannot be written.
pub fn probed_vectors(
    session: &mut Session,
    corpus: &Corpus,
    rows: &[usize],
    store: Option<VectorStore>,
    progress: impl Fn(usize),
) -> Result<(Vec<LayerVectors>, Origin)> {
    let Some(store) = store else {
        let vectors = layer_vectors(session, corpus, &corpus.train, rows, progress)?;
        return Ok((vectors, Origin::Computed));
    };
    let path = path_of(&store, session, corpus, rows);
    let network = session.network();
    let (n_depths, shape) = (network.layers.len() + 1, [rows.len(), network.config.hidden_size]);
    if let Ok(vectors) = read(&path, n_depths, shape) {
        return Ok((vectors, Origin::Found(path)));
    }
    let vectors = layer_vectors(session, corpus, &corpus.train, rows, progress)?;
    std::fs::create_dir_all(store.folder).map_err(|e| Error::io(store.folder, e))?;
    let tensors = vectors.iter().enumerate().flat_map(|(depth, vectors)| {
        let tensor = |name: &str, features: &Features| {
            NamedTensor::f32(format!("{name}.{depth}"), shape.to_vec(), &features.values)
        };
        [tensor("mean", &vectors.mean), tensor("cls", &vectors.cls)]
    });
    write(&path, &tensors.collect::<Vec<_>>())?;
    Ok((vectors, Origin::Written(path)))
}

fn path_of(store: &VectorStore, session: &Session, corpus: &Corpus, rows: &[usize]) -> PathBuf {
    let network = session.network();
    let mut digest = Sha256::new();
    digest.update(format!(
        "frostline vectors 1 {} {:?} {:?}",
        session.backend_name(),
        session.compute(),
        network.config
    ));
    for (param, values) in network.params.iter().zip(store.values) {
        if param.group < Group::Pooler {
            digest.update(&param.name);
            digest.update(bytemuck::cast_slice::<f32, u8>(values));
        }
    }
    digest.update(corpus.train.digest_of_tokens());
    rows.iter().for_each(|row| digest.update((*row as u64).to_le_bytes()));
    store.folder.join(format!("{}.safetensors", hex(&digest.finalize())))
}

/// The vectors behind so many depths, each `[rows, D]`.
fn read(path: &Path, n_depths: usize, shape: [usize; 2]) -> Result<Vec<LayerVectors>> {
    let file = WeightFile::open_file(path)?;
    let features = |name: &str, depth: usize| -> Result<Features> {
        let values = file.read_f32(&format!("{name}.{depth}"), &shape)?;
        Ok(Features { values, cols: shape[1] })
    };
    let depth =
        |depth| Ok(LayerVectors { mean: features("mean", depth)?, cls: features("cls", depth)? });
    (0..n_depths).map(depth).collect()
}
