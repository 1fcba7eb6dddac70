//! What the integration tests share: tiny networks, ragged batches, random values, and the one
//! comparison that NaN cannot pass.

// Every test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

use std::sync::Arc;

use frostline::backend::host::{HostBackend, Ops};
use frostline::backend::{Backend, Bound, StepState, Timing};
use frostline::batch::{ABSENT_LABEL, Batch, IGNORED_LABEL};
use frostline::freeze::{FreezeMask, FreezeSpec};
use frostline::model::{Config, Family, Network, ParamId, Pooling};
use frostline::philox::{key_of, normal, philox};
use frostline::plan::{Capacity, Layout, Plan, StepOptions, fuse::fuse, prune, training_step};
use frostline::tensor::DType;

pub const FAMILIES: [Family; 3] = [Family::Bert, Family::Roberta, Family::DistilBert];

/// The tasks of all networks here, with their numbers of labels.
pub const TASKS: [(&str, usize); 2] = [("topic", 5), ("sentiment", 3)];

/// Lengths of a ragged batch: a lone token, neighbours of 32, and an odd one.
pub const LENGTHS: [usize; 6] = [5, 1, 33, 2, 17, 32];

/// Sizes that are no multiples of anything, and dropout everywhere.
pub fn tiny_config(family: Family, n_layers: usize) -> Config {
    Config {
        family,
        vocab_size: 37,
        hidden_size: 24,
        n_layers,
        n_heads: 3,
        intermediate_size: 41,
        max_positions: 40,
        type_vocab_size: match family {
            Family::Bert => 2,
            Family::Roberta => 1,
            Family::DistilBert => 0,
        },
        layer_norm_eps: 1e-12,
        pad_token_id: Some(if family == Family::Roberta { 1 } else { 0 }),
        hidden_dropout: 0.1,
        attention_dropout: 0.2,
        classifier_dropout: 0.3,
    }
}

/// A network of [`tiny_config`] with the heads of [`TASKS`].
pub fn tiny_network(family: Family, n_layers: usize, pooling: Pooling) -> Network {
    network_of(&tiny_config(family, n_layers), pooling)
}

pub fn network_of(config: &Config, pooling: Pooling) -> Network {
    let tasks = TASKS.map(|(task, n_labels)| (task.to_owned(), n_labels));
    Network::new(config, None, &tasks, pooling).unwrap()
}

/// Each family with each pooling that it has.
pub fn families_and_poolings() -> Vec<(Family, Pooling)> {
    let mut pairs = Vec::new();
    for family in FAMILIES {
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Pooler] {
            if pooling != Pooling::Pooler || family != Family::DistilBert {
                pairs.push((family, pooling));
            }
        }
    }
    pairs
}

/// `n` numbers in `0..below`, the same for the same seed.
pub fn integers(seed: u64, n: usize, below: usize) -> Vec<usize> {
    (0..n).map(|i| philox(key_of(seed), [i as u32, 0, 0, 0])[0] as usize % below).collect()
}

/// `n` unit normals, the same for the same seed.
pub fn normals(seed: u64, n: usize) -> Vec<f32> {
    normal(seed, 0, n, 1.0)
}

/// [`normals`] in f64.
pub fn wide_normals(seed: u64, n: usize) -> Vec<f64> {
    normals(seed, n).into_iter().map(f64::from).collect()
}

/// The ends of sequences of these lengths.
pub fn ends_of(lengths: &[usize]) -> Vec<i32> {
    let mut ends = vec![0];
    for length in lengths {
        ends.push(ends[ends.len() - 1] + *length as i32);
    }
    ends
}

/// A batch of random tokens (padding tokens among them); labels of every kind: a class, ignored,
/// absent.
pub fn random_batch(network: &Network, lengths: &[usize], seed: u64) -> Batch {
    let config = &network.config;
    let n_tokens = lengths.iter().sum();
    let ids = |seed, below| -> Vec<i32> {
        integers(seed, n_tokens, below).into_iter().map(|id| id as i32).collect()
    };
    let input_ids = ids(seed, config.vocab_size);
    let mut position_ids = Vec::new();
    let mut rest = input_ids.as_slice();
    for length in lengths {
        let (sequence, tail) = rest.split_at(*length);
        config.position_scheme().extend(sequence, &mut position_ids);
        rest = tail;
    }
    let labels = network.heads.iter().enumerate().map(|(task, head)| {
        let draws = integers(seed + 100 + task as u64, lengths.len(), head.n_labels);
        let label = |(row, class): (usize, usize)| match (row + 2 * task) % 5 {
            1 => IGNORED_LABEL,
            3 => ABSENT_LABEL,
            _ => class as i32,
        };
        draws.into_iter().enumerate().map(label).collect()
    });
    Batch {
        token_type_ids: ids(seed + 1, config.type_vocab_size.max(1)),
        position_ids,
        cu_seqlens: ends_of(lengths),
        labels: labels.collect(),
        input_ids,
        ..Batch::default()
    }
}

