//! Attention over packed sequences: one task a sequence, its heads one after the other, the scores of
//! one head in a scratch matrix that never leaves the cache. Nothing is padded.

use rayon::prelude::*;

use super::gemm::{MatMut, MatRef, Write};
use super::math;
use super::product::{Scratch, product};
use super::vectorised::vectorised;
use crate::backend::dropout::Mask;
use crate::backend::host::ops::{AttentionGradients, AttentionSaved, AttentionShape, Qkv};

/// Cuts a `[T, width]` matrix into the rows of each sequence.
fn by_sequence<'a>(
    matrix: Option<&'a mut [f32]>,
    cu_seqlens: &[i32],
    width: usize,
) -> Vec<Option<&'a mut [f32]>> {
    let mut rest = matrix;
    let lengths = cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as usize);
    lengths
        .map(|length| {
            let (rows, tail) = rest.take()?.split_at_mut(length * width);
            rest = Some(tail);
            Some(rows)
        })
        .collect()
}

/// One head's columns of one sequence.
struct Head<'a> {
    shape: &'a AttentionShape<'a>,
    sequence: usize,
    head: usize,
    start: usize,
    length: usize,
}

impl Head<'_> {
    fn size(&self) -> usize {
        self.shape.width / self.shape.n_heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.size() as f32).sqrt()
    }

    /// This head of a `[T, D]` matrix.
    fn of<'a>(&self, matrix: &'a [f32]) -> MatRef<'a> {
        let width = self.shape.width;
        let rows = &matrix[self.start * width..(self.start + self.length) * width];
        MatRef::columns(rows, width, self.head * self.size(), self.size())
    }

    /// This head of the rows of one sequence.
    fn of_mut<'a>(&self, rows: &'a mut [f32]) -> MatMut<'a> {
        MatMut::columns(rows, self.shape.width, self.head * self.size(), self.size())
    }
}

/// Calls `f` for every sequence, in parallel, with its number, first token and length.
fn for_each_sequence<T: Send>(
    cu_seqlens: &[i32],
    outputs: Vec<T>,
    f: impl Fn(usize, usize, usize, T) + Sync,
) {
    outputs.into_par_iter().enumerate().for_each(|(sequence, output)| {
        let (start, end) = (cu_seqlens[sequence] as usize, cu_seqlens[sequence + 1] as usize);
        f(sequence, start, end - start, output);
    });
}

pub fn attention_fwd(
    qkv: &Qkv<f32>,
    shape: &AttentionShape,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let out = by_sequence(Some(out), shape.cu_seqlens, shape.width);
    let lse = by_sequence(lse, shape.cu_seqlens, shape.n_heads);
    let outputs = out.into_iter().flatten().zip(lse).collect();
    for_each_sequence(shape.cu_seqlens, outputs, |sequence, start, length, (out, mut lse)| {
        let mut scratch = Scratch::default();
        let mut scores = vec![f32::NAN; length * length];
        let mut factors = vec![f32::NAN; if shape.mask.is_some() { length * length } else { 0 }];
        for head in 0..shape.n_heads {
            let place = Head { shape, sequence, head, start, length };
            let (q, k, v) = (place.of(qkv.q), place.of(qkv.k), place.of(qkv.v));
            let to = MatMut::new(&mut scores, length);
            product(q, k.t(), to, place.scale(), Write::Overwrite, &mut scratch);
            softmax(&mut scores, &place, lse.as_deref_mut());
            if let Some(mask) = shape.mask {
                draw(mask, &place, &mut factors);
                multiply(&factors, &mut scores);
            }
            let p = MatRef::new(&scores, length);
            product(p, v, place.of_mut(out), 1.0, Write::Overwrite, &mut scratch);
        }
    });
}

