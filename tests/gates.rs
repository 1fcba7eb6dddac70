//! What nvcc made of the CUDA kernels: facts that need no GPU. Where nvcc was not found there are none, and
//! each test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use frostline::backend::cuda::embedded::{self, EmbeddedFile, Resources};
use frostline::backend::cuda::occupancy::Multiprocessor;
#[cfg(feature = "emulator")]
use {
    frostline::backend::Backend,
    frostline::backend::cuda::{CudaBackend, emulated::Emulator},
    frostline::model::{Config, Network, Pooling},
    frostline::plan::{Capacity, Layout, StepOptions, training_step},
    frostline::tensor::DType,
    std::sync::Arc,
};

const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Speaks past the test runner's capture of output.
fn skip(test: &str, why: &str) {
    let line = format!("{test}: skipped: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The compiled kernels, or none and a word about it.
fn compiled(test: &str) -> Option<&'static [EmbeddedFile]> {
    let files = embedded::kernels();
    if embedded::nvcc_release().is_none() {
        skip(test, "built without nvcc (scripts/install_cuda_toolchain.sh brings it)");
        return None;
    }
    assert!(!files.is_empty(), "nvcc was there and nothing is embedded");
    Some(files)
}

fn all_resources(files: &[EmbeddedFile]) -> Vec<Resources> {
    files.iter().flat_map(EmbeddedFile::resources).collect()
}

fn assert_none(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

/// Files of `kernels/` with that extension.
fn kernel_files(extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root().join("kernels"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    found
}

#[test]
fn every_kernel_is_there_once_for_each_architecture() {
    let Some(files) = compiled("every_kernel") else { return };
    let sources = kernel_files("cu");
    let stems: Vec<_> = sources.iter().map(|path| path.file_stem().unwrap().to_str()).collect();
    assert_eq!(stems, files.iter().map(|file| Some(file.name)).collect::<Vec<_>>());

    let mut architectures = BTreeMap::<String, Vec<String>>::new();
    for resources in all_resources(files) {
        architectures.entry(resources.kernel).or_default().push(resources.architecture);
    }
    let faults: Vec<String> = (architectures.iter())
        .filter(|(_, found)| **found != ARCHITECTURES)
        .map(|(kernel, found)| format!("{kernel}: {found:?}"))
        .collect();
    assert_none("kernels that are not there once for each of sm_80 and sm_90a", &faults);
}

/// Local memory is traffic that no header counts, and static shared memory hides from a launch's own.
#[test]
fn no_kernel_spills() {
    let Some(files) = compiled("no_kernel_spills") else { return };
    let faults: Vec<String> = (all_resources(files).iter())
        .filter(|r| {
            [r.spill_store_bytes, r.spill_load_bytes, r.stack_bytes, r.shared_bytes] != [0; 4]
        })
        .map(|r| format!("{r:?}"))
        .collect();
    assert_none("kernels with spills, local memory or static shared memory", &faults);
}

/// What the comment in front of a kernel promises: `At most 40 registers`, for all symbols of the op that
/// `// op: ...` named last, for every architecture.
fn promises(source: &str) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut ops: Vec<&str> = Vec::new();
    for line in source.lines() {
        let Some(text) = line.strip_prefix("//") else {
            ops.clear();
            continue;
        };
        if let Some((head, _)) = text.strip_prefix(' ').and_then(|text| text.split_once(':')) {
            let names: Vec<&str> = head.split(", ").collect();
            if names.iter().all(|name| is_op_name(name)) {
                ops = names;
            }
        }
        if let Some(most) = text.split_once("At most ").and_then(|(_, rest)| {
            rest.split_once(" registers").and_then(|(number, _)| number.parse().ok())
        }) {
            found.extend(ops.iter().map(|op| ((*op).to_owned(), most)));
        }
    }
    found
}

fn is_op_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The promise with the longest name that is the kernel's or begins it.
fn promise_for<'a>(kernel: &str, promises: &'a [(String, u32)]) -> Option<&'a (String, u32)> {
    (promises.iter())
        .filter(|(op, _)| {
            kernel
                .strip_prefix(op.as_str())
                .is_some_and(|end| end.is_empty() || end.starts_with('_'))
        })
        .max_by_key(|(op, _)| op.len())
}

#[test]
fn registers_are_as_promised() {
    let Some(files) = compiled("registers_are_as_promised") else { return };
    let sources = kernel_files("cu").into_iter().chain(kernel_files("cuh"));
    let promises: Vec<(String, u32)> =
        sources.flat_map(|path| promises(&std::fs::read_to_string(path).unwrap())).collect();
    assert!(!promises.is_empty(), "no header promises anything");

    let mut idle: BTreeSet<&str> = promises.iter().map(|(op, _)| op.as_str()).collect();
    let mut faults = Vec::new();
    for resources in all_resources(files) {
        if let Some((op, most)) = promise_for(&resources.kernel, &promises) {
            idle.remove(op.as_str());
            if resources.registers > *most {
                faults.push(format!("{op} promises {most}: {resources:?}"));
            }
        }
    }
    faults.extend(idle.into_iter().map(|op| format!("{op}: a promise that holds for no kernel")));
    assert_none("promises of headers that are not kept", &faults);
}

