//! frostline trains BERT-family encoders with part of the network frozen, and measures what the
//! freeze really saves.

pub mod batch;
pub mod data;
pub mod error;

pub use error::{Error, Result};
