//! Where buffers lie, and what memory a step needs.

use std::sync::Arc;

use super::{CAPACITY, network};
use crate::common::{
    LENGTHS, Runner, STATE, options, plan_of, random_batch, random_values, same_bits,
};
use frostline::backend::Backend;
use frostline::backend::cpu::Cpu;
use frostline::model::{Network, Pooling};
use frostline::plan::{BufId, Buffer, Capacity, Layout, Phase, Plan, Role, StepOptions};
use frostline::tensor::DType;

const SPECS: [&str; 6] =
    ["none", "lower:1", "backbone", "head:topic", "all", "all+keep:*.bias+keep:heads.*"];

/// Every spec in every type, fused and not.
fn for_plans(mut f: impl FnMut(&Network, &Plan, &str)) {
    let network = network(Pooling::Pooler);
    for spec in SPECS {
        for compute in [DType::F32, DType::Bf16] {
            for fused in [false, true] {
                let options = StepOptions { compute, ..options(CAPACITY, true, Some(1.0)) };
                let plan = plan_of(&network, spec, &options, fused);
                f(&network, &plan, &format!("{spec} {} {fused}", compute.name()));
            }
        }
    }
}

fn size_bytes(buffer: &Buffer) -> usize {
    let n = buffer.n_elements(CAPACITY.tokens, CAPACITY.sequences);
    n * buffer.dtype.size_bytes()
}

/// The ops from the first to the last that touches a buffer; results live to the end.
fn lifetime(plan: &Plan, buf: BufId) -> Option<std::ops::RangeInclusive<usize>> {
    let touches = |op: &frostline::plan::Op| {
        op.reads().contains(&buf) || op.writes().contains(&buf) || op.updates().contains(&buf)
    };
    let first = plan.ops.iter().position(touches)?;
    let last = plan.ops.iter().rposition(touches)?;
    let is_inference = plan.ops.iter().all(|op| op.phase() == Phase::Forward);
    let is_read_after = plan.buffer(buf).role == Role::Result
        || is_inference && [plan.last_hidden, plan.pooled].contains(&buf);
    Some(first..=if is_read_after { plan.ops.len() } else { last })
}

#[test]
fn buffers_that_live_together_lie_apart() {
    for_plans(|_, plan, what| {
        let layout = Layout::new(plan);
        let mut placed = Vec::new();
        for id in (0..plan.buffers.len()).map(BufId) {
            let buffer = plan.buffer(id);
            let is_in_arena = matches!(buffer.role, Role::Transient | Role::Result);
            let lifetime = lifetime(plan, id).filter(|_| is_in_arena);
            assert_eq!(layout.place(id).is_some(), lifetime.is_some(), "{what}: {}", buffer.name);
            if let (Some(place), Some(lifetime)) = (layout.place(id), lifetime) {
                assert!(place.size_bytes >= size_bytes(buffer), "{what}: {}", buffer.name);
                assert_eq!(place.offset_bytes % 256, 0);
                placed.push((place, lifetime, &buffer.name));
            }
        }
        for (at, (place, life, name)) in placed.iter().enumerate() {
            for (other, other_life, other_name) in &placed[..at] {
                let meet = life.start() <= other_life.end() && other_life.start() <= life.end();
                let apart = place.offset_bytes + place.size_bytes <= other.offset_bytes
                    || other.offset_bytes + other.size_bytes <= place.offset_bytes;
                assert!(!meet || apart, "{what}: {name} and {other_name}");
            }
        }
        let ends = placed.iter().map(|(place, ..)| place.offset_bytes + place.size_bytes);
        assert_eq!(layout.arena_bytes, ends.max().unwrap(), "{what}");

        // No layout can do with less than what lives at once; ours is not far above.
        let live_at = |op: usize| -> usize {
            let live = placed.iter().filter(|(_, life, _)| life.contains(&op));
            live.map(|(place, ..)| place.size_bytes).sum()
        };
        let least = (0..plan.ops.len()).map(live_at).max().unwrap();
        assert!(layout.arena_bytes as f64 <= 1.2 * least as f64, "{what}: {least}");
    });
}

