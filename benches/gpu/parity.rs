//! One network and one batch for two devices, and what both made of them.

use std::path::Path;

use frostline::files::write_atomically;
use frostline::model::weights::{NamedTensor, WeightFile, write};
use frostline::model::{Config, Network, ParamId, Pooling};
use frostline::philox::{key_of, normal, philox};
use frostline::tensor::DType;
use frostline::{Error, Result};
use serde_json::json;

/// Rows of the batch, and tokens of its longest: beyond 128, so that both kinds of attention run.
const ROW_LENGTHS: [usize; 6] = [180, 128, 64, 33, 17, 1];

/// The tasks, with their numbers of labels, as gpu.sh names them.
const TASKS: [(&str, usize); 2] = [("topic", 5), ("sentiment", 3)];

fn config(tiny: bool) -> Result<Config> {
    let base = Config { n_layers: 2, vocab_size: 997, ..Config::published("bert-base")? };
    let small = Config { hidden_size: 64, n_heads: 2, intermediate_size: 256, ..base.clone() };
    Ok(if tiny { small } else { base })
}

/// Writes `config.json`, `model.safetensors` and `batch.safetensors`; the folder is made.
pub fn write_model(dir: &Path, tiny: bool) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let config = config(tiny)?;
    let tasks = TASKS.map(|(task, n_labels)| (task.to_owned(), n_labels));
    let network = Network::new(&config, None, &tasks, Pooling::Mean)?;
    let text = json!({
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
    });
    write_atomically(&dir.join("config.json"), format!("{text:#}\n").as_bytes())?;
    let tensors: Vec<NamedTensor> = network.param_ids().map(|id| tensor(&network, id)).collect();
    write(&dir.join("model.safetensors"), &tensors)?;
    write(&dir.join("batch.safetensors"), &batch(&config))
}

/// A parameter of a spread that a trained network has: LayerNorm near 1 and 0, matrices of 0.04.
fn tensor(network: &Network, id: ParamId) -> NamedTensor {
    let param = network.param(id);
    let draws = normal(1, id.0 as u32, param.n_elements(), 0.04);
    let is_scale = param.name.ends_with("LayerNorm.weight");
    let values: Vec<f32> = draws.into_iter().map(|v| if is_scale { 1.0 + v } else { v }).collect();
    NamedTensor::f32(param.name.clone(), param.shape.clone(), &values)
}

fn batch(config: &Config) -> Vec<NamedTensor> {
    let (n_rows, length) = (ROW_LENGTHS.len(), ROW_LENGTHS[0]);
    let drawn = |at: usize, below: usize| {
        (philox(key_of(2), [at as u32, 0, 0, 0])[0] as usize % below) as i32
    };
    let tensor = |name: &str, shape: Vec<usize>, values: Vec<i32>| NamedTensor {
        name: name.to_owned(),
        dtype: DType::I32,
        shape,
        bytes: values.into_iter().flat_map(i32::to_le_bytes).collect(),
    };
    let ids = (0..n_rows * length).map(|at| drawn(at, config.vocab_size)).collect();
    let mask = (0..n_rows * length).map(|at| i32::from(at % length < ROW_LENGTHS[at / length]));
    let mut tensors = vec![
        tensor("input_ids", vec![n_rows, length], ids),
        tensor("attention_mask", vec![n_rows, length], mask.collect()),
    ];
    for (task, n_labels) in TASKS {
        let labels = (0..n_rows).map(|row| drawn(row, n_labels)).collect();
        tensors.push(tensor(&format!("labels.{task}"), vec![n_rows], labels));
    }
    tensors
}

/// Prints the tensors that differ most, and says whether none differs by more than its tolerance: losses, logits and
/// gradients by a share of their norm, parameters by a share of what the steps changed, of which a device that updates
/// nothing has nothing right.
///
/// The key bias has no effect on the loss: its gradient is rounding noise, held against the largest gradient's norm,
/// and AdamW makes steps of up to the learning rate of it, so that its value after steps is not compared. A tensor that
/// no step changes, as an unused pooler, must be unchanged on both.
pub fn compare(
    expected: &Path,
    found: &Path,
    initial: &Path,
    [tolerance, update_tolerance]: [f64; 2],
) -> Result<bool> {
    let (expected, found) = (Dump::open(expected)?, Dump::open(found)?);
    let initial = Dump::open(initial)?;
    if expected.names != found.names {
        return Err(Error::Run(format!(
            "the dumps hold different tensors: {:?} and {:?}",
            expected.names, found.names
        )));
    }
    let mut largest = 0.0_f64;
    for name in expected.names.iter().filter(|name| name.starts_with("grad.")) {
        largest = largest.max(norm(&expected.values(name)?));
    }
    // Each with its error as a share of what is allowed.
    let mut errors = Vec::new();
    for name in &expected.names {
        let is_key_bias = name.ends_with(".key.bias");
        let param = name.strip_prefix("param.");
        if is_key_bias && param.is_some() {
            continue;
        }
        let (expected, found) = (expected.values(name)?, found.values(name)?);
        let difference = minus(&expected, &found);
        let (scale, allowed) = match param {
            Some(param) => (norm(&minus(&expected, &initial.values(param)?)), update_tolerance),
            None if is_key_bias => (largest, tolerance),
            None => (norm(&expected), tolerance),
        };
        let error = if scale == 0.0 { norm(&difference) } else { norm(&difference) / scale };
        let same_size = expected.len() == found.len() && !expected.is_empty();
        errors.push((name, if same_size { error } else { f64::NAN }, allowed));
    }
    // A NaN is the worst.
    let badness = |one: &(&String, f64, f64)| {
        let share = one.1 / one.2;
        if share.is_nan() { f64::INFINITY } else { share }
    };
    errors.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
    let n_right = errors.iter().filter(|(_, error, allowed)| error <= allowed).count();
    for (name, error, allowed) in errors.iter().take(8) {
        println!("{error:9.2e}, at most {allowed:.0e}  {name}");
    }
    println!("{} of {} tensors differ by more than that", errors.len() - n_right, errors.len());
    Ok(n_right == errors.len() && !errors.is_empty())
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// What `frostline step` wrote.
struct Dump {
    file: WeightFile,
    names: Vec<String>,
}

impl Dump {
    fn open(path: &Path) -> Result<Self> {
        let file = WeightFile::open_file(path)?;
        let names = file.names().map(str::to_owned).collect();
        Ok(Dump { file, names })
    }

    fn values(&self, name: &str) -> Result<Vec<f64>> {
        let shape = self.file.shape(name).unwrap_or_default().to_vec();
        Ok(self.file.read_f32(name, &shape)?.into_iter().map(f64::from).collect())
    }
}
