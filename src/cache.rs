//! The cached frozen prefix: what lies below the frost line is computed once per example, before the first step, and
//! read in every epoch.
//!
//! The cache holds f32 whatever the compute type is: the residual stream at the frost line is f32, and anything
//! narrower would change results. A file is named by a hash of everything that the values depend on, so that a stale
//! one is never found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::backend::PrefixRows;
use crate::batch::Batch;
use crate::data::{Corpus, Split};
use crate::files::hex;
use crate::freeze::FreezeMask;
use crate::mmap::MappedFile;
use crate::model::weights::{NamedTensor, WeightFile, write};
use crate::plan::prefix::{Prefix, prefix_of};
use crate::plan::{Capacity, Rows, StepOptions};
use crate::session::{Device, Session};
use crate::{Error, Result};

/// Where a cache lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CachePlace {
    /// Where it fits, the fastest place first; nowhere where it would not pay.
    Auto,
    /// The device's own memory; the host's where the device is the CPU.
    Device,
    /// This process's memory.
    Host,
    /// A file, memory-mapped, for later runs too.
    Disk,
    /// Nothing is cached.
    Off,
}

/// What may be cached where.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    pub place: CachePlace,
    /// The folder of files.
    pub folder: PathBuf,
    /// Bytes that a cache may have at most.
    pub limit_bytes: u64,
}

/// Rows of a filled cache, by example of the split that it was filled from.
pub struct PrefixCache {
    rows: PrefixRows,
    per: Rows,
    /// The first row of each example.
    starts: Vec<usize>,
}

/// What was decided about a cache, in words for people.
pub struct Decision {
    /// None where nothing is cached.
    pub cache: Option<PrefixCache>,
    pub text: String,
}

/// Sequences of a batch that fills a cache: it is a forward pass alone and may be large.
const FILL_SEQUENCES: usize = 64;

/// The values of a cache, wherever they lie.
type Values = Arc<dyn AsRef<[f32]> + Send + Sync>;

/// The one tensor of a file.
const TENSOR: &str = "prefix";

impl PrefixCache {
    /// The rows as a backend takes them.
    pub fn rows(&self) -> PrefixRows {
        self.rows.clone()
    }

    /// The rows of the examples of a batch, in its order.
    pub fn rows_of(&self, split: &Split, examples: &[usize]) -> Vec<i32> {
        let of = |&example: &usize| {
            let n = n_rows_of(split, example, self.per);
            (self.starts[example]..self.starts[example] + n).map(|row| row as i32)
        };
        examples.iter().flat_map(of).collect()
    }
}

/// Decides on a cache for the steps that `mask` leaves over `corpus`'s training rows, and fills it; `values` are those
/// that the session was opened with, `progress` is told of examples done.
///
/// # Errors
/// A cache that was asked for and cannot be: nothing is frozen below what trains, it is larger than the limit. A file
/// that cannot be written, a device that fails.
pub fn decide(
    session: &mut Session,
    corpus: &Corpus,
    mask: &FreezeMask,
    step: &StepOptions,
    (options, device, n_epochs): (&CacheOptions, Device, f64),
    values: &[Vec<f32>],
    progress: impl Fn(usize),
) -> Result<Decision> {
    let off = |text: String| Ok(Decision { cache: None, text });
    if options.place == CachePlace::Off {
        return off("cache: off".to_owned());
    }
    let is_auto = options.place == CachePlace::Auto;
    let Some(prefix) = prefix_of(session.network(), mask, step) else {
        let problem = "nothing is frozen below what trains";
        return match is_auto {
            true => off(format!("cache: off, {problem}")),
            false => Err(Error::usage(format!("--cache: {problem}"))),
        };
    };
    let n_rows = prefix.rows.count(corpus.train.n_tokens(), corpus.train.len());
    let n_bytes = n_rows as u64 * prefix.cols as u64 * size_of::<f32>() as u64;
    let size = format!("{:.1} MB", n_bytes as f64 / 1e6);
    if is_auto && n_epochs <= 1.0 {
        return off("cache: off, a single epoch reads nothing twice".to_owned());
    }
    if n_bytes > options.limit_bytes || i32::try_from(n_rows).is_err() {
        let limit = format!("{:.1} MB", options.limit_bytes as f64 / 1e6);
        let problem = format!("the frozen part's output takes {size}, the limit is {limit}");
        return match is_auto {
            true => off(format!("cache: off, {problem} (--cache-limit)")),
            false => Err(Error::usage(format!("--cache-limit: {problem}"))),
        };
    }
    let place = match options.place {
        CachePlace::Auto => fitting(session, device, n_bytes)?,
        place => place,
    };
    let starts = starts(&corpus.train, prefix.rows);
    let shape = [n_rows, prefix.cols];
    let fill =
        |session: &mut Session| fill(session, corpus, &prefix, step, &starts, shape, progress);
    let (values, what): (Values, String) = match place {
        CachePlace::Disk => {
            // Hashing the weights takes a while: only a file needs a name.
            let key = key(session, corpus, &prefix, values);
            let path = options.folder.join(format!("{key}.safetensors"));
            match stored(&path, shape) {
                Some(values) => (values, format!("found: {}", path.display())),
                None => {
                    (store(&path, shape, fill(session)?)?, format!("written: {}", path.display()))
                }
            }
        }
        CachePlace::Device if device != Device::Cpu => {
            (Arc::new(fill(session)?), "filled in the device's memory".to_owned())
        }
        _ => (Arc::new(fill(session)?), "filled in memory".to_owned()),
    };
    let on_device = place == CachePlace::Device;
    let rows = PrefixRows { cols: prefix.cols, values, on_device };
    let cache = PrefixCache { rows, per: prefix.rows, starts };
    Ok(Decision { cache: Some(cache), text: format!("cache: {size}, {what}") })
}

