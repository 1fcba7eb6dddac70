//! Activations, their gradients, and the gradient of a bias.

use super::{Arg, Context};
use crate::Result;
use crate::plan::BufId;

const THREADS: u32 = 256;
/// Elements of a block: eight a thread.
const BLOCK_ELEMENTS: usize = 2048;

/// Columns of a block that sums columns, and its shared memory: eight partial sums of each.
pub(super) const BLOCK_COLUMNS: usize = 256;
pub(super) const COLUMN_SHARED_BYTES: usize = 8 * BLOCK_COLUMNS * size_of::<f32>();

/// Rows whose sum one block of `bias_grad` makes.
const SLICE_ROWS: usize = 128;

pub(super) fn gelu_fwd(cx: &mut Context, x: BufId, out: BufId) -> Result<()> {
    map(cx, "gelu_fwd", &[x, out], x)
}

pub(super) fn gelu_bwd(cx: &mut Context, x: BufId, dout: BufId, dx: BufId) -> Result<()> {
    map(cx, "gelu_bwd", &[x, dout, dx], x)
}

pub(super) fn tanh_fwd(cx: &mut Context, x: BufId, out: BufId) -> Result<()> {
    map(cx, "tanh_fwd", &[x, out], x)
}

pub(super) fn tanh_bwd(cx: &mut Context, out: BufId, dout: BufId, dx: BufId) -> Result<()> {
    map(cx, "tanh_bwd", &[out, dout, dx], dx)
}

/// A kernel that goes over matrices of one shape, element by element; its suffix is `of`'s type.
fn map(cx: &mut Context, op: &str, operands: &[BufId], of: BufId) -> Result<()> {
    let shape = operands[0];
    let n_elements = cx.capacity_rows(shape) * cx.cols(shape);
    let grid = [n_elements.div_ceil(BLOCK_ELEMENTS) as u32, 1, 1];
    let mut args = vec![Arg::I32(cx.rows(shape)), Arg::I32(cx.cols(shape) as i32)];
    args.extend(operands.iter().map(|&buf| Arg::Address(cx.address(buf))));
    cx.launch(&format!("{op}_{}", cx.suffix(of)), grid, THREADS, 0, &args)
}

pub(super) fn bias_grad(cx: &mut Context, dout: BufId, dbias: BufId) -> Result<()> {
    let cols = cx.cols(dout);
    let n_slices = cx.capacity_rows(dout).div_ceil(SLICE_ROWS);
    let n_ranges = cols.div_ceil(BLOCK_COLUMNS);
    let args = [
        Arg::I32(cx.rows(dout)),
        Arg::I32(cols as i32),
        Arg::Address(cx.address(dout)),
        Arg::Address(cx.address(dbias)),
        Arg::Address(cx.scratch(n_slices * cols * size_of::<f32>())),
        Arg::Address(cx.counters(n_ranges)),
    ];
    let kernel = format!("bias_grad_{}", cx.suffix(dout));
    let grid = [n_ranges as u32, n_slices as u32, 1];
    cx.launch(&kernel, grid, BLOCK_COLUMNS as u32, COLUMN_SHARED_BYTES, &args)
}
