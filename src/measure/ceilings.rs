//! What a machine can do, and the times that plans should take on it.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::{StepState, Timing};
use crate::batch::Batch;
use crate::freeze::FreezeMask;
use crate::model::{Config, Network, Pooling};
use crate::philox::normal;
use crate::plan::{Capacity, Cost, Counts, Op, Phase, Plan, StepOptions};
use crate::session::{Device, Engine, Session, Step};

/// The rates of a product and of a copy, which bound what most ops of a step can do.
///
/// Two kinds of op may beat the copy, and are predicted too slow: those whose operands stay in a cache
/// between them and their neighbours, and updates in place (AdamW), for most processors fetch what a
/// copy is about to overwrite, a third transfer that nobody counts.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// Of a large matrix product in the compute type.
    pub gemm_flops_per_second: f64,
    /// Bytes read and bytes written, together, of a pass from one array to another that fit no cache.
    pub copy_bytes_per_second: f64,
    /// What an op takes that has next to nothing to do: starting it, and waiting for the step's end.
    pub op_seconds: f64,
}

/// Rounds of one product and one copy each, at least, and how long they go on for.
const MIN_ROUNDS: usize = 5;
const MEASURE_FOR: Duration = Duration::from_millis(600);

impl Ceilings {
    /// The ceilings of what `engine` computes on.
    ///
    /// # Errors
    /// When the device is not there, or fails.
    pub fn of(engine: Engine) -> Result<Self> {
        let op_seconds = seconds_of_an_op(engine)?;
        let (gemm_flops_per_second, copy_bytes_per_second) = match engine.device {
            Device::Cpu => rates_of_cpu(),
            Device::Cuda { .. } => rates_of_kernels(engine, DEVICE_PROBE)?,
            // The emulator's times mean nothing; they only have to be there.
            Device::Emulated { .. } => rates_of_kernels(engine, EMULATOR_PROBE)?,
        };
        Ok(Self { gemm_flops_per_second, copy_bytes_per_second, op_seconds })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "ceilings {:.0} GFLOP/s, {:.1} GB/s, {:.1} us an op",
            self.gemm_flops_per_second / 1e9,
            self.copy_bytes_per_second / 1e9,
            self.op_seconds * 1e6
        )
    }

    /// Seconds of work by these rates: arithmetic and traffic overlap, so the longer of the two.
    fn seconds(&self, cost: Cost) -> f64 {
        self.arithmetic_seconds(cost).max(self.traffic_seconds(cost))
    }

    /// Seconds of the arithmetic alone.
    pub fn arithmetic_seconds(&self, cost: Cost) -> f64 {
        cost.flops as f64 / self.gemm_flops_per_second
    }

    /// Seconds of the traffic alone.
    pub fn traffic_seconds(&self, cost: Cost) -> f64 {
        cost.bytes as f64 / self.copy_bytes_per_second
    }
}

/// GEMM and copy rate of this machine's processor, with the threads that ops use: about a second, and 512 MiB
/// that are given back.
///
/// It takes the best of several rounds, after one that does not count: what else the machine does only ever
/// slows a round, and would slow the two by different factors.
fn rates_of_cpu() -> (f64, f64) {
    let (mut product, mut pass) = (Product::new(), Pass::new());
    product.run();
    pass.run();
    let (mut product_time, mut pass_time) = (Duration::MAX, Duration::MAX);
    let start = Instant::now();
    for round in 0.. {
        if round >= MIN_ROUNDS && start.elapsed() >= MEASURE_FOR {
            break;
        }
        product_time = product_time.min(time(|| product.run()));
        pass_time = pass_time.min(time(|| pass.run()));
    }
    (
        Product::FLOPS as f64 / product_time.as_secs_f64(),
        Pass::BYTES as f64 / pass_time.as_secs_f64(),
    )
}

