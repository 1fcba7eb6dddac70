//! The meaning of every op: plain loops in f64, no threads, no tricks.

mod attention;
pub mod math;

use super::adamw;
use super::host::ops::{
    AdamwTensor, AttentionGradients, AttentionSaved, AttentionShape, DgradPart, Embedding, FwdPart,
    HeadPart, NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Ops, Qkv, RowMask, Targets,
    WgradPart,
};
use crate::batch::ABSENT_LABEL;
use crate::model::Pooling;

/// The reference table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Dropout factors of all rows, `[rows, width]`.
fn row_factors(mask: Option<RowMask>, n_rows: usize, width: usize) -> Vec<f64> {
    let Some(RowMask { mask, cu_seqlens }) = mask else {
        return vec![1.0; n_rows * width];
    };
    let mut factors = vec![f32::NAN; n_rows * width];
    for (row, out) in factors.chunks_mut(width).enumerate() {
        let (sequence, local) = place_of_row(cu_seqlens, row);
        mask.row(sequence, local, out);
    }
    factors.into_iter().map(f64::from).collect()
}

/// Sequence of a row, and its number in there.
pub(in crate::backend) fn place_of_row(cu_seqlens: Option<&[i32]>, row: usize) -> (usize, usize) {
    match cu_seqlens {
        None => (row, 0),
        Some(ends) => {
            let sequence = ends.partition_point(|&end| end as usize <= row) - 1;
            (sequence, row - ends[sequence] as usize)
        }
    }
}

fn sum_of(dout: &[&[f64]], at: usize) -> f64 {
    dout.iter().map(|d| d[at]).sum()
}

impl Ops for Reference {
    type Element = f64;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn embed_fwd(&self, tables: &Embedding<f64>, out: &mut [f64]) {
        let width = tables.width;
        for (t, row) in out.chunks_mut(width).enumerate() {
            for (i, value) in row.iter_mut().enumerate() {
                let of = |table: &[f64], ids: &[i32]| table[ids[t] as usize * width + i];
                *value = of(tables.word, tables.input_ids)
                    + of(tables.position, tables.position_ids)
                    + tables.token_type.map_or(0.0, |(ids, table)| of(table, ids));
            }
        }
    }

    fn prefix_load(&self, cache: &[f32], rows: &[i32], width: usize, out: &mut [f64]) {
        for (to, &row) in out.chunks_mut(width).zip(rows) {
            for (i, value) in to.iter_mut().enumerate() {
                *value = f64::from(cache[row as usize * width + i]);
            }
        }
    }

    fn layernorm_fwd(
        &self,
        x: &[f64],
        residual: Option<&[f64]>,
        mask: Option<RowMask>,
        norm: &NormParams<f64>,
        mut to: NormOutputs<f64>,
    ) {
        let width = norm.gamma.len();
        let n_rows = x.len() / width;
        let factors = row_factors(mask, n_rows, width);
        for row in 0..n_rows {
            let places = row * width..(row + 1) * width;
            let sum: Vec<f64> = (places.clone())
                .map(|at| x[at] * factors[at] + residual.map_or(0.0, |r| r[at]))
                .collect();
            let mean = sum.iter().sum::<f64>() / width as f64;
            let variance = sum.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            let rstd = 1.0 / (variance + f64::from(norm.eps)).sqrt();
            if let Some(saved) = &mut to.rstd {
                saved[row] = rstd;
            }
            for (i, at) in places.enumerate() {
                let xhat = (sum[i] - mean) * rstd;
                to.out[at] = xhat * norm.gamma[i] + norm.beta[i];
                if let Some(saved) = &mut to.xhat {
                    saved[at] = xhat;
                }
            }
        }
    }

    fn embed_layernorm_fwd(
        &self,
        tables: &Embedding<f64>,
        norm: &NormParams<f64>,
        to: NormOutputs<f64>,
    ) {
        let mut sum = vec![f64::NAN; to.out.len()];
        self.embed_fwd(tables, &mut sum);
        self.layernorm_fwd(&sum, None, None, norm, to);
    }

    fn dropout_fwd(&self, x: &[f64], mask: RowMask, width: usize, out: &mut [f64]) {
        let factors = row_factors(Some(mask), x.len() / width, width);
        for ((out, x), factor) in out.iter_mut().zip(x).zip(factors) {
            *out = x * factor;
        }
    }

