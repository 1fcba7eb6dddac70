//! Doctor on the emulator: it launches every kernel, finds nothing wrong where nothing is, and finds what is planted.
#![cfg(feature = "emulator")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use common::{STATE, mask_of, network_of, random_batch, random_values, tiny_config};
use frostline::backend::cuda::emulated::{Emulator, Fault, Schedule};
use frostline::backend::cuda::{CudaBackend, embedded};
use frostline::backend::shadow::{Comparison, shadow};
use frostline::backend::{Backend, Bound};
use frostline::batch::Batch;
use frostline::doctor::{Extent, Findings, check, launches};
use frostline::model::{Config, Family, Network, ParamId, Pooling};
use frostline::plan::{Capacity, Layout, StepOptions, fuse::fuse, prune, training_step};
use frostline::tensor::DType;

fn checked(device: Emulator, extent: Extent) -> Findings {
    let mut findings = Findings::default();
    check(&mut backend(device), extent, &mut findings, |what| eprintln!("{what}")).unwrap();
    findings
}

fn backend(device: Emulator) -> CudaBackend<Emulator> {
    CudaBackend::new(device, "emulated", false)
}

fn assert_right(findings: &Findings) {
    let wrong: Vec<&Comparison> = findings.comparisons.iter().filter(|one| !one.passes()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!findings.replays.is_empty() && !findings.comparisons.is_empty());
    for replay in &findings.replays {
        assert!(replay.passes(), "{replay:?}");
    }
}

/// The names of all ops, from the list in the source.
fn op_names() -> BTreeSet<&'static str> {
    let names: BTreeSet<&str> = include_str!("../src/plan/op.rs")
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("Op::"))
        .filter_map(|line| line.split("=> \"").nth(1)?.split('"').next())
        .collect();
    assert!(names.len() >= 31, "{names:?}");
    names
}

/// Sums are cut off, as tensor cores do.
#[test]
fn every_op_and_every_kernel_is_right() {
    let schedule = Schedule { truncated: true, ..Schedule::default() };
    let device = Emulator::new(schedule);
    let findings = checked(device, Extent::EMULATOR);
    assert_right(&findings);
    let seen: BTreeSet<&str> = findings.comparisons.iter().map(|one| one.op).collect();
    let all = op_names();
    assert!(seen == all, "{:?}", all.difference(&seen));
    assert_eq!(findings.never_launched(), BTreeSet::new());
    // Large products are sampled, all others whole.
    let is_sampled = |one: &&Comparison| one.n_compared < one.shape[0] * one.shape[1];
    let sampled: BTreeSet<&str> =
        findings.comparisons.iter().filter(is_sampled).map(|one| one.op).collect();
    assert!(sampled.contains("gemm_fwd") && sampled.contains("attention_bwd"), "{sampled:?}");
    assert!(sampled.iter().all(|op| op.starts_with("gemm_") || op.starts_with("attention_")));
}

/// As an H100 cuts the work, in full.
#[test]
#[ignore = "takes minutes"]
fn every_kernel_is_right_as_132_multiprocessors_run_it() {
    let schedule = Schedule { truncated: true, ..Schedule::default() };
    let device = Emulator::new(schedule).with_processors(132);
    let findings = checked(device, Extent::EMULATOR);
    assert_right(&findings);
    assert_eq!(findings.never_launched(), BTreeSet::new());
}

/// A few tiles are many here; and the checks for races are on.
#[test]
fn a_small_network_is_right_and_has_no_races() {
    let device = Emulator::default().checking_races();
    assert_right(&checked(device, Extent::Quick));
}

