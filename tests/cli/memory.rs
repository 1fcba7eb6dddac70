//! The memory that a plan foretells is what a process grows by.

use std::fs;

use crate::{Workspace, number};

/// What no plan counts of a process with one thread: the code of the step, the GEMM crate's packed operands,
/// attention's scores of one head. Between 7 and 11 MB were seen, whatever the freeze, at widths of 384 and
/// 768 and up to 4096 tokens.
const RUNTIME_BYTES: f64 = 9e6;

#[cfg(target_os = "linux")]
#[test]
fn planned_peak_memory_is_the_growth_of_the_process() {
    if fs::write("/proc/self/clear_refs", "5").is_err() {
        eprintln!("skipped: the peak of a process cannot be reset here");
        return;
    }
    let workspace = Workspace::new();
    // Weights and optimizer state make most of BERT-base at 256 tokens, activations of MiniLM at 4096.
    for (arch, freeze, sequences) in [
        ("bert-base", "lower:6", 4),
        ("bert-base", "all", 4),
        ("minilm-l6", "none", 64),
        ("minilm-l6", "lower:3", 64),
    ] {
        let tokens = 64 * sequences;
        let network = format!("--arch {arch} --task topic=4 --task sentiment=3 --freeze {freeze}");
        let probed = workspace.json(&format!(
            "memory-probe {network} --device cpu --threads 1 --max-grad-norm 1 --tokens {tokens} \
             --sequences {sequences} --longest 64"
        ));
        let plan = workspace
            .json(&format!("plan {network} --json --batch-size {sequences} --max-length 64"));
        let planned: f64 = plan["memory_bytes"].as_object().unwrap().values().map(number).sum();
        let measured = number(&probed["peak_bytes"]);
        let error = (measured - RUNTIME_BYTES) / planned - 1.0;
        println!("{arch} {freeze}: planned {planned:.0}, measured {measured:.0}, {error:+.4}");
        assert!(
            error.abs() <= 0.01,
            "{arch} {freeze}: {:.1} MB planned, {:.1} MB measured",
            planned / 1e6,
            measured / 1e6
        );
    }
}

/// What a device has besides the plan's buffers: inputs, tables of the optimizer, partial sums of weight gradients.
#[cfg(feature = "emulator")]
const DEVICE_BYTES: f64 = 4e6;

#[cfg(feature = "emulator")]
#[test]
fn planned_memory_is_what_a_device_holds() {
    let workspace = Workspace::new();
    for (freeze, dtype, sequences) in
        [("none", "bf16", 64), ("lower:3", "bf16", 64), ("all", "bf16", 256), ("none", "f32", 16)]
    {
        let network = format!(
            "--arch minilm-l6 --task topic=4 --task sentiment=3 --freeze {freeze} --dtype {dtype}"
        );
        let tokens = 64 * sequences;
        let probed = workspace.json(&format!(
            "memory-probe {network} --device emulated --max-grad-norm 1 --tokens {tokens} \
             --sequences {sequences} --longest 64"
        ));
        let plan = workspace
            .json(&format!("plan {network} --json --batch-size {sequences} --max-length 64"));
        let planned: f64 = plan["memory_bytes"].as_object().unwrap().values().map(number).sum();
        let measured = number(&probed["peak_bytes"]);
        println!("{freeze} {dtype}: planned {planned:.0}, held {measured:.0}");
        assert!(
            planned <= measured && measured - DEVICE_BYTES <= 1.01 * planned,
            "{freeze} {dtype}: {:.1} MB planned, {:.1} MB held",
            planned / 1e6,
            measured / 1e6
        );
    }
}
