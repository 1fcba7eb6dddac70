//! Results do not depend on the number of threads, bit for bit.

mod common;

use common::{Runner, STATE, network_of, options, plan_of, random_batch, random_values, same_bits};
use frostline::backend::StepState;
use frostline::backend::cpu::Cpu;
use frostline::model::{Config, Family, Network, Pooling};
use frostline::plan::Capacity;

/// Wide enough that products and row-wise ops are really cut up among threads.
fn network() -> Network {
    let config = Config {
        hidden_size: 96,
        n_heads: 3,
        intermediate_size: 385,
        max_positions: 130,
        vocab_size: 1001,
        ..common::tiny_config(Family::Bert, 2)
    };
    network_of(&config, Pooling::Mean)
}

/// Losses of three steps and all parameters after them.
fn train(network: &Network, n_threads: usize, fused: bool) -> (Vec<f32>, Vec<Vec<f32>>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    pool.install(|| {
        assert_eq!(rayon::current_num_threads(), n_threads);
        let batch = random_batch(network, &[128, 1, 77, 33, 100, 60], 1);
        let plan =
            plan_of(network, "none", &options(Capacity::of([&batch]), true, Some(0.5)), fused);
        let mut runner = Runner::new(Cpu, plan, &random_values(network, 2));
        let mut losses = Vec::new();
        for step in 1..=3 {
            runner.step(&batch, StepState { step, ..STATE });
            losses.extend(runner.losses());
        }
        (losses, runner.values(network))
    })
}

#[test]
fn three_steps_are_the_same_on_one_two_and_three_threads() {
    let network = network();
    for fused in [true, false] {
        let (losses, values) = train(&network, 1, fused);
        assert!(losses.iter().all(|loss| loss.is_finite()) && losses[4] != losses[0]);
        for n_threads in [2, 3] {
            let (other_losses, other_values) = train(&network, n_threads, fused);
            assert!(same_bits(&losses, &other_losses), "{losses:?} {other_losses:?}");
            for id in network.param_ids() {
                let name = &network.param(id).name;
                assert!(same_bits(&values[id.0], &other_values[id.0]), "{n_threads}: {name}");
            }
        }
    }
}
