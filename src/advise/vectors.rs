//! Vectors of the probed rows, behind every layer: computed in one forward pass, or found in the file that an earlier
//! advice left. They are the encoder's before any training, so that nothing that is asked about it changes them.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cache::add_values;
use crate::data::Corpus;
use crate::features::{Features, LayerVectors, layer_vectors};
use crate::files::hex;
use crate::model::weights::{NamedTensor, WeightFile, write};
use crate::model::{Group, Network};
use crate::session::Session;
use crate::{Error, Result};

/// Where vectors are kept.
#[derive(Clone, Debug)]
pub struct VectorStore {
    folder: PathBuf,
    /// Bytes that a file may have at most.
    limit_bytes: u64,
    /// Of the encoder's values.
    encoder: [u8; 32],
}

/// Where vectors came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Computed,
    /// Computed, and kept in this file.
    Written(PathBuf),
    Found(PathBuf),
    /// Computed, and so many bytes that they were not kept.
    TooLarge(u64),
}

impl VectorStore {
    /// A store for the vectors of a network whose parameters have these values, in table order.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn open(
        folder: &Path,
        limit_bytes: u64,
        network: &Network,
        values: &[Vec<f32>],
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let mut digest = Sha256::new();
        add_values(&mut digest, network, values, Group::Pooler);
        let encoder = digest.finalize().into();
        Ok(Self { folder: folder.to_owned(), limit_bytes, encoder })
    }

    /// The file of the vectors of some training rows, named by a hash of what their values depend on: the encoder, the
    /// tokens, the compute type and who computes. Another machine of the same kind rounds otherwise and finds it all the
    /// same.
    fn path(&self, session: &Session, corpus: &Corpus, rows: &[usize]) -> PathBuf {
        let mut digest = Sha256::new();
        // The number rises when the values change their meaning.
        digest.update(format!(
            "frostline vectors 1 {} {:?} {:?}",
            session.backend_name(),
            session.compute(),
            session.network().config
        ));
        digest.update(self.encoder);
        digest.update(corpus.train.digest_of_tokens());
        rows.iter().for_each(|row| digest.update((*row as u64).to_le_bytes()));
        self.folder.join(format!("{}.safetensors", hex(&digest.finalize())))
    }
}

/// The vectors of some training rows, see [`layer_vectors`]; `progress` is told of rows computed. A file that is not whole
/// is written anew.
///
/// # Errors
/// As [`layer_vectors`]; a file that cannot be written.
pub fn probed_vectors(
    session: &mut Session,
    corpus: &Corpus,
    rows: &[usize],
    store: Option<&VectorStore>,
    progress: impl Fn(usize),
) -> Result<(Vec<LayerVectors>, Origin)> {
    let network = session.network();
    let (n_depths, shape) = (network.layers.len() + 1, [rows.len(), network.config.hidden_size]);
    let n_bytes = (2 * n_depths * shape[0] * shape[1] * size_of::<f32>()) as u64;
    let path = match store {
        Some(store) if n_bytes <= store.limit_bytes => store.path(session, corpus, rows),
        _ => {
            let vectors = layer_vectors(session, corpus, &corpus.train, rows, progress)?;
            return Ok((vectors, store.map_or(Origin::Computed, |_| Origin::TooLarge(n_bytes))));
        }
    };
    if let Ok(vectors) = read(&path, n_depths, shape) {
        return Ok((vectors, Origin::Found(path)));
    }
    let vectors = layer_vectors(session, corpus, &corpus.train, rows, progress)?;
    let tensors = vectors.iter().enumerate().flat_map(|(depth, vectors)| {
        let tensor = |name: &str, features: &Features| {
            NamedTensor::f32(format!("{name}.{depth}"), shape.to_vec(), &features.values)
        };
        [tensor("mean", &vectors.mean), tensor("cls", &vectors.cls)]
    });
    write(&path, &tensors.collect::<Vec<_>>())?;
    Ok((vectors, Origin::Written(path)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::words::tests::{Row, corpus};
    use crate::model::{Config, Pooling};
    use crate::philox::normal;
    use crate::session::Engine;

    #[test]
    fn a_file_is_of_one_encoder_and_its_rows() {
        let labels = [Some(0)];
        let rows: [Row; 2] = [("cat", None, &labels), ("cat cat", None, &labels)];
        let (corpus, _) = corpus(&[2], [&rows, &[]], 8);
        let config = Config {
            hidden_size: 16,
            n_heads: 2,
            n_layers: 2,
            intermediate_size: 32,
            ..Config::published("bert-base").unwrap()
        };
        let network = Network::new(&config, None, &corpus.task_sizes(), Pooling::Pooler).unwrap();
        let values: Vec<Vec<f32>> = (network.param_ids())
            .map(|id| normal(1, id.0 as u32, network.param(id).n_elements(), 0.02))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = |values: &[Vec<f32>], rows: &[usize]| {
            let session = Engine::CPU.session(network.clone(), values.to_vec()).unwrap();
            let store = VectorStore::open(folder.path(), 0, &network, values).unwrap();
            store.path(&session, &corpus, rows)
        };
        let first = file(&values, &[0, 1]);
        assert_eq!(first, file(&values, &[0, 1]));
        for (at, param) in network.params.iter().enumerate() {
            let mut changed = values.clone();
            changed[at][0] += 1.0;
            let is_same = param.group >= Group::Pooler;
            let other = file(&changed, &[0, 1]);
            assert_eq!(other == first, is_same, "{}", param.name);
        }
        assert_ne!(first, file(&values, &[0]));
    }
}
