//! From an op of the plan to a call of the table.

use super::frame::Frame;
use super::ops::{
    AdamwTensor, AttentionGradients, AttentionSaved, AttentionShape, DgradPart, Element, Embedding,
    FwdPart, HeadPart, NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Ops, Qkv, RowMask,
    Targets, WgradPart,
};
use super::{HostBackend, Operands};
use crate::backend::dropout::Mask;
use crate::backend::{Bound, PrefixRows, StepState};
use crate::batch::Batch;
use crate::model::ParamId;
use crate::plan::op::{AdamwItem, Dropout, EmbedTables};
use crate::plan::{BufId, Op, Plan, Role, Rows};

impl<O: Ops> HostBackend<O> {
    pub(super) fn run_op(
        &mut self,
        bound: &Bound,
        op: &Op,
        operands: &Operands,
        batch: &Batch,
        state: &StepState,
    ) {
        let plan = &bound.plan;
        match op {
            Op::GradAccumulate { items, begins } => {
                for item in items {
                    let ParamId(at) = param_of(plan, item.grad);
                    let grad = &self.memory.gradients[at];
                    self.ops.grad_accumulate(grad, &mut self.memory.gradient_sums[at], *begins);
                }
            }
            Op::GradNorm { grads, max_norm, out } => {
                let grads: Vec<&[O::Element]> =
                    grads.iter().map(|grad| self.memory.gradient(plan, *grad)).collect();
                let norm_and_factor = self.ops.grad_norm(&grads, *max_norm);
                let mut frame = self.open(bound, operands, batch);
                frame.write(*out).copy_from_slice(&norm_and_factor);
            }
            Op::AdamwStep { items, clip } => {
                let factor = clip.map_or(1.0, |clip| {
                    f64::from(self.memory.read(plan, &bound.layout, clip, (0, 0))[1])
                });
                for item in items {
                    self.adamw_step(plan, item, factor, state);
                }
            }
            _ => {
                let operands = (operands.reads.as_slice(), operands.writes.as_slice());
                let place = (plan.as_ref(), bound.layout.as_ref());
                let mut frame = Frame::open(&mut self.memory, place, operands, batch);
                compute(&self.ops, op, &mut frame, batch, state, self.prefix.as_ref());
            }
        }
    }

    fn open<'a>(
        &'a mut self,
        bound: &'a Bound,
        operands: &Operands,
        batch: &'a Batch,
    ) -> Frame<'a, O::Element> {
        let operands = (operands.reads.as_slice(), operands.writes.as_slice());
        Frame::open(&mut self.memory, (&bound.plan, &bound.layout), operands, batch)
    }

    fn adamw_step(&mut self, plan: &Plan, item: &AdamwItem, factor: f64, state: &StepState) {
        let ParamId(at) = param_of(plan, item.value);
        let rate = if item.is_head { state.head_learning_rate } else { state.learning_rate };
        let grad = match plan.buffer(item.grad).role {
            Role::GradientSum(_) => &self.memory.gradient_sums[at],
            _ => &self.memory.gradients[at],
        };
        self.ops.adamw_step(AdamwTensor {
            value: &mut self.memory.values[at],
            grad,
            moment1: &mut self.memory.moment1[at],
            moment2: &mut self.memory.moment2[at],
            learning_rate: f64::from(rate) * f64::from(item.rate.scale),
            weight_decay: if item.decays { f64::from(state.weight_decay) } else { 0.0 },
            factor,
            step: state.step - u64::from(item.rate.skipped_steps),
        });
    }
}

fn param_of(plan: &Plan, buf: BufId) -> ParamId {
    match plan.buffer(buf).role {
        Role::Value(id) | Role::Gradient(id) => id,
        role => unreachable!("{role:?} belongs to no parameter"),
    }
}

