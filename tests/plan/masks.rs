//! What holds for every mask, on random ones.

use proptest::prelude::*;

use super::{CAPACITY, backward_writes, network, oracle, saved};
use crate::common::{
    LENGTHS, Runner, STATE, assert_close, options, random_batch, random_values, same_bits,
    tiny_network,
};
use frostline::backend::cpu::Cpu;
use frostline::backend::reference::Reference;
use frostline::freeze::FreezeMask;
use frostline::model::{Family, Network, ParamId, Pooling};
use frostline::plan::operands::Operand;
use frostline::plan::{
    BufId, Capacity, Counts, Layout, Op, Phase, Plan, StepOptions, fuse::fuse, prune, training_step,
};
use frostline::tensor::DType;

/// Masks of every kind: all tensors up to one, single tensors, and any mixture of both.
fn masks(n_params: usize) -> impl Strategy<Value = FreezeMask> {
    let share = prop_oneof![Just(0.1), Just(0.5), Just(0.95)];
    (share, 0..=n_params, any::<bool>()).prop_flat_map(move |(share, prefix, has_prefix)| {
        prop::collection::vec(prop::bool::weighted(share), n_params).prop_map(move |draws| {
            let mut mask = FreezeMask::none(n_params);
            for (id, frozen) in draws.into_iter().enumerate() {
                mask.set(ParamId(id), frozen || has_prefix && id < prefix);
            }
            mask
        })
    })
}

fn poolings() -> impl Strategy<Value = Pooling> {
    prop_oneof![Just(Pooling::Mean), Just(Pooling::Cls), Just(Pooling::Pooler)]
}

/// The 3-layer network has the same tensors whatever the pooling.
fn n_params() -> usize {
    network(Pooling::Mean).params.len()
}

fn cases(n: u32) -> ProptestConfig {
    // Failing masks are printed; files of past failures would only grow stale.
    ProptestConfig { cases: n, failure_persistence: None, ..ProptestConfig::default() }
}

/// Whether `part` is `whole` with optional outputs, dropout, and items of the optimizer left out;
/// `renamed` says which reads may have moved past a dropout that is gone.
fn is_part_of(part: &Op, whole: &Op, renamed: &impl Fn(BufId) -> BufId) -> bool {
    let (mut whole, part) = (whole.clone(), part.clone());
    if let (Op::AdamwStep { items, .. }, Op::AdamwStep { items: all, .. }) = (&part, &mut whole) {
        all.retain(|item| items.contains(item));
    }
    if let (Op::GradNorm { grads, .. }, Op::GradNorm { grads: all, .. }) = (&part, &mut whole) {
        all.retain(|grad| grads.contains(grad));
    }
    if let (Some(site), Some(of_part)) = (whole.dropout(), part.clone().dropout())
        && of_part.is_none()
    {
        *site = None;
    }
    let kept: Vec<BufId> = part.writes();
    let reads = part.reads();
    whole.visit(&mut |operand| match operand {
        Operand::Optional(slot) if slot.is_some_and(|buf| !kept.contains(&buf)) => *slot = None,
        _ => {}
    });
    whole.visit(&mut |operand| match operand {
        Operand::Read(buf) if !reads.contains(buf) => *buf = renamed(*buf),
        _ => {}
    });
    // Inputs that only a dropped output needed do not count.
    whole.name() == part.name()
        && whole.reads() == reads
        && whole.writes() == kept
        && whole.updates() == part.updates()
        && whole.clone().dropout().copied() == part.clone().dropout().copied()
}

/// Where a read of a dropout's output goes once the dropout is gone: to its input.
fn past_dropout(full: &Plan) -> impl Fn(BufId) -> BufId + '_ {
    |buf| {
        let source = full.ops.iter().find_map(|op| match op {
            Op::DropoutFwd { x, out, .. } if *out == buf => Some(*x),
            _ => None,
        });
        source.unwrap_or(buf)
    }
}

/// Every op of `plan` is one of `full`, in the same order.
fn assert_subset(plan: &Plan, full: &Plan) {
    let renamed = past_dropout(full);
    let mut rest = full.ops.iter();
    for op in &plan.ops {
        let found = rest.any(|whole| is_part_of(op, whole, &renamed));
        assert!(found, "{} of {:?} is not in the full plan", op.name(), op.writes());
    }
}

/// Counts of a batch with labels of every kind.
fn counts(network: &Network) -> Counts {
    Counts::of(&random_batch(network, &LENGTHS, 1))
}

fn assert_cheaper(plan: &Plan, full: &Plan, counts: &Counts) {
    for phase in Phase::ALL {
        let (cost, full) = (plan.phase_cost(phase, counts), full.phase_cost(phase, counts));
        assert!(cost.flops <= full.flops, "{phase:?} FLOPs rise: {cost:?}, {full:?}");
        assert!(cost.bytes <= full.bytes, "{phase:?} bytes rise: {cost:?}, {full:?}");
    }
}

