//! Ops that go over their data once: embedding, activations, dropout, pooling, the optimizer.

use rayon::prelude::*;

use super::math;
use super::parallel::{for_each_piece, for_pieces, optional_pieces, rows_per_piece};
use crate::backend::adamw;
use crate::backend::host::ops::{AdamwTensor, Embedding, RowMask};
use crate::backend::reference::place_of_row;
use crate::model::Pooling;

#[inline(always)]
fn row_of(table: &[f32], id: i32, width: usize) -> &[f32] {
    &table[id as usize * width..][..width]
}

/// The sum of one token's embeddings.
#[inline(always)]
pub fn embed_row(tables: &Embedding<f32>, token: usize, out: &mut [f32]) {
    let width = tables.width;
    let word = row_of(tables.word, tables.input_ids[token], width);
    let position = row_of(tables.position, tables.position_ids[token], width);
    match tables.token_type {
        Some((ids, table)) => {
            let token_type = row_of(table, ids[token], width);
            for (i, out) in out.iter_mut().enumerate() {
                *out = word[i] + position[i] + token_type[i];
            }
        }
        None => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = word[i] + position[i];
            }
        }
    }
}

pub fn gelu_fwd(x: &[f32], out: &mut [f32]) {
    for_pieces(out, |start, out| {
        for (out, &x) in out.iter_mut().zip(&x[start..]) {
            *out = math::gelu(x);
        }
    });
}

/// `out = gelu(out + bias)`, the sum kept in `pre` where it is asked for.
pub fn bias_gelu_in_place(bias: &[f32], out: &mut [f32], pre: Option<&mut [f32]>) {
    let n = bias.len();
    let piece = n * rows_per_piece(n);
    let pre = optional_pieces(pre, piece, out.len().div_ceil(piece));
    let pieces: Vec<_> = out.chunks_mut(piece).zip(pre).collect();
    let arch = pulp::Arch::new();
    for_each_piece(pieces, |_, (out, pre)| {
        arch.dispatch(|| {
            for row in out.chunks_exact_mut(n) {
                row.iter_mut().zip(bias).for_each(|(out, b)| *out += b);
            }
            if let Some(pre) = pre {
                pre.copy_from_slice(out);
            }
            out.iter_mut().for_each(|out| *out = math::gelu(*out));
        });
    });
}

/// `dx = dact gelu'(pre)` where `dx` holds `dact`.
pub fn gelu_bwd_in_place(pre: &[f32], dx: &mut [f32]) {
    for_pieces(dx, |start, dx| {
        for (dx, &x) in dx.iter_mut().zip(&pre[start..]) {
            *dx *= math::gelu_gradient(x);
        }
    });
}

pub fn gelu_bwd(x: &[f32], dout: &[f32], dx: &mut [f32]) {
    for_pieces(dx, |start, dx| {
        for ((dx, &x), &dout) in dx.iter_mut().zip(&x[start..]).zip(&dout[start..]) {
            *dx = dout * math::gelu_gradient(x);
        }
    });
}

pub fn tanh_fwd(x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x.tanh();
    }
}

pub fn tanh_bwd(out: &[f32], dout: &[f32], dx: &mut [f32]) {
    for ((dx, out), dout) in dx.iter_mut().zip(out).zip(dout) {
        *dx = dout * (1.0 - out * out);
    }
}

/// Dropout of the sum of `x`, forward and backward alike.
pub fn dropout(x: &[&[f32]], mask: RowMask, width: usize, out: &mut [f32]) {
    let arch = pulp::Arch::new();
    out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
        let (sequence, local) = place_of_row(mask.cu_seqlens, row);
        let start = row * width;
        arch.dispatch(|| {
            mask.mask.row(sequence, local, out);
            for (i, out) in out.iter_mut().enumerate() {
                *out *= x.iter().map(|x| x[start + i]).sum::<f32>();
            }
        });
    });
}

pub fn pool_fwd(x: &[f32], cu_seqlens: &[i32], pooling: Pooling, out: &mut [f32]) {
    let width = out.len() / (cu_seqlens.len() - 1);
    let arch = pulp::Arch::new();
    out.par_chunks_mut(width).zip(cu_seqlens.par_windows(2)).for_each(|(out, ends)| {
        let rows = &x[ends[0] as usize * width..ends[1] as usize * width];
        let (first, rest) = rows.split_at(width);
        out.copy_from_slice(first);
        if pooling != Pooling::Mean {
            return;
        }
        arch.dispatch(|| {
            for row in rest.chunks_exact(width) {
                for (out, x) in out.iter_mut().zip(row) {
                    *out += x;
                }
            }
            let scale = 1.0 / (rows.len() / width) as f32;
            out.iter_mut().for_each(|out| *out *= scale);
        });
    });
}

