//! `frostline step` against PyTorch: losses, logits, gradients and updated parameters of small
//! models in every form that model folders come in, under every part of the freeze grammar.
//!
//! The expected dumps are f64 results stored as f32; `tests/golden/make_golden.py` writes them.

// `!(error <= tolerance)` is how NaN fails.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use safetensors::{Dtype, SafeTensors};

/// Largest relative error ‖a - b‖ / ‖b‖ of any tensor. PyTorch's own f32 results stay below 3e-6 of
/// its f64 ones on these cases (4e-5 for one parameter); another order of summation costs a small
/// factor, a wrong LayerNorm epsilon, mask, position or decay two orders of magnitude.
const RELATIVE: f64 = 1e-4;

/// A gradient below this share of the largest one is 0 in theory (f64 rounding leaves about 1e-17):
/// the key bias, to which softmax is blind.
const ZERO_IN_THEORY: f64 = 1e-9;

/// What f32 rounding may leave of such a gradient, as a share of the largest one. PyTorch in f32
/// leaves 2e-8.
const ZERO_NOISE: f64 = 1e-5;

/// What bf16 may leave of it, as a share of the query bias's gradient, which is made of the same numbers
/// without cancelling.
const ZERO_NOISE_BF16: f64 = 1e-2;

/// In bf16 a tensor may be off by this or by twice what PyTorch's autocast is off by, whichever is more:
/// ten roundings to bf16 (2e-3 each) that do not cancel.
const RELATIVE_BF16: f64 = 2e-2;

/// Largest error of a parameter as a share of its update. PyTorch in f32 reaches 4e-4, where an
/// element's gradient comes down to Adam's epsilon; leaving out clipping or weight decay, or giving
/// decay to biases, moves the worst parameter by more than 1e-2.
const UPDATE: f64 = 5e-3;

#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f64>,
}

type Tensors = BTreeMap<String, Tensor>;

#[derive(serde::Deserialize)]
struct Case {
    case: String,
    pooling: String,
    tasks: BTreeMap<String, usize>,
    runs: Vec<Run>,
}

#[derive(Clone, Debug, serde::Deserialize)]
struct Run {
    freeze: String,
    steps: usize,
    learning_rate: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    expected: String,
    /// Relative errors of PyTorch's autocast in one step, where they exceed 1e-2.
    autocast: BTreeMap<String, f64>,
}

/// How near a dump has to come.
#[derive(Clone, Copy, PartialEq)]
enum Compute {
    F32,
    Bf16,
}

impl Compute {
    fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }

    /// The largest relative error of a tensor.
    fn relative(self, name: &str, run: &Run) -> f64 {
        match self {
            Compute::F32 => RELATIVE,
            Compute::Bf16 => {
                let autocast = run.autocast.get(name).copied().unwrap_or(0.0);
                RELATIVE_BF16.max(2.0 * autocast)
            }
        }
    }

    /// The largest norm of a parameter's gradient that is 0 in theory.
    fn noise(self, parameter: &str, gradients: &Gradients) -> f64 {
        match self {
            Compute::F32 => ZERO_NOISE * gradients.largest,
            Compute::Bf16 => {
                let query = parameter.replace("key", "query").replace("k_lin", "q_lin");
                let scale = gradients.norms.get(query.as_str()).filter(|_| query != parameter);
                ZERO_NOISE_BF16 * scale.copied().unwrap_or(gradients.largest)
            }
        }
    }
}

/// The worst relative error and its tensor, and every breach of the rule.
struct Comparison {
    worst: f64,
    place: String,
    faults: Vec<String>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch")
}

/// All floating-point tensors of a file; buffers of integers are no parameters.
fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let halves = || data.chunks_exact(2).map(|b| [b[0], b[1]]);
        let values = match view.dtype() {
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(b).to_f64()).collect(),
            Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(b).to_f64()).collect(),
            _ => continue,
        };
        tensors.insert(name, Tensor { shape: view.shape().to_vec(), values });
    }
    tensors
}