fn assert_smaller(plan: &Plan, full: &Plan) {
    let (memory, full) = (Layout::new(plan).memory, Layout::new(full).memory);
    assert!(memory.weights <= full.weights);
    assert!(memory.gradients <= full.gradients);
    assert!(memory.optimizer <= full.optimizer);
    assert!(memory.activations <= full.activations);
    // What is no longer kept may still be live for a moment: workspace alone can rise.
    assert!(memory.total() <= full.total(), "{memory:?}, {full:?}");
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn pruned_plans_are_parts_of_the_full_one(
        mask in masks(n_params()),
        pooling in poolings(),
        dropout: bool,
        narrow: bool,
        clips: bool,
    ) {
        let network = network(pooling);
        let compute = if narrow { DType::Bf16 } else { DType::F32 };
        let options = StepOptions {
            dropout,
            max_grad_norm: clips.then_some(1.0),
            ..StepOptions::plain(CAPACITY, compute)
        };
        let full = training_step(&network, &options);
        let plan = prune(&full, &network, &mask);
        prop_assert_eq!(plan.verify(), Ok(()));
        assert_subset(&plan, &full);

        let expected = oracle::expected(&network, &mask, dropout);
        prop_assert_eq!(backward_writes(&plan), expected.written);
        prop_assert_eq!(saved(&plan), expected.saved);
        let trained = plan.trained().into_iter().map(|id| network.param(id).name.clone());
        prop_assert_eq!(trained.collect::<std::collections::BTreeSet<_>>(), expected.trained);

        let counts = counts(&network);
        assert_cheaper(&plan, &full, &counts);
        assert_smaller(&plan, &full);
        let (fused, fused_full) = (fuse(&plan), fuse(&full));
        prop_assert_eq!(fused.verify(), Ok(()));
        prop_assert_eq!(fused.trained(), plan.trained());
        assert_cheaper(&fused, &fused_full, &counts);
        assert_smaller(&fused, &fused_full);
        // Fusing saves traffic and changes nothing else.
        assert_cheaper(&fused, &plan, &counts);
        prop_assert!(fused.ops.len() <= plan.ops.len());
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// What still trains under a mask gets the very gradients of the full step, and fusing changes
    /// them by no more than rounding.
    #[test]
    fn remaining_gradients_are_those_of_the_full_step(
        mask in masks(n_params()),
        pooling in poolings(),
    ) {
        let network = network(pooling);
        let batch = random_batch(&network, &LENGTHS, 7);
        let values = random_values(&network, 8);
        let full = training_step(&network, &options(Capacity::of([&batch]), false, None));
        let plan = prune(&full, &network, &mask);
        let mut of_full = Runner::new(Cpu, full, &values);
        of_full.step(&batch, STATE);
        let mut fused = Runner::new(Cpu, fuse(&plan), &values);
        fused.step(&batch, STATE);
        let mut of_part = Runner::new(Cpu, plan, &values);
        of_part.step(&batch, STATE);
        prop_assert!(same_bits(&of_part.losses(), &of_full.losses()));
        for id in network.param_ids() {
            let name = &network.param(id).name;
            let (gradient, whole) = (of_part.gradient(id), of_full.gradient(id));
            let is_reached = whole.is_some();
            prop_assert_eq!(gradient.is_some(), is_reached && !mask.is_frozen(id), "{}", name);
            if let (Some(gradient), Some(whole)) = (gradient, whole) {
                prop_assert!(same_bits(&gradient, &whole), "{}", name);
                prop_assert!(gradient.iter().all(|g| g.is_finite()), "{}", name);
                // Fused ops do the same sums in another order at most. The key bias's gradient is
                // nothing but rounding.
                let is_noise = name.contains("key.bias");
                if !is_noise {
                    assert_close(name, &fused.gradient(id).unwrap(), &gradient, 1e-6);
                }
            }
        }
        let (before, after) = (&values, of_part.values(&network));
        for id in network.param_ids() {
            let changed = !same_bits(&before[id.0], &after[id.0]);
            prop_assert_eq!(changed, of_part.gradient(id).is_some(), "{}", &network.param(id).name);
        }
    }
}

/// Fused and plain plans compute the same in exact arithmetic: in f64 the difference is rounding.
#[test]
fn fusion_changes_nothing_but_rounding() {
    for family in [Family::Bert, Family::DistilBert] {
        let network = tiny_network(family, 2, Pooling::Mean);
        let batch = random_batch(&network, &LENGTHS, 9);
        let values = random_values(&network, 10);
        let plan = training_step(&network, &options(Capacity::of([&batch]), true, Some(0.5)));
        let mut fused = Runner::new(Reference, fuse(&plan), &values);
        let mut plain = Runner::new(Reference, plan, &values);
        fused.step(&batch, STATE);
        plain.step(&batch, STATE);
        for id in network.param_ids() {
            let (Some(a), Some(b)) = (fused.gradient(id), plain.gradient(id)) else { continue };
            assert!(same_bits(&a, &b), "{}", network.param(id).name);
        }
        assert_eq!(fused.values(&network), plain.values(&network));
    }
}
