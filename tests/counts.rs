//! The FLOPs that a plan predicts against those that a run performs: whole steps over a table whose products,
//! attention and heads are plain loops that count every multiplication and addition as they do it. It knows of no
//! plan and no cost, only of the slices that it is handed.

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::{
    Runner, STATE, mask_of, network_of, options, random_batch, random_values, tiny_config,
};
use frostline::backend::host::ops::{
    AdamwTensor, AttentionGradients, AttentionSaved, AttentionShape, DgradPart, Embedding, FwdPart,
    HeadPart, NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Ops, Qkv, RowMask, Targets,
    WgradPart,
};
use frostline::backend::reference::Reference;
use frostline::batch::ABSENT_LABEL;
use frostline::model::{Family as Encoder, Pooling};
use frostline::plan::{Capacity, Counts, Family, fuse::fuse, prune, training_step};

/// The FLOPs that were performed, by op.
type Performed = Arc<Mutex<BTreeMap<&'static str, u64>>>;

/// The reference, and beside it loops that count.
struct Counting(Performed);

/// Arithmetic of one value or score, by the formulas in the ops' documentation: what is no product.
mod formula {
    /// `x / 2 (1 + erf(x / √2))`.
    pub const GELU: u64 = 5;
    /// `dout (Φ + x φ)`.
    pub const GELU_GRADIENT: u64 = 11;
    /// Scale, maximum, difference, exp, sum, quotient.
    pub const SOFTMAX: u64 = 6;
    /// Scale, difference, exp.
    pub const PROBABILITY: u64 = 3;
    /// `Σ p dp`, difference, product, scale.
    pub const SCORE_GRADIENT: u64 = 5;
    pub const DROPOUT: u64 = 1;
}

impl Counting {
    fn add(&self, op: &'static str, flops: u64) {
        *self.0.lock().unwrap().entry(op).or_default() += flops;
    }
}

/// A product of `[m, k]` and `[n, k]`, done; a multiplication and an addition each time around.
fn product(m: usize, n: usize, k: usize) -> u64 {
    let mut flops = 0;
    for _row in 0..m {
        for _col in 0..n {
            for _term in 0..k {
                flops += 2;
            }
        }
    }
    flops
}

/// Over each head of each sequence: `products` inner products a score, and `a_score` operations besides.
fn attention(shape: &AttentionShape, products: usize, a_score: u64) -> u64 {
    let mut flops = 0;
    for ends in shape.cu_seqlens.windows(2) {
        let length = (ends[1] - ends[0]) as usize;
        for _head in 0..shape.n_heads {
            for _ in 0..products {
                flops += product(length, length, shape.width / shape.n_heads);
            }
            for _query in 0..length {
                for _key in 0..length {
                    flops += a_score + shape.mask.map_or(0, |_| formula::DROPOUT);
                }
            }
        }
    }
    flops
}

fn rows_with(labels: &[i32], is_counted: impl Fn(i32) -> bool) -> usize {
    labels.iter().filter(|label| is_counted(**label)).count()
}

impl Ops for Counting {
    type Element = f64;