/// The step of a network of this shape, everything frozen or nothing, and a batch of sequences of `lengths`.
fn probe_step(
    engine: Engine,
    config: &Config,
    lengths: &[usize],
    freezes: bool,
) -> Result<(Session, Step, Batch)> {
    let network = Network::new(config, None, &[("task".to_owned(), 2)], Pooling::Mean)?;
    let batch = batch_of(&network, lengths);
    let n_params = network.params.len();
    let mask = if freezes { FreezeMask::all(n_params) } else { FreezeMask::none(n_params) };
    let options = StepOptions::plain(Capacity::of([&batch]), engine.compute);
    let values = network
        .param_ids()
        .map(|id| normal(1, id.0 as u32, network.param(id).n_elements(), 0.02))
        .collect();
    let mut session = engine.session(network, values)?;
    let step = session.compile(&mask, &options)?;
    Ok((session, step, batch))
}

/// A step that leaves everything as it is.
pub(super) const IDLE: StepState =
    StepState { step: 1, learning_rate: 0.0, head_learning_rate: 0.0, weight_decay: 0.0, seed: 1 };

/// The fastest training step of one token through layers of 8 values, by its number of ops.
fn seconds_of_an_op(engine: Engine) -> Result<f64> {
    const ROUNDS: usize = 20;
    let config = Config {
        hidden_size: 8,
        n_heads: 1,
        n_layers: 4,
        intermediate_size: 8,
        vocab_size: 8,
        ..Config::published("bert-base")?
    };
    let n_rounds = if engine.device.is_emulated() { 1 } else { ROUNDS };
    let (mut session, step, batch) = probe_step(engine, &config, &[1], false)?;
    let mut least = Duration::MAX;
    for _ in 0..n_rounds + 2 {
        let start = Instant::now();
        session.run(&step, &batch, &IDLE, Timing::Off)?;
        least = least.min(start.elapsed());
    }
    Ok(least.as_secs_f64() / step.plan().ops.len() as f64)
}

/// The best rates that a wide layer's forward pass reaches: of any product, and of any op that mostly moves data.
fn rates_of_kernels(engine: Engine, probe: Probe) -> Result<(f64, f64)> {
    let config = Config {
        hidden_size: probe.width,
        n_heads: probe.width / 64,
        n_layers: 1,
        intermediate_size: 4 * probe.width,
        vocab_size: 1024,
        ..Config::published("bert-base")?
    };
    let lengths = vec![128; probe.tokens / 128];
    let (mut session, step, batch) = probe_step(engine, &config, &lengths, true)?;
    let counts = Counts::of(&batch);
    let (mut gemm, mut copy) = (0.0_f64, 0.0_f64);
    for round in 0..=probe.n_rounds {
        let times = session.run(&step, &batch, &IDLE, Timing::Ops)?.times;
        // The first round loads the kernels.
        for (op, time) in step.plan().ops.iter().zip(&times.ops).filter(|_| round > 0) {
            let (cost, seconds) = (step.plan().cost(op, &counts), time.as_secs_f64());
            match op {
                Op::GemmFwd { .. } => gemm = gemm.max(cost.flops as f64 / seconds),
                Op::LayernormFwd { .. } => copy = copy.max(cost.bytes as f64 / seconds),
                _ => {}
            }
        }
    }
    Ok((gemm, copy))
}

/// The layer whose kernels tell a device's ceilings.
#[derive(Clone, Copy)]
struct Probe {
    width: usize,
    tokens: usize,
    n_rounds: usize,
}

/// Products of 16384 x 4096 x 1024 and more, matrices of 32 MiB and more: much more than a last cache holds.
const DEVICE_PROBE: Probe = Probe { width: 1024, tokens: 16 << 10, n_rounds: 20 };
const EMULATOR_PROBE: Probe = Probe { width: 64, tokens: 128, n_rounds: 1 };

