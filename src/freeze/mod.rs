//! Which parameters train: the spec grammar ([`spec`]) and the mask that it gives ([`mask`]).
//!
//! A mask is only a set of parameters. What a freeze removes from a step is decided by
//! `plan::prune` alone.

pub mod mask;
pub mod spec;

pub use mask::FreezeMask;
pub use spec::FreezeSpec;