/// By the choice that the plan makes for smaller and larger GPUs; an H100 has 132 multiprocessors.
#[test]
fn the_kernels_launched_are_the_kernels_embedded() {
    let embedded = embedded::kernel_names();
    if embedded.is_empty() {
        let line =
            "the_kernels_launched_are_the_kernels_embedded: skipped: no kernels are embedded\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    for (extent, counts) in
        [(Extent::EMULATOR, &[4, 46, 84, 132, 188][..]), (Extent::GPU, &[108, 132])]
    {
        for &n_processors in counts {
            let mut backend = backend(Emulator::default().with_processors(n_processors));
            let launches = launches(&mut backend, extent).unwrap();
            let launched: BTreeSet<String> =
                launches.iter().map(|launch| launch.kernel.clone()).collect();
            let missing: Vec<_> = embedded.difference(&launched).collect();
            assert!(missing.is_empty(), "{extent:?}, {n_processors}: never launched: {missing:?}");
            let unknown: Vec<_> = launched.difference(&embedded).collect();
            assert!(unknown.is_empty(), "{extent:?}, {n_processors}: not embedded: {unknown:?}");
            // Of every tile both a reduction as a whole and one in slices, which is what the grid's rows are.
            for tile in ["f32", "bf16_plain", "bf16_64x64", "bf16_128x128"] {
                let kernel = format!("gemm_wgrad_{tile}");
                let of_tile = || launches.iter().filter(|launch| launch.kernel == kernel);
                let what = format!("{extent:?}, {n_processors}: {kernel}");
                assert!(of_tile().any(|launch| launch.grid[1] > 1), "{what} in slices");
                assert!(of_tile().any(|launch| launch.grid[1] == 1), "{what} as a whole");
            }
        }
    }
}

/// Products in three rows of large tiles, the last with 5 of its 128 rows; attention in tiles and in blocks.
const LENGTHS: [usize; 5] = [60, 40, 20, 130, 11];
const N_TOKENS: usize = 261;
/// The tokens of the sequence that no tile holds.
const LONG: Range<usize> = 120..250;
const WIDTH: usize = 128;

/// A step of large tiles on a device that can be told to make faults.
struct Faulty {
    backend: CudaBackend<Emulator>,
    bound: Bound,
    batch: Batch,
}

impl Faulty {
    fn new() -> Self {
        let config = Config {
            hidden_size: WIDTH,
            n_heads: 2,
            intermediate_size: WIDTH,
            max_positions: 140,
            ..tiny_config(Family::Bert, 1)
        };
        let network: Network = network_of(&config, Pooling::Mean);
        let batch = random_batch(&network, &LENGTHS, 3);
        assert_eq!(batch.n_tokens(), N_TOKENS);
        let capacity = Capacity::of([&batch]);
        let options = StepOptions { dropout: true, ..StepOptions::plain(capacity, DType::Bf16) };
        let mask = mask_of(&network, "none");
        let plan = fuse(&prune(&training_step(&network, &options), &network, &mask));
        // So few that every product has a large tile for each.
        let mut backend = backend(Emulator::default().with_processors(2));
        for (id, values) in random_values(&network, 3).into_iter().enumerate() {
            let id = ParamId(id);
            backend.write_value(id, network.param(id).dtype(DType::Bf16), values).unwrap();
        }
        let layout = Arc::new(Layout::new(&plan));
        let bound = backend.bind(Arc::new(plan), layout).unwrap();
        Faulty { backend, bound, batch }
    }

    /// The ops that do not pass, in their order.
    fn wrong(mut self, fault: Option<Fault>, sampled_flops: u64) -> Vec<&'static str> {
        self.backend.device().set_fault(fault);
        let Faulty { backend, bound, batch } = &mut self;
        let found = shadow(backend, bound, batch, &STATE, None, sampled_flops).unwrap();
        found.iter().filter(|one| !one.passes()).map(|one| one.op).collect()
    }
}

