//! Attention, one sequence and head at a time, probabilities written out.

use super::Reference;
use crate::backend::dropout::Mask;
use crate::backend::host::ops::{AttentionGradients, AttentionSaved, AttentionShape, Qkv};

/// One head of one sequence in a `[T, D]` matrix.
#[derive(Clone, Copy)]
struct Head {
    /// First token of the sequence.
    start: usize,
    length: usize,
    /// First column of the head.
    column: usize,
    size: usize,
    width: usize,
}

impl Head {
    fn at(&self, token: usize, i: usize) -> usize {
        (self.start + token) * self.width + self.column + i
    }

    fn dot(&self, a: &[f64], a_token: usize, b: &[f64], b_token: usize) -> f64 {
        (0..self.size).map(|i| a[self.at(a_token, i)] * b[self.at(b_token, i)]).sum()
    }

    fn scale(&self) -> f64 {
        1.0 / (self.size as f64).sqrt()
    }
}

/// Calls `f` with sequence number, head number and place of every head.
fn for_each_head(shape: &AttentionShape, mut f: impl FnMut(usize, usize, Head)) {
    let size = shape.width / shape.n_heads;
    for (sequence, ends) in shape.cu_seqlens.windows(2).enumerate() {
        let (start, length) = (ends[0] as usize, (ends[1] - ends[0]) as usize);
        for head in 0..shape.n_heads {
            let place = Head { start, length, column: head * size, size, width: shape.width };
            f(sequence, head, place);
        }
    }
}

/// Dropout factors of one head's probabilities, ones where there is no dropout.
fn factors(mask: Option<Mask>, sequence: usize, head: usize, length: usize) -> Vec<f64> {
    match mask {
        None => vec![1.0; length * length],
        Some(mask) => {
            let mut factors = vec![f32::NAN; length * length];
            mask.probabilities(sequence, head, length, &mut factors);
            factors.into_iter().map(f64::from).collect()
        }
    }
}

impl Reference {
    pub(super) fn attention_forward(
        &self,
        qkv: &Qkv<f64>,
        shape: &AttentionShape,
        out: &mut [f64],
        mut lse: Option<&mut [f64]>,
    ) {
        for_each_head(shape, |sequence, head, place| {
            let length = place.length;
            let factors = factors(shape.mask, sequence, head, length);
            for query in 0..length {
                let scores: Vec<f64> = (0..length)
                    .map(|key| place.scale() * place.dot(qkv.q, query, qkv.k, key))
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                if let Some(lse) = &mut lse {
                    lse[(place.start + query) * shape.n_heads + head] = top + sum.ln();
                }
                for i in 0..place.size {
                    out[place.at(query, i)] = (0..length)
                        .map(|key| {
                            let p = (scores[key] - top).exp() / sum;
                            p * factors[query * length + key] * qkv.v[place.at(key, i)]
                        })
                        .sum();
                }
            }
        });
    }

    pub(super) fn attention_backward(
        &self,
        saved: &AttentionSaved<f64>,
        shape: &AttentionShape,
        mut to: AttentionGradients<f64>,
    ) {
        for gradient in [&mut to.dq, &mut to.dk, &mut to.dv].into_iter().flatten() {
            gradient.fill(0.0);
        }
        for_each_head(shape, |sequence, head, place| {
            let length = place.length;
            let factors = factors(shape.mask, sequence, head, length);
            for query in 0..length {
                let lse = saved.lse[(place.start + query) * shape.n_heads + head];
                let p = |key: usize| {
                    (place.scale() * place.dot(saved.q, query, saved.k, key) - lse).exp()
                };
                let dp = |key: usize, v: &[f64]| {
                    factors[query * length + key] * place.dot(saved.dout, query, v, key)
                };
                let delta: f64 =
                    saved.v.map_or(0.0, |v| (0..length).map(|key| p(key) * dp(key, v)).sum());
                for key in 0..length {
                    let (p, factor) = (p(key), factors[query * length + key]);
                    if let Some(dv) = &mut to.dv {
                        for i in 0..place.size {
                            dv[place.at(key, i)] += p * factor * saved.dout[place.at(query, i)];
                        }
                    }
                    let Some(v) = saved.v else { continue };
                    let dscore = p * (dp(key, v) - delta) * place.scale();
                    for i in 0..place.size {
                        if let Some(dq) = &mut to.dq {
                            dq[place.at(query, i)] += dscore * saved.k[place.at(key, i)];
                        }
                        if let Some(dk) = &mut to.dk {
                            dk[place.at(key, i)] += dscore * saved.q[place.at(query, i)];
                        }
                    }
                }
            }
        });
    }
}