    fn gemm_fwd(&self, x: &[f64], k: usize, parts: Vec<FwdPart<f64>>) {
        for FwdPart { weight, bias, out } in parts {
            let n = bias.len();
            for (row, out) in x.chunks(k).zip(out.chunks_mut(n)) {
                for (col, value) in out.iter_mut().enumerate() {
                    let dot: f64 = row.iter().zip(&weight[col * k..]).map(|(a, b)| a * b).sum();
                    *value = dot + bias[col];
                }
            }
        }
    }

    fn gelu_fwd(&self, x: &[f64], out: &mut [f64]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * math::normal_cdf(x);
        }
    }

    fn gemm_gelu_fwd(&self, x: &[f64], k: usize, part: FwdPart<f64>, pre: Option<&mut [f64]>) {
        let mut own = vec![f64::NAN; if pre.is_some() { 0 } else { part.out.len() }];
        let pre = pre.unwrap_or(&mut own);
        let FwdPart { weight, bias, out } = part;
        self.gemm_fwd(x, k, vec![FwdPart { weight, bias, out: pre }]);
        self.gelu_fwd(pre, out);
    }

    fn tanh_fwd(&self, x: &[f64], out: &mut [f64]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.tanh();
        }
    }

    fn attention_fwd(
        &self,
        qkv: &Qkv<f64>,
        shape: &AttentionShape,
        out: &mut [f64],
        lse: Option<&mut [f64]>,
    ) {
        self.attention_forward(qkv, shape, out, lse);
    }

    fn pool_fwd(&self, x: &[f64], cu_seqlens: &[i32], pooling: Pooling, out: &mut [f64]) {
        let width = out.len() / (cu_seqlens.len() - 1);
        for (ends, out) in cu_seqlens.windows(2).zip(out.chunks_mut(width)) {
            let tokens = ends[0] as usize..ends[1] as usize;
            let n = tokens.len() as f64;
            for (i, value) in out.iter_mut().enumerate() {
                *value = match pooling {
                    Pooling::Mean => tokens.clone().map(|t| x[t * width + i]).sum::<f64>() / n,
                    Pooling::Cls | Pooling::Pooler => x[tokens.start * width + i],
                };
            }
        }
    }

    fn head_fwd(&self, x: &[f64], labels: &[i32], part: FwdPart<f64>) {
        let (n, k) = (part.bias.len(), x.len() / labels.len());
        for (row, out) in part.out.chunks_mut(n).enumerate() {
            if labels[row] == ABSENT_LABEL {
                continue;
            }
            for (col, value) in out.iter_mut().enumerate() {
                let dot: f64 = (0..k).map(|i| x[row * k + i] * part.weight[col * k + i]).sum();
                *value = dot + part.bias[col];
            }
        }
    }

    fn xent_fwd(
        &self,
        logits: &[f64],
        targets: &Targets,
        loss: &mut [f64],
        mut dlogits: Option<&mut [f64]>,
    ) {
        let n_labels = logits.len() / targets.labels.len();
        let (weight, divisor) = targets.scales();
        loss[0] = 0.0;
        for (row, &label) in targets.labels.iter().enumerate() {
            if label == ABSENT_LABEL {
                continue;
            }
            let places = row * n_labels..(row + 1) * n_labels;
            let logits = &logits[places.clone()];
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|v| (v - top).exp()).sum();
            for class in 0..n_labels {
                let (mut loss_of_class, mut gradient) = (0.0, 0.0);
                if let Ok(label) = usize::try_from(label) {
                    let scale = weight(row) / divisor;
                    let share = targets.share(class, label, n_labels);
                    // A class without a share counts for nothing, however unlikely it is.
                    if share > 0.0 {
                        loss_of_class = scale * share * (top + sum.ln() - logits[class]);
                    }
                    gradient = scale * ((logits[class] - top).exp() / sum - share);
                }
                loss[0] += loss_of_class;
                if let Some(dlogits) = &mut dlogits {
                    dlogits[places.start + class] = gradient;
                }
            }
        }
    }

    fn head_dgrad(&self, parts: &[HeadPart<f64>], dx: &mut [f64]) {
        dx.fill(0.0);
        for part in parts {
            let (n_rows, n) = (part.labels.len(), part.dlogits.len() / part.labels.len());
            let k = part.weight.len() / n;
            for row in (0..n_rows).filter(|&row| part.labels[row] >= 0) {
                for i in 0..k {
                    dx[row * k + i] += (0..n)
                        .map(|col| part.dlogits[row * n + col] * part.weight[col * k + i])
                        .sum::<f64>();
                }
            }
        }
    }

    fn head_wgrad(
        &self,
        x: Option<&[f64]>,
        dlogits: &[f64],
        labels: &[i32],
        dweight: Option<&mut [f64]>,
        dbias: Option<&mut [f64]>,
    ) {
        let (n_rows, n) = (labels.len(), dlogits.len() / labels.len());
        let rows = || (0..n_rows).filter(|&row| labels[row] >= 0);
        if let (Some(x), Some(dweight)) = (x, dweight) {
            let k = dweight.len() / n;
            for (at, out) in dweight.iter_mut().enumerate() {
                let (col, i) = (at / k, at % k);
                *out = rows().map(|row| dlogits[row * n + col] * x[row * k + i]).sum();
            }
        }
        for (col, out) in dbias.into_iter().flatten().enumerate() {
            *out = rows().map(|row| dlogits[row * n + col]).sum();
        }
    }

    fn pool_bwd(&self, dout: &[f64], cu_seqlens: &[i32], pooling: Pooling, dx: &mut [f64]) {
        let width = dout.len() / (cu_seqlens.len() - 1);
        for (ends, dout) in cu_seqlens.windows(2).zip(dout.chunks(width)) {
            let tokens = ends[0] as usize..ends[1] as usize;
            for t in tokens.clone() {
                let factor = match pooling {
                    Pooling::Mean => 1.0 / tokens.len() as f64,
                    Pooling::Cls | Pooling::Pooler if t == tokens.start => 1.0,
                    Pooling::Cls | Pooling::Pooler => 0.0,
                };
                for (i, d) in dout.iter().enumerate() {
                    dx[t * width + i] = d * factor;
                }
            }
        }
    }

    fn tanh_bwd(&self, out: &[f64], dout: &[f64], dx: &mut [f64]) {
        for ((dx, out), dout) in dx.iter_mut().zip(out).zip(dout) {
            *dx = dout * (1.0 - out * out);
        }
    }

    fn dropout_bwd(&self, dout: &[&[f64]], mask: RowMask, width: usize, dx: &mut [f64]) {
        let factors = row_factors(Some(mask), dx.len() / width, width);
        for (at, dx) in dx.iter_mut().enumerate() {
            *dx = sum_of(dout, at) * factors[at];
        }
    }

    fn gelu_bwd(&self, x: &[f64], dout: &[f64], dx: &mut [f64]) {
        for ((dx, &x), dout) in dx.iter_mut().zip(x).zip(dout) {
            *dx = dout * (math::normal_cdf(x) + x * math::normal_pdf(x));
        }
    }

    fn gemm_dgrad(&self, parts: &[DgradPart<f64>], k: usize, dx: &mut [f64]) {
        for (row, dx) in dx.chunks_mut(k).enumerate() {
            for (i, value) in dx.iter_mut().enumerate() {
                *value = (parts.iter())
                    .map(|part| {
                        let dout = &part.dout[row * part.n..(row + 1) * part.n];
                        let terms = dout.iter().enumerate();
                        terms.map(|(col, d)| d * part.weight[col * k + i]).sum::<f64>()
                    })
                    .sum();
            }
        }
    }

    fn gemm_gelu_dgrad(&self, part: &DgradPart<f64>, k: usize, pre: &[f64], dx: &mut [f64]) {
        let mut dact = vec![f64::NAN; dx.len()];
        let DgradPart { dout, weight, n } = *part;
        self.gemm_dgrad(&[DgradPart { dout, weight, n }], k, &mut dact);
        self.gelu_bwd(pre, &dact, dx);
    }

    fn gemm_wgrad(&self, x: &[f64], k: usize, parts: Vec<WgradPart<f64>>) {
        let n_rows = x.len() / k;
        for WgradPart { dout, dweight, dbias, n } in parts {
            for (at, out) in dweight.iter_mut().enumerate() {
                let (col, i) = (at / k, at % k);
                *out = (0..n_rows).map(|row| dout[row * n + col] * x[row * k + i]).sum();
            }
            if let Some(dbias) = dbias {
                self.bias_grad(dout, dbias);
            }
        }
    }

    fn bias_grad(&self, dout: &[f64], dbias: &mut [f64]) {
        let n = dbias.len();
        for (col, out) in dbias.iter_mut().enumerate() {
            *out = dout.iter().skip(col).step_by(n).sum();
        }
    }

    fn layernorm_bwd_dx(&self, saved: &NormSaved<f64>, mut to: NormDx<f64>) {
        let width = saved.gamma.len();
        let factors = row_factors(saved.mask, saved.rstd.len(), width);
        for (row, rstd) in saved.rstd.iter().enumerate() {
            let places = row * width..(row + 1) * width;
            let g: Vec<f64> = (places.clone())
                .zip(saved.gamma)
                .map(|(at, gamma)| sum_of(saved.dout, at) * gamma)
                .collect();
            let xhat = &saved.xhat[places.clone()];
            let mean_g = g.iter().sum::<f64>() / width as f64;
            let mean_gx = g.iter().zip(xhat).map(|(g, x)| g * x).sum::<f64>() / width as f64;
            for (i, at) in places.enumerate() {
                let dsum = rstd * (g[i] - mean_g - xhat[i] * mean_gx);
                if let Some(dx) = &mut to.dx {
                    dx[at] = dsum * factors[at];
                }
                if let Some(dresidual) = &mut to.dresidual {
                    dresidual[at] = dsum;
                }
            }
        }
    }

    fn layernorm_bwd_params(&self, dout: &[&[f64]], xhat: Option<&[f64]>, to: NormDparams<f64>) {
        let n_elements = dout[0].len();
        let column = |width: usize, col: usize| (col..n_elements).step_by(width);
        if let (Some(dgamma), Some(xhat)) = (to.dgamma, xhat) {
            let width = dgamma.len();
            for (col, out) in dgamma.iter_mut().enumerate() {
                *out = column(width, col).map(|at| sum_of(dout, at) * xhat[at]).sum();
            }
        }
        if let Some(dbeta) = to.dbeta {
            let width = dbeta.len();
            for (col, out) in dbeta.iter_mut().enumerate() {
                *out = column(width, col).map(|at| sum_of(dout, at)).sum();
            }
        }
    }

    fn layernorm_bwd(&self, saved: &NormSaved<f64>, dx: NormDx<f64>, dparams: NormDparams<f64>) {
        self.layernorm_bwd_params(saved.dout, Some(saved.xhat), dparams);
        self.layernorm_bwd_dx(saved, dx);
    }

    fn attention_bwd(
        &self,
        saved: &AttentionSaved<f64>,
        shape: &AttentionShape,
        to: AttentionGradients<f64>,
    ) {
        self.attention_backward(saved, shape, to);
    }

    fn embed_wgrad(
        &self,
        dx: &[f64],
        ids: &[i32],
        padding_row: Option<usize>,
        width: usize,
        dtable: &mut [f64],
    ) {
        dtable.fill(0.0);
        for (t, &id) in ids.iter().enumerate() {
            if Some(id as usize) == padding_row {
                continue;
            }
            for i in 0..width {
                dtable[id as usize * width + i] += dx[t * width + i];
            }
        }
    }

    fn grad_accumulate(&self, grad: &[f64], sum: &mut [f64], begins: bool) {
        for (sum, grad) in sum.iter_mut().zip(grad) {
            *sum = if begins { *grad } else { *sum + grad };
        }
    }

    fn grad_norm(&self, grads: &[&[f64]], max_norm: f32) -> [f64; 2] {
        let sum: f64 = grads.iter().flat_map(|grad| grad.iter()).map(|g| g * g).sum();
        let norm = sum.sqrt();
        [norm, (f64::from(max_norm) / (norm + 1e-6)).min(1.0)]
    }

    fn adamw_step(&self, tensor: AdamwTensor<f64>) {
        let correction1 = 1.0 - adamw::BETA1.powi(tensor.step as i32);
        let correction2 = 1.0 - adamw::BETA2.powi(tensor.step as i32);
        for (at, value) in tensor.value.iter_mut().enumerate() {
            let grad = tensor.grad[at] * tensor.factor;
            let (m, v) = (&mut tensor.moment1[at], &mut tensor.moment2[at]);
            *m = adamw::BETA1 * *m + (1.0 - adamw::BETA1) * grad;
            *v = adamw::BETA2 * *v + (1.0 - adamw::BETA2) * grad * grad;
            *value -= tensor.learning_rate * tensor.weight_decay * *value;
            *value -= tensor.learning_rate * (*m / correction1)
                / ((*v / correction2).sqrt() + adamw::EPS);
        }
    }
}