/// What a line `H100` says of a kernel: registers, threads, dynamic shared memory, occupancy in per cent.
#[derive(Debug, PartialEq)]
struct OnH100 {
    kernel: String,
    registers: u32,
    threads: u32,
    shared_bytes: u32,
    occupancy: String,
}

/// Those of a file: one a line, from ` H100 ` to the line that ends with a full stop.
fn on_h100(source: &str) -> Vec<OnH100> {
    let field = |text: &str, unit: &str| text.strip_suffix(unit)?.trim().parse().ok();
    let read = |line: &str| {
        let (kernel, rest) =
            line.trim_start_matches("// H100").trim_matches(['/', ' ']).split_once(": ")?;
        let facts = rest.split_once(';').map_or(rest, |(facts, _)| facts);
        let mut facts = facts.split(", ");
        Some(OnH100 {
            kernel: kernel.to_owned(),
            registers: field(facts.next()?, "registers")?,
            threads: field(facts.next()?, "threads")?,
            shared_bytes: field(facts.next()?, "bytes")?,
            occupancy: facts.next()?.split_once(" %")?.0.to_owned(),
        })
    };
    let mut found = Vec::new();
    let mut is_inside = false;
    for line in source.lines() {
        is_inside |= line.starts_with("// H100 ");
        if is_inside {
            found.push(read(line).unwrap_or_else(|| panic!("no line of H100: {line}")));
            is_inside = !line.ends_with('.');
        }
    }
    found
}

#[test]
fn occupancy_is_as_headers_say() {
    let Some(files) = compiled("occupancy_is_as_headers_say") else { return };
    let h100 = Multiprocessor::of((9, 0));
    let all = all_resources(files);
    let mut faults = Vec::new();
    for path in kernel_files("cu") {
        let source = std::fs::read_to_string(&path).unwrap();
        let said = on_h100(&source);
        let count = |mark: &str| source.lines().filter(|line| line.starts_with(mark)).count();
        if count("// H100 ") != count("// HISTORY ") {
            faults.push(format!("{}: a header lacks its lines H100", path.display()));
        }
        for one in said {
            let found = all.iter().find(|r| r.kernel == one.kernel && r.architecture == "sm_90a");
            let registers = found.map_or(0, |resources| resources.registers);
            let occupancy = h100.occupancy(registers, one.threads, one.shared_bytes);
            if registers != one.registers || format!("{:.1}", occupancy * 100.0) != one.occupancy {
                faults.push(format!("{one:?}: {registers} registers, {:.1} %", occupancy * 100.0));
            }
        }
    }
    assert_none("lines H100 of headers that are not so", &faults);
}

/// Threads and shared memory of lines `H100` are those of the launches of BERT-base.
#[cfg(feature = "emulator")]
#[test]
fn launches_are_as_headers_say() {
    use frostline::freeze::FreezeMask;
    use frostline::model::{Group, ParamId};
    use frostline::plan::accumulate::accumulate;
    use frostline::plan::fuse::fuse;
    use frostline::plan::prefix::compile_cached;
    let mut said: Vec<OnH100> = Vec::new();
    for path in kernel_files("cu") {
        said.extend(on_h100(&std::fs::read_to_string(path).unwrap()));
    }
    let mut unseen: BTreeSet<&str> = said.iter().map(|one| one.kernel.as_str()).collect();
    let mut faults = Vec::new();
    for compute in [DType::F32, DType::Bf16] {
        for (n_sequences, max_length, pooling) in
            [(64, 128, Pooling::Mean), (64, 128, Pooling::Pooler), (16, 512, Pooling::Mean)]
        {
            let published = Config::published("bert-base").unwrap();
            let config = Config { n_layers: 1, vocab_size: 64, ..published };
            let tasks = [("topic".to_owned(), 4)];
            let network = Network::new(&config, None, &tasks, pooling).unwrap();
            let tokens = n_sequences * max_length;
            let capacity = Capacity { tokens, sequences: n_sequences, max_length };
            let options = StepOptions {
                dropout: true,
                max_grad_norm: Some(1.0),
                ..StepOptions::plain(capacity, compute)
            };
            let plan = training_step(&network, &options);
            let mut lower = FreezeMask::none(network.params.len());
            let is_lower = |id: &ParamId| network.param(*id).group == Group::Embeddings;
            network.param_ids().filter(is_lower).for_each(|id| lower.set(id, true));
            let cached = compile_cached(&network, &lower, &options).unwrap();
            let next = accumulate(&plan).next;
            // Fused, not, cached, and one of several batches: each has kernels that the others lack.
            for plan in [fuse(&plan), plan, cached, next] {
                let layout = Arc::new(Layout::new(&plan));
                let mut backend = CudaBackend::new(Emulator::default(), "emulated", false);
                for id in network.param_ids() {
                    let param = network.param(id);
                    let zeros = vec![0.0; param.n_elements()];
                    backend.write_value(id, param.dtype(compute), zeros).unwrap();
                }
                let bound = backend.bind(Arc::new(plan), layout).unwrap();
                for launch in backend.launches(&bound).iter().flatten() {
                    let Some(one) = said.iter().find(|one| one.kernel == launch.kernel) else {
                        continue;
                    };
                    unseen.remove(one.kernel.as_str());
                    let given = (launch.block, launch.shared_bytes);
                    if given != (one.threads, one.shared_bytes as usize) {
                        faults.push(format!("{one:?}: launched with {given:?}"));
                    }
                }
            }
        }
    }
    faults.extend(unseen.into_iter().map(|kernel| format!("{kernel} is never launched")));
    assert_none("lines H100 of headers that are not so", &faults);
}

