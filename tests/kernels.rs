//! Every kernel against the reference, on the emulator: whole steps over ragged batches, op by op, so
//! that each kernel meets exactly what the plan feeds it, in f32 and bf16, fused and not, under several
//! schedules.
#![cfg(feature = "emulator")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{STATE, mask_of, network_of, random_batch, random_values, tiny_config};
use frostline::backend::cuda::CudaBackend;
use frostline::backend::cuda::emulated::{Emulator, Order, Schedule};
use frostline::backend::shadow::{Comparison, shadow};
use frostline::backend::{Backend, Bound, StepState, Timing};
use frostline::batch::Batch;
use frostline::model::{Config, Family, Network, ParamId, Pooling};
use frostline::plan::{
    BufId, Capacity, Counts, Layout, Op, StepOptions, fuse::fuse, prune, training_step,
};
use frostline::tensor::DType;

const TYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// What tensor cores do, and what makes a wrong tolerance show: sums that are rounded, and sums that are cut off.
fn sums(compute: DType) -> Vec<Schedule> {
    let truncated = Schedule { truncated: true, ..Schedule::default() };
    match compute {
        DType::Bf16 => vec![Schedule::default(), truncated],
        _ => vec![Schedule::default()],
    }
}

struct Emulated {
    backend: CudaBackend<Emulator>,
    bound: Bound,
}

impl Emulated {
    /// A step held against the reference, every value of every output.
    fn shadowed(&mut self, batch: &Batch) -> Vec<Comparison> {
        shadow(&mut self.backend, &self.bound, batch, &STATE, None, u64::MAX).unwrap()
    }
}

/// A plan on the emulator, with room for more than the batch brings.
fn emulated(
    network: &Network,
    batch: &Batch,
    spec: &str,
    compute: DType,
    fused: bool,
    schedule: Schedule,
) -> Emulated {
    let mut capacity = Capacity::of([batch]);
    capacity.tokens += 37;
    capacity.sequences += 3;
    let options = StepOptions {
        dropout: true,
        max_grad_norm: Some(0.5),
        ..StepOptions::plain(capacity, compute)
    };
    let plan = prune(&training_step(network, &options), network, &mask_of(network, spec));
    let plan = if fused { fuse(&plan) } else { plan };
    let device = Emulator::new(schedule).checking_races();
    let mut backend = CudaBackend::new(device, "emulated", false);
    for (id, values) in random_values(network, 3).into_iter().enumerate() {
        let id = ParamId(id);
        backend.write_value(id, network.param(id).dtype(compute), values).unwrap();
    }
    let layout = Arc::new(Layout::new(&plan));
    let bound = backend.bind(Arc::new(plan), layout).unwrap();
    Emulated { backend, bound }
}