    fn name(&self) -> &'static str {
        "counting"
    }

    fn gemm_fwd(&self, x: &[f64], k: usize, parts: Vec<FwdPart<f64>>) {
        for part in &parts {
            self.add("gemm_fwd", product(x.len() / k, part.bias.len(), k));
        }
        Reference.gemm_fwd(x, k, parts);
    }

    fn gemm_gelu_fwd(&self, x: &[f64], k: usize, part: FwdPart<f64>, pre: Option<&mut [f64]>) {
        let gelu = formula::GELU * part.out.len() as u64;
        self.add("gemm_gelu_fwd", product(x.len() / k, part.bias.len(), k) + gelu);
        Reference.gemm_gelu_fwd(x, k, part, pre);
    }

    fn gemm_dgrad(&self, parts: &[DgradPart<f64>], k: usize, dx: &mut [f64]) {
        for part in parts {
            self.add("gemm_dgrad", product(dx.len() / k, k, part.n));
        }
        Reference.gemm_dgrad(parts, k, dx);
    }

    fn gemm_gelu_dgrad(&self, part: &DgradPart<f64>, k: usize, pre: &[f64], dx: &mut [f64]) {
        let gelu = formula::GELU_GRADIENT * pre.len() as u64;
        self.add("gemm_gelu_dgrad", product(dx.len() / k, k, part.n) + gelu);
        Reference.gemm_gelu_dgrad(part, k, pre, dx);
    }

    fn gemm_wgrad(&self, x: &[f64], k: usize, parts: Vec<WgradPart<f64>>) {
        for part in &parts {
            let sums = part.dbias.as_ref().map_or(0, |_| part.dout.len() as u64);
            self.add("gemm_wgrad", product(part.n, k, x.len() / k) + sums);
        }
        Reference.gemm_wgrad(x, k, parts);
    }

    fn attention_fwd(
        &self,
        qkv: &Qkv<f64>,
        shape: &AttentionShape,
        out: &mut [f64],
        lse: Option<&mut [f64]>,
    ) {
        // Scores, and the values that they weigh.
        self.add("attention_fwd", attention(shape, 2, formula::SOFTMAX));
        Reference.attention_fwd(qkv, shape, out, lse);
    }

    fn attention_bwd(
        &self,
        saved: &AttentionSaved<f64>,
        shape: &AttentionShape,
        to: AttentionGradients<f64>,
    ) {
        let n_targets =
            [&to.dq, &to.dk, &to.dv].into_iter().filter(|target| target.is_some()).count();
        let (products, a_score) = match saved.v {
            Some(_) => (2, formula::PROBABILITY + formula::SCORE_GRADIENT),
            None => (1, formula::PROBABILITY),
        };
        self.add("attention_bwd", attention(shape, products + n_targets, a_score));
        Reference.attention_bwd(saved, shape, to);
    }

    fn head_fwd(&self, x: &[f64], labels: &[i32], part: FwdPart<f64>) {
        let n_rows = rows_with(labels, |label| label != ABSENT_LABEL);
        self.add("head_fwd", product(n_rows, part.bias.len(), x.len() / labels.len()));
        Reference.head_fwd(x, labels, part);
    }

    fn head_dgrad(&self, parts: &[HeadPart<f64>], dx: &mut [f64]) {
        for part in parts {
            let n_rows = rows_with(part.labels, |label| label >= 0);
            let n_labels = part.dlogits.len() / part.labels.len();
            self.add("head_dgrad", product(n_rows, part.weight.len() / n_labels, n_labels));
        }
        Reference.head_dgrad(parts, dx);
    }

    fn head_wgrad(
        &self,
        x: Option<&[f64]>,
        dlogits: &[f64],
        labels: &[i32],
        dweight: Option<&mut [f64]>,
        dbias: Option<&mut [f64]>,
    ) {
        let n_rows = rows_with(labels, |label| label >= 0);
        let n_labels = dlogits.len() / labels.len();
        let width = dweight.as_ref().map_or(0, |dweight| dweight.len() / n_labels);
        let sums = dbias.as_ref().map_or(0, |_| (n_rows * n_labels) as u64);
        self.add("head_wgrad", product(n_labels, width, n_rows) + sums);
        Reference.head_wgrad(x, dlogits, labels, dweight, dbias);
    }

    fn prefix_load(&self, cache: &[f32], rows: &[i32], width: usize, out: &mut [f64]) {
        Reference.prefix_load(cache, rows, width, out);
    }

    fn embed_fwd(&self, tables: &Embedding<f64>, out: &mut [f64]) {
        Reference.embed_fwd(tables, out);
    }

    fn layernorm_fwd(
        &self,
        x: &[f64],
        residual: Option<&[f64]>,
        mask: Option<RowMask>,
        norm: &NormParams<f64>,
        to: NormOutputs<f64>,
    ) {
        Reference.layernorm_fwd(x, residual, mask, norm, to);
    }

    fn embed_layernorm_fwd(
        &self,
        tables: &Embedding<f64>,
        norm: &NormParams<f64>,
        to: NormOutputs<f64>,
    ) {
        Reference.embed_layernorm_fwd(tables, norm, to);
    }

    fn dropout_fwd(&self, x: &[f64], mask: RowMask, width: usize, out: &mut [f64]) {
        Reference.dropout_fwd(x, mask, width, out);
    }

    fn gelu_fwd(&self, x: &[f64], out: &mut [f64]) {
        Reference.gelu_fwd(x, out);
    }

    fn tanh_fwd(&self, x: &[f64], out: &mut [f64]) {
        Reference.tanh_fwd(x, out);
    }

    fn pool_fwd(&self, x: &[f64], cu_seqlens: &[i32], pooling: Pooling, out: &mut [f64]) {
        Reference.pool_fwd(x, cu_seqlens, pooling, out);
    }

    fn xent_fwd(
        &self,
        logits: &[f64],
        targets: &Targets,
        loss: &mut [f64],
        dlogits: Option<&mut [f64]>,
    ) {
        Reference.xent_fwd(logits, targets, loss, dlogits);
    }

    fn pool_bwd(&self, dout: &[f64], cu_seqlens: &[i32], pooling: Pooling, dx: &mut [f64]) {
        Reference.pool_bwd(dout, cu_seqlens, pooling, dx);
    }

    fn tanh_bwd(&self, out: &[f64], dout: &[f64], dx: &mut [f64]) {
        Reference.tanh_bwd(out, dout, dx);
    }

    fn dropout_bwd(&self, dout: &[&[f64]], mask: RowMask, width: usize, dx: &mut [f64]) {
        Reference.dropout_bwd(dout, mask, width, dx);
    }

    fn gelu_bwd(&self, x: &[f64], dout: &[f64], dx: &mut [f64]) {
        Reference.gelu_bwd(x, dout, dx);
    }

    fn bias_grad(&self, dout: &[f64], dbias: &mut [f64]) {
        Reference.bias_grad(dout, dbias);
    }

    fn layernorm_bwd_dx(&self, saved: &NormSaved<f64>, to: NormDx<f64>) {
        Reference.layernorm_bwd_dx(saved, to);
    }

    fn layernorm_bwd_params(&self, dout: &[&[f64]], xhat: Option<&[f64]>, to: NormDparams<f64>) {
        Reference.layernorm_bwd_params(dout, xhat, to);
    }

    fn layernorm_bwd(&self, saved: &NormSaved<f64>, dx: NormDx<f64>, dparams: NormDparams<f64>) {
        Reference.layernorm_bwd(saved, dx, dparams);
    }

    fn embed_wgrad(
        &self,
        dx: &[f64],
        ids: &[i32],
        padding_row: Option<usize>,
        width: usize,
        dtable: &mut [f64],
    ) {
        Reference.embed_wgrad(dx, ids, padding_row, width, dtable);
    }

    fn grad_accumulate(&self, grad: &[f64], sum: &mut [f64], begins: bool) {
        Reference.grad_accumulate(grad, sum, begins);
    }

    fn grad_norm(&self, grads: &[&[f64]], max_norm: f32) -> [f64; 2] {
        Reference.grad_norm(grads, max_norm)
    }

    fn adamw_step(&self, tensor: AdamwTensor<f64>) {
        Reference.adamw_step(tensor);
    }
}

