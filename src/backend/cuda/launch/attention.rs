//! Attention: on tensor cores where type and head size allow, else by the plain kernels.

use super::{Arg, Context, Derived};
use crate::backend::cuda::tiles::{TILE_TOKENS, max_blocks, max_tiles};
use crate::plan::BufId;
use crate::plan::op::Dropout;
use crate::tensor::DType;
use crate::{Error, Result};

/// Threads of a block of the plain kernels, and the rows they take.
const PLAIN_THREADS: u32 = 128;
const PLAIN_ROWS: usize = 4;

/// Threads of a tile, and its shared memory: 128 rows of q, k and v, backward of dout too, and then P and
/// dS, 128 queries by 64 keys.
const TILE_THREADS: u32 = 256;
const TILE_FWD_COLUMN_BYTES: usize = 3 * 128 * 2;
const TILE_BWD_COLUMN_BYTES: usize = 4 * 128 * 2;
const TILE_BWD_SCORE_BYTES: usize = 2 * 128 * 64 * 2;

/// Threads of a block of 64 rows of a longer sequence.
const LONG_THREADS: u32 = 128;

/// A kernel in its two forms: plain, and on tensor cores for longer sequences; with its shared memory.
struct Kernel {
    op: &'static str,
    /// Plain, of each row: one or two rows of 128 columns, one or two weights for each of 32 others.
    plain_row_floats: usize,
    /// Matrices of 64 rows of a head in bf16.
    long_matrices: usize,
    long_extra_bytes: usize,
}

impl Kernel {
    fn long_bytes(&self, head_size: usize) -> usize {
        self.long_matrices * 64 * head_size * 2 + self.long_extra_bytes
    }
}

const FWD: Kernel = Kernel {
    op: "attention_fwd",
    plain_row_floats: 128 + 32,
    long_matrices: 5,
    long_extra_bytes: 0,
};
const BWD_DELTA: Kernel = Kernel {
    op: "attention_bwd_delta",
    plain_row_floats: 2 * 128,
    long_matrices: 6,
    long_extra_bytes: 0,
};
const BWD_DQ: Kernel = Kernel {
    op: "attention_bwd_dq",
    plain_row_floats: 2 * 128 + 32,
    long_matrices: 6,
    long_extra_bytes: 0,
};
/// Beside the matrices two stages of lse, delta and dropped bits, 1024 bytes each.
const BWD_DKV: Kernel = Kernel {
    op: "attention_bwd_dkv",
    plain_row_floats: 2 * (128 + 32),
    long_matrices: 6,
    long_extra_bytes: 2048,
};

/// What both directions share.
pub(super) struct Shape {
    cu_seqlens: BufId,
    n_heads: usize,
    head_size: usize,
    dropout: [Arg; 2],
    suffix: &'static str,
    uses_tensor_cores: bool,
}

/// What the backward pass reads; `v` only for dq and dk.
pub(super) struct Saved {
    pub dout: BufId,
    pub lse: BufId,
    /// q, k and v.
    pub qkv: [BufId; 3],
}

impl Shape {
    /// The shape of an attention whose queries are `q`.
    ///
    /// # Errors
    /// Heads of a size that no kernel takes.
    pub fn new(
        cx: &Context,
        q: BufId,
        cu_seqlens: BufId,
        n_heads: usize,
        dropout: Option<Dropout>,
    ) -> Result<Self> {
        let head_size = cx.cols(q) / n_heads;
        if !head_size.is_multiple_of(8) || head_size > 128 {
            return Err(Error::Run(format!(
                "the model has heads of {head_size} values; on a GPU they are multiples of 8 up to 128, \
                 --device cpu takes any"
            )));
        }
        Ok(Shape {
            cu_seqlens,
            n_heads,
            head_size,
            dropout: cx.dropout(dropout),
            suffix: cx.suffix(q),
            uses_tensor_cores: cx.dtype(q) == DType::Bf16 && matches!(head_size, 32 | 64),
        })
    }

    /// Heads and head size as the plain kernels are told them.
    fn heads(&self) -> [Arg; 2] {
        [Arg::I32(self.n_heads as i32), Arg::I32(self.head_size as i32)]
    }

    /// Launches a plain kernel, in which a warp takes a row.
    fn launch_plain(&self, cx: &mut Context, kernel: &Kernel, args: [&[Arg]; 2]) -> Result<()> {
        let [operands, results] = args;
        let grid = [cx.capacity().tokens.div_ceil(PLAIN_ROWS) as u32, self.n_heads as u32, 1];
        let sequence_ids = Arg::Address(cx.input(Derived::SequenceIds));
        let cu_seqlens = Arg::Address(cx.address(self.cu_seqlens));
        let rows = [sequence_ids, cu_seqlens];
        let args = [operands, &rows, &self.dropout, results, &self.heads()].concat();
        let shared_bytes = PLAIN_ROWS * kernel.plain_row_floats * size_of::<f32>();
        let symbol = format!("{}_{}", kernel.op, self.suffix);
        cx.launch(&symbol, grid, PLAIN_THREADS, shared_bytes, &args)
    }

