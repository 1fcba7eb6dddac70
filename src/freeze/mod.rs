//! Which parameters train: the spec grammar ([`spec`]), the mask that it gives ([`mask`]), and specs that follow
//! each other in a run ([`schedule`]).
//!
//! A mask is only a set of parameters. What a freeze removes from a step is decided by
//! `plan::prune` alone.

mod glob;
pub mod mask;
pub mod schedule;
pub mod spec;

pub use glob::Glob;
pub use mask::FreezeMask;
pub use schedule::{Begin, FreezeSchedule, FreezeState};
pub use spec::FreezeSpec;
