//! Embeddings, LayerNorm and dropout: kernels that give each row to a warp.

use super::{Arg, Context, Derived};
use crate::plan::op::{Dropout, EmbedTables};
use crate::plan::{BufId, Input};
use crate::{Error, Result};

const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Columns that a warp covers with one access of 4 elements a lane.
const WARP_COLUMNS: usize = 128;
/// Columns by which the variants of a kernel that holds its rows differ.
const PANEL: usize = 2 * WARP_COLUMNS;
/// Columns that a warp can hold in registers.
const MAX_REGISTER_COLUMNS: usize = 4 * PANEL;

/// Shared memory that every GPU gives a block without being asked; wider rows than it holds ask for more.
const SHARED_BYTES: usize = 48 << 10;

/// The gradients that one kernel sums at most.
const MAX_DOUT: usize = 4;

/// Slices of the rows, each summed by one block of the kernels that make gradients of gamma and beta, for
/// each multiprocessor. Neither capacity nor batch decides, so that the order of sums is the device's.
const SLICES_PER_PROCESSOR: u32 = 2;

/// Columns of a block that adds the slices up, and its shared memory: a float a thread.
const TOTAL_COLUMNS: usize = 32;
const TOTAL_SHARED_BYTES: usize = THREADS as usize * size_of::<f32>();

/// Places of the order of tokens that `embed_wgrad_segments` sums together (`SEGMENT` in
/// `kernels/embedding.cu`).
const SEGMENT: usize = 128;

/// What [`layernorm_fwd`] normalises.
pub(super) struct Branch {
    pub x: BufId,
    pub residual: Option<BufId>,
    pub dropout: Option<Dropout>,
}

/// LayerNorm's parameters.
pub(super) struct NormParams {
    pub gamma: BufId,
    pub beta: BufId,
    pub eps: f32,
}

/// What LayerNorm's forward pass writes.
pub(super) struct NormOutputs {
    pub out: BufId,
    pub stream: Option<BufId>,
    pub xhat: Option<BufId>,
    pub rstd: Option<BufId>,
}

/// What LayerNorm's backward pass reads.
pub(super) struct NormSaved<'a> {
    pub dout: &'a [BufId],
    pub xhat: BufId,
    pub rstd: BufId,
    pub gamma: BufId,
    pub dropout: Option<Dropout>,
}

/// The gradients at the branch and at the sum.
#[derive(Clone, Copy)]
pub(super) struct NormDx {
    pub dx: Option<BufId>,
    pub dresidual: Option<BufId>,
}

/// The gradients of LayerNorm's parameters.
#[derive(Clone, Copy)]
pub(super) struct NormDparams {
    pub dgamma: Option<BufId>,
    pub dbeta: Option<BufId>,
}

pub(super) fn embed_fwd(cx: &mut Context, tables: &EmbedTables, out: BufId) -> Result<()> {
    let mut args = vec![width(cx, out)];
    args.extend(table_args(cx, tables));
    args.push(Arg::Address(cx.address(out)));
    launch_rows(cx, "embed_fwd", out, &args)
}

pub(super) fn prefix_load(cx: &mut Context, out: BufId, stream: Option<BufId>) -> Result<()> {
    let args = [
        Arg::I32(cx.rows(out)),
        width(cx, out),
        Arg::Address(cx.prefix()),
        Arg::Address(cx.input(Derived::Input(Input::PrefixRows))),
        Arg::Address(cx.address(out)),
        Arg::Address(cx.optional(stream)),
    ];
    launch_rows(cx, "prefix_load", out, &args)
}

pub(super) fn embed_layernorm_fwd(
    cx: &mut Context,
    tables: &EmbedTables,
    params: &NormParams,
    to: &NormOutputs,
) -> Result<()> {
    let mut args = vec![width(cx, to.out)];
    args.extend(table_args(cx, tables));
    args.extend(norm_args(cx, params, to));
    launch_held_rows(cx, "embed_layernorm_fwd", to.out, &args)
}