/// A batch of sequences of these lengths, all of one token.
pub(super) fn batch_of(network: &Network, lengths: &[usize]) -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for &length in lengths {
        batch.input_ids.extend(std::iter::repeat_n(1, length));
        batch.position_ids.extend(0..length as i32);
        batch.cu_seqlens.push(batch.input_ids.len() as i32);
    }
    batch.token_type_ids = vec![0; batch.input_ids.len()];
    batch.labels = network.heads.iter().map(|_| vec![0; lengths.len()]).collect();
    batch
}

fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// The product of BERT-base's feed-forward part for 1024 tokens.
struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    const M: usize = 1024;
    const N: usize = 3072;
    const K: usize = 768;
    const FLOPS: usize = 2 * Self::M * Self::N * Self::K;

    fn new() -> Self {
        Product {
            a: normal(1, 0, Self::M * Self::K, 1.0),
            b: normal(1, 1, Self::N * Self::K, 1.0),
            c: vec![0.0; Self::M * Self::N],
        }
    }

    fn run(&mut self) {
        Cpu::product(&self.a, &self.b, Self::K, &mut self.c);
        std::hint::black_box(&self.c);
    }
}

/// STREAM's scale (McCalpin, 1995), which moves what a copy moves: a loop that no compiler makes into
/// a `memcpy`, whose streaming stores our ops do not have.
struct Pass {
    from: Vec<f32>,
    to: Vec<f32>,
}

impl Pass {
    /// 256 MiB an array: much more than a last cache holds.
    const N: usize = 64 << 20;
    /// Elements of a piece, as the ops are cut.
    const PIECE: usize = 16 << 10;
    const BYTES: usize = 2 * Self::N * size_of::<f32>();

    fn new() -> Self {
        Pass { from: vec![1.0; Self::N], to: vec![0.0; Self::N] }
    }

    fn run(&mut self) {
        let pieces = self.to.par_chunks_mut(Self::PIECE).zip(self.from.par_chunks(Self::PIECE));
        pieces.for_each(|(to, from)| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = 3.0 * from);
        });
        std::hint::black_box(&self.to);
    }
}

/// The time of one op on a batch of these counts: the larger of FLOPs by the product's rate and bytes
/// by the copy's.
pub fn predicted_op_seconds(plan: &Plan, op: &Op, counts: &Counts, ceilings: &Ceilings) -> f64 {
    ceilings.seconds(plan.cost(op, counts))
}

/// The time of a phase: the sum over its ops.
pub fn predicted_phase_seconds(
    plan: &Plan,
    phase: Phase,
    counts: &Counts,
    ceilings: &Ceilings,
) -> f64 {
    let ops = plan.ops.iter().filter(|op| op.phase() == phase);
    // The sum of nothing would be -0.
    ops.fold(0.0, |sum, op| sum + predicted_op_seconds(plan, op, counts, ceilings))
}

