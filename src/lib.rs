//! frostline trains BERT-family encoders with part of the network frozen, and measures what the
//! freeze really saves.
#![deny(unsafe_code)]

pub mod backend;
pub mod batch;
pub mod cli;
pub mod data;
pub mod error;
pub mod files;
pub mod freeze;
pub mod measure;
mod mmap;
pub mod model;
pub mod philox;
pub mod plan;
pub mod report;
pub mod session;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
