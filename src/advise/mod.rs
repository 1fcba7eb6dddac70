//! Where to put the frost line: what each layer already knows of a task, before anything trains.

mod folds;
pub mod layers;
pub mod noise;
pub mod scores;
pub mod separability;
