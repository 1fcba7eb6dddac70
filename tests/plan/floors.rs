//! The floors that the headers of the kernels give are those of the plan.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{mask_of, network_of, options, plan_of};
use frostline::model::{Config, Pooling};
use frostline::plan::accumulate::accumulate;
use frostline::plan::prefix::compile_cached;
use frostline::plan::{Capacity, Counts, StepOptions};
use frostline::tensor::DType;

/// What kernels/common.cuh assumes of an H100.
const BYTES_PER_SECOND: f64 = 3.0e12;
const BF16_FLOPS: f64 = 700e12;
const F32_FLOPS: f64 = 60e12;
/// What launching a kernel takes, at least.
const LAUNCH_MICROSECONDS: f64 = 3.0;

/// Headers give two digits.
const ROUNDING: f64 = 0.05;

/// Microseconds of each op's largest launch in a step of BERT-base, under whichever freeze and pooling has it.
fn floors(dtype: DType, sequences: usize, length: usize) -> BTreeMap<&'static str, f64> {
    let config = Config::published("bert-base").unwrap();
    let capacity = Capacity { tokens: sequences * length, sequences, max_length: length };
    let counts = Counts::full(capacity, 2);
    let flops_per_second = if dtype == DType::F32 { F32_FLOPS } else { BF16_FLOPS };
    let mut found: BTreeMap<&str, f64> = BTreeMap::new();
    // What a fused step has counts; ops that no fused step has are taken from one that is not.
    for fused in [true, false] {
        let mut floors: BTreeMap<&str, f64> = BTreeMap::new();
        for pooling in [Pooling::Mean, Pooling::Pooler] {
            let network = network_of(&config, pooling);
            for spec in [
                "none",
                "embeddings",
                "name:*LayerNorm*",
                "all+keep:*.bias",
                "all+keep:*attention.output.LayerNorm*",
            ] {
                let options = StepOptions { compute: dtype, ..options(capacity, true, Some(1.0)) };
                let plan = plan_of(&network, spec, &options, fused);
                let cached = compile_cached(&network, &mask_of(&network, spec), &options);
                let load = cached.iter().flat_map(|plan| plan.ops.iter().take(1));
                let load = load.map(|op| (op, cached.as_ref().unwrap_or(&plan)));
                let next = accumulate(&plan).next;
                let add = next.ops.last().map(|op| (op, &next));
                for (op, plan) in plan.ops.iter().map(|op| (op, &plan)).chain(load).chain(add) {
                    let cost = plan.cost(op, &counts);
                    let arithmetic = cost.flops as f64 / flops_per_second;
                    let floor = 1e6 * arithmetic.max(cost.bytes as f64 / BYTES_PER_SECOND);
                    let of_op = floors.entry(op.name()).or_default();
                    *of_op = of_op.max(floor);
                }
            }
        }
        for (name, floor) in floors {
            found.entry(name).or_insert(floor);
        }
    }
    found
}

/// Pairs of a kernel and what its header says of its floor, `backward floor` under `attention_bwd`.
fn said_floors(header: &str) -> Vec<(String, String)> {
    let mut said = Vec::new();
    let text: Vec<&str> = header
        .lines()
        .skip_while(|line| !line.starts_with("// H100 "))
        .take_while(|line| !line.starts_with("// HISTORY"))
        .map(|line| line.trim_start_matches("// H100").trim_matches(['/', ' ']))
        .collect();
    for item in text.join(" ").split_inclusive(" %,").flat_map(|part| part.split(" %. ")) {
        let Some((kernel, rest)) = item.split_once(": ") else { continue };
        if let Some(at) = rest.find("floor ") {
            let floor = rest[at..].split(' ').nth(1).unwrap().to_owned();
            let is_backward = rest.contains("backward floor");
            let kernel = if is_backward { "attention_bwd_" } else { kernel.trim() };
            said.push((kernel.to_owned(), floor));
        } else if rest.contains("a launch") {
            said.push((kernel.trim().to_owned(), "launch".to_owned()));
        }
    }
    said
}

#[test]
fn headers_give_the_floors_of_the_plan() {
    let bf16 = floors(DType::Bf16, 64, 128);
    let bf16_long = floors(DType::Bf16, 16, 512);
    let f32 = floors(DType::F32, 64, 128);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let (mut faults, mut n_checked) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let file = path.file_stem().unwrap().to_str().unwrap();
        let floors = match file {
            "attention_long" => &bf16_long,
            "attention_plain" | "gemm_f32" => &f32,
            _ => &bf16,
        };
        let headers = source.match_indices("// H100 ").map(|(at, _)| &source[at..]);
        for (kernel, said) in headers.flat_map(said_floors) {
            // The longest op whose name the kernel's begins with.
            let is_its = |op: &&&str| kernel == **op || kernel.starts_with(&format!("{op}_"));
            let Some(op) = floors.keys().filter(is_its).max_by_key(|op| op.len()) else {
                faults.push(format!("{file}: {kernel} belongs to no op"));
                continue;
            };
            n_checked += 1;
            let floor = floors[op];
            let holds = match said.parse::<f64>() {
                Ok(said) => (said / floor - 1.0).abs() <= ROUNDING,
                Err(_) => floor <= LAUNCH_MICROSECONDS,
            };
            if !holds {
                faults.push(format!("{file}: {kernel} says {said}, the plan {floor:.1} us"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(n_checked >= 35, "only {n_checked} floors were found");
}
