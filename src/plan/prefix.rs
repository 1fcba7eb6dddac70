//! The frozen prefix: what lies below the frost line gives the same output for an example in every epoch, and so can
//! be computed once. A plan that takes it from a cache has [`Op::PrefixLoad`] in its place.

use std::collections::HashSet;

use super::fuse::fuse;
use super::op::Op;
use super::prune::{prune, remove_all_but, remove_dead};
use super::{BufId, Buffer, Frontier, Input, Plan, Role, Rows, StepOptions, training_step};
use crate::freeze::FreezeMask;
use crate::model::{Group, Network};
use crate::tensor::DType;

/// What a cache of a frozen prefix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The lowest part of the network that lies above it.
    pub above: Group,
    /// One row a token, or a sequence.
    pub rows: Rows,
    pub cols: usize,
}

impl Plan {
    /// Where this plan, pruned and not fused, can be cut: below all that trains. None where nothing trains, or the
    /// embeddings do.
    fn frost_line(&self, network: &Network) -> Option<Frontier> {
        let lowest = self.trained().iter().map(|id| network.param(*id).group).min()?;
        self.frontiers.iter().rev().find(|frontier| frontier.group <= lowest).copied()
    }

    fn prefix_at(&self, frontier: Frontier) -> Prefix {
        let Buffer { rows, cols, .. } = *self.buffer(frontier.hidden);
        Prefix { above: frontier.group, rows, cols }
    }
}

/// What a cache would hold for the steps that `mask` leaves; None where nothing lies below what trains.
pub fn prefix_of(network: &Network, mask: &FreezeMask, options: &StepOptions) -> Option<Prefix> {
    let plan = prune(&training_step(network, options), network, mask);
    plan.frost_line(network).map(|frontier| plan.prefix_at(frontier))
}

/// The step that `mask` leaves, its frozen prefix taken from a cache; None where there is no such prefix.
pub fn compile_cached(network: &Network, mask: &FreezeMask, options: &StepOptions) -> Option<Plan> {
    let mut plan = prune(&training_step(network, options), network, mask);
    let Frontier { hidden, stream, .. } = plan.frost_line(network)?;
    let rows = BufId(plan.buffers.len());
    plan.buffers.push(Buffer {
        name: "prefix_rows".into(),
        rows: plan.buffer(hidden).rows,
        cols: 1,
        dtype: DType::I32,
        role: Role::Input(Input::PrefixRows),
    });
    plan.ops.retain(|op| !op.writes().contains(&hidden));
    let stream = (stream != hidden).then_some(stream);
    plan.ops.insert(0, Op::PrefixLoad { rows, out: hidden, stream });
    remove_dead(&mut plan);
    Some(fuse(&plan))
}

/// The forward pass up to where `above` begins, and the buffer of its result in f32, which is kept.
pub fn compile_prefix(
    network: &Network,
    above: Group,
    options: &StepOptions,
) -> Option<(Plan, BufId)> {
    let everything = FreezeMask::all(network.params.len());
    let mut plan = prune(&training_step(network, options), network, &everything);
    let frontier = *plan.frontiers.iter().find(|frontier| frontier.group == above)?;
    plan.tasks.clear();
    plan.buffers[frontier.stream.0].role = Role::Result;
    remove_all_but(&mut plan, HashSet::from([frontier.stream]));
    Some((fuse(&plan), frontier.stream))
}
