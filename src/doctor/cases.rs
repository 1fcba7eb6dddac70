//! The networks, batches and plans that together launch every kernel, in each class of shapes that production can
//! choose on a device.
//!
//! What a kernel's variant follows from, and the case that has it:
//!
//! | kernels | follow from | cases |
//! |---|---|---|
//! | `layernorm_*_1` to `_4`, `_wide` | the width, in steps of 256 up to 1024 | widths of 64, 384, 768, 1024, 1536 |
//! | `gemm_*_plain` in bf16 | sizes that are no multiples of 8 | a feed-forward width of 84 |
//! | `gemm_*_64x64`, with and without slices | products of few tiles, over short and longer batches | the small ones, long sequences |
//! | `gemm_wgrad_*` in f32 and plain, with and without slices | as much | the small ones, few tokens |
//! | `gemm_*_128x128`, with and without slices | products with a tile for every multiprocessor | many tiles, of many tokens and of few |
//! | kernels that go over all rows in turns | more rows than a turn takes | widths of 384 and more |
//! | `attention_*_tile`, `_long`, plain | type and head size, sequences of more than 128 tokens | heads of 8, 32, 64 |
//! | `embed_fwd`, `gelu_*`, `bias_grad`, ... | plans that are not fused, accumulated, cached | the small ones |

use crate::Result;
use crate::batch::{ABSENT_LABEL, Batch, IGNORED_LABEL};
use crate::data::SplitMix64;
use crate::freeze::FreezeMask;
use crate::model::params::Init;
use crate::model::{Config, Group, Network, ParamId, Pooling};
use crate::philox::normal;
use crate::plan::accumulate::accumulate;
use crate::plan::prefix::compile_cached;
use crate::plan::{Capacity, Loss, Plan, StepOptions, compile, fuse::fuse, prune, training_step};
use crate::tensor::DType;

/// How much to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One small network in each type: for tools under which every launch takes its time.
    Quick,
    /// Every kernel; products with a tile for every multiprocessor are of a layer of this width, with a feed-forward
    /// part of four times the width.
    Full { width: usize },
}

impl Extent {
    /// Every kernel, on a GPU: many tiles in a layer of BERT-base.
    pub const GPU: Extent = Extent::Full { width: 768 };
    /// Every kernel, on the emulator: many tiles in the narrowest layer that fills them.
    pub const EMULATOR: Extent = Extent::Full { width: 128 };
}

/// Plans that run one after the other on one network and batch.
pub(super) struct Case {
    /// In words, for whoever waits.
    pub name: String,
    pub network: Network,
    pub compute: DType,
    pub batch: Batch,
    pub capacity: Capacity,
    pub plans: Vec<Plan>,
    /// Plans that also run as recorded graphs.
    pub replayed: Vec<Plan>,
    /// A smaller batch that they run on in between.
    pub smaller: Batch,
}

/// Lengths of the small batches: neighbours of a tile's sizes, a lone token, and one longer than a tile.
const SHORT: [usize; 7] = [31, 1, 77, 2, 16, 33, 140];
/// So few tokens that no reduction over them is cut into slices.
const FEW: [usize; 3] = [33, 1, 40];
/// Long sequences among short ones, in all enough for slices of a reduction over the tokens.
const LONG: [usize; 6] = [130, 1, 128, 2, 512, 77];

/// The side of the largest tile of a product.
const TILE: usize = 128;

/// All cases for a device of so many multiprocessors.
pub(super) fn cases(extent: Extent, n_processors: u32) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for compute in [DType::F32, DType::Bf16] {
        let Extent::Full { width } = extent else {
            let network = network(64, 2, 80, Pooling::Pooler)?;
            cases.push(Case::new("a small network", network, compute, &SHORT, fused).replayed());
            continue;
        };
        for (hidden_size, n_heads, intermediate_size, pooling) in
            [(64, 1, 80, Pooling::Mean), (64, 2, 80, Pooling::Pooler), (24, 3, 84, Pooling::Cls)]
        {
            let network = network(hidden_size, n_heads, intermediate_size, pooling)?;
            let name = format!("heads of {}", hidden_size / n_heads);
            cases.push(Case::new(&name, network, compute, &SHORT, every_kind));
        }
        let rows = lengths_of_many_rows(n_processors);
        for (hidden_size, n_heads) in [(384, 12), (768, 12), (1024, 16), (1536, 24)] {
            let network = network(hidden_size, n_heads, 80, Pooling::Mean)?;
            let name = format!("width {hidden_size}");
            cases.push(Case::new(&name, network, compute, &rows, norms));
        }
        let narrow = network(24, 3, 84, Pooling::Mean)?;
        cases.push(Case::new("few tokens", narrow, compute, &FEW, fused));
        let long = network(64, 1, 80, Pooling::Mean)?;
        cases.push(Case::new("long sequences", long, compute, &LONG, fused).replayed());
        // In f32 there is one tile for all.
        if compute == DType::Bf16 {
            let feed_forward = feed_forward_of_many_tiles(width, n_processors);
            let wide = network(width, width / 64, feed_forward, Pooling::Mean)?;
            let lengths = lengths_of_many_tiles(width, n_processors);
            cases.push(Case::new("many tiles", wide, compute, &lengths, fused).replayed());
            let feed_forward = TILE * tiles_beside(width, n_processors);
            let wide = network(width, width / 64, feed_forward, Pooling::Mean)?;
            cases.push(Case::new("few tokens of many tiles", wide, compute, &FEW, fused));
        }
    }
    Ok(cases)
}

