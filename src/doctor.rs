//! Runs every kernel and whole training steps on a device of this machine, and holds each against the
//! reference.

use std::sync::Arc;

use crate::Result;
use crate::backend::cuda::{CudaBackend, Device};
use crate::backend::shadow::{Comparison, shadow};
use crate::backend::{Backend, PrefixRows, StepState};
use crate::batch::{ABSENT_LABEL, Batch, IGNORED_LABEL};
use crate::data::SplitMix64;
use crate::freeze::FreezeMask;
use crate::model::params::Init;
use crate::model::{Config, Group, Network, ParamId, Pooling};
use crate::philox::normal;
use crate::plan::accumulate::accumulate;
use crate::plan::prefix::compile_cached;
use crate::plan::{
    Capacity, Layout, Loss, Plan, StepOptions, compile, fuse::fuse, prune, training_step,
};
use crate::tensor::DType;

/// Lengths of the checked batch: neighbours of a tile's sizes, a lone token, and one longer than a tile.
const LENGTHS: [usize; 7] = [31, 1, 77, 2, 16, 33, 140];

const STATE: StepState = StepState {
    step: 3,
    learning_rate: 1e-3,
    head_learning_rate: 2e-3,
    weight_decay: 0.01,
    seed: 42,
};

/// The networks that doctor runs: heads of 64, 32 and 8, with and without a pooler.
fn networks() -> Result<Vec<Network>> {
    let sizes = [(64, 1, Pooling::Mean), (64, 2, Pooling::Pooler), (24, 3, Pooling::Cls)];
    let tasks = [("topic".to_owned(), 5), ("sentiment".to_owned(), 3)];
    (sizes.into_iter())
        .map(|(hidden_size, n_heads, pooling)| {
            let config = Config {
                vocab_size: 101,
                hidden_size,
                n_layers: 1,
                n_heads,
                intermediate_size: 80,
                max_positions: 160,
                ..Config::published("bert-base")?
            };
            Network::new(&config, None, &tasks, pooling)
        })
        .collect()
}

/// A ragged batch with labels of every kind.
fn batch(network: &Network) -> Batch {
    let mut random = SplitMix64::new(7);
    let config = &network.config;
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for length in LENGTHS {
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
        batch.labels.push((0..LENGTHS.len()).map(label).collect());
        batch.loss_weights.push((0..LENGTHS.len()).map(|row| 0.1 + 0.05 * row as f32).collect());
    }
    batch
}

/// A parameter none of whose values is trivial.
fn value(network: &Network, id: ParamId) -> Vec<f32> {
    let param = network.param(id);
    let draws = |std| normal(5, id.0 as u32, param.n_elements(), std);
    match (param.shape.len(), &param.init) {
        (2, _) => draws(0.2),
        (_, Init::One) => draws(0.1).into_iter().map(|v| 1.0 + v).collect(),
        _ => draws(0.1),
    }
}

/// Compares every output of every op of whole steps, fused and not, over several batches, and with a cached prefix, in
/// both types.
///
/// `open` gives a fresh backend on the device; `progress` is told what comes next.
///
/// # Errors
/// When the device fails.
pub fn check<D: Device>(
    mut open: impl FnMut() -> Result<CudaBackend<D>>,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Comparison>> {
    let mut comparisons = Vec::new();
    for network in networks()? {
        let mut batch = batch(&network);
        let mut capacity = Capacity::of([&batch]);
        capacity.tokens += 21;
        batch.prefix_rows = (0..batch.n_tokens() as i32).rev().collect();
        let prefix = prefix_of(&network, batch.n_tokens());
        let config = &network.config;
        let size = config.hidden_size / config.n_heads;
        for compute in [DType::F32, DType::Bf16] {
            for plans in runs(&network, capacity, compute) {
                progress(&format!("heads of {size}, {}", compute.name()));
                let mut backend = open()?;
                for id in network.param_ids() {
                    let dtype = network.param(id).dtype(compute);
                    backend.write_value(id, dtype, value(&network, id))?;
                }
                backend.set_prefix(prefix.clone(), capacity.tokens)?;
                for plan in plans {
                    let layout = Arc::new(Layout::new(&plan));
                    let bound = backend.bind(Arc::new(plan), layout)?;
                    let compared = shadow(&mut backend, &bound, &batch, &STATE, Some(&prefix))?;
                    comparisons.extend(compared);
                }
            }
        }
    }
    Ok(comparisons)
}

/// Plans that together launch every kernel; those of one run follow each other on one backend.
fn runs(network: &Network, capacity: Capacity, compute: DType) -> Vec<Vec<Plan>> {
    let options = StepOptions {
        dropout: true,
        max_grad_norm: Some(1.0),
        ..StepOptions::plain(capacity, compute)
    };
    let mask = FreezeMask::none(network.params.len());
    let unfused = prune(&training_step(network, &options), network, &mask);
    let weighted = StepOptions { loss: Loss { is_weighted: true, smoothing: 0.1 }, ..options };
    let parts = accumulate(&compile(network, &mask, &weighted));
    let mut embeddings = mask;
    let is_embedding = |id: &ParamId| network.param(*id).group == Group::Embeddings;
    network.param_ids().filter(is_embedding).for_each(|id| embeddings.set(id, true));
    let mut runs = vec![vec![fuse(&unfused)], vec![unfused], vec![parts.first, parts.last]];
    runs.extend(compile_cached(network, &embeddings, &options).map(|plan| vec![plan]));
    runs
}

/// A cache of as many rows of the hidden state as there are tokens.
fn prefix_of(network: &Network, n_tokens: usize) -> PrefixRows {
    let cols = network.config.hidden_size;
    PrefixRows { cols, values: Arc::new(normal(6, 0, n_tokens * cols, 1.0)), on_device: true }
}