fn embedding<'a, E: Element>(frame: &Frame<'a, E>, tables: &EmbedTables) -> Embedding<'a, E> {
    Embedding {
        input_ids: frame.input(tables.input_ids),
        word: frame.read(tables.word),
        position_ids: frame.input(tables.position_ids),
        position: frame.read(tables.position),
        token_type: tables.token_type.map(|(ids, table)| (frame.input(ids), frame.read(table))),
        width: frame.cols(tables.word),
    }
}

/// Opens what a LayerNorm writes for `run`. Elements are of one width here, so that the stream is a copy.
fn with_norm_outputs<'a, E: Element>(
    frame: &mut Frame<'a, E>,
    (out, optional): (BufId, [Option<BufId>; 3]),
    run: impl FnOnce(&Frame<'a, E>, NormOutputs<E>),
) {
    let out = frame.write(out);
    let [stream, xhat, rstd] = optional.map(|buf| frame.write_optional(buf));
    run(frame, NormOutputs { out: &mut *out, xhat, rstd });
    if let Some(stream) = stream {
        stream.copy_from_slice(out);
    }
}

fn compute<O: Ops>(
    ops: &O,
    op: &Op,
    frame: &mut Frame<O::Element>,
    batch: &Batch,
    state: &StepState,
    prefix: Option<&PrefixRows>,
) {
    let mask = |dropout: Dropout| Mask::new(dropout, state.seed, state.step);
    let token_mask =
        |dropout: Dropout| RowMask { mask: mask(dropout), cu_seqlens: Some(&batch.cu_seqlens) };
    // The rows of a dropout of its own are tokens, or sequences behind the pooling.
    let row_mask = |dropout: Dropout, rows: Rows| RowMask {
        mask: mask(dropout),
        cu_seqlens: (rows == Rows::Tokens).then_some(batch.cu_seqlens.as_slice()),
    };
    match op {
        Op::EmbedFwd { tables, out } => {
            ops.embed_fwd(&embedding(frame, tables), frame.write(*out));
        }
        Op::PrefixLoad { rows, out, stream } => {
            let prefix = prefix.expect("a cache is set before a plan reads it");
            let (rows, to) = (frame.input(*rows), frame.write(*out));
            ops.prefix_load((*prefix.values).as_ref(), rows, prefix.cols, to);
            if let Some(stream) = frame.write_optional(*stream) {
                stream.copy_from_slice(to);
            }
        }
        Op::LayernormFwd { x, residual, dropout, gamma, beta, eps, out, stream, xhat, rstd } => {
            let norm = NormParams { gamma: frame.read(*gamma), beta: frame.read(*beta), eps: *eps };
            with_norm_outputs(frame, (*out, [*stream, *xhat, *rstd]), |frame, to| {
                let residual = residual.map(|buf| frame.read(buf));
                ops.layernorm_fwd(frame.read(*x), residual, dropout.map(token_mask), &norm, to);
            });
        }
        Op::EmbedLayernormFwd { tables, gamma, beta, eps, out, stream, xhat, rstd } => {
            let norm = NormParams { gamma: frame.read(*gamma), beta: frame.read(*beta), eps: *eps };
            with_norm_outputs(frame, (*out, [*stream, *xhat, *rstd]), |frame, to| {
                ops.embed_layernorm_fwd(&embedding(frame, tables), &norm, to);
            });
        }
        Op::DropoutFwd { x, dropout, out } => {
            let (mask, width) = (row_mask(*dropout, frame.rows(*x)), frame.cols(*x));
            ops.dropout_fwd(frame.read(*x), mask, width, frame.write(*out));
        }
        Op::GemmFwd { x, parts } => {
            let parts = (parts.iter())
                .map(|part| FwdPart {
                    weight: frame.read(part.weight),
                    bias: frame.read(part.bias),
                    out: frame.write(part.out),
                })
                .collect();
            ops.gemm_fwd(frame.read(*x), frame.cols(*x), parts);
        }
        Op::GeluFwd { x, out } => ops.gelu_fwd(frame.read(*x), frame.write(*out)),
        Op::GemmGeluFwd { x, weight, bias, pre, out } => {
            let (weight, bias) = (frame.read(*weight), frame.read(*bias));
            let part = FwdPart { weight, bias, out: frame.write(*out) };
            let pre = frame.write_optional(*pre);
            ops.gemm_gelu_fwd(frame.read(*x), frame.cols(*x), part, pre);
        }
        Op::TanhFwd { x, out } => ops.tanh_fwd(frame.read(*x), frame.write(*out)),
        Op::AttentionFwd { q, k, v, cu_seqlens, n_heads, dropout, out, lse } => {
            let qkv = Qkv { q: frame.read(*q), k: frame.read(*k), v: frame.read(*v) };
            let shape = AttentionShape {
                cu_seqlens: frame.input(*cu_seqlens),
                n_heads: *n_heads,
                width: frame.cols(*q),
                mask: dropout.map(mask),
            };
            ops.attention_fwd(&qkv, &shape, frame.write(*out), frame.write_optional(*lse));
        }
        Op::PoolFwd { x, cu_seqlens, pooling, out } => {
            let cu_seqlens = frame.input(*cu_seqlens);
            ops.pool_fwd(frame.read(*x), cu_seqlens, *pooling, frame.write(*out));
        }
        Op::HeadFwd { x, weight, bias, labels, logits, .. } => {
            let (weight, bias) = (frame.read(*weight), frame.read(*bias));
            let part = FwdPart { weight, bias, out: frame.write(*logits) };
            ops.head_fwd(frame.read(*x), frame.input(*labels), part);
        }
        Op::XentFwd { logits, labels, weights, smoothing, loss, dlogits, .. } => {
            let targets = Targets {
                labels: frame.input(*labels),
                weights: weights.map(|buf| frame.loss_weights(buf)),
                smoothing: *smoothing,
            };
            let (loss, dlogits) = (frame.write(*loss), frame.write_optional(*dlogits));
            ops.xent_fwd(frame.read(*logits), &targets, loss, dlogits);
        }
        Op::HeadDgrad { parts, dx } => {
            let parts: Vec<_> = (parts.iter())
                .map(|part| HeadPart {
                    dlogits: frame.read(part.dlogits),
                    weight: frame.read(part.weight),
                    labels: frame.input(part.labels),
                })
                .collect();
            ops.head_dgrad(&parts, frame.write(*dx));
        }
        Op::HeadWgrad { x, dlogits, labels, dweight, dbias, .. } => {
            let (dlogits, labels) = (frame.read(*dlogits), frame.input(*labels));
            let x = dweight.map(|_| frame.read(*x));
            let (dweight, dbias) = (frame.write_optional(*dweight), frame.write_optional(*dbias));
            ops.head_wgrad(x, dlogits, labels, dweight, dbias);
        }
        Op::PoolBwd { dout, cu_seqlens, pooling, dx } => {
            let cu_seqlens = frame.input(*cu_seqlens);
            ops.pool_bwd(frame.read(*dout), cu_seqlens, *pooling, frame.write(*dx));
        }
        Op::TanhBwd { out, dout, dx } => {
            ops.tanh_bwd(frame.read(*out), frame.read(*dout), frame.write(*dx));
        }
        Op::DropoutBwd { dout, dropout, dx } => {
            let (mask, width) = (row_mask(*dropout, frame.rows(*dx)), frame.cols(*dx));
            let dout = frame.read_all(dout);
            ops.dropout_bwd(&dout, mask, width, frame.write(*dx));
        }
        Op::GeluBwd { x, dout, dx } => {
            ops.gelu_bwd(frame.read(*x), frame.read(*dout), frame.write(*dx));
        }
        Op::GemmDgrad { parts, dx } => {
            let parts: Vec<_> = (parts.iter())
                .map(|part| DgradPart {
                    dout: frame.read(part.dout),
                    weight: frame.read(part.weight),
                    n: frame.cols(part.dout),
                })
                .collect();
            ops.gemm_dgrad(&parts, frame.cols(*dx), frame.write(*dx));
        }
        Op::GemmGeluDgrad { dout, weight, pre, dx } => {
            let n = frame.cols(*dout);
            let part = DgradPart { dout: frame.read(*dout), weight: frame.read(*weight), n };
            ops.gemm_gelu_dgrad(&part, frame.cols(*dx), frame.read(*pre), frame.write(*dx));
        }
        Op::GemmWgrad { x, parts } => {
            let parts = (parts.iter())
                .map(|part| WgradPart {
                    dout: frame.read(part.dout),
                    dweight: frame.write(part.dweight),
                    dbias: frame.write_optional(part.dbias),
                    n: frame.cols(part.dout),
                })
                .collect();
            ops.gemm_wgrad(frame.read(*x), frame.cols(*x), parts);
        }
        Op::BiasGrad { dout, dbias } => ops.bias_grad(frame.read(*dout), frame.write(*dbias)),
        Op::LayernormBwdDx { dout, xhat, rstd, gamma, dropout, dx, dresidual } => {
            let dout = frame.read_all(dout);
            let saved = NormSaved {
                dout: &dout,
                xhat: frame.read(*xhat),
                rstd: frame.read(*rstd),
                gamma: frame.read(*gamma),
                mask: dropout.map(token_mask),
            };
            let (dx, dresidual) = (frame.write_optional(*dx), frame.write_optional(*dresidual));
            ops.layernorm_bwd_dx(&saved, NormDx { dx, dresidual });
        }
        Op::LayernormBwdParams { dout, xhat, dgamma, dbeta } => {
            let dout = frame.read_all(dout);
            let xhat = dgamma.map(|_| frame.read(*xhat));
            let (dgamma, dbeta) = (frame.write_optional(*dgamma), frame.write_optional(*dbeta));
            ops.layernorm_bwd_params(&dout, xhat, NormDparams { dgamma, dbeta });
        }
        Op::LayernormBwd { dout, xhat, rstd, gamma, dropout, dx, dresidual, dgamma, dbeta } => {
            let dout = frame.read_all(dout);
            let saved = NormSaved {
                dout: &dout,
                xhat: frame.read(*xhat),
                rstd: frame.read(*rstd),
                gamma: frame.read(*gamma),
                mask: dropout.map(token_mask),
            };
            let (dx, dresidual) = (frame.write_optional(*dx), frame.write_optional(*dresidual));
            let (dgamma, dbeta) = (frame.write_optional(*dgamma), frame.write_optional(*dbeta));
            ops.layernorm_bwd(&saved, NormDx { dx, dresidual }, NormDparams { dgamma, dbeta });
        }
        Op::AttentionBwd { dout, lse, q, k, v, cu_seqlens, n_heads, dropout, dq, dk, dv } => {
            let needs_scores = dq.is_some() || dk.is_some();
            let saved = AttentionSaved {
                dout: frame.read(*dout),
                lse: frame.read(*lse),
                q: frame.read(*q),
                k: frame.read(*k),
                v: needs_scores.then(|| frame.read(*v)),
            };
            let shape = AttentionShape {
                cu_seqlens: frame.input(*cu_seqlens),
                n_heads: *n_heads,
                width: frame.cols(*q),
                mask: dropout.map(mask),
            };
            let to = AttentionGradients {
                dq: frame.write_optional(*dq),
                dk: frame.write_optional(*dk),
                dv: frame.write_optional(*dv),
            };
            ops.attention_bwd(&saved, &shape, to);
        }
        Op::EmbedWgrad { dx, ids, padding_row, dtable } => {
            let (ids, width) = (frame.input(*ids), frame.cols(*dtable));
            ops.embed_wgrad(frame.read(*dx), ids, *padding_row, width, frame.write(*dtable));
        }
        Op::GradAccumulate { .. } | Op::GradNorm { .. } | Op::AdamwStep { .. } => {
            unreachable!("the optimizer's ops go over parameters, not frames")
        }
    }
}
