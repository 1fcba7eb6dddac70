//! The products of a linear layer: what is asked ([`GemmShape`]), how it is cut up ([`GemmConfig`]), and
//! the launches.

use std::fmt;

use super::{Arg, Context};
use crate::plan::BufId;
use crate::plan::op::{GemmDgradPart, GemmFwdPart, GemmWgradPart};
use crate::tensor::DType;
use crate::{Error, Result};

/// Tensors of one kind that a kernel takes: of query, key and value.
const MAX_PARTS: usize = 3;

/// Bytes behind the panels for the flag of the block that arrives last.
const FLAG_BYTES: usize = 16;

/// Slices of a reduction at most, the panels that a slice has at least, and the scratch they may take.
const MAX_SLICES: usize = 16;
const MIN_SLICE_PANELS: usize = 8;
const MAX_SCRATCH_BYTES: usize = 64 << 20;

/// What it costs to start and to end a slice, in panels: filling the ring, and a tile out to scratch and
/// back. An estimate, no measurement.
const SLICE_OVERHEAD_PANELS: usize = 8;

/// Which product of a layer with weights `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Product {
    Fwd,
    GeluFwd,
    Dgrad,
    GeluDgrad,
    Wgrad,
}

impl Product {
    fn op(self) -> &'static str {
        match self {
            Product::Fwd => "gemm_fwd",
            Product::GeluFwd => "gemm_gelu_fwd",
            Product::Dgrad => "gemm_dgrad",
            Product::GeluDgrad => "gemm_gelu_dgrad",
            Product::Wgrad => "gemm_wgrad",
        }
    }
}

/// What is asked: a product over `rows` rows at capacity for `n_parts` weights `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GemmShape {
    product: Product,
    n_parts: usize,
    rows: usize,
    n: usize,
    k: usize,
}

impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let GemmShape { product, n_parts, rows, n, k } = self;
        write!(f, "{} of {n_parts} x [{n}, {k}] over {rows} rows", product.op())
    }
}

/// A kernel's tile, as kernels/gemm_f32.cu and kernels/gemm_bf16.cu have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    suffix: &'static str,
    /// Entries along either side.
    side: usize,
    /// Steps of the reduction in a panel, and panels in shared memory.
    depth: usize,
    stages: usize,
    warps: u32,
    /// Blocks that a multiprocessor runs at a time.
    blocks: usize,
    shared_bytes: usize,
}

impl Tile {
    const fn plain(suffix: &'static str) -> Self {
        let shared_bytes = 2 * 16 * 68 * size_of::<f32>();
        Tile { suffix, side: 64, depth: 16, stages: 1, warps: 8, blocks: 2, shared_bytes }
    }

    const fn tensor(suffix: &'static str, side: usize, blocks: usize) -> Self {
        let (depth, stages) = (32, 4);
        let shared_bytes = stages * 2 * side * depth * size_of::<u16>();
        Tile { suffix, side, depth, stages, warps: 4, blocks, shared_bytes }
    }

    /// Floats of a tile and its row sums in scratch.
    fn saved_floats(&self) -> usize {
        self.side * self.side + self.side
    }

    /// Tiles of the shape's output in columns and rows of blocks, all parts together.
    fn grid(&self, shape: &GemmShape) -> [usize; 2] {
        let tiles = |size: usize| size.div_ceil(self.side);
        match shape.product {
            Product::Fwd | Product::GeluFwd => [shape.n_parts * tiles(shape.n), tiles(shape.rows)],
            Product::Dgrad | Product::GeluDgrad => [tiles(shape.k), tiles(shape.rows)],
            Product::Wgrad => [shape.n_parts * tiles(shape.n) * tiles(shape.k), 1],
        }
    }

    fn n_tiles(&self, shape: &GemmShape) -> usize {
        self.grid(shape).iter().product()
    }

    /// Panels of the reduction over the rows.
    fn row_panels(&self, shape: &GemmShape) -> usize {
        shape.rows.div_ceil(self.depth)
    }

    /// Slices of the reduction that scratch, its length and sense allow.
    fn max_slices(&self, shape: &GemmShape) -> usize {
        if shape.product != Product::Wgrad {
            return 1;
        }
        let slot_bytes = self.saved_floats() * size_of::<f32>();
        let fitting = MAX_SCRATCH_BYTES / (self.n_tiles(shape) * slot_bytes).max(1);
        MAX_SLICES.min(fitting).min(self.row_panels(shape) / MIN_SLICE_PANELS).max(1)
    }
}

const F32: Tile = Tile::plain("f32");
/// For widths that are no multiples of 8.
const BF16_PLAIN: Tile = Tile::plain("bf16_plain");
const BF16_SMALL: Tile = Tile::tensor("bf16_64x64", 64, 4);
const BF16_LARGE: Tile = Tile::tensor("bf16_128x128", 128, 2);

/// How a product is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GemmConfig {
    tile: Tile,
    /// Slices of the reduction over the rows; more than one need scratch.
    slices: usize,
}