/// Random initial values, none of them trivial: LayerNorm scales about 1, shifts and biases about 0.
pub fn random_values(network: &Network, seed: u64) -> Vec<Vec<f32>> {
    let draw = |id: ParamId| {
        let param = network.param(id);
        let std = if param.shape.len() == 2 { 0.2 } else { 0.1 };
        let mean = if param.init == frostline::model::params::Init::One { 1.0 } else { 0.0 };
        let draws = normal(seed, id.0 as u32, param.n_elements(), std);
        draws.into_iter().map(|value| mean + value).collect()
    };
    network.param_ids().map(draw).collect()
}

/// The mask of a freeze spec.
pub fn mask_of(network: &Network, spec: &str) -> FreezeMask {
    FreezeSpec::parse(spec).unwrap().mask(network).unwrap()
}

/// Step options in f32 for batches up to the capacity.
pub fn options(capacity: Capacity, dropout: bool, max_grad_norm: Option<f32>) -> StepOptions {
    StepOptions { dropout, max_grad_norm, ..StepOptions::plain(capacity, DType::F32) }
}

/// The step of a spec, fused or as it was pruned.
pub fn plan_of(network: &Network, spec: &str, options: &StepOptions, fused: bool) -> Plan {
    let plan = prune(&training_step(network, options), network, &mask_of(network, spec));
    if fused { fuse(&plan) } else { plan }
}

/// A host backend with a plan bound and parameters set.
pub struct Runner<O: Ops> {
    pub backend: HostBackend<O>,
    pub bound: Bound,
}

pub const STATE: StepState = StepState {
    step: 1,
    learning_rate: 1e-3,
    head_learning_rate: 2e-3,
    weight_decay: 0.01,
    seed: 42,
};

impl<O: Ops> Runner<O> {
    pub fn new(ops: O, plan: Plan, values: &[Vec<f32>]) -> Self {
        let mut backend = HostBackend::new(ops);
        for (id, values) in values.iter().enumerate() {
            backend.write_value(ParamId(id), DType::F32, values.clone()).unwrap();
        }
        let layout = Arc::new(Layout::new(&plan));
        let bound = backend.bind(Arc::new(plan), layout).unwrap();
        Self { backend, bound }
    }

    pub fn step(&mut self, batch: &Batch, state: StepState) {
        self.backend.run(&self.bound, batch, &state, Timing::Off).unwrap();
    }

    pub fn loss(&mut self, task: usize) -> f32 {
        self.backend.read(&self.bound, self.bound.plan.tasks[task].loss).unwrap()[0]
    }

    pub fn losses(&mut self) -> Vec<f32> {
        (0..self.bound.plan.tasks.len()).map(|task| self.loss(task)).collect()
    }

    pub fn logits(&mut self, task: usize) -> Vec<f32> {
        self.backend.read(&self.bound, self.bound.plan.tasks[task].logits).unwrap()
    }

    /// A parameter's gradient, None where the plan makes none.
    pub fn gradient(&mut self, param: ParamId) -> Option<Vec<f32>> {
        Some(self.backend.read(&self.bound, self.bound.plan.gradient(param)?).unwrap())
    }

    pub fn values(&mut self, network: &Network) -> Vec<Vec<f32>> {
        network.param_ids().map(|id| self.backend.read_value(id).unwrap()).collect()
    }
}

/// `‖a - b‖ / ‖b‖`; NaN if anything is NaN or there is nothing to compare, infinity if the lengths
/// differ or only `b` is zero.
pub fn relative_error<A, B>(a: &[A], b: &[B]) -> f64
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    if a.is_empty() && b.is_empty() {
        return f64::NAN;
    }
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let difference: f64 = a.iter().zip(b).map(|(a, b)| ((*a).into() - (*b).into()).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| (*b).into().powi(2)).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Whether `a` is `b` up to a relative error of `tolerance`. NaN never is.
pub fn close<A, B>(a: &[A], b: &[B], tolerance: f64) -> bool
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    relative_error(a, b) <= tolerance
}

#[track_caller]
pub fn assert_close<A, B>(what: &str, a: &[A], b: &[B], tolerance: f64)
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    let error = relative_error(a, b);
    assert!(error <= tolerance, "{what}: relative error {error:.3e} above {tolerance:.1e}");
}

/// Whether two slices have the same bits (NaN is equal to itself here), and any at all.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    !a.is_empty() && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
