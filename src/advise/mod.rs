//! Where to put the frost line: what the data set is like, before anything is trained.

pub mod rows;
pub mod words;