impl fmt::Display for GemmConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Tile { suffix, side, depth, stages, warps, .. } = self.tile;
        write!(f, "{suffix}: {side} x {side} x {depth}, {stages} stages, {warps} warps")?;
        write!(f, ", {} slices", self.slices)
    }
}

impl GemmConfig {
    /// Large tiles where they give every multiprocessor one, small ones else. It follows from capacity
    /// and device alone, so that a recorded step serves every batch, with the same bits every time.
    fn choose(shape: &GemmShape, dtype: DType, n_processors: u32) -> Self {
        let has_large_grid =
            BF16_LARGE.n_tiles(shape) * BF16_LARGE.max_slices(shape) >= n_processors as usize;
        let tile = match dtype {
            DType::Bf16 if !(shape.n.is_multiple_of(8) && shape.k.is_multiple_of(8)) => BF16_PLAIN,
            DType::Bf16 if has_large_grid => BF16_LARGE,
            DType::Bf16 => BF16_SMALL,
            _ => F32,
        };
        GemmConfig { tile, slices: choose_slices(&tile, shape, n_processors) }
    }

    fn grid(&self, shape: &GemmShape) -> [u32; 3] {
        let [across, down] = self.tile.grid(shape);
        [across as u32, (down * self.slices) as u32, 1]
    }

    fn shared_bytes(&self, shape: &GemmShape) -> usize {
        let flag = if shape.product == Product::Wgrad { FLAG_BYTES } else { 0 };
        self.tile.shared_bytes + flag
    }

    /// Scratch and counters of the slices.
    fn scratch_bytes(&self, shape: &GemmShape) -> usize {
        if self.slices == 1 {
            return 0;
        }
        self.tile.n_tiles(shape) * self.slices * self.tile.saved_floats() * size_of::<f32>()
    }

    fn n_counters(&self, shape: &GemmShape) -> usize {
        if self.slices == 1 { 0 } else { self.tile.n_tiles(shape) }
    }
}

/// The number of slices with the least rounds of blocks times work of a block.
fn choose_slices(tile: &Tile, shape: &GemmShape, n_processors: u32) -> usize {
    let at_once = (tile.blocks * n_processors as usize).max(1);
    let time = |slices: usize| {
        let rounds = (tile.n_tiles(shape) * slices).div_ceil(at_once);
        let overhead = if slices == 1 { 0 } else { SLICE_OVERHEAD_PANELS };
        rounds * (tile.row_panels(shape).div_ceil(slices) + overhead)
    };
    (1..=tile.max_slices(shape)).min_by_key(|&slices| time(slices)).unwrap_or(1)
}

pub(super) fn gemm_fwd(cx: &mut Context, x: BufId, parts: &[GemmFwdPart]) -> Result<()> {
    let shape = shape(cx, Product::Fwd, x, parts.iter().map(|part| part.weight))?;
    let mut args = vec![Arg::Address(cx.address(x))];
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.weight))));
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.bias))));
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.out))));
    start(cx, &shape, x, args)
}

pub(super) fn gemm_gelu_fwd(
    cx: &mut Context,
    x: BufId,
    part: GemmFwdPart,
    pre: Option<BufId>,
) -> Result<()> {
    let shape = shape(cx, Product::GeluFwd, x, [part.weight])?;
    let args = vec![
        Arg::Address(cx.address(x)),
        Arg::Address(cx.address(part.weight)),
        Arg::Address(cx.address(part.bias)),
        Arg::Address(cx.optional(pre)),
        Arg::Address(cx.address(part.out)),
    ];
    start(cx, &shape, x, args)
}

pub(super) fn gemm_dgrad(cx: &mut Context, parts: &[GemmDgradPart], dx: BufId) -> Result<()> {
    let shape = shape(cx, Product::Dgrad, dx, parts.iter().map(|part| part.weight))?;
    let mut args = Vec::new();
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.dout))));
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.weight))));
    args.push(Arg::Address(cx.address(dx)));
    args.push(Arg::I32(parts.len() as i32));
    start(cx, &shape, dx, args)
}

pub(super) fn gemm_gelu_dgrad(
    cx: &mut Context,
    part: GemmDgradPart,
    pre: BufId,
    dx: BufId,
) -> Result<()> {
    let shape = shape(cx, Product::GeluDgrad, dx, [part.weight])?;
    let args = vec![
        Arg::Address(cx.address(part.dout)),
        Arg::Address(cx.address(part.weight)),
        Arg::Address(cx.address(pre)),
        Arg::Address(cx.address(dx)),
    ];
    start(cx, &shape, dx, args)
}

pub(super) fn gemm_wgrad(cx: &mut Context, x: BufId, parts: &[GemmWgradPart]) -> Result<()> {
    let shape = shape(cx, Product::Wgrad, x, parts.iter().map(|part| part.dweight))?;
    let mut args = vec![Arg::Address(cx.address(x))];
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.dout))));
    args.extend(addresses(cx, parts.iter().map(|part| Some(part.dweight))));
    args.extend(addresses(cx, parts.iter().map(|part| part.dbias)));
    start(cx, &shape, x, args)
}