/// One wrong value, or one that nobody wrote: in a corner, in the last rows that fill no tile, in the last tile. What
/// reads it goes wrong on the device and on the reference alike, but NaN in what is sampled is never right.
#[test]
fn planted_faults_are_found() {
    for sampled_flops in [0, u64::MAX] {
        assert_eq!(Faulty::new().wrong(None, sampled_flops), [""; 0]);
    }
    // Kernel and number of the argument, the op, and the rows of the argument; columns are as many everywhere.
    for (kernel, argument, op, n_rows) in [
        ("gemm_fwd_bf16_128x128", 7, "gemm_fwd", N_TOKENS),
        ("gemm_gelu_fwd_bf16_128x128", 3, "gemm_gelu_fwd", N_TOKENS),
        ("gemm_gelu_fwd_bf16_128x128", 4, "gemm_gelu_fwd", N_TOKENS),
        ("gemm_dgrad_bf16_128x128", 6, "gemm_dgrad", N_TOKENS),
        ("gemm_gelu_dgrad_bf16_128x128", 3, "gemm_gelu_dgrad", N_TOKENS),
        ("gemm_wgrad_bf16_128x128", 4, "gemm_wgrad", WIDTH),
    ] {
        let (last_row, last_col) = (n_rows - 1, WIDTH - 1);
        let places = [(0, 0), (127, last_col), (last_row / 128 * 128, 0), (last_row, last_col)];
        assert_found(kernel, argument, op, &places);
    }
    // Of attention one head of every sequence is sampled, of the last sequence and the longest also the last head.
    let (last, second) = (WIDTH - 1, WIDTH / 2);
    let in_tiles = [(0, 0), (59, second - 1), (N_TOKENS - 11, last), (N_TOKENS - 1, second)];
    let in_blocks = [(LONG.start, second), (LONG.start + 64, last), (LONG.end - 1, second)];
    for (kernel, argument, op, places) in [
        ("attention_fwd_bf16_tile_64", 6, "attention_fwd", &in_tiles[..]),
        ("attention_fwd_bf16_long_64", 7, "attention_fwd", &in_blocks),
        ("attention_bwd_bf16_tile_64", 8, "attention_bwd", &in_tiles),
        ("attention_bwd_dq_bf16_long_64", 10, "attention_bwd", &in_blocks),
    ] {
        assert_found(kernel, argument, op, places);
    }
}

/// A fault at each of these rows and columns is found in `op` before anywhere else; wrong and unwritten values in turn.
fn assert_found(kernel: &str, argument: usize, op: &str, places: &[(usize, usize)]) {
    let width = if op == "gemm_wgrad" { size_of::<f32>() } else { size_of::<u16>() };
    for (at, &(row, col)) in places.iter().enumerate() {
        // In bf16 0x4282 is 65, and as two halves of an f32 about as much.
        let bytes = match at % 2 {
            0 => [0x82, 0x42].repeat(width / 2),
            _ => vec![0xFF; width],
        };
        let element = row * WIDTH + col;
        let fault = Fault { kernel: kernel.into(), n_right: 0, argument, element, bytes };
        let sampled_flops = if at == 0 { u64::MAX } else { 0 };
        let wrong = Faulty::new().wrong(Some(fault.clone()), sampled_flops);
        assert_eq!(wrong.first(), Some(&op), "{fault:?}: {wrong:?}");
    }
}

/// The first run of an op is right and the second is not.
#[test]
fn a_kernel_that_does_not_repeat_is_found() {
    // Only once, so that its second launch is the second run of the one op that launches it.
    let kernel = "gemm_gelu_fwd_bf16_128x128".to_owned();
    let fault = Fault { kernel, n_right: 1, argument: 4, element: 7, bytes: vec![0x82, 0x42] };
    let mut faulty = Faulty::new();
    faulty.backend.device().set_fault(Some(fault));
    let Faulty { backend, bound, batch } = &mut faulty;
    let found = shadow(backend, bound, batch, &STATE, None, u64::MAX).unwrap();
    let wrong: Vec<&Comparison> = found.iter().filter(|one| !one.repeats).collect();
    assert!(wrong.len() == 1 && wrong[0].op == "gemm_gelu_fwd" && !wrong[0].passes(), "{wrong:?}");
    assert_eq!(wrong[0].kernels, ["gemm_gelu_fwd_bf16_128x128"]);
    assert!(wrong[0].error <= wrong[0].tolerance);
}

/// What production runs on a GPU, in full: many tiles of a layer of BERT-base.
#[test]
#[ignore = "takes minutes"]
fn the_extent_of_a_gpu_is_right() {
    let schedule = Schedule { truncated: true, ..Schedule::default() };
    let findings = checked(Emulator::new(schedule), Extent::GPU);
    assert_right(&findings);
}
