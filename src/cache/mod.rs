//! The cached frozen prefix: what lies below the frost line is computed once per example, training rows and evaluation
//! rows alike, before the first step, and read in every epoch and every evaluation.
//!
//! The cache holds f32 whatever the compute type is: the residual stream at the frost line is f32, and anything
//! narrower would change results. One run has one cache ([`decide`]), runs at several depths have a [`Shelf`] of them.

mod files;
mod fill;
mod shelf;

use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use self::files::add_values;
use self::files::{path_of, store, stored};
use self::fill::fill;
pub use self::fill::fill_batches;
pub use self::shelf::Shelf;
use crate::backend::PrefixRows;
use crate::data::{Corpus, Split};
use crate::freeze::FreezeMask;
use crate::model::Group;
use crate::plan::prefix::{Prefix, prefix_of};
use crate::plan::{Rows, StepOptions};
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

/// Rows of a filled cache, by example of the corpus that it was filled from.
#[derive(Clone)]
pub struct PrefixCache {
    prefix: Prefix,
    rows: PrefixRows,
    starts: Starts,
}

/// The first row of each example: those to train on, and behind them those to evaluate on.
#[derive(Clone)]
struct Starts {
    train: Vec<usize>,
    eval: Vec<usize>,
}

/// What was decided about a cache, in words for people.
pub struct Decision {
    /// None where nothing is cached.
    pub cache: Option<PrefixCache>,
    pub text: String,
}

/// The values of a cache, wherever they lie.
type Values = Arc<dyn AsRef<[f32]> + Send + Sync>;

impl PrefixCache {
    fn new(corpus: &Corpus, prefix: Prefix, values: Values, on_device: bool) -> Self {
        let rows = PrefixRows { cols: prefix.cols, values, on_device };
        Self { prefix, rows, starts: Starts::new(corpus, prefix.rows) }
    }

    /// The rows as a backend takes them.
    pub fn rows(&self) -> PrefixRows {
        self.rows.clone()
    }

    /// The lowest part of the network that lies above it.
    pub fn above(&self) -> Group {
        self.prefix.above
    }

    /// The rows of some training examples, in the order in which they are given.
    pub fn train_rows(&self, corpus: &Corpus, examples: &[usize]) -> Vec<i32> {
        self.rows_of((&corpus.train, &self.starts.train), examples)
    }

    /// The rows of some evaluation examples, in the order in which they are given.
    pub fn eval_rows(&self, corpus: &Corpus, examples: &[usize]) -> Vec<i32> {
        self.rows_of((&corpus.eval, &self.starts.eval), examples)
    }

    fn rows_of(&self, (split, starts): (&Split, &[usize]), examples: &[usize]) -> Vec<i32> {
        let of = |&example: &usize| {
            let n = n_rows_of(split, example, self.prefix.rows);
            (starts[example]..starts[example] + n).map(|row| row as i32)
        };
        examples.iter().flat_map(of).collect()
    }
}

impl Starts {
    fn new(corpus: &Corpus, per: Rows) -> Self {
        let mut next = 0;
        let mut of = |split: &Split| {
            let start = |example| {
                let start = next;
                next += n_rows_of(split, example, per);
                start
            };
            (0..split.len()).map(start).collect()
        };
        Self { train: of(&corpus.train), eval: of(&corpus.eval) }
    }
}

/// Rows of one example in a cache.
fn n_rows_of(split: &Split, example: usize, per: Rows) -> usize {
    per.count(split.length(example), 1)
}

/// Rows of all examples.
fn n_rows(corpus: &Corpus, per: Rows) -> usize {
    let splits = [&corpus.train, &corpus.eval];
    splits.map(|split| per.count(split.n_tokens(), split.len())).iter().sum()
}

/// Bytes of a cache of a prefix over both splits of a corpus.
pub fn n_bytes(corpus: &Corpus, prefix: &Prefix) -> u64 {
    n_rows(corpus, prefix.rows) as u64 * prefix.cols as u64 * size_of::<f32>() as u64
}

/// Decides on a cache for the steps that `mask` leaves over the rows of `corpus`, and fills it; `values` are those
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
    let shape = [n_rows(corpus, prefix.rows), prefix.cols];
    let n_bytes = n_bytes(corpus, &prefix);
    let size = format!("{:.1} MB", n_bytes as f64 / 1e6);
    if is_auto && n_epochs <= 1.0 {
        return off("cache: off, a single epoch reads nothing twice".to_owned());
    }
    if n_bytes > options.limit_bytes || i32::try_from(shape[0]).is_err() {
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
    let fill = |session: &mut Session| -> Result<Vec<f32>> {
        let mut tell = |n: usize| {
            progress(n);
            Ok(())
        };
        let mut all = fill(session, corpus, &[prefix], step, &mut tell)?;
        Ok(all.remove(0))
    };
    let (values, what): (Values, String) = match place {
        CachePlace::Disk => {
            // Hashing the weights takes a while: only a file needs a name.
            let path = path_of(&options.folder, session, corpus, &prefix, values);
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
    let cache = PrefixCache::new(corpus, prefix, values, on_device);
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
