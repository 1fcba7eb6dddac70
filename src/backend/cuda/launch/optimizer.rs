//! Sums of gradients, their norm, and AdamW, each over all trained tensors in one launch, by tables of their
//! addresses.

use super::{Arg, Context};
use crate::Result;
use crate::plan::BufId;
use crate::plan::op::{AdamwItem, GradAccumulateItem};

const THREADS: u32 = 256;
/// Elements of a tensor that one block goes over.
const CHUNK: usize = 4096;
/// Shared memory of `grad_norm`: a double a thread.
const NORM_SHARED_BYTES: usize = THREADS as usize * size_of::<f64>();

/// Bits of a tensor's flags.
const FLAG_DECAYS: u64 = 1;
const FLAG_IS_HEAD: u64 = 2;

/// One tensor's row of the table: value (or sum of gradients), master or 0, gradient, both moments, elements, flags, and the rate: its
/// scale in the low half, the skipped steps in the high half. A value that has a master is bf16.
type Row = [u64; 8];

fn n_elements(cx: &Context, buf: BufId) -> usize {
    cx.capacity_rows(buf) * cx.cols(buf)
}

/// Chunks of all tensors, in order: the tensor's number in the low half, the chunk's within it in the
/// high half.
fn chunks(sizes: &[usize]) -> Vec<u64> {
    let of_tensor = |(tensor, n): (usize, &usize)| {
        (0..n.div_ceil(CHUNK)).map(move |chunk| tensor as u64 | (chunk as u64) << 32)
    };
    sizes.iter().enumerate().flat_map(of_tensor).collect()
}

/// The tables of rows and of chunks on the device, and the number of chunks.
fn tables(
    cx: &mut Context,
    sizes: &[usize],
    rows: impl FnOnce(&mut Context) -> Vec<Row>,
) -> ([Arg; 2], u32) {
    let tensors = cx.table(|cx| rows(cx).concat());
    let chunk_list = cx.table(|_| chunks(sizes));
    let n_chunks: usize = sizes.iter().map(|n| n.div_ceil(CHUNK)).sum();
    ([Arg::Address(tensors), Arg::Address(chunk_list)], n_chunks as u32)
}

/// All operands are f32 whatever the activations are, so the kernel has no suffix.
pub(super) fn grad_accumulate(
    cx: &mut Context,
    items: &[GradAccumulateItem],
    begins: bool,
) -> Result<()> {
    let sizes: Vec<usize> = items.iter().map(|item| n_elements(cx, item.grad)).collect();
    let rows = |cx: &mut Context| {
        let row = |(item, &n): (&GradAccumulateItem, &usize)| {
            [cx.address(item.sum), 0, cx.address(item.grad), 0, 0, n as u64, 0, 0]
        };
        items.iter().zip(&sizes).map(row).collect()
    };
    let ([tensors, chunk_list], n_chunks) = tables(cx, &sizes, rows);
    let args = [tensors, chunk_list, Arg::I32(i32::from(begins))];
    cx.launch("grad_accumulate", [n_chunks, 1, 1], THREADS, 0, &args)
}

/// All operands are f32 whatever the activations are, so the kernel has no suffix.
pub(super) fn grad_norm(
    cx: &mut Context,
    grads: &[BufId],
    max_norm: f32,
    out: BufId,
) -> Result<()> {
    let sizes: Vec<usize> = grads.iter().map(|&grad| n_elements(cx, grad)).collect();
    let rows = |cx: &mut Context| {
        let row = |(&grad, &n): (&BufId, &usize)| [0, 0, cx.address(grad), 0, 0, n as u64, 0, 0];
        grads.iter().zip(&sizes).map(row).collect()
    };
    let ([tensors, chunk_list], n_chunks) = tables(cx, &sizes, rows);
    let args = [
        tensors,
        chunk_list,
        Arg::F32(max_norm),
        Arg::Address(cx.scratch(n_chunks as usize * size_of::<f32>())),
        Arg::Address(cx.counters(1)),
        Arg::Address(cx.address(out)),
    ];
    cx.launch("grad_norm", [n_chunks, 1, 1], THREADS, NORM_SHARED_BYTES, &args)
}

/// Which tensors are narrow stands in the table, so the kernel has no suffix.
pub(super) fn adamw_step(cx: &mut Context, items: &[AdamwItem], clip: Option<BufId>) -> Result<()> {
    let sizes: Vec<usize> = items.iter().map(|item| n_elements(cx, item.grad)).collect();
    let rows = |cx: &mut Context| {
        items.iter().zip(&sizes).map(|(item, &n)| adamw_row(cx, item, n)).collect()
    };
    let ([tensors, chunk_list], n_chunks) = tables(cx, &sizes, rows);
    let args = [tensors, chunk_list, Arg::Address(cx.optional(clip))];
    cx.launch("adamw_step", [n_chunks, 1, 1], THREADS, 0, &args)
}

fn adamw_row(cx: &mut Context, item: &AdamwItem, n_elements: usize) -> Row {
    let decays = if item.decays { FLAG_DECAYS } else { 0 };
    let is_head = if item.is_head { FLAG_IS_HEAD } else { 0 };
    [
        cx.address(item.value),
        cx.optional(item.master),
        cx.address(item.grad),
        cx.address(item.moment1),
        cx.address(item.moment2),
        n_elements as u64,
        decays | is_head,
        u64::from(item.rate.scale.to_bits()) | u64::from(item.rate.skipped_steps) << 32,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_tensor_once() {
        let word = |tensor: u64, chunk: u64| tensor | chunk << 32;
        assert_eq!(chunks(&[1, 4096, 4097]), [word(0, 0), word(1, 0), word(2, 0), word(2, 1)]);
    }
}
