//! Checks that a plan is sound: buffers are written once and before they are read, nothing but the
//! optimizer and sums of gradients are updated in place, and shapes agree.

use super::op::Op;
use super::{BufId, Buffer, Plan, Role, Rows};

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
                let may_update = match self.buffer(buf).role {
                    Role::Value(_) | Role::Master(_) | Role::Moment1(_) | Role::Moment2(_) => {
                        matches!(op, Op::AdamwStep { .. })
                    }
                    Role::GradientSum(_) => matches!(op, Op::GradAccumulate { .. }),
                    _ => false,
                };
                if !may_update {
                    return fault("updates in place", buf);
                }
                written[buf.0] = true;
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
            agree(weight.rows == Rows::Fixed(out.cols), weight, out)
        };
        // `vector` has one element for each column of `matrix`.
        let of_columns = |vector: &BufId, matrix: &BufId| {
            let (vector, matrix) = (get(vector), get(matrix));
            agree(vector.rows == Rows::Fixed(matrix.cols) && vector.cols == 1, vector, matrix)
        };
        match op {
            Op::LayernormFwd { x, residual, gamma, beta, out, stream, xhat, .. } => {
                same(x, out)?;
                of_columns(gamma, out)?;
                of_columns(beta, out)?;
                residual.iter().chain(stream).chain(xhat).try_for_each(|buf| same(buf, out))
            }
            Op::EmbedLayernormFwd { gamma, beta, out, stream, xhat, .. } => {
                of_columns(gamma, out)?;
                of_columns(beta, out)?;
                stream.iter().chain(xhat).try_for_each(|buf| same(buf, out))
            }
            Op::GemmFwd { x, parts } => parts.iter().try_for_each(|part| {
                of_columns(&part.bias, &part.out)?;
                product(x, &part.weight, &part.out)
            }),
            Op::GemmGeluFwd { x, weight, bias, pre, out } => {
                of_columns(bias, out)?;
                pre.iter().try_for_each(|buf| same(buf, out))?;
                product(x, weight, out)
            }
            Op::HeadFwd { x, weight, bias, logits, .. } => {
                of_columns(bias, logits)?;
                product(x, weight, logits)
            }
            Op::XentFwd { logits, dlogits, .. } => {
                dlogits.iter().try_for_each(|buf| same(buf, logits))
            }
            Op::HeadWgrad { x, dlogits, dweight, dbias, .. } => {
                dbias.iter().try_for_each(|buf| of_columns(buf, dlogits))?;
                dweight.iter().try_for_each(|buf| product(x, buf, dlogits))
            }
            Op::BiasGrad { dout, dbias } => of_columns(dbias, dout),
            Op::TanhBwd { out, dout, dx } => same(out, dx).and_then(|()| same(dout, dx)),
            Op::DropoutBwd { dout, dx, .. } => dout.iter().try_for_each(|buf| same(buf, dx)),
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
            Op::GemmWgrad { x, parts } => parts.iter().try_for_each(|part| {
                part.dbias.iter().try_for_each(|buf| of_columns(buf, &part.dout))?;
                product(x, &part.dweight, &part.dout)
            }),
            Op::GeluFwd { x, out } | Op::TanhFwd { x, out } | Op::DropoutFwd { x, out, .. } => {
                same(x, out)
            }
            Op::GeluBwd { x, dout, dx } => same(x, dx).and_then(|()| same(dout, dx)),
            Op::LayernormBwdDx { dout, xhat, gamma, dx, dresidual, .. } => {
                of_columns(gamma, xhat)?;
                dout.iter().chain(dx).chain(dresidual).try_for_each(|buf| same(buf, xhat))
            }
            Op::LayernormBwdParams { dout, xhat, dgamma, dbeta } => {
                dout.iter().try_for_each(|buf| same(buf, xhat))?;
                dgamma.iter().chain(dbeta).try_for_each(|buf| of_columns(buf, xhat))
            }
            Op::LayernormBwd { dout, xhat, gamma, dx, dresidual, dgamma, dbeta, .. } => {
                of_columns(gamma, xhat)?;
                dgamma.iter().chain(dbeta).try_for_each(|buf| of_columns(buf, xhat))?;
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
            Op::PrefixLoad { out, stream, .. } => stream.iter().try_for_each(|buf| same(buf, out)),
            Op::GradAccumulate { items, .. } => {
                items.iter().try_for_each(|item| same(&item.grad, &item.sum))
            }
            // Gathers and reductions over ids and sequences, whose shapes differ by design.
            Op::EmbedFwd { .. }
            | Op::EmbedWgrad { .. }
            | Op::PoolFwd { .. }
            | Op::PoolBwd { .. }
            | Op::GradNorm { .. } => Ok(()),
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
