//! From files of labelled text to packed batches: tables, tasks and labels, tokens, epochs.
//!
//! ```text
//! CSV, TSV, JSON, Parquet -> Table -> Dataset (examples, label order, train and eval)
//!                         -> Tokenizer -> Encoded -> Packer -> Batch
//! ```
//!
//! Everything here is decided by the files and a seed: the order of labels, the hold-out, the order
//! of an epoch. The number of threads has no say in it.
//!
//! This module knows no plan, no backend and no weights. Of a model folder it reads the tokenizer's
//! own files; sizes that come from `config.json` (vocabulary, positions, padding id) and the label
//! order of a trained model are handed in.

pub mod corpus;
mod dataset;
mod even;
mod formats;
mod group;
mod labels;
mod outline;
mod pack;
#[cfg(feature = "parquet")]
mod parquet;
mod random;
mod source;
mod table;
mod tokenize;

pub use corpus::{Corpus, Split, TokenRules};
pub use dataset::{Dataset, Example, SourceCount, TaskInfo};
pub use outline::{TaskOutline, n_shared_texts};
pub use pack::{BatchLimit, Packer, Synthetic, batch_too_small, epoch_order, synthetic};
pub use random::SplitMix64;
pub use source::{TaskSource, check_task_name};
pub use table::Table;
pub use tokenize::{Encoded, Tokenizer, WordTokens, model_max_length};