/// The fastest place with room for the cache twice over: the step needs memory too.
fn fitting(session: &Session, device: Device, n_bytes: u64) -> Result<CachePlace> {
    let has_room = |free: Option<usize>| free.is_none_or(|free| n_bytes <= free as u64 / 2);
    if device != Device::Cpu && has_room(session.free_bytes()?) {
        return Ok(CachePlace::Device);
    }
    match has_room(crate::backend::host::available_bytes()) {
        true => Ok(CachePlace::Host),
        false => Ok(CachePlace::Disk),
    }
}

/// Rows of one example in a cache.
fn n_rows_of(split: &Split, example: usize, per: Rows) -> usize {
    per.count(split.length(example), 1)
}

fn starts(split: &Split, per: Rows) -> Vec<usize> {
    let mut next = 0;
    let start = |example| {
        let start = next;
        next += n_rows_of(split, example, per);
        start
    };
    (0..split.len()).map(start).collect()
}

/// A hash of what the values depend on: the frozen parameters, the tokens, the depth, the compute type and who
/// computes (another device rounds otherwise).
fn key(session: &Session, corpus: &Corpus, prefix: &Prefix, values: &[Vec<f32>]) -> String {
    let mut digest = Sha256::new();
    let network = session.network();
    let facts = format!(
        "frostline prefix 1 {} {:?} {:?} {:?} {:?}",
        session.backend_name(),
        session.compute(),
        prefix,
        network.pooling,
        network.config
    );
    digest.update(facts);
    for (param, values) in network.params.iter().zip(values) {
        if param.group < prefix.above {
            digest.update(&param.name);
            digest.update(bytemuck::cast_slice::<f32, u8>(values));
        }
    }
    digest.update(corpus.train.digest_of_tokens());
    hex(&digest.finalize())
}

/// Runs every training row through the prefix once.
fn fill(
    session: &mut Session,
    corpus: &Corpus,
    prefix: &Prefix,
    step: &StepOptions,
    starts: &[usize],
    [n_rows, cols]: [usize; 2],
    progress: impl Fn(usize),
) -> Result<Vec<f32>> {
    // Texts of a length together, so that no long one makes room that others do not need.
    let mut by_length: Vec<usize> = (0..corpus.train.len()).collect();
    by_length.sort_by_key(|&example| corpus.train.length(example));
    let chunks = || by_length.chunks(FILL_SEQUENCES);
    let batches: Vec<Batch> =
        chunks().map(|examples| corpus.pack(&corpus.train, examples)).collect();
    // With the training step's dropout, which its own pruning removes here as there: the same ops remain.
    let options = StepOptions { capacity: Capacity::of(&batches), ..*step };
    let compiled = session.compile_prefix(prefix.above, &options)?;
    let mut values = vec![f32::NAN; n_rows * cols];
    for (batch, examples) in batches.iter().zip(chunks()) {
        let rows = session.prefix_rows(&compiled, batch)?;
        let mut rest = rows.as_slice();
        for &example in examples {
            let n = n_rows_of(&corpus.train, example, prefix.rows);
            let (own, behind) = rest.split_at(n * cols);
            values[starts[example] * cols..][..n * cols].copy_from_slice(own);
            rest = behind;
        }
        progress(examples.len());
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::Run(format!(
            "the frozen part gives {} in row {}",
            values[at],
            at / cols
        )));
    }
    Ok(values)
}

/// The values of a file that is there and whole.
fn stored(path: &Path, shape: [usize; 2]) -> Option<Values> {
    // Opening checks the header against the file's length.
    let file = WeightFile::open_file(path).ok()?;
    (file.shape(TENSOR) == Some(&shape)).then(|| map(path, shape).ok()).flatten()
}

fn store(path: &Path, shape: [usize; 2], values: Vec<f32>) -> Result<Values> {
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
