//! Ops that go over their data once: embedding, activations, dropout, pooling, the optimizer.

use rayon::prelude::*;

use super::gemm::Tile;
use super::math;
use super::parallel::for_pieces;
use super::vectorised::vectorised;
use crate::backend::adamw;
use crate::backend::host::ops::{AdamwTensor, Embedding, RowMask};
use crate::backend::reference::place_of_row;
use crate::model::Pooling;

#[inline(always)]
fn row_of(table: &[f32], id: i32, width: usize) -> &[f32] {
    &table[id as usize * width..][..width]
}

vectorised! {
    /// The sum of one token's embeddings.
    pub fn embed_row<'a>(tables: &'a Embedding<'a, f32>, token: usize, out: &'a mut [f32]) {
        let width = tables.width;
        out.copy_from_slice(row_of(tables.word, tables.input_ids[token], width));
        math::add(row_of(tables.position, tables.position_ids[token], width), out);
        if let Some((ids, table)) = tables.token_type {
            math::add(row_of(table, ids[token], width), out);
        }
    }

    fn gelu<'a>(x: &'a [f32], out: &'a mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = math::gelu(*x);
        }
    }

    fn gelu_gradient<'a>(x: &'a [f32], dout: &'a [f32], dx: &'a mut [f32]) {
        for ((dx, x), dout) in dx.iter_mut().zip(x).zip(dout) {
            *dx = dout * math::gelu_gradient(*x);
        }
    }

    /// Adds the bias of a tile's columns.
    pub fn add_bias<'a>(bias: &'a [f32], tile: Tile<'a>) {
        let mut tile = tile;
        for row in 0..tile.out.n_rows() {
            math::add(&bias[tile.col..], tile.out.row(row));
        }
    }

    /// `out = gelu(out + bias)` of a tile; its side, where there is one, keeps the sum.
    pub fn add_bias_and_gelu<'a>(bias: &'a [f32], tile: Tile<'a>) {
        let mut tile = tile;
        for row in 0..tile.out.n_rows() {
            let out = tile.out.row(row);
            math::add(&bias[tile.col..], out);
            if let Some(pre) = &mut tile.side {
                pre.row(row).copy_from_slice(out);
            }
            for out in out {
                *out = math::gelu(*out);
            }
        }
    }

    /// `dx = dact gelu'(pre)` of a tile that holds `dact`; `pre` is the whole matrix, `width` its columns.
    pub fn through_gelu<'a>(pre: &'a [f32], width: usize, tile: Tile<'a>) {
        let mut tile = tile;
        for row in 0..tile.out.n_rows() {
            let pre = &pre[(tile.row + row) * width + tile.col..];
            for (dx, pre) in tile.out.row(row).iter_mut().zip(pre) {
                *dx *= math::gelu_gradient(*pre);
            }
        }
    }

    fn dropped_sum<'a>(x: &'a [&'a [f32]], mask: RowMask<'a>, row: usize, out: &'a mut [f32]) {
        let (sequence, local) = place_of_row(mask.cu_seqlens, row);
        mask.mask.row(sequence, local, out);
        let start = row * out.len();
        for (i, out) in out.iter_mut().enumerate() {
            *out *= x.iter().map(|x| x[start + i]).sum::<f32>();
        }
    }

    /// The mean of the rows that follow `out`'s, added to what it holds.
    fn mean_with<'a>(rest: &'a [f32], out: &'a mut [f32]) {
        for row in rest.chunks_exact(out.len()) {
            math::add(row, out);
        }
        let scale = 1.0 / (rest.len() / out.len() + 1) as f32;
        for out in out {
            *out *= scale;
        }
    }

    fn add_rows_by_id<'a>(
        dx: &'a [f32],
        ids: &'a [i32],
        padding_row: Option<usize>,
        width: usize,
        dtable: &'a mut [f32],
    ) {
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
            if Some(id as usize) != padding_row {
                math::add(dx, &mut dtable[id as usize * width..][..width]);
            }
        }
    }

    /// Blocks in f32, their sum in f64.
    fn sum_of_squares<'a>(x: &'a [f32]) -> f64 {
        const BLOCK: usize = 1024;
        let mut sum = 0.0;
        for block in x.chunks(BLOCK) {
            sum += f64::from(math::dot(block, block));
        }
        sum
    }
}

