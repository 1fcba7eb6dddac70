//! The table of functions that a host backend is made of: one per op, over slices.
//!
//! Letters: T tokens, B sequences, D width, H heads, N and K the output and inner width of a product,
//! C labels. Matrices are row-major. Every output element is written, except logits and their
//! gradients in rows that are absent from a task.

use crate::backend::dropout::Mask;
use crate::model::Pooling;

/// The element type that a table computes in.
pub trait Element: Copy + Send + Sync + 'static {
    const NAN: Self;
    const ZERO: Self;
    fn from_f32s(values: Vec<f32>) -> Vec<Self>;
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const NAN: f32 = f32::NAN;
    const ZERO: f32 = 0.0;

    fn from_f32s(values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f64 {
    const NAN: f64 = f64::NAN;
    const ZERO: f64 = 0.0;

    fn from_f32s(values: Vec<f32>) -> Vec<f64> {
        values.into_iter().map(f64::from).collect()
    }

    fn to_f32(self) -> f32 {
        self as f32
    }
}

/// Tables and ids of `embed_fwd`; the tables are `[rows, D]`, the ids `[T]`.
pub struct Embedding<'a, E> {
    pub input_ids: &'a [i32],
    pub word: &'a [E],
    pub position_ids: &'a [i32],
    pub position: &'a [E],
    pub token_type: Option<(&'a [i32], &'a [E])>,
    pub width: usize,
}

/// Scale, shift and epsilon of a LayerNorm over D.
pub struct NormParams<'a, E> {
    pub gamma: &'a [E],
    pub beta: &'a [E],
    pub eps: f32,
}

/// What `layernorm_fwd` writes.
pub struct NormOutputs<'a, E> {
    pub out: &'a mut [E],
    pub xhat: Option<&'a mut [E]>,
    pub rstd: Option<&'a mut [E]>,
}

/// A dropout mask over rows that belong to the sequences of `cu_seqlens`; None of them for a matrix
/// with one row per sequence.
#[derive(Clone, Copy)]
pub struct RowMask<'a> {
    pub mask: Mask,
    pub cu_seqlens: Option<&'a [i32]>,
}

/// One product of `gemm_fwd`: weight `[N, K]`, bias `[N]`, out `[M, N]`.
pub struct FwdPart<'a, E> {
    pub weight: &'a [E],
    pub bias: &'a [E],
    pub out: &'a mut [E],
}

/// One product of `gemm_dgrad`: dout `[M, N]`, weight `[N, K]`.
pub struct DgradPart<'a, E> {
    pub dout: &'a [E],
    pub weight: &'a [E],
    pub n: usize,
}

/// One product of `gemm_wgrad`: dout `[M, N]`, dweight `[N, K]`, dbias `[N]`.
pub struct WgradPart<'a, E> {
    pub dout: &'a [E],
    pub dweight: &'a mut [E],
    pub dbias: Option<&'a mut [E]>,
    pub n: usize,
}

/// The batch's shape, heads and dropout of an attention.
#[derive(Clone, Copy)]
pub struct AttentionShape<'a> {
    pub cu_seqlens: &'a [i32],
    pub n_heads: usize,
    pub width: usize,
    pub mask: Option<Mask>,
}

/// q, k, v of `attention_fwd`, each `[T, D]`.
pub struct Qkv<'a, E> {
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
}

/// What `attention_bwd` reads beside q and k; v only where dq or dk is asked for.
pub struct AttentionSaved<'a, E> {
    pub dout: &'a [E],
    pub lse: &'a [E],
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: Option<&'a [E]>,
}

/// What `attention_bwd` writes, each `[T, D]`.
pub struct AttentionGradients<'a, E> {
    pub dq: Option<&'a mut [E]>,
    pub dk: Option<&'a mut [E]>,
    pub dv: Option<&'a mut [E]>,
}