pub fn pool_bwd(dout: &[f32], cu_seqlens: &[i32], pooling: Pooling, dx: &mut [f32]) {
    let width = dout.len() / (cu_seqlens.len() - 1);
    for (ends, dout) in cu_seqlens.windows(2).zip(dout.chunks_exact(width)) {
        let rows = &mut dx[ends[0] as usize * width..ends[1] as usize * width];
        let scale = 1.0 / (rows.len() / width) as f32;
        for (t, row) in rows.chunks_exact_mut(width).enumerate() {
            match pooling {
                Pooling::Mean => row.iter_mut().zip(dout).for_each(|(dx, d)| *dx = d * scale),
                Pooling::Cls | Pooling::Pooler if t == 0 => row.copy_from_slice(dout),
                Pooling::Cls | Pooling::Pooler => row.fill(0.0),
            }
        }
    }
}

pub fn embed_wgrad(
    dx: &[f32],
    ids: &[i32],
    padding_row: Option<usize>,
    width: usize,
    dtable: &mut [f32],
) {
    for_pieces(dtable, |_, piece| piece.fill(0.0));
    // In token order, by one thread: a fixed order of sums, and little beside the zeroing.
    pulp::Arch::new().dispatch(|| {
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            if Some(id as usize) == padding_row {
                continue;
            }
            let row = &mut dtable[id as usize * width..][..width];
            for (sum, dx) in row.iter_mut().zip(dx) {
                *sum += dx;
            }
        }
    });
}

pub fn grad_norm(grads: &[&[f32]], max_norm: f32) -> [f32; 2] {
    const PIECE: usize = 64 * 1024;
    let arch = pulp::Arch::new();
    let sums: Vec<f64> = grads
        .par_iter()
        .map(|grad| {
            let pieces: Vec<f64> = grad
                .par_chunks(PIECE)
                .map(|piece| arch.dispatch(|| sum_of_squares(piece)))
                .collect();
            pieces.iter().sum()
        })
        .collect();
    let norm = sums.iter().sum::<f64>().sqrt();
    [norm as f32, (f64::from(max_norm) / (norm + 1e-6)).min(1.0) as f32]
}

/// Blocks in f32, their sum in f64.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f64 {
    const BLOCK: usize = 1024;
    x.chunks(BLOCK).map(|block| f64::from(math::dot(block, block))).sum()
}

pub fn adamw_step(tensor: AdamwTensor<f32>) {
    const PIECE: usize = 32 * 1024;
    let AdamwTensor { value, grad, moment1, moment2, learning_rate, weight_decay, factor, step } =
        tensor;
    let exponent = step as i32;
    let update = Update {
        factor: factor as f32,
        keep: (1.0 - learning_rate * weight_decay) as f32,
        rate: (learning_rate / (1.0 - adamw::BETA1.powi(exponent))) as f32,
        root: (1.0 / (1.0 - adamw::BETA2.powi(exponent)).sqrt()) as f32,
    };
    let arch = pulp::Arch::new();
    let pieces = value
        .par_chunks_mut(PIECE)
        .zip(grad.par_chunks(PIECE))
        .zip(moment1.par_chunks_mut(PIECE).zip(moment2.par_chunks_mut(PIECE)));
    pieces.for_each(|((value, grad), (moment1, moment2))| {
        arch.dispatch(|| update.apply(value, grad, moment1, moment2));
    });
}

/// The scalars of one AdamW update.
#[derive(Clone, Copy)]
struct Update {
    factor: f32,
    keep: f32,
    rate: f32,
    root: f32,
}

impl Update {
    #[inline(always)]
    fn apply(self, value: &mut [f32], grad: &[f32], moment1: &mut [f32], moment2: &mut [f32]) {
        const BETA1: f32 = adamw::BETA1 as f32;
        const BETA2: f32 = adamw::BETA2 as f32;
        const NEW1: f32 = (1.0 - adamw::BETA1) as f32;
        const NEW2: f32 = (1.0 - adamw::BETA2) as f32;
        const EPS: f32 = adamw::EPS as f32;
        let moments = moment1.iter_mut().zip(moment2);
        for ((value, grad), (m, v)) in value.iter_mut().zip(grad).zip(moments) {
            let grad = grad * self.factor;
            *m = BETA1 * *m + NEW1 * grad;
            *v = BETA2 * *v + NEW2 * grad * grad;
            *value = *value * self.keep - self.rate * *m / (v.sqrt() * self.root + EPS);
        }
    }
}
