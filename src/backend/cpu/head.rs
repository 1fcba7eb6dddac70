//! Heads and their loss: products with a handful of columns, where a GEMM's packing would cost more
//! than its arithmetic.

use super::math;
use super::vectorised::vectorised;
use crate::backend::host::ops::{FwdPart, HeadPart, Targets};
use crate::batch::ABSENT_LABEL;

vectorised! {
    pub fn head_fwd<'a>(x: &'a [f32], labels: &'a [i32], part: FwdPart<'a, f32>) {
        let (n, k) = (part.bias.len(), x.len() / labels.len());
        let rows = x.chunks_exact(k).zip(part.out.chunks_exact_mut(n));
        for (label, (x, out)) in labels.iter().zip(rows) {
            if *label == ABSENT_LABEL {
                continue;
            }
            for ((out, weight), bias) in out.iter_mut().zip(part.weight.chunks_exact(k)).zip(part.bias) {
                *out = math::dot(x, weight) + bias;
            }
        }
    }

    pub fn head_dgrad<'a>(parts: &'a [HeadPart<'a, f32>], dx: &'a mut [f32]) {
        dx.fill(0.0);
        for part in parts {
            let n = part.dlogits.len() / part.labels.len();
            let k = part.weight.len() / n;
            let rows = part.dlogits.chunks_exact(n).zip(dx.chunks_exact_mut(k));
            for (label, (dlogits, dx)) in part.labels.iter().zip(rows) {
                if *label < 0 {
                    continue;
                }
                for (dlogit, weight) in dlogits.iter().zip(part.weight.chunks_exact(k)) {
                    math::add_scaled(*dlogit, weight, dx);
                }
            }
        }
    }

    pub fn head_wgrad<'a>(
        x: Option<&'a [f32]>,
        dlogits: &'a [f32],
        labels: &'a [i32],
        dweight: Option<&'a mut [f32]>,
        dbias: Option<&'a mut [f32]>,
    ) {
        let n = dlogits.len() / labels.len();
        if let (Some(x), Some(dweight)) = (x, dweight) {
            let k = dweight.len() / n;
            dweight.fill(0.0);
            for (row, label) in labels.iter().enumerate() {
                if *label < 0 {
                    continue;
                }
                let (x, dlogits) = (&x[row * k..][..k], &dlogits[row * n..][..n]);
                for (dlogit, dweight) in dlogits.iter().zip(dweight.chunks_exact_mut(k)) {
                    math::add_scaled(*dlogit, x, dweight);
                }
            }
        }
        if let Some(dbias) = dbias {
            dbias.fill(0.0);
            for (row, label) in labels.iter().enumerate() {
                if *label >= 0 {
                    math::add(&dlogits[row * n..][..n], dbias);
                }
            }
        }
    }
}

/// In f64: few numbers, and the loss is what people look at.
pub fn xent_fwd(
    logits: &[f32],
    targets: &Targets,
    loss: &mut [f32],
    mut dlogits: Option<&mut [f32]>,
) {
    let n = logits.len() / targets.labels.len();
    let (weight, divisor) = targets.scales();
    let smoothing = f64::from(targets.smoothing);
    let mut total = 0.0;
    for (row, &label) in targets.labels.iter().enumerate() {
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
        let mut aimed_at = f64::from(logits[label]);
        if smoothing > 0.0 {
            let mean = logits.iter().copied().map(f64::from).sum::<f64>() / n as f64;
            aimed_at += smoothing * (mean - aimed_at);
        }
        let weight = weight(row);
        total += weight * (top + sum.ln() - aimed_at);
        for (class, out) in dlogits.into_iter().flatten().enumerate() {
            let share = targets.share(class, label, n);
            *out = (weight * (exp(logits[class]) / sum - share) / divisor) as f32;
        }
    }
    loss[0] = if divisor > 0.0 { (total / divisor) as f32 } else { 0.0 };
}
