//! Tensors in safetensors files: one file, or the shards of an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::mmap::MappedFile;
use crate::tensor::{self, DType};
use crate::{Error, Result};

/// All weights in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Which shard has which weights.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// What `model.safetensors.index.json` says.
#[derive(serde::Deserialize)]
struct Index {
    /// The shard of each tensor, a plain file name.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|e| Error::content(path, format!("is not a weight index: {e}")))?;
        for name in index.shards() {
            // It becomes part of a URL, too.
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let is_plain = Path::new(name).file_name() == Some(name.as_ref());
            if !is_plain || !name.chars().all(is_allowed) {
                let problem = format!(
                    "weight_map names {name:?}, which is not a plain file name of letters, digits, `.`, `_` and `-`"
                );
                return Err(Error::content(path, problem));
            }
        }
        Ok(index)
    }

    /// Each shard once, in alphabetical order.
    fn shards(&self) -> BTreeSet<&String> {
        self.weight_map.values().collect()
    }
}

/// The names of the shards that an index lists, plain file names all.
///
/// # Errors
/// A file that cannot be read or is no index.
pub fn shard_names(index: &Path) -> Result<Vec<String>> {
    Ok(Index::read(index)?.shards().into_iter().cloned().collect())
}

/// One safetensors file, mapped, with its parsed header.
struct Shard {
    path: PathBuf,
    file: MappedFile,
    data_start: usize,
}

/// Where a tensor's bytes lie.
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes from the shard's `data_start`.
    start: usize,
    end: usize,
}

/// All tensors of a model folder, memory-mapped: nothing is read before it is asked for.
pub struct WeightFile {
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

impl WeightFile {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists, in `dir`.
    ///
    /// # Errors
    /// Neither file there, or one that is not whole.
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        let mut file = WeightFile { shards: Vec::new(), entries: BTreeMap::new() };
        if single.exists() {
            file.add(&single)?;
        } else if index.exists() {
            file.add_shards(dir, &index)?;
        } else {
            return Err(no_weights(dir));
        }
        Ok(file)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// A file that cannot be read or is not whole.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut file = WeightFile { shards: Vec::new(), entries: BTreeMap::new() };
        file.add(path)?;
        Ok(file)
    }

    fn add_shards(&mut self, dir: &Path, index: &Path) -> Result<()> {
        let parsed = Index::read(index)?;
        for name in parsed.shards() {
            self.add(&dir.join(name))?;
        }
        for (tensor, shard) in &parsed.weight_map {
            if !self.entries.contains_key(tensor) {
                let problem = format!("weight_map puts {tensor} into {shard}, which lacks it");
                return Err(Error::content(index, problem));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = MappedFile::open(path)?;
        // The crate checks the header's length, its JSON, and that the tensors fill the file exactly.
        let (data_start, metadata) = safetensors::SafeTensors::read_metadata(file.bytes())
            .map(|(header, metadata): (usize, Metadata)| (header + size_of::<u64>(), metadata))
            .map_err(|e| match unreadable_tensor(file.bytes()) {
                Some((name, why)) => Error::content(path, format!("{name} cannot be read: {why}")),
                None => Error::content(path, format!("is not a whole safetensors file: {e}")),
            })?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            if data_start.saturating_add(end) > file.bytes().len() {
                let problem = format!("is not a whole safetensors file: {name} is cut off");
                return Err(Error::content(path, problem));
            }
            let (dtype, shape) = (info.dtype, info.shape.clone());
            let entry = Entry { shard: self.shards.len(), dtype, shape, start, end };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(Error::content(path, format!("{name} stands in two shards")));
            }
        }
        self.shards.push(Shard { path: path.to_owned(), file, data_start });
        Ok(())
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape of the tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The path that messages about this tensor name: its shard.
    pub fn path_of(&self, name: &str) -> &Path {
        &self.shards[self.entries.get(name).map_or(0, |entry| entry.shard)].path
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries
            .get(name)
            .ok_or_else(|| Error::content(self.path_of(name), format!("{name} is missing")))
    }

    fn entry_bytes(&self, entry: &Entry) -> &[u8] {
        let shard = &self.shards[entry.shard];
        &shard.file.bytes()[shard.data_start..][entry.start..entry.end]
    }

    /// The tensor's own bytes.
    ///
    /// # Errors
    /// No tensor of this name.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(self.entry_bytes(self.entry(name)?))
    }