/// What `xent_fwd` holds logits against, for B rows.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    /// Classes, or what [`crate::batch`] has for rows without one.
    pub labels: &'a [i32],
    /// What each row's loss is multiplied with; None for the mean over the labelled rows.
    pub weights: Option<&'a [f32]>,
    /// The share of each target that all classes get alike.
    pub smoothing: f32,
}

impl<'a> Targets<'a> {
    /// What each row's loss is multiplied with, and what all of them are divided by.
    pub fn scales(&self) -> (impl Fn(usize) -> f64 + use<'a>, f64) {
        let weights = self.weights;
        let n_labelled = self.labels.iter().filter(|&&label| label >= 0).count();
        let divisor = if weights.is_some() { 1.0 } else { n_labelled as f64 };
        (move |row| weights.map_or(1.0, |weights| f64::from(weights[row])), divisor)
    }

    /// The share of `class` in the target of a row with label `label` of `n_labels`.
    pub fn share(&self, class: usize, label: usize, n_labels: usize) -> f64 {
        let smoothing = f64::from(self.smoothing);
        let own = if class == label { 1.0 - smoothing } else { 0.0 };
        own + smoothing / n_labels as f64
    }
}

/// One head of `head_dgrad`: dlogits `[B, C]`, weight `[C, D]`, labels `[B]`.
pub struct HeadPart<'a, E> {
    pub dlogits: &'a [E],
    pub weight: &'a [E],
    pub labels: &'a [i32],
}

/// Inputs of a LayerNorm's backward pass: the gradients to be summed, the saved statistics.
pub struct NormSaved<'a, E> {
    pub dout: &'a [&'a [E]],
    pub xhat: &'a [E],
    pub rstd: &'a [E],
    pub gamma: &'a [E],
    pub mask: Option<RowMask<'a>>,
}

/// Where a LayerNorm's input gradient goes: through the mask, and around it.
pub struct NormDx<'a, E> {
    pub dx: Option<&'a mut [E]>,
    pub dresidual: Option<&'a mut [E]>,
}

/// The gradients of a LayerNorm's parameters.
pub struct NormDparams<'a, E> {
    pub dgamma: Option<&'a mut [E]>,
    pub dbeta: Option<&'a mut [E]>,
}

/// One tensor's AdamW update, with the rate, decay and gradient factor that apply to it.
pub struct AdamwTensor<'a, E> {
    pub value: &'a mut [E],
    pub grad: &'a [E],
    pub moment1: &'a mut [E],
    pub moment2: &'a mut [E],
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// What the gradient is multiplied with: the clipping factor.
    pub factor: f64,
    /// Number of this step among those in which the tensor trained, from 1.
    pub step: u64,
}

/// One function per op. Fused ops have a plain meaning: their parts, one after the other.
pub trait Ops: Send + Sync {
    type Element: Element;

    /// What the backend is called.
    fn name(&self) -> &'static str;

    fn embed_fwd(&self, tables: &Embedding<Self::Element>, out: &mut [Self::Element]);

    /// `cache` is `[.., width]`, `out` has a row for each of `rows`.
    fn prefix_load(&self, cache: &[f32], rows: &[i32], width: usize, out: &mut [Self::Element]);

    fn layernorm_fwd(
        &self,
        x: &[Self::Element],
        residual: Option<&[Self::Element]>,
        mask: Option<RowMask>,
        norm: &NormParams<Self::Element>,
        to: NormOutputs<Self::Element>,
    );

    fn embed_layernorm_fwd(
        &self,
        tables: &Embedding<Self::Element>,
        norm: &NormParams<Self::Element>,
        to: NormOutputs<Self::Element>,
    );

    fn dropout_fwd(
        &self,
        x: &[Self::Element],
        mask: RowMask,
        width: usize,
        out: &mut [Self::Element],
    );

    /// `x` is `[M, k]`.
    fn gemm_fwd(&self, x: &[Self::Element], k: usize, parts: Vec<FwdPart<Self::Element>>);

    fn gelu_fwd(&self, x: &[Self::Element], out: &mut [Self::Element]);

