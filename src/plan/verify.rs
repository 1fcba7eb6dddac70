//! Checks that a plan is sound: buffers are written once and before they are read, nothing but the
//! optimizer updates in place, and shapes agree.

use super::op::Op;
use super::{BufId, Buffer, Plan, Role};

impl Plan {
    /// The first fault, in words, or nothing.
    ///
    /// # Errors
    /// The fault that was found.
    pub fn verify(&self) -> Result<(), String> {
        let mut written = vec![false; self.buffers.len()];
        for (at, op) in self.ops.iter().enumerate() {
            let fault = |what: &str, buf: BufId| {
                Err(format!("op {at} ({}) {what} {}", op.name(), self.buffer(buf).name))
            };
            for buf in op.reads() {
                let is_given = matches!(self.buffer(buf).role, Role::Input(_) | Role::Value(_));
                if !is_given && !written[buf.0] {
                    return fault("reads before anything wrote", buf);
                }
            }
            for buf in op.writes() {
                if matches!(self.buffer(buf).role, Role::Input(_) | Role::Value(_)) {
                    return fault("overwrites", buf);
                }
                if std::mem::replace(&mut written[buf.0], true) {
                    return fault("writes a second time", buf);
                }
                if op.reads().contains(&buf) {
                    return fault("reads and writes", buf);
                }
            }
            for buf in op.updates() {
                let is_state = matches!(
                    self.buffer(buf).role,
                    Role::Value(_) | Role::Master(_) | Role::Moment1(_) | Role::Moment2(_)
                );
                if !is_state || !matches!(op, Op::AdamwStep { .. }) {
                    return fault("updates in place", buf);
                }
            }
            self.verify_shapes(op)
                .map_err(|shapes| format!("op {at} ({}): {shapes}", op.name()))?;
        }
        for task in &self.tasks {
            if !written[task.loss.0] || !written[task.logits.0] {
                return Err(format!("task {} has no loss or no logits", task.task));
            }
        }
        Ok(())
    }

    fn verify_shapes(&self, op: &Op) -> Result<(), String> {
        let get = |buf: &BufId| self.buffer(*buf);
        let same = |a: &BufId, b: &BufId| {
            let (a, b) = (get(a), get(b));
            agree(a.rows == b.rows && a.cols == b.cols, a, b)
        };
        // `x` [M, K] and `weight` [N, K] make `out` [M, N].
        let product = |x: &BufId, weight: &BufId, out: &BufId| {
            let (x, weight, out) = (get(x), get(weight), get(out));
            agree(x.cols == weight.cols, x, weight)?;
            agree(x.rows == out.rows, x, out)?;
            agree(weight.rows == super::Rows::Fixed(out.cols), weight, out)
        };
        match op {
            Op::LayernormFwd { x, residual, out, xhat, .. } => {
                same(x, out)?;
                residual.iter().chain(xhat).try_for_each(|buf| same(buf, out))
            }
            Op::GemmFwd { x, parts } => {
                parts.iter().try_for_each(|part| product(x, &part.weight, &part.out))
            }
            Op::GemmGeluFwd { x, weight, out, .. } => product(x, weight, out),
            Op::HeadFwd { x, weight, logits, .. } => product(x, weight, logits),
            Op::GemmDgrad { parts, dx } => {
                parts.iter().try_for_each(|part| product(dx, &part.weight, &part.dout))
            }
            Op::GemmGeluDgrad { dout, weight, pre, dx } => {
                same(pre, dx)?;
                product(dx, weight, dout)
            }
            Op::HeadDgrad { parts, dx } => {
                parts.iter().try_for_each(|part| product(dx, &part.weight, &part.dlogits))
            }
            Op::GemmWgrad { x, parts } => {
                parts.iter().try_for_each(|part| product(x, &part.dweight, &part.dout))
            }
            Op::GeluFwd { x, out } | Op::TanhFwd { x, out } | Op::DropoutFwd { x, out, .. } => {
                same(x, out)
            }
            Op::GeluBwd { x, dout, dx } => same(x, dx).and_then(|()| same(dout, dx)),
            Op::LayernormBwdDx { dout, xhat, dx, dresidual, .. } => {
                dout.iter().chain(dx).chain(dresidual).try_for_each(|buf| same(buf, xhat))
            }
            Op::AttentionFwd { q, k, v, out, .. } => {
                [q, k, v].into_iter().try_for_each(|buf| same(buf, out))
            }
            Op::AttentionBwd { q, k, v, dout, dq, dk, dv, .. } => {
                let gradients = dq.iter().chain(dk).chain(dv);
                [q, k, v].into_iter().chain(gradients).try_for_each(|buf| same(buf, dout))
            }
            Op::AdamwStep { items, .. } => items.iter().try_for_each(|item| {
                same(&item.grad, &item.value)?;
                same(&item.moment1, &item.value)?;
                same(&item.moment2, &item.value)
            }),
            _ => Ok(()),
        }
    }
}

fn agree(holds: bool, a: &Buffer, b: &Buffer) -> Result<(), String> {
    if holds {
        return Ok(());
    }
    let shape = |buffer: &Buffer| format!("{} [{:?}, {}]", buffer.name, buffer.rows, buffer.cols);
    Err(format!("{} does not go with {}", shape(a), shape(b)))
}
