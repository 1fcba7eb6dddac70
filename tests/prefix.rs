//! The cached prefix: a step that reads what lies below the frost line from a cache changes no result.

mod common;

use std::sync::Arc;

use common::{
    STATE, families_and_poolings, mask_of, network_of, random_batch, random_values, same_bits,
    tiny_config,
};
use frostline::backend::{PrefixRows, StepState, Timing};
use frostline::batch::{ABSENT_LABEL, Batch};
use frostline::freeze::FreezeMask;
use frostline::model::{Family, Group, Network, Pooling};
use frostline::plan::op::TensorRate;
use frostline::plan::prefix::{compile_cached, prefix_of};
use frostline::plan::{Capacity, Op, Phase, Rows, StepOptions, compile};
use frostline::session::{Engine, Session};
use frostline::tensor::DType;

const LENGTHS: [&[usize]; 3] = [&[5, 1, 9], &[3, 11], &[2, 2, 7, 4]];

fn options(compute: DType) -> StepOptions {
    let capacity = Capacity { tokens: 24, sequences: 5, max_length: 12 };
    StepOptions { dropout: true, max_grad_norm: Some(0.5), ..StepOptions::plain(capacity, compute) }
}

/// Everything that a few steps leave: parameters, losses.
fn trained(
    engine: Engine,
    network: &Network,
    freeze: &str,
    cache: Option<bool>,
) -> (Vec<Vec<u32>>, Vec<u32>) {
    let mut session = engine.session(network.clone(), random_values(network, 3)).unwrap();
    let (mask, options) = (mask_of(network, freeze), options(engine.compute));
    let mut batches: Vec<Batch> =
        (1..).zip(LENGTHS).map(|(seed, lengths)| random_batch(network, lengths, seed)).collect();
    let step = match cache {
        None => session.compile(&mask, &options).unwrap(),
        Some(on_device) => {
            fill(&mut session, network, freeze, &options, &mut batches, on_device);
            session.compile_cached(&mask, &options, |_| TensorRate::default()).unwrap()
        }
    };
    let mut losses = Vec::new();
    for number in 1..=6 {
        let state = StepState { step: number, learning_rate: 1e-2, ..STATE };
        let batch = &batches[number as usize % batches.len()];
        let outcome = session.run(&step, batch, &state, Timing::Off).unwrap();
        losses.extend(outcome.losses.iter().map(|loss| loss.to_bits()));
    }
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    (network.param_ids().map(|id| bits(session.value(id).unwrap())).collect(), losses)
}

/// Computes the prefix of all examples, in batches that are not those of the steps, last example first.
fn fill(
    session: &mut Session,
    network: &Network,
    freeze: &str,
    options: &StepOptions,
    batches: &mut [Batch],
    on_device: bool,
) {
    let prefix = prefix_of(network, &mask_of(network, freeze), options).unwrap();
    let step = session.compile_prefix(prefix.above, options).unwrap();
    let mut values = Vec::new();
    for batch in batches.iter_mut().rev() {
        batch.prefix_rows = vec![-1; prefix.rows.count(batch.n_tokens(), batch.n_sequences())];
        for sequence in (0..batch.n_sequences()).rev() {
            let alone = alone(batch, sequence);
            let rows = session.prefix_rows(&step, &alone).unwrap();
            let first = values.len() / prefix.cols;
            let range = match prefix.rows {
                Rows::Tokens => {
                    batch.cu_seqlens[sequence] as usize..batch.cu_seqlens[sequence + 1] as usize
                }
                _ => sequence..sequence + 1,
            };
            assert_eq!(rows.len(), range.len() * prefix.cols);
            for (at, row) in range.enumerate() {
                batch.prefix_rows[row] = (first + at) as i32;
            }
            values.extend(rows);
        }
    }
    let capacity_rows = prefix.rows.count(options.capacity.tokens, options.capacity.sequences);
    let rows = PrefixRows { cols: prefix.cols, values: Arc::new(values), on_device };
    session.set_prefix(rows, capacity_rows).unwrap();
}

