//! A scenario whose frozen prefix is cached: the cache of the batches that are measured.

use std::sync::Arc;

use crate::Result;
use crate::backend::PrefixRows;
use crate::batch::Batch;
use crate::freeze::FreezeMask;
use crate::plan::StepOptions;
use crate::plan::op::TensorRate;
use crate::plan::prefix::prefix_of;
use crate::session::{Session, Step};

/// The batches of a measurement with their rows of a filled cache.
pub(super) struct CachedBatches<'a> {
    originals: &'a [Batch],
    batches: Vec<Batch>,
    rows: PrefixRows,
    capacity_rows: usize,
}

impl<'a> CachedBatches<'a> {
    /// Computes the prefix that `mask` leaves for every batch, and compiles the step that reads it; None where there
    /// is no prefix.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        session: &mut Session,
        mask: &FreezeMask,
        options: &StepOptions,
        originals: &'a [Batch],
    ) -> Result<Option<(Step, Self)>> {
        let Some(prefix) = prefix_of(session.network(), mask, options) else {
            return Ok(None);
        };
        let compiled = session.compile_prefix(prefix.above, options)?;
        let mut values = Vec::new();
        let mut batches = originals.to_vec();
        for batch in &mut batches {
            let first = values.len() / prefix.cols;
            values.extend(session.prefix_rows(&compiled, batch)?);
            batch.prefix_rows = (first..values.len() / prefix.cols).map(|row| row as i32).collect();
        }
        let rows = PrefixRows { cols: prefix.cols, values: Arc::new(values), on_device: true };
        let capacity = options.capacity;
        let capacity_rows = prefix.rows.count(capacity.tokens, capacity.sequences);
        let step = session.compile_cached(mask, options, |_| TensorRate::default())?;
        Ok(Some((step, Self { originals, batches, rows, capacity_rows })))
    }

    /// Makes the cache the session's, and gives a batch with its rows of it.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn open(&self, session: &mut Session, batch: &'a Batch) -> Result<&Batch> {
        session.set_prefix(self.rows.clone(), self.capacity_rows)?;
        let is_it = |original: &Batch| std::ptr::eq(original, batch);
        // Whoever measures draws from the batches that this was made of.
        let at = self.originals.iter().position(is_it).expect("a batch of the measurement");
        Ok(&self.batches[at])
    }
}