    /// Launches a kernel for the sequences that tiles hold.
    fn launch_tiles(
        &self,
        cx: &mut Context,
        op: &str,
        shared_bytes: usize,
        args: [&[Arg]; 2],
    ) -> Result<()> {
        let [operands, results] = args;
        let grid = [self.n_heads as u32, max_tiles(cx.capacity()) as u32, 1];
        let strips = Arg::Address(cx.input(Derived::AttentionStrips));
        let args = [operands, &[strips], &self.dropout, results].concat();
        let symbol = format!("{op}_bf16_tile_{}", self.head_size);
        cx.launch(&symbol, grid, TILE_THREADS, shared_bytes, &args)
    }

    /// Launches a kernel for the sequences that no tile holds, if a batch may have such.
    fn launch_long(&self, cx: &mut Context, kernel: &Kernel, args: [&[Arg]; 2]) -> Result<()> {
        if !has_long(cx) {
            return Ok(());
        }
        let [operands, results] = args;
        let grid = [self.n_heads as u32, max_blocks(cx.capacity()) as u32, 1];
        let blocks = Arg::Address(cx.input(Derived::AttentionBlocks));
        let cu_seqlens = Arg::Address(cx.address(self.cu_seqlens));
        let args = [operands, &[blocks, cu_seqlens], &self.dropout, results].concat();
        let symbol = format!("{}_bf16_long_{}", kernel.op, self.head_size);
        cx.launch(&symbol, grid, LONG_THREADS, kernel.long_bytes(self.head_size), &args)
    }

    /// Launches what serves all sequences without tensor cores, those that no tile holds with them.
    fn launch_rows(&self, cx: &mut Context, kernel: &Kernel, args: [&[Arg]; 2]) -> Result<()> {
        if self.uses_tensor_cores {
            self.launch_long(cx, kernel, args)
        } else {
            self.launch_plain(cx, kernel, args)
        }
    }
}

/// Whether a batch may have sequences that no tile holds.
fn has_long(cx: &Context) -> bool {
    cx.capacity().max_length > TILE_TOKENS
}

pub(super) fn attention_fwd(
    cx: &mut Context,
    shape: &Shape,
    qkv: [BufId; 3],
    out: BufId,
    lse: Option<BufId>,
) -> Result<()> {
    let operands = qkv.map(|buf| Arg::Address(cx.address(buf)));
    let results = [Arg::Address(cx.address(out)), Arg::Address(cx.optional(lse))];
    let args = [&operands[..], &results[..]];
    if shape.uses_tensor_cores {
        let shared_bytes = TILE_FWD_COLUMN_BYTES * shape.head_size;
        shape.launch_tiles(cx, FWD.op, shared_bytes, args)?;
    }
    shape.launch_rows(cx, &FWD, args)
}

/// `gradients`: dq, dk and dv.
pub(super) fn attention_bwd(
    cx: &mut Context,
    shape: &Shape,
    saved: &Saved,
    gradients: [Option<BufId>; 3],
) -> Result<()> {
    let [dq, dk, dv] = gradients;
    let needs_scores = dq.is_some() || dk.is_some();
    // Pruning may have dropped what dv alone does not read.
    let [q, k, v] = saved.qkv;
    let [dout, lse, q, k] = [saved.dout, saved.lse, q, k].map(|buf| Arg::Address(cx.address(buf)));
    let v = Arg::Address(cx.optional(needs_scores.then_some(v)));
    let results = gradients.map(|buf| Arg::Address(cx.optional(buf)));

    if shape.uses_tensor_cores {
        let shared_bytes = TILE_BWD_COLUMN_BYTES * shape.head_size + TILE_BWD_SCORE_BYTES;
        let operands = [dout, lse, q, k, v];
        shape.launch_tiles(cx, "attention_bwd", shared_bytes, [&operands, &results])?;
        if !has_long(cx) {
            return Ok(());
        }
    }
    let mut delta = Arg::Address(0);
    if needs_scores {
        let n_rows = cx.capacity().tokens * shape.n_heads;
        delta = Arg::Address(cx.scratch(n_rows * size_of::<f32>()));
        shape.launch_rows(cx, &BWD_DELTA, [&[dout, lse, q, k, v], &[delta]])?;
    }
    let operands = [dout, delta, lse, q, k, v];
    if dq.is_some() {
        shape.launch_rows(cx, &BWD_DQ, [&operands, &results[..1]])?;
    }
    if dk.is_some() || dv.is_some() {
        shape.launch_rows(cx, &BWD_DKV, [&operands, &results[1..]])?;
    }
    Ok(())
}