/// One sequence of a batch.
fn alone(batch: &Batch, sequence: usize) -> Batch {
    let range = batch.cu_seqlens[sequence] as usize..batch.cu_seqlens[sequence + 1] as usize;
    Batch {
        input_ids: batch.input_ids[range.clone()].to_vec(),
        token_type_ids: batch.token_type_ids[range.clone()].to_vec(),
        position_ids: batch.position_ids[range.clone()].to_vec(),
        cu_seqlens: vec![0, range.len() as i32],
        labels: batch.labels.iter().map(|labels| vec![labels[sequence]]).collect(),
        ..Batch::default()
    }
}

/// Freezes with a prefix, each at another depth.
const FREEZES: [&str; 5] =
    ["embeddings", "lower:1", "lower:2+head:topic", "backbone", "backbone+keep:*pooler*"];

#[test]
fn a_cache_changes_no_bit_on_the_cpu() {
    for (family, pooling) in families_and_poolings() {
        let network = network_of(&tiny_config(family, 3), pooling);
        for freeze in FREEZES {
            if freeze.contains("pooler") && pooling != Pooling::Pooler {
                continue;
            }
            let without = trained(Engine::CPU, &network, freeze, None);
            let with = trained(Engine::CPU, &network, freeze, Some(false));
            assert!(without == with, "{family:?} {pooling:?} {freeze}");
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn a_cache_changes_no_bit_on_the_kernels() {
    use frostline::session::Device;
    for compute in [DType::F32, DType::Bf16] {
        for (family, pooling) in families_and_poolings().into_iter().take(3) {
            let network = network_of(&tiny_config(family, 2), pooling);
            for freeze in ["embeddings", "lower:1", "backbone"] {
                let engine = Engine { device: Device::Emulated { graphs: true }, compute };
                let without = trained(engine, &network, freeze, None);
                for on_device in [true, false] {
                    let with = trained(engine, &network, freeze, Some(on_device));
                    assert!(without == with, "{compute:?} {pooling:?} {freeze} {on_device}");
                }
            }
        }
    }
}

/// An evaluation: losses and logits of a batch, the frozen part computed or read.
fn evaluated(engine: Engine, network: &Network, freeze: &str, cached: bool) -> Vec<Vec<u32>> {
    let mut session = engine.session(network.clone(), random_values(network, 3)).unwrap();
    let options = StepOptions::plain(options(engine.compute).capacity, engine.compute);
    let mut batches = vec![random_batch(network, LENGTHS[2], 1)];
    let step = match cached {
        false => {
            let everything = FreezeMask::all(network.params.len());
            session.compile(&everything, &options).unwrap()
        }
        true => {
            let prefix = prefix_of(network, &mask_of(network, freeze), &options).unwrap();
            fill(&mut session, network, freeze, &options, &mut batches, true);
            session.compile_cached_forward(prefix.above, &options).unwrap()
        }
    };
    let outcome = session.run(&step, &batches[0], &StepState::FORWARD, Timing::Off).unwrap();
    let mut all = vec![outcome.losses];
    for (task, head) in network.heads.iter().enumerate() {
        let logits = session.logits(&step, task).unwrap();
        // A head computes nothing for a row that has nothing to do with it.
        let rows = logits.chunks(head.n_labels).zip(&batches[0].labels[task]);
        all.extend(rows.filter(|(_, label)| **label != ABSENT_LABEL).map(|(row, _)| row.to_vec()));
    }
    assert!(all.len() > 4 && all.iter().flatten().all(|value| value.is_finite()));
    all.into_iter().map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn an_evaluation_from_a_cache_is_the_same_on_the_cpu() {
    for (family, pooling) in families_and_poolings() {
        let network = network_of(&tiny_config(family, 3), pooling);
        for freeze in FREEZES {
            if freeze.contains("pooler") && pooling != Pooling::Pooler {
                continue;
            }
            let [without, with] =
                [false, true].map(|cached| evaluated(Engine::CPU, &network, freeze, cached));
            assert!(without == with, "{family:?} {pooling:?} {freeze}");
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn an_evaluation_from_a_cache_is_the_same_on_the_kernels() {
    use frostline::session::Device;
    for compute in [DType::F32, DType::Bf16] {
        let network = network_of(&tiny_config(Family::Bert, 2), Pooling::Pooler);
        for freeze in ["embeddings", "lower:1", "backbone+keep:*pooler*", "backbone"] {
            let engine = Engine { device: Device::Emulated { graphs: true }, compute };
            let [without, with] =
                [false, true].map(|cached| evaluated(engine, &network, freeze, cached));
            assert!(without == with, "{compute:?} {freeze}");
        }
    }
}

/// One pass gives what a pass for each depth gives.
fn check_one_pass(engine: Engine, network: &Network) {
    let mut session = engine.session(network.clone(), random_values(network, 3)).unwrap();
    let batch = random_batch(network, LENGTHS[0], 1);
    let options = options(engine.compute);
    let mut above: Vec<Group> = (0..network.layers.len()).map(Group::Layer).collect();
    if network.pooling == Pooling::Pooler {
        above.push(Group::Pooler);
    }
    above.push(Group::Head(0));
    // In any order.
    above.reverse();
    let all = session.compile_prefixes(&above, &options).unwrap();
    let found = session.all_prefix_rows(&all, &batch).unwrap();
    assert_eq!(found.len(), above.len());
    for (group, rows) in above.into_iter().zip(found) {
        let one = session.compile_prefix(group, &options).unwrap();
        let alone = session.prefix_rows(&one, &batch).unwrap();
        assert!(same_bits(&rows, &alone), "{engine:?} {:?} {group:?}", network.pooling);
    }
}

#[test]
fn all_depths_come_from_one_pass() {
    for (family, pooling) in families_and_poolings() {
        check_one_pass(Engine::CPU, &network_of(&tiny_config(family, 3), pooling));
    }
    #[cfg(feature = "emulator")]
    for compute in [DType::F32, DType::Bf16] {
        let device = frostline::session::Device::Emulated { graphs: true };
        let network = network_of(&tiny_config(Family::Roberta, 2), Pooling::Pooler);
        check_one_pass(Engine { device, compute }, &network);
    }
}

/// A cached plan is the plan without what lies below the frost line, and one op more.
#[test]
fn plans_lose_their_prefix_and_nothing_else() {
    for (family, pooling) in families_and_poolings() {
        let network = network_of(&tiny_config(family, 3), pooling);
        for compute in [DType::F32, DType::Bf16] {
            for freeze in FREEZES {
                if freeze.contains("pooler") && pooling != Pooling::Pooler {
                    continue;
                }
                let (mask, options) = (mask_of(&network, freeze), options(compute));
                let plan = compile(&network, &mask, &options);
                let cached = compile_cached(&network, &mask, &options).unwrap();
                cached.verify().unwrap();
                assert_eq!(cached.trained(), plan.trained(), "{freeze}");
                let names = |plan: &frostline::plan::Plan| -> Vec<&'static str> {
                    plan.ops.iter().map(Op::name).collect()
                };
                let (whole, rest) = (names(&plan), names(&cached));
                assert_eq!(rest[0], "prefix_load");
                assert!(whole.ends_with(&rest[1..]), "{freeze}: {rest:?}");
                assert!(rest.len() <= whole.len(), "the embeddings are one op, as the load is");
                assert!(
                    !rest.iter().any(|name| name.starts_with("embed") && name.ends_with("fwd"))
                );
                if freeze == "backbone" {
                    let n_forward =
                        cached.ops.iter().filter(|op| op.phase() == Phase::Forward).count();
                    assert!(n_forward <= 1 + 1 + 2 * 2, "load, dropout, heads and losses");
                }
            }
        }
    }
}

#[test]
fn what_has_no_prefix_is_said_to_have_none() {
    let network = network_of(&tiny_config(Family::Bert, 2), Pooling::Mean);
    let options = options(DType::F32);
    for freeze in ["none", "all", "lower:2+keep:*word*"] {
        assert_eq!(prefix_of(&network, &mask_of(&network, freeze), &options), None, "{freeze}");
    }
    let above =
        |freeze: &str| prefix_of(&network, &mask_of(&network, freeze), &options).unwrap().above;
    assert_eq!(above("lower:1"), Group::Layer(1));
    assert_eq!(above("lower:1+keep:*layer.0.*bias"), Group::Layer(0));
    assert_eq!(above("backbone"), Group::Head(0));
}
