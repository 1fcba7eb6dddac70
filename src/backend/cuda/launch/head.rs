//! Pooling, classification heads, and the loss.

use super::elementwise::{BLOCK_COLUMNS, COLUMN_SHARED_BYTES};
use super::{Arg, Context, Derived};
use crate::model::Pooling;
use crate::plan::BufId;
use crate::plan::op::HeadDgradPart;
use crate::tensor::DType;
use crate::{Error, Result};

const THREADS: u32 = 256;
const WARPS: usize = 8;

/// Threads of `xent_fwd`, and its shared memory: a double and a float a warp, rounded up.
const XENT_THREADS: u32 = 512;
const XENT_SHARED_BYTES: usize = 256;

/// The heads that one `head_dgrad` sums at most.
const MAX_HEADS: usize = 8;

/// Columns of a block of `head_wgrad`, and its shared memory: a float a thread and one a warp.
const WGRAD_COLUMNS: usize = 32;
const WGRAD_SHARED_BYTES: usize = (THREADS as usize + WARPS) * size_of::<f32>();

/// Whether a pooling takes the mean, as the kernels are told it.
fn takes_mean(pooling: Pooling) -> Arg {
    Arg::I32(i32::from(pooling == Pooling::Mean))
}

/// Blocks of kernels that take a sequence and 256 columns each.
fn sequences_by_columns(cx: &Context, like: BufId) -> [u32; 3] {
    [cx.capacity().sequences as u32, cx.cols(like).div_ceil(BLOCK_COLUMNS) as u32, 1]
}

pub(super) fn pool_fwd(
    cx: &mut Context,
    x: BufId,
    cu_seqlens: BufId,
    pooling: Pooling,
    out: BufId,
) -> Result<()> {
    let args = [
        Arg::I32(cx.cols(x) as i32),
        takes_mean(pooling),
        Arg::Address(cx.address(x)),
        Arg::Address(cx.address(cu_seqlens)),
        Arg::Address(cx.address(out)),
    ];
    let grid = sequences_by_columns(cx, x);
    let narrow = if cx.dtype(out) == DType::F32 { "" } else { "_narrow" };
    let kernel = format!("pool_fwd_{}{narrow}", cx.suffix(x));
    cx.launch(&kernel, grid, THREADS, COLUMN_SHARED_BYTES, &args)
}

pub(super) fn pool_bwd(
    cx: &mut Context,
    dout: BufId,
    cu_seqlens: BufId,
    pooling: Pooling,
    dx: BufId,
) -> Result<()> {
    let args = [
        Arg::I32(cx.cols(dx) as i32),
        takes_mean(pooling),
        Arg::Address(cx.address(dout)),
        Arg::Address(cx.input(Derived::SequenceIds)),
        Arg::Address(cx.address(cu_seqlens)),
        Arg::Address(cx.address(dx)),
    ];
    let grid = [cx.capacity_rows(dx).div_ceil(WARPS) as u32, 1, 1];
    cx.launch(&format!("pool_bwd_{}", cx.suffix(dout)), grid, THREADS, 0, &args)
}

pub(super) fn head_fwd(
    cx: &mut Context,
    x: BufId,
    weight: BufId,
    bias: BufId,
    labels: BufId,
    logits: BufId,
) -> Result<()> {
    let mut args = vec![Arg::I32(cx.cols(x) as i32), Arg::I32(cx.cols(logits) as i32)];
    for buf in [x, weight, bias, labels, logits] {
        args.push(Arg::Address(cx.address(buf)));
    }
    let n_logits = cx.capacity_rows(logits) * cx.cols(logits);
    let grid = [n_logits.div_ceil(WARPS) as u32, 1, 1];
    cx.launch(&format!("head_fwd_{}", cx.suffix(weight)), grid, THREADS, 0, &args)
}

/// What `xent_fwd` holds logits against.
pub(super) struct Targets {
    pub labels: BufId,
    pub weights: Option<BufId>,
    pub smoothing: f32,
}

/// All operands are f32 whatever the activations are, so the kernel has no suffix.
pub(super) fn xent_fwd(
    cx: &mut Context,
    logits: BufId,
    targets: &Targets,
    loss: BufId,
    dlogits: Option<BufId>,
) -> Result<()> {
    let args = [
        Arg::I32(cx.cols(logits) as i32),
        Arg::Address(cx.address(logits)),
        Arg::Address(cx.address(targets.labels)),
        Arg::Address(cx.optional(targets.weights)),
        Arg::F32(targets.smoothing),
        Arg::Address(cx.address(loss)),
        Arg::Address(cx.optional(dlogits)),
    ];
    cx.launch("xent_fwd", [1, 1, 1], XENT_THREADS, XENT_SHARED_BYTES, &args)
}

pub(super) fn head_dgrad(cx: &mut Context, parts: &[HeadDgradPart], dx: BufId) -> Result<()> {
    if parts.len() > MAX_HEADS {
        let n_heads = parts.len();
        return Err(Error::Run(format!(
            "the model has {n_heads} heads; on a GPU, at most {MAX_HEADS} can be trained at once"
        )));
    }
    let mut args = vec![Arg::I32(cx.cols(dx) as i32), Arg::Address(cx.address(dx))];
    for part in parts {
        args.extend([
            Arg::Address(cx.address(part.dlogits)),
            Arg::Address(cx.address(part.weight)),
            Arg::Address(cx.address(part.labels)),
            Arg::I32(cx.cols(part.dlogits) as i32),
        ]);
    }
    let no_head = [Arg::Address(0), Arg::Address(0), Arg::Address(0), Arg::I32(0)];
    args.extend(std::iter::repeat_n(no_head, MAX_HEADS - parts.len()).flatten());
    let grid = sequences_by_columns(cx, dx);
    // Pruning leaves no head_dgrad without parts.
    let kernel = format!("head_dgrad_{}", cx.suffix(parts[0].weight));
    cx.launch(&kernel, grid, THREADS, 0, &args)
}

pub(super) fn head_wgrad(
    cx: &mut Context,
    x: BufId,
    dlogits: BufId,
    labels: BufId,
    dweight: Option<BufId>,
    dbias: Option<BufId>,
) -> Result<()> {
    let (cols, n_labels) = (cx.cols(x), cx.cols(dlogits));
    // Without dweight x is not read, and may have no place in memory.
    let args = [
        Arg::I32(cols as i32),
        Arg::I32(n_labels as i32),
        Arg::Address(cx.optional(dweight.map(|_| x))),
        Arg::Address(cx.address(dlogits)),
        Arg::Address(cx.address(labels)),
        Arg::Address(cx.optional(dweight)),
        Arg::Address(cx.optional(dbias)),
    ];
    let n_ranges = if dweight.is_some() { cols.div_ceil(WGRAD_COLUMNS) } else { 1 };
    let grid = [n_ranges as u32, n_labels as u32, 1];
    cx.launch("head_wgrad", grid, THREADS, WGRAD_SHARED_BYTES, &args)
}