vectorised! {
    /// Softmax of the scores of one head, row by row; `lse`, of all heads of the sequence's tokens, takes
    /// the logarithms of the sums of exponentials.
    fn softmax<'a>(scores: &'a mut [f32], place: &'a Head<'a>, lse: Option<&'a mut [f32]>) {
        let mut lse = lse;
        for (query, row) in scores.chunks_exact_mut(place.length).enumerate() {
            let top = math::max(row);
            for score in row.iter_mut() {
                *score = math::exp(*score - top);
            }
            let sum = math::sum(row);
            let scale = 1.0 / sum;
            for p in row.iter_mut() {
                *p *= scale;
            }
            if let Some(lse) = &mut lse {
                lse[query * place.shape.n_heads + place.head] = top + sum.ln();
            }
        }
    }

    /// The probabilities again, from the scores and the saved logarithms of all tokens.
    fn probabilities<'a>(scores: &'a mut [f32], place: &'a Head<'a>, lse: &'a [f32]) {
        for (query, row) in scores.chunks_exact_mut(place.length).enumerate() {
            let lse = lse[(place.start + query) * place.shape.n_heads + place.head];
            for score in row {
                *score = math::exp(*score - lse);
            }
        }
    }

    /// Of each query, a row of `length` keys: `dp` becomes `p (dp - Σ p dp)`.
    fn score_gradients<'a>(length: usize, p: &'a [f32], dp: &'a mut [f32]) {
        for (p, dp) in p.chunks_exact(length).zip(dp.chunks_exact_mut(length)) {
            let delta = math::dot(p, dp);
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - delta);
            }
        }
    }

    /// Draws the dropout factors of one head's probabilities.
    fn draw<'a>(mask: Mask, place: &'a Head<'a>, factors: &'a mut [f32]) {
        mask.probabilities(place.sequence, place.head, place.length, factors);
    }

    fn multiply<'a>(factors: &'a [f32], values: &'a mut [f32]) {
        math::multiply(factors, values);
    }
}

pub fn attention_bwd(
    saved: &AttentionSaved<f32>,
    shape: &AttentionShape,
    to: AttentionGradients<f32>,
) {
    let cut = |gradient| by_sequence(gradient, shape.cu_seqlens, shape.width);
    let (dq, dk, dv) = (cut(to.dq), cut(to.dk), cut(to.dv));
    let outputs = dq.into_iter().zip(dk).zip(dv).collect();
    for_each_sequence(shape.cu_seqlens, outputs, |sequence, start, length, outputs| {
        let ((mut dq, mut dk), mut dv) = outputs;
        let mut scratch = Scratch::default();
        let mut p = vec![f32::NAN; length * length];
        let mut dp = vec![f32::NAN; if saved.v.is_some() { length * length } else { 0 }];
        let mut factors = vec![f32::NAN; if shape.mask.is_some() { length * length } else { 0 }];
        for head in 0..shape.n_heads {
            let place = Head { shape, sequence, head, start, length };
            let (q, k, dout) = (place.of(saved.q), place.of(saved.k), place.of(saved.dout));
            product(
                q,
                k.t(),
                MatMut::new(&mut p, length),
                place.scale(),
                Write::Overwrite,
                &mut scratch,
            );
            probabilities(&mut p, &place, saved.lse);
            if let Some(mask) = shape.mask {
                draw(mask, &place, &mut factors);
            }
            if let Some(v) = saved.v {
                let to = MatMut::new(&mut dp, length);
                product(dout, place.of(v).t(), to, 1.0, Write::Overwrite, &mut scratch);
                if shape.mask.is_some() {
                    multiply(&factors, &mut dp);
                }
                score_gradients(length, &p, &mut dp);
            }
            if shape.mask.is_some() {
                multiply(&factors, &mut p);
            }
            if let Some(dv) = &mut dv {
                let p = MatRef::new(&p, length).t();
                product(p, dout, place.of_mut(dv), 1.0, Write::Overwrite, &mut scratch);
            }
            if let Some(dq) = &mut dq {
                let dscores = MatRef::new(&dp, length);
                let to = place.of_mut(dq);
                product(dscores, k, to, place.scale(), Write::Overwrite, &mut scratch);
            }
            if let Some(dk) = &mut dk {
                let dscores = MatRef::new(&dp, length).t();
                let to = place.of_mut(dk);
                product(dscores, q, to, place.scale(), Write::Overwrite, &mut scratch);
            }
        }
    });
}
