//! Reading what a command wrote, down to the bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// A tensor as it lies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// All tensors of one file.
pub fn read_file(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let raw = |view: safetensors::tensor::TensorView| Raw {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    tensors.into_iter().map(|(name, view)| (name, raw(view))).collect()
}

/// The parameters of a model folder, from one file or from shards; buffers of integers are none.
pub fn read_model(folder: &Path) -> BTreeMap<String, Raw> {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            tensors.extend(read_file(&folder.join(name)));
        }
    }
    tensors.retain(|_, raw| raw.dtype != Dtype::I64);
    tensors
}

/// The metadata of one file.
pub fn metadata(path: &Path) -> HashMap<String, String> {
    let bytes = fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().clone().unwrap_or_default()
}