#[test]
fn planned_flops_are_those_that_a_run_performs() {
    let counted =
        |family: Family| matches!(family, Family::Gemm | Family::Attention | Family::Head);
    // Ops of these families that have no product, and are counted value by value elsewhere.
    let plain = ["pool_fwd", "pool_bwd", "xent_fwd"];
    for pooling in [Pooling::Mean, Pooling::Pooler] {
        let network = network_of(&tiny_config(Encoder::Bert, 2), pooling);
        let batch = random_batch(&network, &[5, 1, 9, 3], 21);
        // Room for more than the batch brings, which must not count.
        let mut capacity = Capacity::of([&batch]);
        capacity.tokens += 13;
        capacity.sequences += 2;
        for spec in [
            "none",
            "lower:1",
            "layers:1..2",
            "backbone",
            "head:topic",
            "all+keep:*.bias+keep:heads.*",
            "name:*query*+name:*key*",
            "all",
        ] {
            let step = training_step(&network, &options(capacity, true, Some(1.0)));
            let plan = fuse(&prune(&step, &network, &mask_of(&network, spec)));
            let mut planned: BTreeMap<&str, u64> = BTreeMap::new();
            for op in &plan.ops {
                if counted(op.family()) && !plain.contains(&op.name()) {
                    let flops = plan.cost(op, &Counts::of(&batch)).flops;
                    *planned.entry(op.name()).or_default() += flops;
                }
            }
            let performed = Performed::default();
            let mut runner =
                Runner::new(Counting(performed.clone()), plan, &random_values(&network, 22));
            runner.step(&batch, STATE);
            assert_eq!(*performed.lock().unwrap(), planned, "{pooling:?}, {spec}");
            assert!(planned.values().all(|flops| *flops > 0) && planned.len() >= 4, "{planned:?}");
        }
    }
}