/// The weights of a folder, from one file or from its shards.
fn read_weights(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            tensors.extend(read_tensors(&folder.join(name)));
        }
    }
    tensors
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    norm(a.values.iter().zip(&b.values).map(|(a, b)| a - b))
}

/// What the rule needs to know of the expected gradients.
struct Gradients<'a> {
    norms: BTreeMap<&'a str, f64>,
    largest: f64,
}

impl<'a> Gradients<'a> {
    fn of(dump: &'a Tensors) -> Self {
        let gradient = |(name, tensor): (&'a String, &Tensor)| {
            Some((name.strip_prefix("grad.")?, norm(tensor.values.iter().copied())))
        };
        let norms: BTreeMap<_, _> = dump.iter().filter_map(gradient).collect();
        let largest = norms.values().copied().fold(0.0, f64::max);
        Gradients { norms, largest }
    }

    /// Whether a tensor's gradient is 0 in theory.
    fn vanishes(&self, name: &str) -> bool {
        self.norms.get(name).is_some_and(|norm| *norm <= ZERO_IN_THEORY * self.largest)
    }
}

/// Holds a dump against the expected one. Each check reads `error <= tolerance`, so that NaN fails.
fn compare(
    expected: &Tensors,
    actual: &Tensors,
    initial: &Tensors,
    run: &Run,
    compute: Compute,
) -> Comparison {
    let mut result = Comparison { worst: 0.0, place: "-".to_owned(), faults: Vec::new() };
    for name in expected.keys().filter(|name| !actual.contains_key(*name)) {
        result.faults.push(format!("{name}: missing"));
    }
    for name in actual.keys().filter(|name| !expected.contains_key(*name)) {
        result.faults.push(format!("{name}: must not exist"));
    }
    let gradients = Gradients::of(expected);
    for (name, expected) in expected {
        let Some(actual) = actual.get(name) else { continue };
        let fault = if actual.shape != expected.shape {
            Some(format!("shape {:?}, expected {:?}", actual.shape, expected.shape))
        } else if let Some(verdict) =
            exact_or_noise(name, (expected, actual), initial, run, &gradients, compute)
        {
            verdict.err()
        } else {
            let error = relative(name, (expected, actual), initial, run, compute);
            if !(error.0 <= result.worst) {
                (result.worst, result.place) = (error.0, name.clone());
            }
            error.1
        };
        result.faults.extend(fault.map(|fault| format!("{name}: {fault}")));
    }
    result
}

/// The verdict on tensors that no relative error fits: parameters that may not have moved, and
/// gradients that are 0 in theory with the parameters that they move. `None` for all others.
fn exact_or_noise(
    name: &str,
    (expected, actual): (&Tensor, &Tensor),
    initial: &Tensors,
    run: &Run,
    gradients: &Gradients,
    compute: Compute,
) -> Option<Result<(), String>> {
    let ok_or = |ok: bool, fault: String| Some(if ok { Ok(()) } else { Err(fault) });
    if let Some(bare) = name.strip_prefix("grad.") {
        let noise = norm(actual.values.iter().copied());
        let fault = format!("norm {noise:.2e} where 0 is expected");
        let small = noise <= compute.noise(bare, gradients);
        return if gradients.vanishes(bare) { ok_or(small, fault) } else { None };
    }
    let bare = name.strip_prefix("param.")?;
    if !gradients.norms.contains_key(bare) {
        let moved = "changed, though frozen or not reached by the loss";
        return ok_or(*actual == initial[bare], moved.to_owned());
    }
    if gradients.vanishes(bare) {
        // AdamW makes steps of up to the learning rate out of rounding noise, on either side.
        let bound = 2.0 * run.learning_rate * run.steps as f64;
        let near = actual.values.iter().zip(&expected.values).all(|(a, b)| (a - b).abs() <= bound);
        return ok_or(near, format!("further than {bound} from the expected value"));
    }
    None
}

