//! Gradient accumulation: several batches of a step give the losses, the gradients and the update of one batch that has
//! all their rows.

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{
    LENGTHS, STATE, close, families_and_poolings, mask_of, network_of, random_batch, random_values,
    tiny_config,
};
use frostline::backend::{Backend, Bound, Timing};
use frostline::batch::Batch;
use frostline::model::{Family, Network, ParamId, Pooling};
use frostline::plan::accumulate::{Accumulated, accumulate};
use frostline::plan::{BufId, Capacity, Layout, Loss, Op, Phase, Plan, Role, StepOptions, compile};
use frostline::session::Engine;
use frostline::tensor::DType;

/// Sequences of each part of [`LENGTHS`].
const PARTS: [Range<usize>; 4] = [0..2, 2..3, 3..4, 4..6];

fn options(compute: DType, is_weighted: bool) -> StepOptions {
    let capacity = Capacity { tokens: LENGTHS.iter().sum(), sequences: 6, max_length: 33 };
    StepOptions {
        max_grad_norm: Some(0.5),
        loss: Loss { is_weighted, smoothing: 0.1 },
        ..StepOptions::plain(capacity, compute)
    }
}

/// The sequences `range` of a batch, each labelled row weighing as much as in the mean over the whole batch.
fn part_of(batch: &Batch, range: Range<usize>) -> Batch {
    let begin = batch.cu_seqlens[range.start];
    let tokens = begin as usize..batch.cu_seqlens[range.end] as usize;
    let weight = |labels: &Vec<i32>| {
        let n_labelled = labels.iter().filter(|label| **label >= 0).count();
        vec![1.0 / n_labelled as f32; range.len()]
    };
    Batch {
        input_ids: batch.input_ids[tokens.clone()].to_vec(),
        token_type_ids: batch.token_type_ids[tokens.clone()].to_vec(),
        position_ids: batch.position_ids[tokens].to_vec(),
        cu_seqlens: batch.cu_seqlens[range.start..=range.end]
            .iter()
            .map(|end| end - begin)
            .collect(),
        labels: batch.labels.iter().map(|labels| labels[range.clone()].to_vec()).collect(),
        loss_weights: batch.labels.iter().map(weight).collect(),
        prefix_rows: Vec::new(),
    }
}

fn bind(backend: &mut dyn Backend, plan: Plan) -> Bound {
    plan.verify().unwrap();
    let layout = Arc::new(Layout::new(&plan));
    backend.bind(Arc::new(plan), layout).unwrap()
}

fn read(
    backend: &mut dyn Backend,
    bound: &Bound,
    is_it: impl Fn(Role) -> bool,
) -> Option<Vec<f32>> {
    let written: Vec<BufId> = bound.plan.written().collect();
    let found = written.into_iter().find(|buf| is_it(bound.plan.buffer(*buf).role))?;
    Some(backend.read(bound, found).unwrap())
}

/// What a step leaves.
struct Outcome {
    losses: Vec<f32>,
    norm: f32,
    /// By parameter, None for frozen ones.
    gradients: Vec<Option<Vec<f32>>>,
    values: Vec<Vec<f32>>,
}

fn opened(engine: Engine, network: &Network) -> Box<dyn Backend> {
    let mut backend = engine.backend().unwrap();
    for (id, values) in network.param_ids().zip(random_values(network, 3)) {
        backend.write_value(id, network.param(id).dtype(engine.compute), values).unwrap();
    }
    backend
}

/// `runs` are bound plans with their batches; the last one updates.
fn outcome(
    backend: &mut dyn Backend,
    network: &Network,
    runs: &[(Bound, Batch)],
    gradient: fn(ParamId) -> Role,
) -> Outcome {
    let mut losses = vec![0.0; network.heads.len()];
    for (bound, batch) in runs {
        backend.run(bound, batch, &STATE, Timing::Off).unwrap();
        for (task, loss) in bound.plan.tasks.iter().zip(&mut losses) {
            *loss += backend.read(bound, task.loss).unwrap()[0];
        }
    }
    let (last, _) = runs.last().unwrap();
    let norm = last.plan.grad_norm().map(|buf| backend.read(last, buf).unwrap()[0]);
    Outcome {
        losses,
        norm: norm.unwrap(),
        gradients: (network.param_ids())
            .map(|id| read(backend, last, |role| role == gradient(id)))
            .collect(),
        values: network.param_ids().map(|id| backend.read_value(id).unwrap()).collect(),
    }
}

fn whole(engine: Engine, network: &Network, freeze: &str, batch: &Batch) -> Outcome {
    let mut backend = opened(engine, network);
    let plan = compile(network, &mask_of(network, freeze), &options(engine.compute, false));
    let bound = bind(backend.as_mut(), plan);
    outcome(backend.as_mut(), network, &[(bound, batch.clone())], Role::Gradient)
}

