//! The CPU backend: f32, all cores, vector instructions of the CPU that it runs on.
//!
//! Sums are cut by size, never by the number of threads, so that results do not depend on it.

mod attention;
mod elementwise;
mod gemm;
mod head;
mod math;
mod norm;
mod parallel;
mod product;
mod vectorised;

use rayon::prelude::*;

use self::gemm::{MatMut, MatRef, Product};
use super::host::ops::{
    AdamwTensor, AttentionGradients, AttentionSaved, AttentionShape, DgradPart, Embedding, FwdPart,
    HeadPart, NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Ops, Qkv, RowMask, Targets,
    WgradPart,
};
use crate::model::Pooling;

/// The CPU's table of functions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Cpu {
    /// `c = a · bᵀ` with all threads, as [`crate::measure::ceilings`] times it: `a` `[m, k]`, `b`
    /// `[n, k]`.
    pub fn product(a: &[f32], b: &[f32], k: usize, c: &mut [f32]) {
        let n = b.len() / k;
        let (a, b) = (MatRef::new(a, k), MatRef::new(b, k).t());
        gemm::products(vec![Product::new(a, b, MatMut::new(c, n))], |_| {});
    }
}

/// `x · weightᵀ`, and the bias that is left to the epilogue.
fn linear<'a>(x: &'a [f32], k: usize, part: FwdPart<'a, f32>) -> (Product<'a>, &'a [f32]) {
    let (x, weight) = (MatRef::new(x, k), MatRef::new(part.weight, k).t());
    (Product::new(x, weight, MatMut::new(part.out, part.bias.len())), part.bias)
}

/// The sum of `dout · weight` over the parts.
fn input_gradient<'a>(parts: &[DgradPart<'a, f32>], k: usize, dx: &'a mut [f32]) -> Product<'a> {
    let term =
        |part: &DgradPart<'a, f32>| (MatRef::new(part.dout, part.n), MatRef::new(part.weight, k));
    Product { terms: parts.iter().map(term).collect(), out: MatMut::new(dx, k), side: None }
}

impl Ops for Cpu {
    type Element = f32;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn embed_fwd(&self, tables: &Embedding<f32>, out: &mut [f32]) {
        out.par_chunks_mut(tables.width)
            .enumerate()
            .for_each(|(token, out)| elementwise::embed_row(tables, token, out));
    }

    fn prefix_load(&self, cache: &[f32], rows: &[i32], width: usize, out: &mut [f32]) {
        out.par_chunks_mut(width).zip(rows).for_each(|(to, &row)| {
            to.copy_from_slice(&cache[row as usize * width..][..width]);
        });
    }

    fn layernorm_fwd(
        &self,
        x: &[f32],
        residual: Option<&[f32]>,
        mask: Option<RowMask>,
        params: &NormParams<f32>,
        to: NormOutputs<f32>,
    ) {
        norm::layernorm_fwd(params, to, |row, sum| {
            norm::branch_and_residual(x, residual, mask, row, sum);
        });
    }

    fn embed_layernorm_fwd(
        &self,
        tables: &Embedding<f32>,
        params: &NormParams<f32>,
        to: NormOutputs<f32>,
    ) {
        norm::layernorm_fwd(params, to, |row, sum| elementwise::embed_row(tables, row, sum));
    }

    fn dropout_fwd(&self, x: &[f32], mask: RowMask, width: usize, out: &mut [f32]) {
        elementwise::dropout(&[x], mask, width, out);
    }