#[test]
fn memory_by_kind() {
    for_plans(|network, plan, what| {
        let layout = Layout::new(plan);
        let memory = layout.memory;
        let trained = plan.trained();
        let n_trained: usize = trained.iter().map(|id| network.param(*id).n_elements()).sum();
        assert_eq!(plan.n_trained_values(), n_trained, "{what}");
        assert_eq!(memory.gradients, 4 * n_trained, "{what}");
        assert_eq!(memory.optimizer, 8 * n_trained, "{what}");

        let is_narrow = what.contains("bf16");
        let weights = network.param_ids().map(|id| {
            let param = network.param(id);
            let is_matrix = param.shape.len() == 2;
            let has_master = is_narrow && is_matrix && trained.contains(&id);
            let value = if is_narrow && is_matrix { 2 } else { 4 };
            param.n_elements() * (value + if has_master { 4 } else { 0 })
        });
        assert_eq!(memory.weights, weights.sum::<usize>(), "{what}");

        let kept = plan.saved_activations();
        let kept_bytes: usize = (plan.buffers.iter())
            .filter(|buffer| kept.contains(&buffer.name.as_str()))
            .map(|buffer| size_bytes(buffer).next_multiple_of(256))
            .sum();
        assert_eq!(memory.activations, kept_bytes, "{what}");
        let batch_bytes: usize = (plan.buffers.iter())
            .filter(|buffer| matches!(buffer.role, Role::Input(_)))
            .map(size_bytes)
            .sum();
        // Three ids a token, the ends of the sequences, two labels a sequence.
        assert_eq!(batch_bytes, 4 * (3 * 90 + 7 + 2 * 6), "{what}");
        assert_eq!(memory.activations + memory.workspace, layout.arena_bytes + batch_bytes);
        let kinds = [
            memory.weights,
            memory.gradients,
            memory.optimizer,
            memory.activations,
            memory.workspace,
        ];
        assert_eq!(memory.total(), kinds.iter().sum::<usize>(), "{what}");
    });
}

/// A plan made for more serves a smaller batch, bit for bit, after a larger one has left its traces.
#[test]
fn a_larger_capacity_changes_nothing() {
    let network = network(Pooling::Mean);
    let values = random_values(&network, 1);
    let (small, large) =
        (random_batch(&network, &[3, 9, 1], 2), random_batch(&network, &LENGTHS, 3));
    let plan_for = |capacity| plan_of(&network, "none", &options(capacity, true, None), true);
    let mut exact = Runner::new(Cpu, plan_for(Capacity::of([&small])), &values);
    exact.step(&small, STATE);
    let mut roomy = Runner::new(Cpu, plan_for(CAPACITY), &values);
    let still =
        frostline::backend::StepState { learning_rate: 0.0, head_learning_rate: 0.0, ..STATE };
    roomy.step(&large, still);
    roomy.step(&small, STATE);
    assert!(same_bits(&exact.losses(), &roomy.losses()));
    for id in network.param_ids() {
        if let (Some(a), Some(b)) = (exact.gradient(id), roomy.gradient(id)) {
            assert!(same_bits(&a, &b), "{}", network.param(id).name);
        }
    }
}

/// Plans of one backend share parameters and moments: a freeze may change between steps.
#[test]
fn a_schedule_changes_plans_between_steps() {
    let network = network(Pooling::Mean);
    let batch = random_batch(&network, &LENGTHS, 4);
    let values = random_values(&network, 5);
    let options = options(Capacity::of([&batch]), true, Some(1.0));
    let heads = plan_of(&network, "backbone", &options, true);
    let mut runner = Runner::new(Cpu, heads.clone(), &values);
    runner.step(&batch, STATE);
    let before = runner.values(&network);
    let all = Arc::new(plan_of(&network, "none", &options, true));
    let layout = Arc::new(Layout::new(&all));
    runner.bound = runner.backend.bind(all.clone(), layout).unwrap();
    runner.step(&batch, frostline::backend::StepState { step: 2, ..STATE });
    let after = runner.values(&network);
    for id in network.param_ids() {
        let name = &network.param(id).name;
        let moved_first = !same_bits(&values[id.0], &before[id.0]);
        assert_eq!(moved_first, heads.trained().contains(&id), "{name}");
        assert_eq!(!same_bits(&before[id.0], &after[id.0]), all.trained().contains(&id), "{name}");
    }
}
