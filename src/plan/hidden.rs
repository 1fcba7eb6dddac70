//! The hidden states behind the embeddings and every layer, in one forward pass.

use super::fuse::fuse;
use super::prune::{prune, remove_all_but};
use super::{BufId, Plan, Role, StepOptions, training_step};
use crate::freeze::FreezeMask;
use crate::model::{Group, Network};

/// The forward pass of the encoder alone, and its results, `[T, D]` each, from the bottom up: the residual stream in
/// front of every layer, in f32, and the last hidden state, in the compute type. There is no dropout, whatever the
/// options say.
///
/// What lies in front of layer k is what [`compile_prefixes`](super::prefix::compile_prefixes) gives for it.
pub fn compile_hidden(network: &Network, options: &StepOptions) -> (Plan, Vec<BufId>) {
    let everything = FreezeMask::all(network.params.len());
    // Pruning removes it too, but leaves narrow activations of the embeddings where a dropout made them.
    let options = StepOptions { dropout: false, ..*options };
    let mut plan = prune(&training_step(network, &options), network, &everything);
    let in_front = (plan.frontiers.iter()).filter(|one| matches!(one.group, Group::Layer(_)));
    let states: Vec<BufId> =
        in_front.map(|frontier| frontier.stream).chain([plan.last_hidden]).collect();
    plan.tasks.clear();
    for state in &states {
        plan.buffers[state.0].role = Role::Result;
    }
    remove_all_but(&mut plan, states.iter().copied().collect());
    (fuse(&plan), states)
}