/// A feed-forward part wide enough for its weight gradient to have a large tile for every multiprocessor, each tile in as
/// many slices as there may be.
fn feed_forward_of_many_tiles(width: usize, n_processors: u32) -> usize {
    const MAX_SLICES: usize = 16;
    (4 * width).max((n_processors as usize).div_ceil(MAX_SLICES) * TILE)
}

/// Rows that one turn of the kernels takes which sum gradients of LayerNorm's parameters over all rows: eight to each of
/// two blocks a multiprocessor.
const ROWS_OF_A_TURN: usize = 16;

/// Sequences whose tokens are more rows than the kernels that go over all rows take at a time.
fn lengths_of_many_rows(n_processors: u32) -> Vec<usize> {
    lengths_of(n_processors as usize * ROWS_OF_A_TURN + 61, &[33, 1, 40, 64, 17, 128])
}

/// Sequences of these lengths, again and again, of so many tokens in all.
fn lengths_of(n_tokens: usize, lengths: &[usize]) -> Vec<usize> {
    let mut chosen = Vec::new();
    let mut left = n_tokens;
    for length in lengths.iter().cycle() {
        if left == 0 {
            break;
        }
        chosen.push(left.min(*length));
        left -= left.min(*length);
    }
    chosen
}

/// Tiles along the other side of a product as wide as a layer, for each multiprocessor to have one.
fn tiles_beside(width: usize, n_processors: u32) -> usize {
    (n_processors as usize).div_ceil(width.div_ceil(TILE))
}

/// Sequences whose tokens give the narrowest product of a layer of `width` more tiles than there are multiprocessors;
/// the last row of tiles is not full.
fn lengths_of_many_tiles(width: usize, n_processors: u32) -> Vec<usize> {
    lengths_of(tiles_beside(width, n_processors) * TILE + 77, &[300, 128, 129, 127, 64, 17, 1, 96])
}

impl Case {
    fn new(
        name: &str,
        network: Network,
        compute: DType,
        lengths: &[usize],
        plans: fn(&Network, Capacity, DType) -> Vec<Plan>,
    ) -> Self {
        let smaller = batch(&network, &lengths[..lengths.len().div_ceil(2)]);
        let batch = batch(&network, lengths);
        let mut capacity = Capacity::of([&batch]);
        capacity.tokens += 21;
        Case {
            name: format!("{name}, {}", compute.name()),
            plans: plans(&network, capacity, compute),
            network,
            compute,
            batch,
            capacity,
            replayed: Vec::new(),
            smaller,
        }
    }

    /// With the first plan and that of a forward pass alone, two of whose three graphs have nothing in them.
    fn replayed(self) -> Self {
        let everything = FreezeMask::all(self.network.params.len());
        let options = options(self.capacity, self.compute);
        let forward = compile(&self.network, &everything, &options);
        let replayed = vec![self.plans[0].clone(), forward];
        Case { replayed, ..self }
    }
}

fn network(
    hidden_size: usize,
    n_heads: usize,
    intermediate_size: usize,
    pooling: Pooling,
) -> Result<Network> {
    let tasks = [("topic".to_owned(), 5), ("sentiment".to_owned(), 3)];
    let config = Config {
        vocab_size: 101,
        hidden_size,
        n_layers: 1,
        n_heads,
        intermediate_size,
        max_positions: 512,
        ..Config::published("bert-base")?
    };
    Network::new(&config, None, &tasks, pooling)
}