/// The relative error of a tensor, and its fault where that is too large.
fn relative(
    name: &str,
    (expected, actual): (&Tensor, &Tensor),
    initial: &Tensors,
    run: &Run,
    compute: Compute,
) -> (f64, Option<String>) {
    let (difference, size) = (distance(actual, expected), norm(expected.values.iter().copied()));
    let error = if size > 0.0 { difference / size } else { difference };
    if !(error <= compute.relative(name, run)) {
        return (error, Some(format!("relative error {error:.2e}")));
    }
    let Some(bare) = name.strip_prefix("param.") else { return (error, None) };
    let update = distance(expected, &initial[bare]);
    // Each step rounds the parameter to f32 once.
    let rounding = run.steps as f64 * f64::from(f32::EPSILON) / 2.0 * size;
    let follows = difference <= UPDATE * update + rounding;
    (error, (!follows).then(|| format!("off by {:.2e} of its update", difference / update)))
}

/// Runs every run of a golden case through the binary on `device`, reports each worst error, then fails
/// if any run broke the rule.
///
/// In bf16 the runs of several steps are left out: parameters after them are where AdamW's division by
/// small gradients has taken them.
fn check(case_name: &str, device: &str, compute: Compute) {
    let index = fs::read_to_string(golden().join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&index).unwrap();
    let case = cases.iter().find(|case| case.case == case_name).unwrap();
    let folder = golden().join(case_name);
    let initial = read_weights(&folder);
    let mut failures = Vec::new();
    for run in case.runs.iter().filter(|run| compute == Compute::F32 || run.steps == 1) {
        let output_folder = tempfile::tempdir().unwrap();
        let dump = output_folder.path().join("out.safetensors");
        let mut command = Command::cargo_bin("frostline").unwrap();
        command.arg("step").arg("--model").arg(&folder);
        command.arg("--batch").arg(folder.join("batch.safetensors"));
        for (task, n_labels) in &case.tasks {
            command.args(["--task", &format!("{task}={n_labels}")]);
        }
        command.args(["--pooling", &case.pooling, "--freeze", &run.freeze]);
        command.args(["--steps", &run.steps.to_string()]);
        command.args(["--learning-rate", &run.learning_rate.to_string()]);
        command.args(["--weight-decay", &run.weight_decay.to_string()]);
        command.args(["--max-grad-norm", &run.max_grad_norm.to_string()]);
        command.args(["--device", device, "--dtype", compute.name(), "--dump"]).arg(&dump);
        let output = command.output().unwrap();
        let title = format!(
            "{case_name} on {device} in {}, {}, {} steps",
            compute.name(),
            run.freeze,
            run.steps
        );
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            failures.push(format!("{title}: {}\n{stderr}", output.status));
            continue;
        }
        let expected = read_tensors(&folder.join(&run.expected));
        let comparison = compare(&expected, &read_tensors(&dump), &initial, run, compute);
        println!("{title}: worst error {:.1e} in {}", comparison.worst, comparison.place);
        failures.extend(comparison.faults.iter().map(|fault| format!("{title}: {fault}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! cases {
    ($($test:ident: $folder:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                check($folder, "cpu", Compute::F32);
                // The GPU's kernels keep the same bounds.
                if cfg!(feature = "emulator") {
                    check($folder, "emulated", Compute::F32);
                    check($folder, "emulated", Compute::Bf16);
                }
            }
        )*

        /// A case that was written but is not listed here would never run.
        #[test]
        fn every_case_is_listed() {
            let index = fs::read_to_string(golden().join("cases.json")).unwrap();
            let cases: Vec<Case> = serde_json::from_str(&index).unwrap();
            let written: BTreeSet<&str> = cases.iter().map(|case| case.case.as_str()).collect();
            assert_eq!(written, BTreeSet::from([$($folder),*]));
        }
    };
}

cases! {
    bert_mean: "bert-mean",
    bert_cls: "bert-cls",
    bert_pooler: "bert-pooler",
    bert_f16: "bert-f16",
    roberta_mean: "roberta-mean",
    roberta_sharded: "roberta-sharded",
    xlm_roberta_pooler: "xlm-roberta-pooler",
    distilbert_cls: "distilbert-cls",
    distilbert_mean: "distilbert-mean",
}

/// The comparison must see what it is there to see.
#[test]
fn comparison_sees_faults() {
    let folder = golden().join("bert-mean");
    let index = fs::read_to_string(golden().join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&index).unwrap();
    let runs = &cases.iter().find(|case| case.case == "bert-mean").unwrap().runs;
    let full = runs.iter().find(|run| run.freeze == "none").unwrap();
    let frozen = runs.iter().find(|run| run.freeze == "lower:2" && run.steps > 1).unwrap();
    let initial = read_weights(&folder);
    let faults = |run: &Run, edit: &dyn Fn(&mut Tensors)| {
        let expected = read_tensors(&folder.join(&run.expected));
        let mut actual = expected.clone();
        edit(&mut actual);
        compare(&expected, &actual, &initial, run, Compute::F32).faults
    };
    let assert_seen = |run: &Run, name: &str, edit: &dyn Fn(&mut Tensor)| {
        let seen = faults(run, &|tensors| edit(tensors.get_mut(name).unwrap()));
        assert_eq!(seen.len(), 1, "{name}: {seen:?}");
        assert!(seen[0].starts_with(name), "{name}: {seen:?}");
    };

    assert_eq!(faults(full, &|_| ()), Vec::<String>::new());
    let query = "grad.encoder.layer.1.attention.self.query.weight";
    let key_bias = "encoder.layer.1.attention.self.key.bias";
    for name in ["loss", "logits.topic", query, "param.encoder.layer.0.output.dense.bias"] {
        assert_seen(full, name, &|tensor| tensor.values[0] = f64::NAN);
        assert_seen(full, name, &|tensor| tensor.values.fill(0.0));
    }
    assert_seen(full, &format!("grad.{key_bias}"), &|tensor| tensor.values[3] = f64::NAN);
    assert_seen(full, &format!("grad.{key_bias}"), &|tensor| tensor.values.fill(1e-2));
    assert_seen(full, &format!("param.{key_bias}"), &|tensor| tensor.values[3] = f64::NAN);
    assert_seen(full, &format!("param.{key_bias}"), &|tensor| tensor.values[3] += 0.007);
    assert_seen(full, query, &|tensor| {
        let width = tensor.shape[0];
        let rows = tensor.values.clone();
        for (place, value) in tensor.values.iter_mut().enumerate() {
            *value = rows[place % width * width + place / width];
        }
    });
    assert_seen(full, "logits.topic", &|tensor| tensor.shape.reverse());
    // A frozen parameter, and one that the loss does not reach, may not move by one bit.
    assert_seen(frozen, "param.encoder.layer.1.output.dense.bias", &|tensor| {
        tensor.values[0] = f64::from((tensor.values[0] as f32).next_up());
    });
    assert_seen(full, "param.pooler.dense.weight", &|tensor| {
        tensor.values[0] = f64::from((tensor.values[0] as f32).next_up());
    });
    // No update at all.
    let trained = "encoder.layer.2.output.dense.weight";
    assert_seen(frozen, &format!("param.{trained}"), &|tensor| {
        tensor.values.clone_from(&initial[trained].values);
    });
    let missing = faults(full, &|tensors| _ = tensors.remove(query));
    assert_eq!(missing, [format!("{query}: missing")]);
    let extra = faults(frozen, &|tensors| {
        let gradient = tensors["grad.heads.topic.bias"].clone();
        tensors.insert("grad.encoder.layer.0.output.dense.bias".to_owned(), gradient);
    });
    assert_eq!(extra, ["grad.encoder.layer.0.output.dense.bias: must not exist"]);
}