/// The names of the ops that were right; all must be.
fn check(what: &str, comparisons: &[Comparison]) -> BTreeSet<&'static str> {
    assert!(!comparisons.is_empty());
    let wrong: Vec<String> = (comparisons.iter())
        .filter(|one| !one.passes())
        .map(|one| {
            let Comparison { op, output, shape, dtype, .. } = one;
            format!(
                "{op} -> {output} {shape:?} {}: {:.2e}, at most {:.2e}; one value {:.2e}, at most {:.2e}; \
                 repeats: {}",
                dtype.name(),
                one.error,
                one.tolerance,
                one.deviation,
                one.deviation_tolerance,
                one.repeats
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    comparisons.iter().map(|one| one.op).collect()
}

/// Heads of 32 and 64, a feed-forward width and a vocabulary that are multiples of little.
fn network(n_heads: usize, hidden_size: usize, pooling: Pooling) -> Network {
    let config = Config {
        hidden_size,
        n_heads,
        intermediate_size: 80,
        vocab_size: 101,
        max_positions: 520,
        ..tiny_config(Family::Bert, 2)
    };
    network_of(&config, pooling)
}

const LENGTHS: [usize; 6] = [7, 1, 77, 2, 31, 11];

#[test]
fn every_op_is_right_on_the_emulator() {
    let cases = [
        (network(1, 64, Pooling::Mean), "none"),
        (network(2, 64, Pooling::Pooler), "none"),
        (network(3, 24, Pooling::Cls), "none"),
    ];
    for compute in TYPES {
        let mut seen = BTreeSet::new();
        for (network, spec) in &cases {
            let batch = random_batch(network, &LENGTHS, 5);
            for (fused, schedule) in
                sums(compute).into_iter().flat_map(|schedule| [(true, schedule), (false, schedule)])
            {
                let mut it = emulated(network, &batch, spec, compute, fused, schedule);
                let found = it.shadowed(&batch);
                seen.extend(check(&format!("{compute:?} fused {fused} {schedule:?}"), &found));
            }
        }
        // Every op there is, whatever it is fused into.
        assert_eq!(seen.len(), 29, "{seen:?}");
    }
}

#[test]
fn freezes_drop_outputs_and_leave_the_rest_right() {
    let network = network(2, 64, Pooling::Mean);
    let batch = random_batch(&network, &LENGTHS, 6);
    for compute in TYPES {
        for spec in [
            "all",
            "backbone",
            "head:topic",
            "lower:1",
            "all+keep:*.bias+keep:heads.*",
            "name:*query*+name:*value*",
            "name:*key*+name:*LayerNorm.weight",
        ] {
            let mut it = emulated(&network, &batch, spec, compute, true, Schedule::default());
            check(&format!("{spec} {compute:?}"), &it.shadowed(&batch));
        }
    }
}

#[test]
fn long_sequences_are_right() {
    let network = network(1, 64, Pooling::Mean);
    let batch = random_batch(&network, &[130, 1, 128, 2, 512, 77], 7);
    for compute in TYPES {
        for schedule in sums(compute) {
            let mut it = emulated(&network, &batch, "none", compute, true, schedule);
            check(&format!("{compute:?} {schedule:?}"), &it.shadowed(&batch));
        }
    }
}

/// All that a step leaves behind, in bits.
fn outcome(network: &Network, batch: &Batch, compute: DType, schedule: Schedule) -> Vec<Vec<u32>> {
    let mut it = emulated(network, batch, "none", compute, true, schedule);
    for step in 1..=2 {
        let state = StepState { step, ..STATE };
        it.backend.run(&it.bound, batch, &state, Timing::Off).unwrap();
    }
    let mut left = Vec::new();
    for id in network.param_ids() {
        let values = it.backend.read_value(id).unwrap();
        left.push(bits(&values));
    }
    left
}

fn bits(values: &[f32]) -> Vec<u32> {
    assert!(values.iter().all(|value| value.is_finite()));
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn no_schedule_changes_a_bit() {
    let network = network(2, 64, Pooling::Mean);
    let batch = random_batch(&network, &[9, 1, 33, 2], 8);
    for (compute, base) in
        TYPES.into_iter().flat_map(|compute| sums(compute).into_iter().map(move |s| (compute, s)))
    {
        let first = outcome(&network, &batch, compute, base);
        let mut schedules = vec![
            Schedule { order: Order::Fifo, deferred: true, ..base },
            Schedule { order: Order::Lifo, deferred: false, ..base },
        ];
        for seed in 1..=8 {
            let order = Order::RandomWarps { seed };
            schedules.push(Schedule { order, deferred: seed % 2 == 0, ..base });
        }
        for schedule in schedules {
            assert!(outcome(&network, &batch, compute, schedule) == first, "{schedule:?}");
        }
    }
}

/// A recording holds addresses and grids, never a batch's sizes or a step's number; where memory moves, it is
/// made anew.
#[test]
fn recorded_steps_do_what_launched_ones_do() {
    let network = network(2, 64, Pooling::Mean);
    let options = |tokens, compute| {
        let capacity = Capacity { tokens, sequences: 6, max_length: 140 };
        StepOptions {
            dropout: true,
            max_grad_norm: Some(0.5),
            ..StepOptions::plain(capacity, compute)
        }
    };
    for compute in TYPES {
        let left = [true, false].map(|use_graphs| {
            let mut backend = CudaBackend::new(Emulator::default(), "emulated", use_graphs);
            for (id, values) in random_values(&network, 3).into_iter().enumerate() {
                let id = ParamId(id);
                backend.write_value(id, network.param(id).dtype(compute), values).unwrap();
            }
            let bind = |spec: &str, tokens, backend: &mut CudaBackend<Emulator>| {
                let step = training_step(&network, &options(tokens, compute));
                let plan = fuse(&prune(&step, &network, &mask_of(&network, spec)));
                let layout = Arc::new(Layout::new(&plan));
                backend.bind(Arc::new(plan), layout).unwrap()
            };
            let lower = bind("lower:1", 90, &mut backend);
            let mut step = 0;
            let mut run =
                |bound: &Bound, lengths: &[usize], backend: &mut CudaBackend<Emulator>| {
                    step += 1;
                    let state = StepState { step, learning_rate: 1e-3 / step as f32, ..STATE };
                    let batch = random_batch(&network, lengths, step);
                    backend.run(bound, &batch, &state, Timing::Off).unwrap();
                };
            for lengths in [&LENGTHS[..3], &[9, 31], &[1, 2, 3, 4, 5, 6], &[77]] {
                run(&lower, lengths, &mut backend);
            }
            // A phase each, once the first run is over.
            assert_eq!(backend.device().n_graphs(), if use_graphs { 3 } else { 0 });
            let all = bind("none", 300, &mut backend);
            assert_eq!(backend.device().n_graphs(), 0, "memory grew");
            for lengths in [&LENGTHS[..], &[130, 2], &[1]] {
                run(&all, lengths, &mut backend);
                run(&lower, &[5, 40], &mut backend);
            }
            assert_eq!(backend.device().n_graphs(), if use_graphs { 6 } else { 0 });
            let values = network.param_ids().map(|id| backend.read_value(id).unwrap());
            values.map(|values| bits(&values)).collect::<Vec<_>>()
        });
        assert!(left[0] == left[1], "{compute:?}");
    }
}

fn n_kernel_launches(it: &Emulated) -> usize {
    let launches = it.backend.launches(&it.bound);
    assert_eq!(it.bound.plan.ops.len(), launches.len());
    launches.iter().map(Vec::len).sum()
}

#[test]
fn a_freeze_launches_less() {
    let network = network(2, 64, Pooling::Mean);
    let batch = random_batch(&network, &LENGTHS, 9);
    let count = |spec: &str| {
        let it = emulated(&network, &batch, spec, DType::Bf16, true, Schedule::default());
        n_kernel_launches(&it)
    };
    let (none, lower, backbone, all) =
        (count("none"), count("lower:1"), count("backbone"), count("all"));
    assert!(none > lower && lower > backbone && backbone > all && all > 0);
}

/// What moves and multiplies does so at the memory's and the tensor cores' grain: whole sectors, and no bank
/// asked twice. Widths are those of MiniLM; a lone value a row, as LayerNorm's, costs its sector all the same.
#[test]
fn memory_is_used_as_it_is_made() {
    let config = Config { intermediate_size: 768, ..Config::published("minilm-l6").unwrap() };
    let config = Config { n_layers: 1, vocab_size: 101, ..config };
    let network = network_of(&config, Pooling::Mean);
    let batch = random_batch(&network, &[64, 31, 33], 10);
    let mut it = emulated(&network, &batch, "none", DType::Bf16, true, Schedule::default());
    let times = it.backend.run(&it.bound, &batch, &STATE, Timing::Ops).unwrap();
    let launches: Vec<_> = it.backend.launches(&it.bound).iter().flatten().collect();
    assert_eq!(launches.len(), times.counts.len());
    let mut n_checked = [0; 2];
    for (launch, counts) in launches.iter().zip(&times.counts) {
        let is_of = |ops: &[&str]| ops.iter().any(|op| launch.kernel.starts_with(op));
        if is_of(&["gemm_", "layernorm_", "embed_layernorm_", "adamw_step"]) {
            let used = counts.global_bytes as f64 / (32 * counts.global_sectors) as f64;
            assert!((0.95..=1.0).contains(&used), "{}: {used} of its sectors", launch.kernel);
            n_checked[0] += 1;
        }
        if is_of(&["gemm_", "attention_"]) {
            assert!(counts.mma > 0 && counts.barriers > 0, "{}: {counts:?}", launch.kernel);
            assert_eq!(counts.shared_conflicts, 0, "{}", launch.kernel);
            n_checked[1] += 1;
        }
    }
    assert!(n_checked[0] > 15 && n_checked[1] > 10, "{n_checked:?}");
}

/// What the plan says of products is what tensor cores are told to do: an instruction of 16 x 8 x 16 is 4096
/// FLOPs, and shapes that fill every tile leave none of them idle.
#[test]
fn planned_products_are_the_instructions_that_run() {
    const FLOPS: u64 = 2 * 16 * 8 * 16;
    let config = Config {
        hidden_size: 128,
        n_heads: 2,
        intermediate_size: 256,
        max_positions: 130,
        ..tiny_config(Family::Bert, 2)
    };
    let network = network_of(&config, Pooling::Mean);
    let batch = random_batch(&network, &[64, 128, 64], 11);
    for spec in ["none", "lower:1", "layers:1..2", "all"] {
        let mut it = emulated(&network, &batch, spec, DType::Bf16, true, Schedule::default());
        let times = it.backend.run(&it.bound, &batch, &STATE, Timing::Ops).unwrap();
        let plan = it.bound.plan.clone();
        let mut counted = times.counts.iter();
        let mut n_checked = 0;
        for (op, launches) in plan.ops.iter().zip(it.backend.launches(&it.bound)) {
            let mma: u64 = counted.by_ref().take(launches.len()).map(|counts| counts.mma).sum();
            let values = |buf: BufId| plan.buffer(buf).n_elements(256, 3) as u64;
            let (weights, outputs, has_bias_gradient) = match op {
                Op::GemmFwd { parts, .. } => {
                    (parts.iter().map(|part| values(part.weight)).sum::<u64>(), 0, false)
                }
                Op::GemmGeluFwd { weight, out, .. } => (values(*weight), values(*out), false),
                Op::GemmDgrad { parts, .. } => {
                    (parts.iter().map(|part| values(part.weight)).sum(), 0, false)
                }
                Op::GemmGeluDgrad { weight, dx, .. } => (values(*weight), values(*dx), false),
                Op::GemmWgrad { parts, .. } => (
                    parts.iter().map(|part| values(part.dweight)).sum(),
                    parts.iter().map(|part| values(part.dout)).sum(),
                    parts.iter().any(|part| part.dbias.is_some()),
                ),
                _ => continue,
            };
            n_checked += 1;
            let products = 2 * 256 * weights;
            let planned = plan.cost(op, &Counts::of(&batch)).flops;
            // GELU and the sums of a bias gradient: at most 11 operations a value.
            let others = planned - products;
            assert!(others <= 11 * outputs, "{spec}, {}: {others}", op.name());
            if has_bias_gradient {
                // Sums are products with ones, one instruction beside those of a whole tile.
                let ones = (mma * FLOPS).checked_sub(products).unwrap();
                assert!(0 < ones && ones <= products / 8, "{spec}: {ones} beside {products}");
            } else {
                assert_eq!(mma * FLOPS, products, "{spec}, {}", op.name());
            }
        }
        assert!(counted.next().is_none() && n_checked >= 8, "{spec}: {n_checked}");
    }
}

/// A model that no kernel takes is an error that says what they take, when its plan is bound.
#[test]
fn heads_of_odd_sizes_are_refused_in_words() {
    let network = network(2, 24, Pooling::Mean);
    let capacity = Capacity { tokens: 8, sequences: 2, max_length: 6 };
    let plan = training_step(&network, &StepOptions::plain(capacity, DType::F32));
    let mut backend = CudaBackend::new(Emulator::default(), "emulated", false);
    for (id, values) in random_values(&network, 3).into_iter().enumerate() {
        backend.write_value(ParamId(id), DType::F32, values).unwrap();
    }
    let layout = Arc::new(Layout::new(&plan));
    let error = backend.bind(Arc::new(plan), layout).err().unwrap().to_string();
    assert!(error.contains("heads of 12") && error.contains("--device cpu"), "{error}");
}

/// Profilers see the ranges of a step, phase by phase and op by op.
#[test]
fn ranges_nest_as_the_plan_does() {
    let network = network(2, 64, Pooling::Mean);
    let batch = random_batch(&network, &[7, 12], 1);
    let mut it = emulated(&network, &batch, "lower:1", DType::F32, true, Schedule::default());
    let run = |it: &mut Emulated| {
        it.backend.capture(true).unwrap();
        it.backend.run(&it.bound, &batch, &STATE, Timing::Off).unwrap();
        it.backend.capture(false).unwrap();
        let ranges = it.backend.device().ranges().to_vec();
        it.backend.run(&it.bound, &batch, &STATE, Timing::Ops).unwrap();
        assert_eq!(it.backend.device().ranges(), ranges, "a range that nobody asked for");
        ranges
    };
    let ranges = run(&mut it);
    let plan = it.bound.plan.clone();
    let mut expected = vec!["step".to_owned()];
    let mut phase = None;
    for op in &plan.ops {
        if phase.replace(op.phase()) != Some(op.phase()) {
            expected.push(format!("  {}", op.phase().name()));
        }
        let target = op.writes().into_iter().chain(op.updates()).next().unwrap();
        expected.push(format!("    {} {}", op.name(), plan.buffer(target).name));
    }
    assert_eq!(ranges, expected);
    assert!(expected.contains(&"  optimizer".to_owned()));
}