/// `cuobjdump`'s machine code of an image, by architecture and kernel.
fn machine_code(file: &EmbeddedFile, tools: &Path) -> BTreeMap<(String, String), String> {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), file.image).unwrap();
    // It starts nvdisasm by name.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths([tools.to_owned()].into_iter().chain(std::env::split_paths(&path)));
    let output = Command::new(tools.join("cuobjdump"))
        .arg("--dump-sass")
        .arg(image.path())
        .env("PATH", path.unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();

    let mut code = BTreeMap::<_, String>::new();
    let (mut architecture, mut kernel) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix("arch = ") {
            name.clone_into(&mut architecture);
        } else if let Some(name) = line.trim().strip_prefix("Function : ") {
            name.clone_into(&mut kernel);
        } else {
            let text = code.entry((architecture.clone(), kernel.clone())).or_default();
            *text += line;
            *text += "\n";
        }
    }
    code.retain(|(_, kernel), _| !kernel.is_empty());
    code
}

/// Files of kernels that would be pointless without tensor cores; `_plain` says that a kernel does without.
const ON_TENSOR_CORES: [&str; 3] = ["gemm_bf16", "attention_tile", "attention_long"];

#[test]
fn matrix_products_run_on_tensor_cores() {
    let Some(files) = compiled("matrix_products_run_on_tensor_cores") else { return };
    let tools = root().join("target/cuda-toolchain/nvidia/cu13/bin");
    if !tools.join("cuobjdump").is_file() {
        skip("matrix_products_run_on_tensor_cores", "no cuobjdump in target/cuda-toolchain");
        return;
    }
    let mut faults = Vec::new();
    for name in ON_TENSOR_CORES {
        let file = files.iter().find(|file| file.name == name);
        let code = machine_code(file.unwrap_or_else(|| panic!("no {name}")), &tools);
        let found: BTreeSet<&str> = code.keys().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, BTreeSet::from(ARCHITECTURES), "{name}");
        for ((architecture, kernel), text) in code {
            if !kernel.ends_with("_plain") && !text.contains("HMMA.16816.F32.BF16") {
                faults.push(format!("{kernel} for {architecture}"));
            }
        }
    }
    assert_none("kernels without a matrix product on tensor cores", &faults);
}

/// A kernel that lacks its EXPORT_KERNEL would only be missed when an op needs it.
#[cfg(feature = "emulator")]
#[test]
fn the_emulator_has_what_the_gpu_has() {
    use std::ffi::{CString, c_char, c_int};

    unsafe extern "C" {
        fn frostline_emulator_has(kernel: *const c_char) -> c_int;
    }
    let has = |kernel: &str| {
        let kernel = CString::new(kernel).unwrap();
        // SAFETY: the emulator reads one C string.
        unsafe { frostline_emulator_has(kernel.as_ptr()) != 0 }
    };
    assert!(!has("no_such_kernel"));
    let Some(files) = compiled("the_emulator_has_what_the_gpu_has") else { return };
    let kernels: BTreeSet<String> =
        all_resources(files).into_iter().map(|resources| resources.kernel).collect();
    let missing: Vec<String> = kernels.into_iter().filter(|kernel| !has(kernel)).collect();
    assert_none("kernels that the emulator does not know", &missing);
}

/// The checks above see what they are meant to see.
#[test]
fn the_checks_can_fail() {
    let source = "\
// gelu_fwd: GELU. At most 32 registers (sm_80, sm_90a), no spill.
// gelu_bwd, gelu_bwd_fast: its gradient.
// LAUNCH   grid: 3.
//          At most 40 registers.
constexpr int N = 1;
// At most 7 registers.
";
    let promises = promises(source);
    let expected = [("gelu_fwd", 32), ("gelu_bwd", 40), ("gelu_bwd_fast", 40)];
    assert_eq!(promises, expected.map(|(op, most)| (op.to_owned(), most)));
    let op_for = |kernel| promise_for(kernel, &promises).map(|(op, _)| op.as_str());
    assert_eq!(op_for("gelu_fwd_bf16"), Some("gelu_fwd"));
    assert_eq!(op_for("gelu_bwd_fast_f32"), Some("gelu_bwd_fast"));
    assert_eq!(op_for("gelu_bwd_f32"), Some("gelu_bwd"));
    assert_eq!(op_for("gelu_fwdx_f32"), None);
}
