//! The frozen prefix: what lies below the frost line gives the same output for an example in every epoch, and so can
//! be computed once. A plan that takes it from a cache has [`Op::PrefixLoad`] in its place.

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

    /// The frontier in front of `above`.
    fn frontier_below(&self, above: Group) -> Option<Frontier> {
        self.frontiers.iter().find(|frontier| frontier.group == above).copied()
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
    let plan = prune(&training_step(network, options), network, mask);
    let frontier = plan.frost_line(network)?;
    Some(load_prefix(plan, frontier))
}

/// The forward pass of the whole network, of which a cache holds what lies below `above`; None where nothing can be
/// cut there.
pub fn compile_cached_forward(
    network: &Network,
    above: Group,
    options: &StepOptions,
) -> Option<Plan> {
    let plan = forward(network, options);
    let frontier = plan.frontier_below(above)?;
    Some(load_prefix(plan, frontier))
}

/// The forward pass up to where the highest of `above` begins, and for each of them the buffer of what lies in front of
/// it, in f32, which is kept; None where nothing can be cut at one of them.
pub fn compile_prefixes(
    network: &Network,
    above: &[Group],
    options: &StepOptions,
) -> Option<(Plan, Vec<BufId>)> {
    let mut plan = forward(network, options);
    let streams = above.iter().map(|group| Some(plan.frontier_below(*group)?.stream));
    let streams: Vec<BufId> = streams.collect::<Option<_>>()?;
    plan.tasks.clear();
    for stream in &streams {
        plan.buffers[stream.0].role = Role::Result;
    }
    remove_all_but(&mut plan, streams.iter().copied().collect());
    Some((fuse(&plan), streams))
}

/// The step in which nothing trains, not fused.
fn forward(network: &Network, options: &StepOptions) -> Plan {
    let everything = FreezeMask::all(network.params.len());
    prune(&training_step(network, options), network, &everything)
}

/// Takes what lies below `frontier` from a cache.
fn load_prefix(mut plan: Plan, Frontier { hidden, stream, .. }: Frontier) -> Plan {
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
    fuse(&plan)
}
