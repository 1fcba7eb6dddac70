//! The plan as a value: what each freeze leaves of a step, what that costs and where it lies.

#[path = "../common/mod.rs"]
mod common;

mod costs;
mod floors;
mod golden;
mod layout;
mod masks;
mod oracle;
mod scenarios;

use std::collections::BTreeSet;

use common::{network_of, tiny_config};
use frostline::model::{Config, Family, Network, Pooling};
use frostline::plan::{BufId, Capacity, Op, Phase, Plan};

/// Room for the batches of these tests.
const CAPACITY: Capacity = Capacity { tokens: 90, sequences: 6, max_length: 33 };

/// The 3-layer, 2-task network of the scenarios.
fn network(pooling: Pooling) -> Network {
    network_of(&config(), pooling)
}

fn config() -> Config {
    tiny_config(Family::Bert, 3)
}

fn names(plan: &Plan, bufs: impl IntoIterator<Item = BufId>) -> BTreeSet<String> {
    bufs.into_iter().map(|buf| plan.buffer(buf).name.clone()).collect()
}

/// Names of all that the backward pass writes.
fn backward_writes(plan: &Plan) -> BTreeSet<String> {
    let backward = plan.ops.iter().filter(|op| op.phase() == Phase::Backward);
    names(plan, backward.flat_map(Op::writes))
}

/// Names of the activations that are kept for the backward pass.
fn saved(plan: &Plan) -> BTreeSet<String> {
    plan.saved_activations().into_iter().map(str::to_owned).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}
