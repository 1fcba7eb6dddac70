//! Heads and their loss: products with a handful of columns, where a GEMM's packing would cost more
//! than its arithmetic.

use super::math;
use crate::backend::host::ops::{FwdPart, HeadPart};
use crate::batch::ABSENT_LABEL;

pub fn head_fwd(x: &[f32], labels: &[i32], part: FwdPart<f32>) {
    let (n, k) = (part.bias.len(), x.len() / labels.len());
    let arch = pulp::Arch::new();
    arch.dispatch(|| {
        let rows = x.chunks_exact(k).zip(part.out.chunks_exact_mut(n));
        for (_, (x, out)) in labels.iter().zip(rows).filter(|(label, _)| **label != ABSENT_LABEL) {
            for ((out, weight), bias) in
                out.iter_mut().zip(part.weight.chunks_exact(k)).zip(part.bias)
            {
                *out = math::dot(x, weight) + bias;
            }
        }
    });
}

/// In f64: few numbers, and the loss is what people look at.
pub fn xent_fwd(logits: &[f32], labels: &[i32], loss: &mut [f32], mut dlogits: Option<&mut [f32]>) {
    let n = logits.len() / labels.len();
    let n_labelled = labels.iter().filter(|&&label| label >= 0).count() as f64;
    let mut total = 0.0;
    for (row, &label) in labels.iter().enumerate() {
        if label == ABSENT_LABEL {
            continue;
        }
        let logits = &logits[row * n..][..n];
        let dlogits = dlogits.as_mut().map(|dlogits| &mut dlogits[row * n..][..n]);
        let Ok(label) = usize::try_from(label) else {
            dlogits.into_iter().for_each(|row| row.fill(0.0));
            continue;
        };
        let top = f64::from(math::max(logits));
        let exp = |logit: f32| (f64::from(logit) - top).exp();
        let sum: f64 = logits.iter().map(|&logit| exp(logit)).sum();
        total += top + sum.ln() - f64::from(logits[label]);
        for (class, out) in dlogits.into_iter().flatten().enumerate() {
            let target = if class == label { 1.0 } else { 0.0 };
            *out = ((exp(logits[class]) / sum - target) / n_labelled) as f32;
        }
    }
    loss[0] = if n_labelled > 0.0 { (total / n_labelled) as f32 } else { 0.0 };
}

pub fn head_dgrad(parts: &[HeadPart<f32>], dx: &mut [f32]) {
    dx.fill(0.0);
    pulp::Arch::new().dispatch(|| {
        for part in parts {
            let n = part.dlogits.len() / part.labels.len();
            let k = part.weight.len() / n;
            let rows = part.dlogits.chunks_exact(n).zip(dx.chunks_exact_mut(k));
            for (_, (dlogits, dx)) in part.labels.iter().zip(rows).filter(|(l, _)| **l >= 0) {
                for (dlogit, weight) in dlogits.iter().zip(part.weight.chunks_exact(k)) {
                    dx.iter_mut().zip(weight).for_each(|(dx, w)| *dx += dlogit * w);
                }
            }
        }
    });
}

pub fn head_wgrad(
    x: Option<&[f32]>,
    dlogits: &[f32],
    labels: &[i32],
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) {
    let n = dlogits.len() / labels.len();
    let labelled =
        || labels.iter().enumerate().filter(|(_, label)| **label >= 0).map(|(row, _)| row);
    if let (Some(x), Some(dweight)) = (x, dweight) {
        let k = dweight.len() / n;
        dweight.fill(0.0);
        pulp::Arch::new().dispatch(|| {
            for row in labelled() {
                let (x, dlogits) = (&x[row * k..][..k], &dlogits[row * n..][..n]);
                for (dlogit, dweight) in dlogits.iter().zip(dweight.chunks_exact_mut(k)) {
                    dweight.iter_mut().zip(x).for_each(|(dw, x)| *dw += dlogit * x);
                }
            }
        });
    }
    if let Some(dbias) = dbias {
        dbias.fill(0.0);
        for row in labelled() {
            let dlogits = &dlogits[row * n..][..n];
            dbias.iter_mut().zip(dlogits).for_each(|(db, d)| *db += d);
        }
    }
}