fn in_parts(engine: Engine, network: &Network, freeze: &str, batch: &Batch) -> Outcome {
    let mut backend = opened(engine, network);
    let plan = compile(network, &mask_of(network, freeze), &options(engine.compute, true));
    let Accumulated { first, next, last } = accumulate(&plan);
    let bound = [first, next, last].map(|plan| bind(backend.as_mut(), plan));
    let runs: Vec<(Bound, Batch)> = (PARTS.into_iter().enumerate())
        .map(|(at, range)| (bound[[0, 1, 1, 2][at]].clone(), part_of(batch, range)))
        .collect();
    outcome(backend.as_mut(), network, &runs, Role::GradientSum)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Compares the two ways; gradients up to `tolerance` of their norm, or of a thousandth of the largest norm (those of
/// key biases are rounding noise).
fn check(engine: Engine, network: &Network, freeze: &str, tolerance: f64) {
    let what = format!("{engine:?} {freeze}");
    let batch = random_batch(network, &LENGTHS, 7);
    let expected = whole(engine, network, freeze, &batch);
    let found = in_parts(engine, network, freeze, &batch);
    assert!(close(&found.losses, &expected.losses, 1e-6), "{what}: losses");
    assert!(close(&[found.norm], &[expected.norm], tolerance), "{what}: norm");
    let largest = expected.gradients.iter().flatten().map(|grad| norm(grad)).fold(0.0, f64::max);
    let before = random_values(network, 3);
    for id in network.param_ids() {
        let name = &network.param(id).name;
        let values = (&found.values[id.0], &expected.values[id.0]);
        match (&found.gradients[id.0], &expected.gradients[id.0]) {
            (Some(found), Some(expected)) => {
                let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                let error = norm(&difference) / norm(expected).max(1e-3 * largest);
                assert!(error <= tolerance, "{what}: {name} is off by {error:.1e}");
                assert!(*values.0 != before[id.0], "{what}: {name} did not train");
                // Where a gradient is noise AdamW may go either way, by its rate.
                let rate = 2.1 * f64::from(STATE.head_learning_rate);
                let apart = values.0.iter().zip(values.1).map(|(a, b)| f64::from((a - b).abs()));
                assert!(apart.fold(0.0, f64::max) <= rate, "{what}: {name} updated otherwise");
            }
            (None, None) => assert!(values.0 == values.1, "{what}: {name} is frozen"),
            _ => panic!("{what}: {name} trains in one of them"),
        }
    }
}

const FREEZES: [&str; 4] = ["none", "lower:1", "head:topic", "backbone"];

#[test]
fn parts_of_a_step_are_the_step() {
    for (family, pooling) in families_and_poolings() {
        let network = network_of(&tiny_config(family, 2), pooling);
        for freeze in FREEZES {
            // Sums in another order.
            check(Engine::CPU, &network, freeze, 5e-6);
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn parts_of_a_step_are_the_step_on_the_kernels() {
    use frostline::session::Device;
    let network = network_of(&tiny_config(Family::Bert, 2), Pooling::Mean);
    for freeze in FREEZES {
        for graphs in [false, true] {
            let engine = |compute| Engine { device: Device::Emulated { graphs }, compute };
            check(engine(DType::F32), &network, freeze, 5e-6);
            // A gradient that differs by a rounding in f32 may be rounded to the other neighbour in bf16.
            check(engine(DType::Bf16), &network, freeze, 4e-3);
        }
    }
}

/// Parts have the ops of the step but for the sum and who updates, and sums of what trains alone.
#[test]
fn plans_differ_in_the_sum_and_the_update() {
    let network = network_of(&tiny_config(Family::Bert, 2), Pooling::Mean);
    for freeze in FREEZES {
        let mask = mask_of(&network, freeze);
        let plan = compile(&network, &mask, &options(DType::Bf16, true));
        let Accumulated { first, next, last } = accumulate(&plan);
        let names = |plan: &Plan| plan.ops.iter().map(Op::name).collect::<Vec<_>>();
        let is_update = |name: &&str| ["grad_norm", "adamw_step"].contains(name);
        for part in [&first, &next] {
            part.verify().unwrap();
            let mut expected: Vec<&str> =
                names(&plan).into_iter().filter(|n| !is_update(n)).collect();
            expected.push("grad_accumulate");
            assert_eq!(names(part), expected, "{freeze}");
            assert!(part.trained().is_empty(), "{freeze}");
        }
        last.verify().unwrap();
        assert_eq!(last.trained(), plan.trained(), "{freeze}");
        assert_eq!(last.ops.len(), plan.ops.len() + 1, "{freeze}");
        let gradients = |plan: &Plan| Layout::new(plan).memory.gradients;
        for part in [&first, &next, &last] {
            assert_eq!(gradients(part), 2 * gradients(&plan), "{freeze}: sums beside gradients");
            let sums = part.written().filter_map(|buf| match part.buffer(buf).role {
                Role::GradientSum(id) => Some(id),
                _ => None,
            });
            assert_eq!(sums.collect::<Vec<_>>(), plan.trained(), "{freeze}");
        }
        let in_backward = |op: &Op| op.phase() == Phase::Backward;
        assert!(first.ops.iter().filter(|op| op.name() == "grad_accumulate").all(in_backward));
    }
    let inference = compile(&network, &mask_of(&network, "all"), &options(DType::F32, true));
    assert_eq!(accumulate(&inference).last, inference, "nothing trains, nothing is summed");
}
