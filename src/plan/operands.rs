//! How each op uses its buffers: [`Op::visit`] is the one place that says which of an op's operands
//! are read, written, or left out.

use super::BufId;
use super::op::{Dropout, EmbedTables, Op};

/// How an op uses a buffer.
pub enum Operand<'a> {
    Read(&'a mut BufId),
    Write(&'a mut BufId),
    /// An output that may be dropped.
    Optional(&'a mut Option<BufId>),
    /// Read and written in place.
    Update(&'a mut BufId),
}

impl Op {
    /// Calls `f` with every operand in use, outputs first. Inputs that only a dropped output needed
    /// are left out.
    pub fn visit(&mut self, f: &mut impl FnMut(Operand)) {
        use Operand::{Optional, Read, Update, Write};
        match self {
            Op::EmbedFwd { tables, out } => {
                f(Write(out));
                tables.visit(f);
            }
            Op::PrefixLoad { rows, out, stream } => {
                f(Write(out));
                if stream.is_some() {
                    f(Optional(stream));
                }
                f(Read(rows));
            }
            Op::LayernormFwd { x, residual, gamma, beta, out, stream, xhat, rstd, .. } => {
                f(Write(out));
                // Plans of f32 have none that could be missing.
                if stream.is_some() {
                    f(Optional(stream));
                }
                f(Optional(xhat));
                f(Optional(rstd));
                f(Read(x));
                residual.iter_mut().for_each(|buf| f(Read(buf)));
                f(Read(gamma));
                f(Read(beta));
            }
            Op::EmbedLayernormFwd { tables, gamma, beta, out, stream, xhat, rstd, .. } => {
                f(Write(out));
                // Plans of f32 have none that could be missing.
                if stream.is_some() {
                    f(Optional(stream));
                }
                f(Optional(xhat));
                f(Optional(rstd));
                tables.visit(f);
                f(Read(gamma));
                f(Read(beta));
            }
            Op::DropoutFwd { x, out, .. } | Op::GeluFwd { x, out } | Op::TanhFwd { x, out } => {
                f(Write(out));
                f(Read(x));
            }
            Op::GemmFwd { x, parts } => {
                parts.iter_mut().for_each(|part| f(Write(&mut part.out)));
                f(Read(x));
                for part in parts {
                    f(Read(&mut part.weight));
                    f(Read(&mut part.bias));
                }
            }
            Op::GemmGeluFwd { x, weight, bias, pre, out } => {
                f(Write(out));
                f(Optional(pre));
                f(Read(x));
                f(Read(weight));
                f(Read(bias));
            }
            Op::AttentionFwd { q, k, v, cu_seqlens, out, lse, .. } => {
                f(Write(out));
                f(Optional(lse));
                [q, k, v, cu_seqlens].into_iter().for_each(|buf| f(Read(buf)));
            }
            Op::PoolFwd { x, cu_seqlens, out, .. } => {
                f(Write(out));
                f(Read(x));
                f(Read(cu_seqlens));
            }
            Op::HeadFwd { x, weight, bias, labels, logits, .. } => {
                f(Write(logits));
                [x, weight, bias, labels].into_iter().for_each(|buf| f(Read(buf)));
            }
            Op::XentFwd { logits, labels, weights, loss, dlogits, .. } => {
                f(Write(loss));
                f(Optional(dlogits));
                f(Read(logits));
                f(Read(labels));
                weights.iter_mut().for_each(|buf| f(Read(buf)));
            }
            Op::HeadDgrad { parts, dx } => {
                f(Write(dx));
                for part in parts {
                    [&mut part.dlogits, &mut part.weight, &mut part.labels]
                        .into_iter()
                        .for_each(|buf| f(Read(buf)));
                }
            }
            Op::HeadWgrad { x, dlogits, labels, dweight, dbias, .. } => {
                f(Optional(dweight));
                f(Optional(dbias));
                if dweight.is_some() {
                    f(Read(x));
                }
                f(Read(dlogits));
                f(Read(labels));
            }
            Op::PoolBwd { dout, cu_seqlens, dx, .. } => {
                f(Write(dx));
                f(Read(dout));
                f(Read(cu_seqlens));
            }
            Op::TanhBwd { out, dout, dx } => {
                f(Write(dx));
                f(Read(dout));
                f(Read(out));
            }
            Op::DropoutBwd { dout, dx, .. } => {
                f(Write(dx));
                dout.iter_mut().for_each(|buf| f(Read(buf)));
            }
            Op::GeluBwd { x, dout, dx } => {
                f(Write(dx));
                f(Read(dout));
                f(Read(x));
            }
            Op::GemmDgrad { parts, dx } => {
                f(Write(dx));
                for part in parts {
                    f(Read(&mut part.dout));
                    f(Read(&mut part.weight));
                }
            }
            Op::GemmGeluDgrad { dout, weight, pre, dx } => {
                f(Write(dx));
                [dout, weight, pre].into_iter().for_each(|buf| f(Read(buf)));
            }
            Op::GemmWgrad { x, parts } => {
                for part in parts.iter_mut() {
                    f(Write(&mut part.dweight));
                    f(Optional(&mut part.dbias));
                }
                f(Read(x));
                parts.iter_mut().for_each(|part| f(Read(&mut part.dout)));
            }
            Op::BiasGrad { dout, dbias } => {
                f(Write(dbias));
                f(Read(dout));
            }
            Op::LayernormBwdDx { dout, xhat, rstd, gamma, dx, dresidual, .. } => {
                f(Optional(dx));
                f(Optional(dresidual));
                dout.iter_mut().for_each(|buf| f(Read(buf)));
                [xhat, rstd, gamma].into_iter().for_each(|buf| f(Read(buf)));
            }
            Op::LayernormBwdParams { dout, xhat, dgamma, dbeta } => {
                f(Optional(dgamma));
                f(Optional(dbeta));
                dout.iter_mut().for_each(|buf| f(Read(buf)));
                if dgamma.is_some() {
                    f(Read(xhat));
                }
            }
            Op::LayernormBwd { dout, xhat, rstd, gamma, dx, dresidual, dgamma, dbeta, .. } => {
                [dx, dresidual, dgamma, dbeta].into_iter().for_each(|buf| f(Optional(buf)));
                dout.iter_mut().for_each(|buf| f(Read(buf)));
                [xhat, rstd, gamma].into_iter().for_each(|buf| f(Read(buf)));
            }
            Op::AttentionBwd { dout, lse, q, k, v, cu_seqlens, dq, dk, dv, .. } => {
                // dq and dk need the gradient of the probabilities, dv the probabilities alone.
                let needs_scores = dq.is_some() || dk.is_some();
                [dq, dk, dv].into_iter().for_each(|buf| f(Optional(buf)));
                [dout, lse, q, k, cu_seqlens].into_iter().for_each(|buf| f(Read(buf)));
                if needs_scores {
                    f(Read(v));
                }
            }
            Op::EmbedWgrad { dx, ids, dtable, .. } => {
                f(Write(dtable));
                f(Read(dx));
                f(Read(ids));
            }
            Op::GradAccumulate { items, begins } => {
                for item in items {
                    match begins {
                        true => f(Write(&mut item.sum)),
                        false => f(Update(&mut item.sum)),
                    }
                    f(Read(&mut item.grad));
                }
            }
            Op::GradNorm { grads, out, .. } => {
                f(Write(out));
                grads.iter_mut().for_each(|buf| f(Read(buf)));
            }
            Op::AdamwStep { items, clip } => {
                for item in items {
                    f(Update(&mut item.value));
                    item.master.iter_mut().for_each(|buf| f(Update(buf)));
                    f(Update(&mut item.moment1));
                    f(Update(&mut item.moment2));
                    f(Read(&mut item.grad));
                }
                clip.iter_mut().for_each(|buf| f(Read(buf)));
            }
        }
    }

    /// The buffers that the op reads (those that it updates are in [`Op::updates`]), in order.
    pub fn reads(&self) -> Vec<BufId> {
        self.collect(|operand| match operand {
            Operand::Read(buf) => Some(*buf),
            _ => None,
        })
    }

    /// The buffers that the op writes and did not read.
    pub fn writes(&self) -> Vec<BufId> {
        self.collect(|operand| match operand {
            Operand::Write(buf) => Some(*buf),
            Operand::Optional(buf) => *buf,
            _ => None,
        })
    }

    /// The buffers that the op changes in place.
    pub fn updates(&self) -> Vec<BufId> {
        self.collect(|operand| match operand {
            Operand::Update(buf) => Some(*buf),
            _ => None,
        })
    }

    fn collect(&self, mut pick: impl FnMut(Operand) -> Option<BufId>) -> Vec<BufId> {
        let mut picked = Vec::new();
        self.clone().visit(&mut |operand| picked.extend(pick(operand)));
        picked
    }

    /// The op's dropout, where it has one that may be switched off.
    pub fn dropout(&mut self) -> Option<&mut Option<Dropout>> {
        match self {
            Op::LayernormFwd { dropout, .. }
            | Op::AttentionFwd { dropout, .. }
            | Op::LayernormBwdDx { dropout, .. }
            | Op::LayernormBwd { dropout, .. }
            | Op::AttentionBwd { dropout, .. } => Some(dropout),
            _ => None,
        }
    }
}

impl EmbedTables {
    fn visit(&mut self, f: &mut impl FnMut(Operand)) {
        for buf in [&mut self.input_ids, &mut self.word, &mut self.position_ids, &mut self.position]
        {
            f(Operand::Read(buf));
        }
        if let Some((ids, table)) = &mut self.token_type {
            f(Operand::Read(ids));
            f(Operand::Read(table));
        }
    }
}