    fn gemm_gelu_fwd(
        &self,
        x: &[Self::Element],
        k: usize,
        part: FwdPart<Self::Element>,
        pre: Option<&mut [Self::Element]>,
    );

    fn tanh_fwd(&self, x: &[Self::Element], out: &mut [Self::Element]);

    fn attention_fwd(
        &self,
        qkv: &Qkv<Self::Element>,
        shape: &AttentionShape,
        out: &mut [Self::Element],
        lse: Option<&mut [Self::Element]>,
    );

    fn pool_fwd(
        &self,
        x: &[Self::Element],
        cu_seqlens: &[i32],
        pooling: Pooling,
        out: &mut [Self::Element],
    );

    fn head_fwd(&self, x: &[Self::Element], labels: &[i32], part: FwdPart<Self::Element>);

    fn xent_fwd(
        &self,
        logits: &[Self::Element],
        targets: &Targets,
        loss: &mut [Self::Element],
        dlogits: Option<&mut [Self::Element]>,
    );

    fn head_dgrad(&self, parts: &[HeadPart<Self::Element>], dx: &mut [Self::Element]);

    fn head_wgrad(
        &self,
        x: Option<&[Self::Element]>,
        dlogits: &[Self::Element],
        labels: &[i32],
        dweight: Option<&mut [Self::Element]>,
        dbias: Option<&mut [Self::Element]>,
    );

    fn pool_bwd(
        &self,
        dout: &[Self::Element],
        cu_seqlens: &[i32],
        pooling: Pooling,
        dx: &mut [Self::Element],
    );

    fn tanh_bwd(&self, out: &[Self::Element], dout: &[Self::Element], dx: &mut [Self::Element]);

    fn dropout_bwd(
        &self,
        dout: &[&[Self::Element]],
        mask: RowMask,
        width: usize,
        dx: &mut [Self::Element],
    );

    fn gelu_bwd(&self, x: &[Self::Element], dout: &[Self::Element], dx: &mut [Self::Element]);

    /// `dx` is `[M, k]`.
    fn gemm_dgrad(&self, parts: &[DgradPart<Self::Element>], k: usize, dx: &mut [Self::Element]);

    fn gemm_gelu_dgrad(
        &self,
        part: &DgradPart<Self::Element>,
        k: usize,
        pre: &[Self::Element],
        dx: &mut [Self::Element],
    );

    /// `x` is `[M, k]`.
    fn gemm_wgrad(&self, x: &[Self::Element], k: usize, parts: Vec<WgradPart<Self::Element>>);

    fn bias_grad(&self, dout: &[Self::Element], dbias: &mut [Self::Element]);

    fn layernorm_bwd_dx(&self, saved: &NormSaved<Self::Element>, to: NormDx<Self::Element>);

    fn layernorm_bwd_params(
        &self,
        dout: &[&[Self::Element]],
        xhat: Option<&[Self::Element]>,
        to: NormDparams<Self::Element>,
    );

    fn layernorm_bwd(
        &self,
        saved: &NormSaved<Self::Element>,
        dx: NormDx<Self::Element>,
        dparams: NormDparams<Self::Element>,
    );

    fn attention_bwd(
        &self,
        saved: &AttentionSaved<Self::Element>,
        shape: &AttentionShape,
        to: AttentionGradients<Self::Element>,
    );

    /// `dtable` is `[rows, width]`.
    fn embed_wgrad(
        &self,
        dx: &[Self::Element],
        ids: &[i32],
        padding_row: Option<usize>,
        width: usize,
        dtable: &mut [Self::Element],
    );

    /// `sum += grad`, or `sum = grad` where it `begins`.
    fn grad_accumulate(&self, grad: &[Self::Element], sum: &mut [Self::Element], begins: bool);

    /// The global norm of `grads`, and `min(1, max_norm / (norm + 1e-6))`.
    fn grad_norm(&self, grads: &[&[Self::Element]], max_norm: f32) -> [Self::Element; 2];

    fn adamw_step(&self, tensor: AdamwTensor<Self::Element>);
}
