//! Joins neighbouring ops into one pass over their data. It runs after pruning and by the same rules
//! for every scenario, so that the baseline is as fast as it can be and no freeze is flattered.

use std::collections::HashMap;

use super::op::Op;
use super::{BufId, Plan};

/// `plan` with neighbours joined. What it computes stays the same.
pub fn fuse(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    let n_reads = count_reads(&plan.ops);
    let mut fused: Vec<Op> = Vec::with_capacity(plan.ops.len());
    for op in std::mem::take(&mut plan.ops) {
        if let Some(op) = join(&mut fused, op, &n_reads) {
            fused.push(op);
        }
    }
    plan.ops = join_updates(fused);
    plan
}

fn count_reads(ops: &[Op]) -> HashMap<BufId, usize> {
    let mut n_reads = HashMap::new();
    for buf in ops.iter().flat_map(Op::reads) {
        *n_reads.entry(buf).or_insert(0) += 1;
    }
    n_reads
}

/// Joins `op` into what was emitted before it, or gives it back.
fn join(fused: &mut [Op], op: Op, n_reads: &HashMap<BufId, usize>) -> Option<Op> {
    let is_read_once = |buf: BufId| n_reads.get(&buf) == Some(&1);
    if let Op::GemmWgrad { .. } | Op::BiasGrad { .. } = op {
        return join_wgrad(fused, op);
    }
    let Some(last) = fused.last_mut() else {
        return Some(op);
    };
    let joined = match (&*last, &op) {
        (
            Op::EmbedFwd { tables, out: sum },
            Op::LayernormFwd {
                x,
                residual: None,
                dropout: None,
                gamma,
                beta,
                eps,
                out,
                stream,
                xhat,
                rstd,
            },
        ) if x == sum && is_read_once(*sum) => Op::EmbedLayernormFwd {
            tables: *tables,
            gamma: *gamma,
            beta: *beta,
            eps: *eps,
            out: *out,
            stream: *stream,
            xhat: *xhat,
            rstd: *rstd,
        },
        (Op::GemmFwd { x, parts }, Op::GeluFwd { x: pre, out })
            if parts.len() == 1 && parts[0].out == *pre =>
        {
            let part = parts[0];
            // Beside GELU itself only its gradient reads its input.
            let kept = (!is_read_once(*pre)).then_some(*pre);
            Op::GemmGeluFwd { x: *x, weight: part.weight, bias: part.bias, pre: kept, out: *out }
        }
        (Op::GemmDgrad { parts, dx: dact }, Op::GeluBwd { x: pre, dout, dx })
            if parts.len() == 1 && dout == dact && is_read_once(*dact) =>
        {
            let part = parts[0];
            Op::GemmGeluDgrad { dout: part.dout, weight: part.weight, pre: *pre, dx: *dx }
        }
        (
            Op::LayernormBwdParams { xhat: params_xhat, dgamma, dbeta, .. },
            Op::LayernormBwdDx { dout, xhat, rstd, gamma, dropout, dx, dresidual },
        ) if params_xhat == xhat => Op::LayernormBwd {
            dout: dout.clone(),
            xhat: *xhat,
            rstd: *rstd,
            gamma: *gamma,
            dropout: *dropout,
            dx: *dx,
            dresidual: *dresidual,
            dgamma: *dgamma,
            dbeta: *dbeta,
        },
        _ => return Some(op),
    };
    *last = joined;
    None
}

/// A bias gradient joins the weight gradient that reads the same `dout`; weight gradients that read
/// the same `x` (query, key, value) become one op. Only the unbroken run of such ops at the end is
/// looked at: they read what was there before the run, and write what only the optimizer reads.
fn join_wgrad(fused: &mut [Op], op: Op) -> Option<Op> {
    let run = fused
        .iter_mut()
        .rev()
        .take_while(|op| matches!(op, Op::GemmWgrad { .. } | Op::BiasGrad { .. }));
    for earlier in run {
        let Op::GemmWgrad { x, parts } = earlier else {
            continue;
        };
        match &op {
            Op::BiasGrad { dout, dbias } => {
                if let Some(part) = parts.iter_mut().find(|part| part.dout == *dout) {
                    part.dbias = Some(*dbias);
                    return None;
                }
            }
            Op::GemmWgrad { x: other, parts: more } if other == x => {
                parts.extend(more);
                return None;
            }
            _ => {}
        }
    }
    Some(op)
}

/// All optimizer updates become one op.
fn join_updates(ops: Vec<Op>) -> Vec<Op> {
    let mut joined: Vec<Op> = Vec::with_capacity(ops.len());
    for op in ops {
        match (joined.last_mut(), op) {
            (
                Some(Op::AdamwStep { items, clip }),
                Op::AdamwStep { items: more, clip: same_clip },
            ) if *clip == same_clip => items.extend(more),
            (_, op) => joined.push(op),
        }
    }
    joined
}