/// The time of a step: the sum over its phases.
pub fn predicted_seconds(plan: &Plan, counts: &Counts, ceilings: &Ceilings) -> f64 {
    let phases = Phase::ALL.into_iter();
    phases.map(|phase| predicted_phase_seconds(plan, phase, counts, ceilings)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParamId;
    use crate::plan::op::{AdamwItem, GemmFwdPart, TensorRate};
    use crate::plan::{BufId, Buffer, Capacity, Role, Rows};
    use crate::tensor::DType;

    /// A product `[T, 8] · [16, 8]ᵀ`, GELU forward and backward over `[T, 16]`, AdamW over `[16, 8]`.
    fn small_plan() -> Plan {
        let buffer = |name: &str, rows, cols, role| Buffer {
            name: name.into(),
            rows,
            cols,
            dtype: DType::F32,
            role,
        };
        let param = ParamId(0);
        let buffers = vec![
            buffer("x", Rows::Tokens, 8, Role::Transient),
            buffer("w", Rows::Fixed(16), 8, Role::Value(param)),
            buffer("b", Rows::Fixed(16), 1, Role::Value(ParamId(1))),
            buffer("pre", Rows::Tokens, 16, Role::Transient),
            buffer("act", Rows::Tokens, 16, Role::Transient),
            buffer("d.pre", Rows::Tokens, 16, Role::Transient),
            buffer("d.w", Rows::Fixed(16), 8, Role::Gradient(param)),
            buffer("m.w", Rows::Fixed(16), 8, Role::Moment1(param)),
            buffer("v.w", Rows::Fixed(16), 8, Role::Moment2(param)),
        ];
        let [x, weight, bias, pre, act, dpre, grad, moment1, moment2] = std::array::from_fn(BufId);
        let item = AdamwItem {
            value: weight,
            master: None,
            grad,
            moment1,
            moment2,
            decays: false,
            is_head: false,
            rate: TensorRate::default(),
        };
        let ops = vec![
            Op::GemmFwd { x, parts: vec![GemmFwdPart { weight, bias, out: pre }] },
            Op::GeluFwd { x: pre, out: act },
            Op::GeluBwd { x: pre, dout: act, dx: dpre },
            Op::AdamwStep { items: vec![item], clip: None },
        ];
        let capacity = Capacity { tokens: 10, sequences: 2, max_length: 5 };
        Plan {
            buffers,
            ops,
            capacity,
            tasks: Vec::new(),
            last_hidden: act,
            pooled: act,
            frontiers: Vec::new(),
        }
    }

    #[test]
    fn the_longer_of_arithmetic_and_traffic_counts_op_by_op() {
        let plan = small_plan();
        let counts = Counts { tokens: 10, sequences: 2, sum_squares: 50, task_rows: Vec::new() };
        let ceilings = Ceilings {
            gemm_flops_per_second: 1000.0,
            copy_bytes_per_second: 2000.0,
            op_seconds: 0.5,
        };
        let phase = |phase| predicted_phase_seconds(&plan, phase, &counts, &ceilings);
        let close = |found: f64, expected: f64| {
            // A few roundings of numbers of order 1.
            assert!((found - expected).abs() <= 1e-14, "{found}, not {expected}");
        };
        // Product: 2 10 16 8 = 2560 FLOPs, 4 (80 + 128 + 16 + 160) = 1536 bytes: arithmetic, 2.56 s.
        // GELU: 160 5 = 800 FLOPs, 4 320 = 1280 bytes: arithmetic, 0.8 s.
        close(phase(Phase::Forward), 2.56 + 0.8);
        // Its gradient: 160 11 = 1760 FLOPs, 4 480 = 1920 bytes: arithmetic, 1.76 s.
        close(phase(Phase::Backward), 1.76);
        // AdamW: 128 13 = 1664 FLOPs, 4 128 (1 + 2 3) = 3584 bytes: traffic, 1.792 s.
        close(phase(Phase::Optimizer), 1.792);
        close(predicted_seconds(&plan, &counts, &ceilings), 2.56 + 0.8 + 1.76 + 1.792);
        // A hundred times the arithmetic, and all ops are traffic: 8320 bytes.
        let fast = Ceilings { gemm_flops_per_second: 1e5, ..ceilings };
        close(predicted_seconds(&plan, &counts, &fast), 8320.0 / 2000.0);
        // Half the tokens: of the four ops only AdamW stays what it is.
        let half = Counts { tokens: 5, ..counts.clone() };
        close(predicted_op_seconds(&plan, &plan.ops[0], &half, &ceilings), 1.28);
        close(predicted_op_seconds(&plan, &plan.ops[3], &half, &ceilings), 1.792);
    }

    #[test]
    fn this_machine_has_ceilings() {
        let ceilings = Ceilings::of(Engine::CPU).unwrap();
        // Far below the slowest machine, far above the fastest; neither 0 nor infinity nor NaN.
        for rate in [ceilings.gemm_flops_per_second, ceilings.copy_bytes_per_second] {
            assert!((1e7..=1e16).contains(&rate), "{ceilings:?}");
        }
        assert!((1e-8..=1e-3).contains(&ceilings.op_seconds), "{ceilings:?}");
    }
}