/// The shape of a product whose matrix of K columns is `wide_k`, for weights (or their gradients)
/// `[n, k]`, which must be alike and no more than a kernel takes.
fn shape(
    cx: &Context,
    product: Product,
    wide_k: BufId,
    weights: impl IntoIterator<Item = BufId>,
) -> Result<GemmShape> {
    let (rows, k) = (cx.capacity_rows(wide_k), cx.cols(wide_k));
    let sizes: Vec<usize> = weights.into_iter().map(|weight| cx.capacity_rows(weight)).collect();
    let n = sizes.first().copied().unwrap_or(0);
    let shape = GemmShape { product, n_parts: sizes.len(), rows, n, k };
    if !(1..=MAX_PARTS).contains(&sizes.len()) || sizes.iter().any(|&size| size != n) {
        return Err(Error::Run(format!("no kernel does {shape}, of heights {sizes:?}")));
    }
    Ok(shape)
}

/// Three addresses, 0 for a part or a buffer that is not there.
fn addresses(cx: &mut Context, bufs: impl Iterator<Item = Option<BufId>>) -> [Arg; MAX_PARTS] {
    let mut args = [Arg::Address(0); MAX_PARTS];
    for (arg, buf) in args.iter_mut().zip(bufs) {
        *arg = Arg::Address(cx.optional(buf));
    }
    args
}

/// Launches a product; `like` has the rows and the type of all its activations.
fn start(cx: &mut Context, shape: &GemmShape, like: BufId, mut args: Vec<Arg>) -> Result<()> {
    let config = GemmConfig::choose(shape, cx.dtype(like), cx.n_processors());
    if shape.product == Product::Wgrad {
        args.push(Arg::Address(cx.scratch(config.scratch_bytes(shape))));
        args.push(Arg::Address(cx.counters(config.n_counters(shape))));
    }
    args.push(Arg::I32(cx.rows(like)));
    args.extend([Arg::I32(shape.n as i32), Arg::I32(shape.k as i32)]);
    let kernel = format!("{}_{}", shape.product.op(), config.tile.suffix);
    let block = config.tile.warps * 32;
    cx.launch(&kernel, config.grid(shape), block, config.shared_bytes(shape), &args)
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: u32 = 132;

    fn wgrad(n_parts: usize, rows: usize, n: usize, k: usize) -> GemmShape {
        GemmShape { product: Product::Wgrad, n_parts, rows, n, k }
    }

    #[test]
    fn tiles_follow_type_width_and_grid() {
        let choose = |rows, n, k, dtype| {
            let shape = GemmShape { product: Product::Fwd, n_parts: 1, rows, n, k };
            GemmConfig::choose(&shape, dtype, H100).tile
        };
        assert_eq!(choose(16384, 768, 768, DType::F32), F32);
        assert_eq!(choose(16384, 768, 768, DType::Bf16), BF16_LARGE);
        assert_eq!(choose(1024, 768, 768, DType::Bf16), BF16_SMALL);
        assert_eq!(choose(16384, 770, 768, DType::Bf16), BF16_PLAIN);
        assert_eq!(choose(16384, 768, 1001, DType::Bf16), BF16_PLAIN);
    }

    /// Seven slices of 36 tiles are 252 of the 264 blocks that an H100 runs at a time.
    #[test]
    fn slices_fill_the_device() {
        let shape = wgrad(1, 16384, 768, 768);
        let config = GemmConfig::choose(&shape, DType::Bf16, H100);
        assert_eq!(config.to_string(), "bf16_128x128: 128 x 128 x 32, 4 stages, 4 warps, 7 slices");
        assert_eq!(config.grid(&shape), [36, 7, 1]);
        assert_eq!(config.scratch_bytes(&shape), 36 * 7 * (128 * 128 + 128) * 4);
        assert_eq!(config.n_counters(&shape), 36);
        assert_eq!(config.shared_bytes(&shape), 65536 + 16);
    }

    #[test]
    fn slices_keep_within_their_bounds() {
        for (n_parts, rows, n, k) in
            [(1, 1, 8, 8), (3, 16384, 768, 768), (1, 131_072, 4096, 1024), (2, 300, 64, 64)]
        {
            let shape = wgrad(n_parts, rows, n, k);
            for dtype in [DType::F32, DType::Bf16] {
                let config = GemmConfig::choose(&shape, dtype, H100);
                assert!(config.scratch_bytes(&shape) <= MAX_SCRATCH_BYTES, "{shape}: {config}");
                let is_long = rows >= config.slices * MIN_SLICE_PANELS * config.tile.depth;
                assert!(config.slices == 1 || is_long, "{shape}: {config}");
            }
        }
    }

    #[test]
    fn only_weight_gradients_are_sliced() {
        let shape = GemmShape { product: Product::Dgrad, n_parts: 3, rows: 64, n: 768, k: 768 };
        let config = GemmConfig::choose(&shape, DType::Bf16, H100);
        assert_eq!((config.slices, config.scratch_bytes(&shape)), (1, 0));
        assert_eq!(config.grid(&shape), [12, 1, 1]);
    }
}
