//! Where to put the frost line: what the data, the frozen encoder and the machine say about it, and a measured sweep.

pub mod candidates;
pub mod costs;
pub mod figures;
pub mod heads;
pub mod recommend;