    fn gemm_fwd(&self, x: &[f32], k: usize, parts: Vec<FwdPart<f32>>) {
        let (products, biases): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| linear(x, k, part)).unzip();
        gemm::products(products, |tile| elementwise::add_bias(biases[tile.product], tile));
    }

    fn gelu_fwd(&self, x: &[f32], out: &mut [f32]) {
        elementwise::gelu_fwd(x, out);
    }

    fn gemm_gelu_fwd(&self, x: &[f32], k: usize, part: FwdPart<f32>, pre: Option<&mut [f32]>) {
        let (mut product, bias) = linear(x, k, part);
        product.side = pre.map(|pre| MatMut::new(pre, bias.len()));
        gemm::products(vec![product], |tile| elementwise::add_bias_and_gelu(bias, tile));
    }

    fn tanh_fwd(&self, x: &[f32], out: &mut [f32]) {
        elementwise::tanh_fwd(x, out);
    }

    fn attention_fwd(
        &self,
        qkv: &Qkv<f32>,
        shape: &AttentionShape,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) {
        attention::attention_fwd(qkv, shape, out, lse);
    }

    fn pool_fwd(&self, x: &[f32], cu_seqlens: &[i32], pooling: Pooling, out: &mut [f32]) {
        elementwise::pool_fwd(x, cu_seqlens, pooling, out);
    }

    fn head_fwd(&self, x: &[f32], labels: &[i32], part: FwdPart<f32>) {
        head::head_fwd(x, labels, part);
    }

    fn xent_fwd(
        &self,
        logits: &[f32],
        targets: &Targets,
        loss: &mut [f32],
        dlogits: Option<&mut [f32]>,
    ) {
        head::xent_fwd(logits, targets, loss, dlogits);
    }

    fn head_dgrad(&self, parts: &[HeadPart<f32>], dx: &mut [f32]) {
        head::head_dgrad(parts, dx);
    }

    fn head_wgrad(
        &self,
        x: Option<&[f32]>,
        dlogits: &[f32],
        labels: &[i32],
        dweight: Option<&mut [f32]>,
        dbias: Option<&mut [f32]>,
    ) {
        head::head_wgrad(x, dlogits, labels, dweight, dbias);
    }

    fn pool_bwd(&self, dout: &[f32], cu_seqlens: &[i32], pooling: Pooling, dx: &mut [f32]) {
        elementwise::pool_bwd(dout, cu_seqlens, pooling, dx);
    }

    fn tanh_bwd(&self, out: &[f32], dout: &[f32], dx: &mut [f32]) {
        elementwise::tanh_bwd(out, dout, dx);
    }

    fn dropout_bwd(&self, dout: &[&[f32]], mask: RowMask, width: usize, dx: &mut [f32]) {
        elementwise::dropout(dout, mask, width, dx);
    }

    fn gelu_bwd(&self, x: &[f32], dout: &[f32], dx: &mut [f32]) {
        elementwise::gelu_bwd(x, dout, dx);
    }

    fn gemm_dgrad(&self, parts: &[DgradPart<f32>], k: usize, dx: &mut [f32]) {
        gemm::products(vec![input_gradient(parts, k, dx)], |_| {});
    }

    fn gemm_gelu_dgrad(&self, part: &DgradPart<f32>, k: usize, pre: &[f32], dx: &mut [f32]) {
        let product = input_gradient(std::slice::from_ref(part), k, dx);
        gemm::products(vec![product], |tile| elementwise::through_gelu(pre, k, tile));
    }

    fn gemm_wgrad(&self, x: &[f32], k: usize, parts: Vec<WgradPart<f32>>) {
        let x = MatRef::new(x, k);
        let mut products = Vec::with_capacity(parts.len());
        for WgradPart { dout, dweight, dbias, n } in parts {
            let dout_t = MatRef::new(dout, n).t();
            products.push(Product::new(dout_t, x, MatMut::new(dweight, k)));
            if let Some(dbias) = dbias {
                self.bias_grad(dout, dbias);
            }
        }
        gemm::products(products, |_| {});
    }

    fn bias_grad(&self, dout: &[f32], dbias: &mut [f32]) {
        let width = dbias.len();
        let dparams = NormDparams { dgamma: None, dbeta: Some(dbias) };
        norm::layernorm_bwd(&[dout], None, None, dparams, width);
    }

    fn layernorm_bwd_dx(&self, saved: &NormSaved<f32>, to: NormDx<f32>) {
        let none = NormDparams { dgamma: None, dbeta: None };
        norm::layernorm_bwd(saved.dout, None, Some((saved, to)), none, saved.gamma.len());
    }

    fn layernorm_bwd_params(&self, dout: &[&[f32]], xhat: Option<&[f32]>, to: NormDparams<f32>) {
        let widths = [to.dgamma.as_deref(), to.dbeta.as_deref()];
        // Pruning deletes the op when neither is asked for.
        let width = widths.into_iter().flatten().map(<[f32]>::len).next().unwrap_or(1);
        norm::layernorm_bwd(dout, xhat, None, to, width);
    }

    fn layernorm_bwd(&self, saved: &NormSaved<f32>, dx: NormDx<f32>, dparams: NormDparams<f32>) {
        let width = saved.gamma.len();
        norm::layernorm_bwd(saved.dout, Some(saved.xhat), Some((saved, dx)), dparams, width);
    }

    fn attention_bwd(
        &self,
        saved: &AttentionSaved<f32>,
        shape: &AttentionShape,
        to: AttentionGradients<f32>,
    ) {
        attention::attention_bwd(saved, shape, to);
    }

    fn embed_wgrad(
        &self,
        dx: &[f32],
        ids: &[i32],
        padding_row: Option<usize>,
        width: usize,
        dtable: &mut [f32],
    ) {
        elementwise::embed_wgrad(dx, ids, padding_row, width, dtable);
    }

    fn grad_accumulate(&self, grad: &[f32], sum: &mut [f32], begins: bool) {
        elementwise::grad_accumulate(grad, sum, begins);
    }

    fn grad_norm(&self, grads: &[&[f32]], max_norm: f32) -> [f32; 2] {
        elementwise::grad_norm(grads, max_norm)
    }

    fn adamw_step(&self, tensor: AdamwTensor<f32>) {
        elementwise::adamw_step(tensor);
    }
}
