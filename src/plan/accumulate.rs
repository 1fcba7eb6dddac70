//! Gradient accumulation: a step over several batches, of which only the last updates anything.
//!
//! Compiled from the step of one batch, so that whatever a freeze has deleted is not there to be accumulated. The first
//! batch's gradients begin the sums, every further one is added, and the last one's optimizer reads the sums instead of
//! its own gradients.

use super::op::{GradAccumulateItem, Op};
use super::{BufId, Buffer, Plan, Role};

/// The plans of an accumulated step. What they share by name and role lies in one place on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    /// Of the first batch.
    pub first: Plan,
    /// Of every batch between the first and the last.
    pub next: Plan,
    /// Of the last batch, and the update.
    pub last: Plan,
}

/// `plan`, a compiled step, spread over several batches.
pub fn accumulate(plan: &Plan) -> Accumulated {
    Accumulated {
        first: part(plan, true, false),
        next: part(plan, false, false),
        last: part(plan, false, true),
    }
}

/// One part; only the one that `begins` does not read the sums, only the one that `ends` updates parameters.
fn part(plan: &Plan, begins: bool, ends: bool) -> Plan {
    let mut plan = plan.clone();
    let is_update = |op: &Op| matches!(op, Op::GradNorm { .. } | Op::AdamwStep { .. });
    let grads: Vec<BufId> = (plan.ops.iter())
        .flat_map(|op| match op {
            Op::AdamwStep { items, .. } => items.iter().map(|item| item.grad).collect(),
            _ => Vec::new(),
        })
        .collect();
    let mut items = Vec::with_capacity(grads.len());
    for grad in grads {
        let sum = BufId(plan.buffers.len());
        let Buffer { name, role, .. } = plan.buffer(grad);
        let role = match role {
            Role::Gradient(id) => Role::GradientSum(*id),
            role => unreachable!("{role:?} is no gradient of a parameter"),
        };
        let name = format!("sum.{}", name.trim_start_matches("d."));
        let buffer = Buffer { name, role, ..plan.buffer(grad).clone() };
        plan.buffers.push(buffer);
        items.push(GradAccumulateItem { grad, sum });
    }
    if items.is_empty() {
        return plan;
    }
    let at = plan.ops.iter().position(is_update).unwrap_or(plan.ops.len());
    let sum_of = |grad: &mut BufId| {
        if let Some(item) = items.iter().find(|item| item.grad == *grad) {
            *grad = item.sum;
        }
    };
    for op in &mut plan.ops[at..] {
        match op {
            Op::GradNorm { grads, .. } => grads.iter_mut().for_each(sum_of),
            Op::AdamwStep { items, .. } => items.iter_mut().for_each(|item| sum_of(&mut item.grad)),
            _ => {}
        }
    }
    plan.ops.insert(at, Op::GradAccumulate { items, begins });
    if !ends {
        plan.ops.retain(|op| !is_update(op));
    }
    plan
}