pub(super) fn layernorm_fwd(
    cx: &mut Context,
    from: &Branch,
    params: &NormParams,
    to: &NormOutputs,
) -> Result<()> {
    let mut args = vec![Arg::I32(cx.rows(to.out)), width(cx, to.out)];
    args.push(Arg::Address(cx.address(from.x)));
    // Of the types that the kernel takes the residual in: the activations', and f32 for a stream.
    let is_stream = |buf: &BufId| cx.dtype(*buf) != cx.dtype(from.x);
    let (stream, residual) =
        (from.residual.filter(is_stream), from.residual.filter(|buf| !is_stream(buf)));
    args.extend([residual, stream].map(|buf| Arg::Address(cx.optional(buf))));
    args.extend(dropout_args(cx, from.dropout, to.out));
    args.extend(norm_args(cx, params, to));
    launch_held_rows(cx, "layernorm_fwd", to.out, &args)
}

pub(super) fn layernorm_bwd_dx(cx: &mut Context, saved: &NormSaved, to: NormDx) -> Result<()> {
    let args = backward_args(cx, saved, to)?;
    launch_held_rows(cx, "layernorm_bwd_dx", saved.xhat, &args)
}

/// `xhat` is read for dgamma alone.
pub(super) fn layernorm_bwd_params(
    cx: &mut Context,
    dout: &[BufId],
    xhat: BufId,
    to: NormDparams,
) -> Result<()> {
    let cols = cx.cols(dout[0]);
    let slices = Slices::new(cx, cols, to);
    let mut args = vec![Arg::I32(cx.rows(dout[0])), width(cx, dout[0])];
    args.extend(norm_dout_args(cx, dout, xhat)?);
    args.push(Arg::Address(cx.optional(to.dgamma.map(|_| xhat))));
    args.extend(slices.args());
    let kernel = format!("layernorm_bwd_params_{}", cx.suffix(xhat));
    let grid = [slices.n, cols.div_ceil(PANEL) as u32, 1];
    cx.launch(&kernel, grid, THREADS, WARPS * PANEL * size_of::<f32>(), &args)?;
    slices.add_up(cx, to)
}

/// Rows that registers cannot hold take the two ops that this one joins.
pub(super) fn layernorm_bwd(
    cx: &mut Context,
    saved: &NormSaved,
    dx: NormDx,
    dparams: NormDparams,
) -> Result<()> {
    let cols = cx.cols(saved.xhat);
    if cols > MAX_REGISTER_COLUMNS {
        layernorm_bwd_dx(cx, saved, dx)?;
        return layernorm_bwd_params(cx, saved.dout, saved.xhat, dparams);
    }
    let slices = Slices::new(cx, cols, dparams);
    let mut args = backward_args(cx, saved, dx)?;
    args.extend(slices.args());
    let kernel = format!("layernorm_bwd_{}_{}", cx.suffix(saved.xhat), variant(cols));
    let shared_bytes = WARPS * cols * size_of::<f32>();
    cx.launch(&kernel, [slices.n, 1, 1], THREADS, shared_bytes, &args)?;
    slices.add_up(cx, dparams)
}

pub(super) fn dropout_fwd(cx: &mut Context, x: BufId, dropout: Dropout, out: BufId) -> Result<()> {
    let mut args = vec![Arg::I32(cx.rows(out)), width(cx, out), Arg::Address(cx.address(x))];
    args.extend(dropout_args(cx, Some(dropout), out));
    args.push(Arg::Address(cx.address(out)));
    launch_rows(cx, "dropout_fwd", out, &args)
}

pub(super) fn dropout_bwd(
    cx: &mut Context,
    dout: &[BufId],
    dropout: Dropout,
    dx: BufId,
) -> Result<()> {
    let mut args = vec![Arg::I32(cx.rows(dx)), width(cx, dx)];
    args.extend(dout_args(cx, dout)?);
    args.extend(dropout_args(cx, Some(dropout), dx));
    args.push(Arg::Address(cx.address(dx)));
    launch_rows(cx, "dropout_bwd", dx, &args)
}