pub fn gelu_fwd(x: &[f32], out: &mut [f32]) {
    for_pieces(out, |start, out| gelu(&x[start..], out));
}

pub fn gelu_bwd(x: &[f32], dout: &[f32], dx: &mut [f32]) {
    for_pieces(dx, |start, dx| gelu_gradient(&x[start..], &dout[start..], dx));
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
    let rows = out.par_chunks_mut(width).enumerate();
    rows.for_each(|(row, out)| dropped_sum(x, mask, row, out));
}

pub fn pool_fwd(x: &[f32], cu_seqlens: &[i32], pooling: Pooling, out: &mut [f32]) {
    let width = out.len() / (cu_seqlens.len() - 1);
    out.par_chunks_mut(width).zip(cu_seqlens.par_windows(2)).for_each(|(out, ends)| {
        let rows = &x[ends[0] as usize * width..ends[1] as usize * width];
        let (first, rest) = rows.split_at(width);
        out.copy_from_slice(first);
        if pooling == Pooling::Mean {
            mean_with(rest, out);
        }
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
    add_rows_by_id(dx, ids, padding_row, width, dtable);
}

/// The CPU's bandwidth bounds it, not its arithmetic.
pub fn grad_accumulate(grad: &[f32], sum: &mut [f32], begins: bool) {
    const PIECE: usize = 64 * 1024;
    sum.par_chunks_mut(PIECE).zip(grad.par_chunks(PIECE)).for_each(|(sum, grad)| match begins {
        true => sum.copy_from_slice(grad),
        false => math::add(grad, sum),
    });
}

pub fn grad_norm(grads: &[&[f32]], max_norm: f32) -> [f32; 2] {
    const PIECE: usize = 64 * 1024;
    let sums: Vec<f64> = grads
        .par_iter()
        .map(|grad| {
            let pieces: Vec<f64> = grad.par_chunks(PIECE).map(sum_of_squares).collect();
            pieces.iter().sum()
        })
        .collect();
    let norm = sums.iter().sum::<f64>().sqrt();
    [norm as f32, (f64::from(max_norm) / (norm + 1e-6)).min(1.0) as f32]
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
    let pieces = value
        .par_chunks_mut(PIECE)
        .zip(grad.par_chunks(PIECE))
        .zip(moment1.par_chunks_mut(PIECE).zip(moment2.par_chunks_mut(PIECE)));
    pieces.for_each(|((value, grad), (moment1, moment2))| {
        apply(update, value, grad, moment1, moment2);
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

vectorised! {
    fn apply<'a>(
        update: Update,
        value: &'a mut [f32],
        grad: &'a [f32],
        moment1: &'a mut [f32],
        moment2: &'a mut [f32],
    ) {
        const BETA1: f32 = adamw::BETA1 as f32;
        const BETA2: f32 = adamw::BETA2 as f32;
        const NEW1: f32 = (1.0 - adamw::BETA1) as f32;
        const NEW2: f32 = (1.0 - adamw::BETA2) as f32;
        const EPS: f32 = adamw::EPS as f32;
        let moments = moment1.iter_mut().zip(moment2);
        for ((value, grad), (m, v)) in value.iter_mut().zip(grad).zip(moments) {
            let grad = grad * update.factor;
            *m = BETA1 * *m + NEW1 * grad;
            *v = BETA2 * *v + NEW2 * grad * grad;
            let change = update.rate * *m / (v.sqrt() * update.root + EPS);
            *value = *value * update.keep - change;
        }
    }
}
