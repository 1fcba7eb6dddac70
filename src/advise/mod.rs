//! Where to put the frost line: what the data, the frozen encoder and the machine say about it, and a measured sweep.

pub mod agreement;
pub mod candidates;
pub mod forecast;
pub mod halving;
mod opening;
pub mod progress;
pub mod sweep;
pub mod verdict;