    /// The floating type that the file stores the tensor in.
    ///
    /// # Errors
    /// No tensor of this name, or one that is not f32, f16 or bf16.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self.entry(name)?.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::Bf16),
            other => Err(Error::content(
                self.path_of(name),
                format!("{name} has dtype {other:?}, expected F32, F16 or BF16"),
            )),
        }
    }

    /// The tensor as f32, after checking its shape and that every value is finite.
    ///
    /// # Errors
    /// A missing tensor, another shape or type, NaN or infinity.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            let problem = format!("{name} has shape {:?}, expected {shape:?}", entry.shape);
            return Err(Error::content(self.path_of(name), problem));
        }
        let values = tensor::to_f32(self.dtype(name)?, self.entry_bytes(entry));
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let problem = format!("{name} holds {} at element {at}", values[at]);
            return Err(Error::content(self.path_of(name), problem));
        }
        Ok(values)
    }

    /// The tensor as whole numbers (i32 or i64 in the file), after checking its shape.
    ///
    /// # Errors
    /// A missing tensor, another shape or type, or a value beyond 32 bits.
    pub fn read_i32(&self, name: &str, shape: Option<&[usize]>) -> Result<Vec<i32>> {
        let entry = self.entry(name)?;
        let path = self.path_of(name);
        if let Some(shape) = shape
            && entry.shape != shape
        {
            let problem = format!("{name} has shape {:?}, expected {shape:?}", entry.shape);
            return Err(Error::content(path, problem));
        }
        let bytes = self.entry_bytes(entry);
        match entry.dtype {
            Dtype::I32 => {
                Ok(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
            }
            Dtype::I64 => (bytes.as_chunks::<8>().0.iter())
                .map(|b| {
                    let value = i64::from_le_bytes(*b);
                    i32::try_from(value).map_err(|_| {
                        Error::content(path, format!("{name} holds {value}, beyond 32 bits"))
                    })
                })
                .collect(),
            other => Err(Error::content(
                path,
                format!("{name} has dtype {other:?}, expected I64 or I32"),
            )),
        }
    }
}

/// What is wrong with a folder without weights.
pub fn no_weights(dir: &Path) -> Error {
    Error::content(dir, format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}"))
}

/// A tensor to be written.
pub struct NamedTensor {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl NamedTensor {
    /// An f32 tensor.
    pub fn f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes = tensor::from_f32(DType::F32, values);
        Self { name: name.into(), dtype: DType::F32, shape, bytes }
    }
}

/// Writes `tensors` to `path`: beside it first, then renamed, so that no half file is ever seen.
///
/// # Errors
/// When the file cannot be written; nothing is left behind then.
pub fn write(path: &Path, tensors: &[NamedTensor]) -> Result<()> {
    let views = tensors.iter().map(|t| {
        let dtype = match t.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
            DType::I32 => Dtype::I32,
        };
        let view = safetensors::tensor::TensorView::new(dtype, t.shape.clone(), &t.bytes)
            .expect("a tensor's bytes are made from its shape and type");
        (t.name.as_str(), view)
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(format))
        .map_err(|e| Error::content(path, format!("cannot be written as safetensors: {e}")))?;
    crate::files::write_atomically(path, &bytes)
}

/// The first tensor in a header whose entry says nothing that the crate knows (a newer dtype, say), and why; the
/// crate's own message gives a place in the header alone.
fn unreadable_tensor(file: &[u8]) -> Option<(String, String)> {
    let (length, rest) = file.split_first_chunk()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.into_iter().filter(|(name, _)| name != "__metadata__").find_map(|(name, info)| {
        let error = serde_json::from_value::<TensorInfo>(info).err()?;
        Some((name, error.to_string()))
    })
}
