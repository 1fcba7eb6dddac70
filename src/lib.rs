//! frostline trains encoders of the BERT family with two or more task heads, and measures what
//! freezing part of the network really saves.
//!
//! # The flow
//!
//! ```text
//! model folder -> weights -> Network -> FreezeMask -> plan (step, prune, fuse, layout)
//!              -> backend -> session -> train | measure -> report
//! ```
//!
//! A [`plan::Plan`] is a value: an ordered list of ops over numbered buffers with concrete shapes, each
//! buffer written once. It can be printed, compared, costed and verified with no device. Freezing is
//! deletion: [`plan::step`] writes the step in which everything trains, and [`plan::prune`()] removes
//! the optimizer updates of frozen tensors and then all that fed only those. There is no "if frozen"
//! anywhere else; whoever wants to know what trains asks the plan.
//!
//! ```
//! use frostline::freeze::FreezeSpec;
//! use frostline::model::{Config, Network, Pooling};
//! use frostline::plan::{Capacity, Counts, Layout, StepOptions, compile};
//! use frostline::tensor::DType;
//!
//! # fn main() -> frostline::Result<()> {
//! let config = Config::published("minilm-l6")?;
//! let tasks = [("topic".to_owned(), 4), ("sentiment".to_owned(), 3)];
//! let network = Network::new(&config, None, &tasks, Pooling::Mean)?;
//! let capacity = Capacity { tokens: 32 * 64, sequences: 32, max_length: 64 };
//! let options = StepOptions {
//!     dropout: true,
//!     max_grad_norm: Some(1.0),
//!     ..StepOptions::plain(capacity, DType::F32)
//! };
//!
//! let counts = Counts::full(capacity, tasks.len());
//! let mut flops = Vec::new();
//! for spec in ["none", "lower:3", "backbone"] {
//!     let mask = FreezeSpec::parse(spec)?.mask(&network)?;
//!     let plan = compile(&network, &mask, &options);
//!     flops.push(plan.total_cost(&counts).flops);
//!     println!("{}", plan.print(&Layout::new(&plan), &counts));
//! }
//! // The backbone's forward pass is a third of the step.
//! assert!(flops[0] > flops[1] && flops[1] > flops[2] && 3 * flops[2] < flops[0] * 11 / 10);
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//!
//! | module | what it is for | what it refuses to know |
//! |---|---|---|
//! | [`error`], [`tensor`], [`batch`], [`philox`], [`files`], [`sums`] | the vocabulary | everything else |
//! | [`model`] | config.json, parameter table, weight files, model folders, models by name | freezing, plans |
//! | [`data`] | tables, tasks, labels, tokens, batches | models, plans |
//! | [`freeze`] | the spec grammar and the mask | what a mask removes |
//! | [`plan`] | the step: ops, pruning, fusion, cost, layout, printing | I/O, devices |
//! | [`backend`] | running plans: reference (f64), CPU, and CUDA kernels on a GPU or emulated | models, masks, files, scenarios |
//! | [`session`] | a network's values on a backend | data, scenarios |
//! | [`cache`] | what lies below the frost line, computed once | training |
//! | [`predict`], [`features`] | labels, probabilities and embeddings of texts, hidden states | rendering |
//! | [`probe`] | logistic regression on fixed vectors | where vectors are from |
//! | [`train`] | epochs, evaluation, the proof of freezing, what training changed | rendering |
//! | [`measure`] | statistics, memory, ceilings, scenarios | rendering |
//! | [`advise`] | where to put the frost line, from data, frozen features, cost and a measured sweep | rendering |
//! | [`doctor`] | every kernel of a device against the reference | rendering |
//! | [`report`] | tables and JSON | how figures came about |
//! | [`cli`] | arguments in, a call, a rendering out | arithmetic |
//!
//! Imports point down this list. [`guide`] is for users: which freeze for which task, with measured examples.
//!
//! # Letters
//!
//! The same in Rust, in reports and in kernels: B sequences, T tokens, D width, H heads, Dh head size,
//! F feed-forward width, V vocabulary, L layers, C labels; M, N, K for products only. Gradients are `d`
//! and the name. Units end a name: `_bytes`, `_flops`, `_ms`.
//!
//! # What holds everywhere
//!
//! - One op, one name: the variant of [`plan::Op`], the function of [`backend::host::Ops`] and the row
//!   of a report are called alike.
//! - A cost or a skip that the printed plan does not show does not exist; [`plan::cost`] is the only
//!   place where FLOPs and bytes are written down.
//! - Results do not depend on the number of threads.
//! - Every kernel runs on the emulator too, under any schedule with the same bits.
//! - `unsafe` stands in three places: the memory map of weight files, the call of the GEMM crate, and the
//!   devices of [`backend::cuda`].
#![deny(unsafe_code)]

pub mod advise;
pub mod backend;
pub mod batch;
pub mod cache;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod doctor;
pub mod error;
pub mod features;
pub mod files;
pub mod freeze;
pub mod measure;
mod mmap;
pub mod model;
pub mod philox;
pub mod plan;
pub mod predict;
pub mod probe;
pub mod report;
pub mod session;
pub mod sums;
pub mod tensor;
pub mod train;

#[doc = include_str!("../docs/which_freeze.md")]
pub mod guide {
    #[doc = include_str!("../docs/advise.md")]
    pub mod advice {}
}

pub use error::{Error, Result};