/// Two kernels. Both read the tokens sorted by id, so that those of a table row lie side by side:
/// [`Derived::SegmentOrder`], the token numbers sorted by id and among equal ids by position, `[T]`; and
/// [`Derived::RowStart`], for each row of the table the place in that order where its tokens begin,
/// `[V + 1]`, the last entry being T. The first kernel sums segments, 128 consecutive places each, that
/// are of one id throughout; the second adds to them, row by row, the places that are not in one.
pub(super) fn embed_wgrad(
    cx: &mut Context,
    dx: BufId,
    ids: BufId,
    padding_row: Option<usize>,
    dtable: BufId,
) -> Result<()> {
    let (cols, n_rows, suffix) = (cx.cols(dx), cx.capacity_rows(dtable), cx.suffix(dx));
    let n_segments = cx.capacity_rows(dx) / SEGMENT;
    let input = cx.input_of(ids);
    let [dx, ids] = [dx, ids].map(|buf| Arg::Address(cx.address(buf)));
    let order = Arg::Address(cx.input(Derived::SegmentOrder(input)));
    let partials = Arg::Address(cx.scratch(n_segments * cols * size_of::<f32>()));
    let width = Arg::I32(cols as i32);
    let grid = |rows: usize| {
        let n_strips = cols.div_ceil(WARP_COLUMNS);
        [(rows * n_strips).div_ceil(WARPS) as u32, 1, 1]
    };
    if n_segments > 0 {
        let kernel = format!("embed_wgrad_segments_{suffix}");
        let args = [width, dx, ids, order, partials];
        cx.launch(&kernel, grid(n_segments), THREADS, 0, &args)?;
    }
    let args = [
        Arg::I32(n_rows as i32),
        width,
        dx,
        order,
        Arg::Address(cx.input(Derived::RowStart(input, n_rows))),
        Arg::I32(padding_row.map_or(-1, |row| row as i32)),
        partials,
        Arg::Address(cx.address(dtable)),
    ];
    cx.launch(&format!("embed_wgrad_rows_{suffix}"), grid(n_rows), THREADS, 0, &args)
}

/// The slices' sums of the kernels that make gradients of gamma and beta; 0 where not wanted.
struct Slices {
    n: u32,
    gamma: u64,
    beta: u64,
    cols: usize,
}

impl Slices {
    fn new(cx: &mut Context, cols: usize, to: NormDparams) -> Self {
        let n = SLICES_PER_PROCESSOR * cx.n_processors();
        let n_bytes = n as usize * cols * size_of::<f32>();
        let both = cx.scratch(2 * n_bytes);
        Slices {
            n,
            gamma: to.dgamma.map_or(0, |_| both),
            beta: to.dbeta.map_or(0, |_| both + n_bytes as u64),
            cols,
        }
    }

    fn args(&self) -> [Arg; 2] {
        [Arg::Address(self.gamma), Arg::Address(self.beta)]
    }

    fn add_up(&self, cx: &mut Context, to: NormDparams) -> Result<()> {
        let mut args = vec![Arg::I32(self.n as i32), Arg::I32(self.cols as i32)];
        args.extend(self.args());
        args.extend([to.dgamma, to.dbeta].map(|buf| Arg::Address(cx.optional(buf))));
        let grid = [self.cols.div_ceil(TOTAL_COLUMNS) as u32, 2, 1];
        cx.launch("layernorm_bwd_params_total", grid, THREADS, TOTAL_SHARED_BYTES, &args)
    }
}

fn width(cx: &Context, buf: BufId) -> Arg {
    Arg::I32(cx.cols(buf) as i32)
}

/// The variant of a kernel for rows that it holds.
fn variant(cols: usize) -> String {
    if cols > MAX_REGISTER_COLUMNS {
        return "wide".into();
    }
    cols.div_ceil(PANEL).to_string()
}

/// Launches a kernel that goes over rows as `like` has them, one a warp.
fn launch_rows(cx: &mut Context, op: &str, like: BufId, args: &[Arg]) -> Result<()> {
    let grid = [cx.capacity_rows(like).div_ceil(WARPS) as u32, 1, 1];
    cx.launch(&format!("{op}_{}", cx.suffix(like)), grid, THREADS, 0, args)
}

