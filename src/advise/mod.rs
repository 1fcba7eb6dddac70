//! Where to put the frost line: what the data ([`words`], [`rows`]), the frozen encoder ([`layers`], [`scores`],
//! [`noise`]) and the machine ([`costs`]) say about it, what follows ([`recommend`]), and a measured sweep ([`sweep`])
//! that overrules it.

pub mod agreement;
pub mod candidates;
pub mod costs;
mod counts;
pub mod figures;
mod folds;
pub mod forecast;
pub mod halving;
pub mod heads;
pub mod layers;
pub mod noise;
mod opening;
pub mod paired;
mod plans;
pub mod progress;
pub mod recommend;
pub mod revise;
pub mod rows;
pub mod sample;
pub mod scores;
pub mod separability;
pub mod survey;
pub mod sweep;
pub mod vectors;
pub mod verdict;
pub mod votes;
pub mod words;
