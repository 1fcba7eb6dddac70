//! What measured steps run on: batches of real texts, or synthetic ones of a given size.

use std::borrow::Cow;

use serde::Serialize;

use super::args::{ModelArgs, full_capacity, parse_task_size, task_sizes};
use super::data_args::{BatchArgs, DataArgs, longest, longest_text};
use crate::Result;
use crate::backend::host::{available_bytes, refuse_if_short};
use crate::batch::Batch;
use crate::data::{Corpus, Synthetic, batch_too_small, synthetic};
use crate::freeze::FreezeMask;
use crate::measure::scenarios::MeasureOptions;
use crate::model::{Network, Source};
use crate::plan::{Capacity, Layout, StepOptions, compile};

/// Texts, or the sizes of what stands for them.
pub enum Workload {
    Real {
        corpus: Box<Corpus>,
        /// Tokens that a row has at most.
        length: usize,
    },
    Synthetic {
        /// Tasks and their numbers of labels.
        sizes: Vec<(String, usize)>,
        /// Tokens of every row.
        length: usize,
    },
}

/// The options of a measurement, for its document.
#[derive(Serialize)]
pub struct Settings<'a, Own: Serialize> {
    model: Option<Cow<'a, str>>,
    arch: Option<&'a str>,
    tasks: &'a [String],
    #[serde(flatten)]
    options: &'a MeasureOptions,
    /// Of one command alone.
    #[serde(flatten)]
    own: Own,
}

impl<'a, Own: Serialize> Settings<'a, Own> {
    pub fn new(
        model: &'a ModelArgs,
        data: &'a DataArgs,
        options: &'a MeasureOptions,
        own: Own,
    ) -> Self {
        Self {
            model: model.model.as_ref().map(|dir| dir.to_string_lossy()),
            arch: model.arch.as_deref(),
            tasks: &data.tasks,
            options,
            own,
        }
    }
}

impl Workload {
    /// Reads the tasks' files; tasks given as NAME=N are synthetic.
    ///
    /// # Errors
    /// As [`DataArgs::corpus`]; tasks of both kinds.
    pub fn open(
        data: &DataArgs,
        max_length: Option<usize>,
        source: &Source,
        seed: u64,
    ) -> Result<Self> {
        let mut n_sized = 0;
        for text in &data.tasks {
            n_sized += usize::from(parse_task_size(text)?.is_some());
        }
        if n_sized == 0 {
            let corpus = Box::new(data.corpus(source, max_length, seed)?);
            let length = match source {
                Source::Folder(folder) => longest_text(folder, max_length)?,
                Source::Published(config) => longest(max_length, config, 512)?,
            };
            return Ok(Workload::Real { corpus, length });
        }
        let length = longest(max_length, source.config(), 128)?;
        Ok(Workload::Synthetic { sizes: task_sizes(&data.tasks)?, length })
    }

    /// The tasks and their numbers of labels.
    pub fn task_sizes(&self) -> Vec<(String, usize)> {
        match self {
            Workload::Real { corpus, .. } => corpus.task_sizes(),
            Workload::Synthetic { sizes, .. } => sizes.clone(),
        }
    }

    /// Tokens that a row has at most.
    pub fn max_length(&self) -> usize {
        match self {
            Workload::Real { length, .. } | Workload::Synthetic { length, .. } => *length,
        }
    }

    /// Up to `n_batches` different full batches of real texts, or one synthetic batch, whose baseline step
    /// with `options` must fit into memory.
    ///
    /// # Errors
    /// A batch that is too large.
    pub fn batches(
        &self,
        size: &BatchArgs,
        network: &Network,
        n_batches: usize,
        seed: u64,
        options: impl FnOnce(Capacity) -> StepOptions,
    ) -> Result<Vec<Batch>> {
        match self {
            Workload::Real { corpus, .. } => {
                let epoch = corpus.epoch(size.limit(), seed, 0)?;
                // The last batch of an epoch may be a remainder, which would measure something else.
                let n_full = epoch.len().saturating_sub(1).max(1);
                let chosen = epoch.iter().take(n_full.min(n_batches));
                Ok(chosen.map(|indices| corpus.pack(&corpus.train, indices)).collect())
            }
            Workload::Synthetic { sizes, length } => {
                let n_sequences = match size.batch_tokens {
                    Some(tokens) if tokens < *length => {
                        return Err(batch_too_small(tokens, *length));
                    }
                    Some(tokens) => tokens / length,
                    None => size.batch_size,
                };
                let capacity = full_capacity(n_sequences, *length)?;
                // Before the batch itself takes memory.
                let baseline = FreezeMask::none(network.params.len());
                let layout = Layout::new(&compile(network, &baseline, &options(capacity)));
                if let Some(free) = available_bytes() {
                    refuse_if_short(layout.memory.total(), free, capacity, &layout)?;
                }
                let shape = Synthetic {
                    n_sequences,
                    length: *length,
                    vocab_size: network.config.vocab_size,
                    pad_id: network.config.pad_token_id.map(|id| id as usize),
                    n_labels: sizes.iter().map(|(_, n_labels)| *n_labels).collect(),
                    positions: network.config.position_scheme(),
                };
                Ok(vec![synthetic(&shape, seed)?])
            }
        }
    }
}
