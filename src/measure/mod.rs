//! What runs are measured with: statistics of times ([`stats`]), the process's memory ([`memory`]),
//! what the machine can do at most and what a plan should therefore take ([`ceilings`]), what it really takes beside
//! that ([`pace`]) and is bound by ([`regime`]), the step of each freeze scenario beside its prediction ([`scenarios`]) and against itself ([`aa`]), a GPU's clocks
//! and energy meanwhile ([`power`]), where a saving did not
//! come ([`findings`]), where a step's time goes ([`profile`]), and what several GPUs would make of it ([`scale`]).

pub mod aa;
pub mod ceilings;
pub mod findings;
pub mod memory;
pub mod pace;
pub mod power;
mod prefix;
pub mod profile;
pub mod regime;
pub mod scale;
pub mod scenarios;
pub mod stats;

pub use ceilings::Ceilings;
pub use pace::Pace;
pub use stats::Interval;
