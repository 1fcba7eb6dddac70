//! Freezing is deletion. This file alone knows masks: it removes the optimizer's part for frozen
//! tensors, and then everything that fed only what is gone, whole ops and optional outputs alike.

use std::collections::HashSet;

use super::op::Op;
use super::operands::Operand;
use super::{BufId, Plan, Role};
use crate::freeze::FreezeMask;
use crate::model::{Group, Network};

/// The step that is left of `plan` when the parameters of `mask` do not train.
///
/// Whatever the mask, losses and logits stay. Dropout is switched off below the frost line, the
/// lowest part of the network in which anything trains.
pub fn prune(plan: &Plan, network: &Network, mask: &FreezeMask) -> Plan {
    let mut plan = plan.clone();
    remove_updates(&mut plan, mask);
    let trained = plan.trained();
    let frost_line = trained.iter().map(|id| network.param(*id).group).min();
    remove_dropout_below(&mut plan, frost_line);
    remove_dead(&mut plan);
    plan
}

fn remove_updates(plan: &mut Plan, mask: &FreezeMask) {
    let is_frozen = |buffers: &[super::Buffer], buf: BufId| match buffers[buf.0].role {
        Role::Value(id) | Role::Gradient(id) => mask.is_frozen(id),
        _ => false,
    };
    let buffers = &plan.buffers;
    for op in &mut plan.ops {
        match op {
            Op::AdamwStep { items, .. } => items.retain(|item| !is_frozen(buffers, item.value)),
            Op::GradNorm { grads, .. } => grads.retain(|grad| !is_frozen(buffers, *grad)),
            _ => {}
        }
    }
    plan.ops.retain(|op| match op {
        Op::AdamwStep { items, .. } => !items.is_empty(),
        Op::GradNorm { grads, .. } => !grads.is_empty(),
        _ => true,
    });
}

/// Training mode stops at the frost line: what lies below is deterministic.
fn remove_dropout_below(plan: &mut Plan, frost_line: Option<Group>) {
    // The classifier's dropout belongs to all heads at once; its group is the first of them.
    let line = match frost_line {
        Some(Group::Head(_)) => Some(Group::Head(0)),
        other => other,
    };
    let is_below = |group: Group| line.is_none_or(|line| group < line);
    let mut renamed: Vec<(BufId, BufId)> = Vec::new();
    plan.ops.retain_mut(|op| {
        if let Some(dropout) = op.dropout()
            && dropout.is_some_and(|site| is_below(site.group))
        {
            *dropout = None;
        }
        match op {
            Op::DropoutFwd { x, dropout, out } if is_below(dropout.group) => {
                renamed.push((*out, *x));
                false
            }
            _ => true,
        }
    });
    let rename = |buf: &mut BufId| {
        if let Some((_, to)) = renamed.iter().find(|(from, _)| from == buf) {
            *buf = *to;
        }
    };
    for op in &mut plan.ops {
        op.visit(&mut |operand| {
            if let Operand::Read(buf) = operand {
                rename(buf);
            }
        });
    }
    for frontier in &mut plan.frontiers {
        // Without its dropout the embeddings' output is what LayerNorm wrote, stream and all.
        rename(&mut frontier.hidden);
        rename(&mut frontier.stream);
    }
}

/// Walks backwards from what must stay, and deletes what nothing asks for.
pub(super) fn remove_dead(plan: &mut Plan) {
    let outputs = plan.tasks.iter().flat_map(|task| [task.logits, task.loss]).collect();
    remove_all_but(plan, outputs);
}

/// Deletes what neither an update nor a buffer of `needed` asks for.
pub(super) fn remove_all_but(plan: &mut Plan, mut needed: HashSet<BufId>) {
    let mut kept = Vec::with_capacity(plan.ops.len());
    for mut op in std::mem::take(&mut plan.ops).into_iter().rev() {
        op.visit(&mut |operand| {
            if let Operand::Optional(slot) = operand
                && slot.is_some_and(|buf| !needed.contains(&buf))
            {
                *slot = None;
            }
        });
        let updates = op.updates();
        if updates.is_empty() && !op.writes().iter().any(|buf| needed.contains(buf)) {
            continue;
        }
        needed.extend(op.reads());
        needed.extend(updates);
        kept.push(op);
    }
    kept.reverse();
    plan.ops = kept;
}
