//! Attention over packed sequences: one task a sequence, its heads one after the other, the scores of
//! one head in a scratch matrix that never leaves the cache. Nothing is padded.

use rayon::prelude::*;

use super::gemm::{MatMut, MatRef, Write};
use super::math;
use super::product::{Scratch, product};
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

    /// Multiplies the probabilities with the dropout mask, drawn into `scratch`.
    #[inline(always)]
    fn drop(&self, mask: Mask, scratch: &mut [f32], probabilities: &mut [f32]) {
        mask.probabilities(self.sequence, self.head, self.length, scratch);
        probabilities.iter_mut().zip(scratch).for_each(|(p, factor)| *p *= *factor);
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
    let arch = pulp::Arch::new();
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
            arch.dispatch(|| {
                for (query, row) in scores.chunks_exact_mut(length).enumerate() {
                    let row_lse = softmax(row);
                    if let Some(lse) = &mut lse {
                        lse[query * shape.n_heads + head] = row_lse;
                    }
                }
            });
            if let Some(mask) = shape.mask {
                arch.dispatch(|| place.drop(mask, &mut factors, &mut scores));
            }
            let p = MatRef::new(&scores, length);
            product(p, v, place.of_mut(out), 1.0, Write::Overwrite, &mut scratch);
        }
    });
}

/// Softmax of a row in place; returns the logarithm of its sum of exponentials.
#[inline(always)]
fn softmax(row: &mut [f32]) -> f32 {
    let top = math::max(row);
    row.iter_mut().for_each(|s| *s = math::exp(*s - top));
    let sum = math::sum(row);
    let scale = 1.0 / sum;
    row.iter_mut().for_each(|p| *p *= scale);
    top + sum.ln()
}

pub fn attention_bwd(
    saved: &AttentionSaved<f32>,
    shape: &AttentionShape,
    to: AttentionGradients<f32>,
) {
    let cut = |gradient| by_sequence(gradient, shape.cu_seqlens, shape.width);
    let (dq, dk, dv) = (cut(to.dq), cut(to.dk), cut(to.dv));
    let arch = pulp::Arch::new();
    let outputs = dq.into_iter().zip(dk).zip(dv).collect();
    for_each_sequence(shape.cu_seqlens, outputs, |sequence, start, length, outputs| {
        let ((mut dq, mut dk), mut dv) = outputs;
        let mut scratch = Scratch::default();
        let mut p = vec![f32::NAN; length * length];
        let mut dp = vec![f32::NAN; if saved.v_and_out.is_some() { length * length } else { 0 }];
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
            arch.dispatch(|| {
                for (query, row) in p.chunks_exact_mut(length).enumerate() {
                    let lse = saved.lse[(start + query) * shape.n_heads + head];
                    row.iter_mut().for_each(|s| *s = math::exp(*s - lse));
                }
            });
            if let Some(mask) = shape.mask {
                arch.dispatch(|| mask.probabilities(sequence, head, length, &mut factors));
            }
            if let Some((v, out)) = saved.v_and_out {
                let to = MatMut::new(&mut dp, length);
                product(dout, place.of(v).t(), to, 1.0, Write::Overwrite, &mut scratch);
                if shape.mask.is_some() {
                    dp.iter_mut().zip(&factors).for_each(|(dp, factor)| *dp *= factor);
                }
                arch.dispatch(|| score_gradients(&place, saved.dout, out, &p, &mut dp));
            }
            if shape.mask.is_some() {
                p.iter_mut().zip(&factors).for_each(|(p, factor)| *p *= factor);
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

/// `dp` becomes `p (dp - delta)`, delta being the inner product of a query's output and its gradient.
#[inline(always)]
fn score_gradients(place: &Head, dout: &[f32], out: &[f32], p: &[f32], dp: &mut [f32]) {
    let (width, size) = (place.shape.width, place.size());
    let rows = p.chunks_exact(place.length).zip(dp.chunks_exact_mut(place.length));
    for (query, (p, dp)) in rows.enumerate() {
        let at = (place.start + query) * width + place.head * size;
        let delta = math::dot(&dout[at..][..size], &out[at..][..size]);
        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - delta));
    }
}
