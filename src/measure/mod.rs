//! What runs are measured with: statistics of times ([`stats`]), the process's memory ([`memory`]),
//! what the machine can do and what a plan should therefore take ([`ceilings`]), and the
//! quality of predictions ([`metrics`]).

pub mod ceilings;
pub mod memory;
pub mod metrics;
pub mod stats;

pub use ceilings::Ceilings;
pub use metrics::{Confusion, argmax};
pub use stats::Interval;