/// The same for a kernel whose warps hold their rows: in registers, or two of them in shared memory.
fn launch_held_rows(cx: &mut Context, op: &str, like: BufId, args: &[Arg]) -> Result<()> {
    let cols = cx.cols(like);
    let (n_warps, shared_bytes) = if cols > MAX_REGISTER_COLUMNS {
        let warp_bytes = 2 * cols * size_of::<f32>();
        let n_warps = (SHARED_BYTES / warp_bytes).clamp(1, WARPS);
        (n_warps, n_warps * warp_bytes)
    } else {
        (WARPS, 0)
    };
    let grid = [cx.capacity_rows(like).div_ceil(n_warps) as u32, 1, 1];
    let kernel = format!("{op}_{}_{}", cx.suffix(like), variant(cols));
    cx.launch(&kernel, grid, 32 * n_warps as u32, shared_bytes, args)
}

fn table_args(cx: &mut Context, tables: &EmbedTables) -> [Arg; 6] {
    let (type_ids, types) = tables.token_type.unzip();
    [
        Arg::Address(cx.address(tables.input_ids)),
        Arg::Address(cx.address(tables.word)),
        Arg::Address(cx.address(tables.position_ids)),
        Arg::Address(cx.address(tables.position)),
        Arg::Address(cx.optional(type_ids)),
        Arg::Address(cx.optional(types)),
    ]
}

fn norm_args(cx: &mut Context, params: &NormParams, to: &NormOutputs) -> [Arg; 7] {
    [
        Arg::Address(cx.address(params.gamma)),
        Arg::Address(cx.address(params.beta)),
        Arg::F32(params.eps),
        Arg::Address(cx.address(to.out)),
        Arg::Address(cx.optional(to.stream)),
        Arg::Address(cx.optional(to.xhat)),
        Arg::Address(cx.optional(to.rstd)),
    ]
}

/// Where the masks of a tensor's rows come from.
fn dropout_args(cx: &mut Context, dropout: Option<Dropout>, rows_of: BufId) -> [Arg; 4] {
    let [sequence_ids, cu_seqlens] = match dropout {
        Some(_) => cx.sequences_of_rows(rows_of),
        None => [0, 0],
    };
    let [site, threshold] = cx.dropout(dropout);
    [Arg::Address(sequence_ids), Arg::Address(cu_seqlens), site, threshold]
}

/// The tensors that a kernel sums, and their number.
fn dout_args(cx: &mut Context, dout: &[BufId]) -> Result<[Arg; MAX_DOUT + 1]> {
    if dout.len() > MAX_DOUT {
        let n = dout.len();
        return Err(Error::Run(format!("a kernel sums up to {MAX_DOUT} gradients, not {n}")));
    }
    let mut args = [Arg::Address(0); MAX_DOUT + 1];
    for (arg, &buf) in args.iter_mut().zip(dout) {
        *arg = Arg::Address(cx.address(buf));
    }
    args[MAX_DOUT] = Arg::I32(dout.len() as i32);
    Ok(args)
}

/// The gradients at a LayerNorm's output: those of the type of `xhat`, and one that may be wider.
fn norm_dout_args(cx: &mut Context, dout: &[BufId], xhat: BufId) -> Result<Vec<Arg>> {
    let (narrow, wide): (Vec<BufId>, Vec<BufId>) =
        dout.iter().partition(|buf| cx.dtype(**buf) == cx.dtype(xhat));
    if wide.len() > 1 {
        return Err(Error::Run(format!("a kernel sums one f32 gradient, not {}", wide.len())));
    }
    let mut args = dout_args(cx, &narrow)?.to_vec();
    args.push(Arg::Address(cx.optional(wide.first().copied())));
    Ok(args)
}

fn backward_args(cx: &mut Context, saved: &NormSaved, to: NormDx) -> Result<Vec<Arg>> {
    let mut args = vec![Arg::I32(cx.rows(saved.xhat)), width(cx, saved.xhat)];
    args.extend(norm_dout_args(cx, saved.dout, saved.xhat)?);
    args.extend([saved.xhat, saved.rstd, saved.gamma].map(|buf| Arg::Address(cx.address(buf))));
    args.extend(dropout_args(cx, saved.dropout, saved.xhat));
    args.extend([to.dx, to.dresidual].map(|buf| Arg::Address(cx.optional(buf))));
    Ok(args)
}