/// A ragged batch with labels of every kind.
fn batch(network: &Network, lengths: &[usize]) -> Batch {
    let mut random = SplitMix64::new(7);
    let config = &network.config;
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for &length in lengths {
        let ids: Vec<i32> = (0..length).map(|_| random.below(config.vocab_size) as i32).collect();
        config.position_scheme().extend(&ids, &mut batch.position_ids);
        batch.token_type_ids.extend((0..length).map(|at| i32::from(at * 2 > length)));
        batch.input_ids.extend(ids);
        batch.cu_seqlens.push(batch.input_ids.len() as i32);
    }
    for head in &network.heads {
        let label = |row: usize| match row % 4 {
            1 => IGNORED_LABEL,
            2 => ABSENT_LABEL,
            _ => random.below(head.n_labels) as i32,
        };
        batch.labels.push((0..lengths.len()).map(label).collect());
        batch.loss_weights.push((0..lengths.len()).map(|row| 0.1 + 0.05 * row as f32).collect());
    }
    batch.prefix_rows = (0..batch.n_tokens() as i32).rev().collect();
    batch
}

/// A parameter none of whose values is trivial; matrices give sums of the same size at every width.
pub(super) fn value(network: &Network, id: ParamId) -> Vec<f32> {
    let param = network.param(id);
    let draws = |std| normal(5, id.0 as u32, param.n_elements(), std);
    match (param.shape.as_slice(), &param.init) {
        ([_, cols], _) => draws(1.6 / (*cols as f32).sqrt()),
        (_, Init::One) => draws(0.1).into_iter().map(|v| 1.0 + v).collect(),
        _ => draws(0.1),
    }
}

fn options(capacity: Capacity, compute: DType) -> StepOptions {
    StepOptions { dropout: true, max_grad_norm: Some(1.0), ..StepOptions::plain(capacity, compute) }
}

/// The step as production runs it.
fn fused(network: &Network, capacity: Capacity, compute: DType) -> Vec<Plan> {
    let mask = FreezeMask::none(network.params.len());
    vec![compile(network, &mask, &options(capacity, compute))]
}

/// The step as production runs it, and with every op by itself.
fn fused_and_not(network: &Network, capacity: Capacity, compute: DType) -> Vec<Plan> {
    let mask = FreezeMask::none(network.params.len());
    let unfused = prune(&training_step(network, &options(capacity, compute)), network, &mask);
    vec![fuse(&unfused), unfused]
}

/// A step that has every form of LayerNorm and next to nothing else to do: the first of the layer trains, and the bias
/// below it; the gradient goes through the other, which does not, and no large matrix has one.
fn norms(network: &Network, capacity: Capacity, compute: DType) -> Vec<Plan> {
    let mut mask = FreezeMask::all(network.params.len());
    for id in network.param_ids() {
        let name = &network.param(id).name;
        let trains = ["attention.output.LayerNorm.", "attention.output.dense.bias"];
        if trains.iter().any(|part| name.contains(part)) {
            mask.set(id, false);
        }
    }
    vec![compile(network, &mask, &options(capacity, compute))]
}

/// The same, and a step of two batches with weighted rows, and one whose embeddings are read from a cache.
fn every_kind(network: &Network, capacity: Capacity, compute: DType) -> Vec<Plan> {
    let mut plans = fused_and_not(network, capacity, compute);
    let options = options(capacity, compute);
    let mut mask = FreezeMask::none(network.params.len());
    let weighted = StepOptions { loss: Loss { is_weighted: true, smoothing: 0.1 }, ..options };
    let parts = accumulate(&compile(network, &mask, &weighted));
    plans.extend([parts.first, parts.last]);
    let is_embedding = |id: &ParamId| network.param(*id).group == Group::Embeddings;
    network.param_ids().filter(is_embedding).for_each(|id| mask.set(id, true));
    plans.extend(compile_cached(network, &mask, &options));
    plans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_product_has_a_tile_for_every_multiprocessor() {
        for (width, n_processors) in [(128, 4), (768, 4), (128, 132), (768, 132), (768, 188)] {
            let lengths = lengths_of_many_tiles(width, n_processors);
            let n_tokens: usize = lengths.iter().sum();
            let n_whole_tiles = n_tokens / TILE * (width / TILE);
            assert!(n_whole_tiles >= n_processors as usize, "{width} {n_processors}");
            let n_rows: usize = lengths_of_many_rows(n_processors).iter().sum();
            assert!(n_rows > ROWS_OF_A_TURN * n_processors as usize);
            assert!(!n_tokens.is_multiple_of(TILE) && lengths.iter().all(|length| *length > 0));
        }
    }
}
