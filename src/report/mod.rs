//! Renderings of what was measured: tables for people ([`table`]), one JSON document for programs
//! ([`json`]), what others read ([`export`]), and a step op by op ([`profile`]).

pub mod environment;
pub mod export;
pub mod json;
pub mod profile;
pub mod table;

use crate::measure::scenarios::Measurement;
use crate::train::Quality;

/// A scenario with all that was measured of it.
pub struct Row {
    pub measurement: Measurement,
    /// Growth of the process's resident memory at its peak, where the system tells it.
    pub peak_measured: Option<usize>,
    /// With `--train`.
    pub training: Option<Training>,
}

/// What training a scenario gave.
pub struct Training {
    /// On the evaluation rows.
    pub eval: Quality,
    /// On the training rows.
    pub train: Quality,
    /// On the evaluation rows before training, for a scenario that starts from trained heads.
    pub before: Option<Quality>,
    pub seconds: f64,
    /// Frozen tensors that were compared with the file.
    pub n_proven: usize,
}
