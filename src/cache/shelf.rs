//! Caches of several depths, for runs that follow one another.

use std::sync::Arc;

use super::files::{path_of, store, stored};
use super::fill::fill;
use super::{CacheOptions, CachePlace, PrefixCache, Values, fitting, n_bytes, n_rows};
use crate::backend::host::available_bytes;
use crate::data::Corpus;
use crate::plan::StepOptions;
use crate::plan::prefix::Prefix;
use crate::session::{Device, Session};
use crate::{Error, Result};

/// Caches of several depths of one network over one corpus.
///
/// As many as there is room for are filled in one pass. Where that is not all of them, what comes next is filled when it
/// is needed, again with as many as there is room for, and takes the place of what was there: filling again costs a
/// forward pass, which is known beforehand, where a cache that outgrows its memory costs nobody knows what. With files
/// ([`CachePlace::Disk`]) room is needed while they are written alone.
#[derive(Clone)]
pub struct Shelf {
    options: CacheOptions,
    device: Device,
    /// Bytes that may be filled at once.
    budget_bytes: u64,
    held: Vec<PrefixCache>,
}

impl Shelf {
    /// An empty shelf, which takes no more than the limit and half of the memory that there is now.
    pub fn new(options: &CacheOptions, device: Device) -> Self {
        let free = available_bytes().map_or(u64::MAX, |free| free as u64 / 2);
        let budget_bytes = match options.place {
            CachePlace::Off => 0,
            _ => options.limit_bytes.min(free),
        };
        Self { options: options.clone(), device, budget_bytes, held: Vec::new() }
    }

    /// Whether a prefix can be cached: alone, if need be.
    ///
    /// # Errors
    /// Where it cannot, although a place was asked for.
    pub fn takes(&self, corpus: &Corpus, prefix: &Prefix) -> Result<bool> {
        let n_bytes = n_bytes(corpus, prefix);
        let has_room =
            n_bytes <= self.budget_bytes && i32::try_from(n_rows(corpus, prefix.rows)).is_ok();
        match self.options.place {
            CachePlace::Off => Ok(false),
            CachePlace::Auto => Ok(has_room),
            _ if has_room => Ok(true),
            _ => Err(Error::usage(format!(
                "--cache-limit: the frozen part's output takes {:.1} MB, the limit or half of the memory is {:.1} MB",
                n_bytes as f64 / 1e6,
                self.budget_bytes as f64 / 1e6
            ))),
        }
    }

    /// The passes that fill the caches of `wanted`, which are wanted in this order, on an empty shelf.
    pub fn passes(&self, corpus: &Corpus, wanted: &[Prefix]) -> Vec<Vec<Prefix>> {
        let mut rest: Vec<(Prefix, u64)> =
            wanted.iter().map(|prefix| (*prefix, n_bytes(corpus, prefix))).collect();
        let mut passes = Vec::new();
        while !rest.is_empty() {
            let chosen = chosen(rest.iter().map(|(_, n_bytes)| *n_bytes), self.budget_bytes);
            passes.push(chosen.iter().map(|at| rest[*at].0).collect());
            let left = rest.into_iter().enumerate().filter(|(at, _)| !chosen.contains(at));
            rest = left.map(|(_, prefix)| prefix).collect();
        }
        passes
    }

    /// The cache of a prefix that [`Shelf::takes`], if it is there.
    pub fn find(&self, prefix: &Prefix) -> Option<&PrefixCache> {
        self.held.iter().find(|cache| cache.prefix == *prefix)
    }

    /// Fills the cache of the first of `wanted`, and with it those of as many of the others as there is room for;
    /// `session` has the frozen part's values, which are among `values`. `progress` is told of examples done.
    ///
    /// # Errors
    /// A file that cannot be written, values that are not finite, a device that fails, what `progress` ends it with.
    pub fn fill(
        &mut self,
        session: &mut Session,
        corpus: &Corpus,
        wanted: &[Prefix],
        step: &StepOptions,
        values: &[Vec<f32>],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let sizes = wanted.iter().map(|prefix| n_bytes(corpus, prefix));
        let chosen: Vec<Prefix> =
            chosen(sizes, self.budget_bytes).into_iter().map(|at| wanted[at]).collect();
        let is_file = self.options.place == CachePlace::Disk;
        if !is_file {
            let others = self.held.iter().map(|cache| cache.prefix);
            let all = others.filter(|one| !chosen.contains(one)).chain(chosen.iter().copied());
            let n_bytes: u64 = all.map(|prefix| n_bytes(corpus, &prefix)).sum();
            if n_bytes > self.budget_bytes {
                self.held.retain(|cache| chosen.contains(&cache.prefix));
            }
        }
        let mut missing: Vec<Prefix> =
            chosen.into_iter().filter(|prefix| self.find(prefix).is_none()).collect();
        let shape = |prefix: &Prefix| [n_rows(corpus, prefix.rows), prefix.cols];
        let path = |session: &Session, prefix: &Prefix| {
            path_of(&self.options.folder, session, corpus, prefix, values)
        };
        let mut filled: Vec<(Prefix, Values)> = Vec::new();
        if is_file {
            missing.retain(|prefix| match stored(&path(session, prefix), shape(prefix)) {
                Some(values) => {
                    filled.push((*prefix, values));
                    false
                }
                None => true,
            });
        }
        if !missing.is_empty() {
            let all = fill(session, corpus, &missing, step, progress)?;
            for (prefix, rows) in missing.iter().zip(all) {
                let rows: Values = match is_file {
                    true => store(&path(session, prefix), shape(prefix), rows)?,
                    false => Arc::new(rows),
                };
                filled.push((*prefix, rows));
            }
        }
        for (prefix, values) in filled {
            let on_device = match self.options.place {
                CachePlace::Auto => {
                    let place = fitting(session, self.device, n_bytes(corpus, &prefix))?;
                    place == CachePlace::Device
                }
                place => place == CachePlace::Device,
            };
            self.held.push(PrefixCache::new(corpus, prefix, values, on_device));
        }
        Ok(())
    }
}

/// Of things of these sizes the first, and of the others, in order, what still fits into the budget.
fn chosen(sizes: impl Iterator<Item = u64>, budget_bytes: u64) -> Vec<usize> {
    let mut sum = 0;
    let mut chosen = Vec::new();
    for (at, n_bytes) in sizes.enumerate() {
        if at == 0 || sum + n_bytes <= budget_bytes {
            sum += n_bytes;
            chosen.push(at);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_fit_in_the_order_in_which_they_are_wanted() {
        let of = |sizes: &[u64], budget| chosen(sizes.iter().copied(), budget);
        assert_eq!(of(&[5, 5, 5], 15), [0, 1, 2]);
        assert_eq!(of(&[5, 5, 5], 14), [0, 1]);
        assert_eq!(of(&[5, 8, 2], 9), [0, 2], "a small one behind a large one");
        assert_eq!(of(&[5], 4), [0], "what is needed now");
    }
}
