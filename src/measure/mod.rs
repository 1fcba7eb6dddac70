//! What runs are measured with: statistics of times ([`stats`]), the process's memory ([`memory`]),
//! what the machine can do at most and what a plan should therefore take ([`ceilings`]), the step
//! of each freeze scenario beside its prediction ([`scenarios`]), and where its time goes ([`profile`]).

pub mod ceilings;
pub mod memory;
pub mod profile;
pub mod scenarios;
pub mod stats;

pub use ceilings::Ceilings;
pub use stats::Interval;
