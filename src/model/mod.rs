//! Encoders of the BERT family: what config.json says ([`config`]), which tensors that makes and how
//! they are called ([`params`]), and their bytes in a model folder ([`weights`], [`folder`]), which may be named as on the
//! Hugging Face hub ([`hub`]).
//!
//! Knows nothing of freezing, plans or devices.

pub mod config;
pub mod export;
pub mod folder;
pub mod hub;
mod names;
pub mod params;
pub mod weights;

pub use config::{Config, Family};
pub use folder::{ModelFolder, Source};
pub use params::{Group, Head, Linear, Network, Norm, Param, ParamId, Pooling};
pub use weights::WeightFile;
