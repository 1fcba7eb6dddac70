//! Published weights: all-MiniLM-L6-v2 against transformers.
//!
//! A head whose matrix is the identity makes `step` show the pooled vectors themselves: with mean
//! pooling the sentence embeddings, with cls pooling the last hidden state of the first token.
//!
//! `FROSTLINE_MINILM` names the model folder (91 MB, not part of the repository); without it the
//! test says that it is skipped. `tests/golden/make_golden.py --minilm` writes the expected values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use assert_cmd::Command;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

/// Hidden size of MiniLM.
const WIDTH: usize = 384;

/// Largest relative error ‖a - b‖ / ‖b‖ of a vector. The values are f64 results; another plain f32
/// forward pass came to 2.3e-6 of them, and six layers of another summation order cost a small factor.
const RELATIVE: f64 = 1e-5;

/// The dump: sentences packed one after the other.
struct Expected {
    sentences: Vec<Vec<i64>>,
    /// Last hidden state of each sentence's first token.
    first: Vec<Vec<f32>>,
    mean: Vec<Vec<f32>>,
}

fn numbers<T, const N: usize>(file: &SafeTensors, name: &str, from: fn([u8; N]) -> T) -> Vec<T> {
    let tensor = file.tensor(name).unwrap();
    tensor.data().chunks_exact(N).map(|bytes| from(bytes.try_into().unwrap())).collect()
}

fn rows(values: Vec<f32>) -> Vec<Vec<f32>> {
    values.chunks_exact(WIDTH).map(<[f32]>::to_vec).collect()
}

fn read_expected() -> Expected {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/minilm");
    let bytes = fs::read(golden.join("hidden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = numbers(&file, "input_ids", i32::from_le_bytes);
    let ends: Vec<usize> = numbers(&file, "cu_seqlens", i32::from_le_bytes)
        .into_iter()
        .map(|end| end.try_into().unwrap())
        .collect();
    let hidden = rows(numbers(&file, "last_hidden_state", f32::from_le_bytes));
    let sentence = |pair: &[usize]| ids[pair[0]..pair[1]].iter().copied().map(i64::from).collect();
    Expected {
        sentences: ends.windows(2).map(sentence).collect(),
        first: ends.windows(2).map(|pair| hidden[pair[0]].clone()).collect(),
        mean: rows(numbers(&file, "mean", f32::from_le_bytes)),
    }
}

fn write(path: &Path, tensors: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)>) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A sharded model folder: the published weights as one shard, the identity head as the other.
fn write_model(published: &Path, folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::copy(published.join("config.json"), folder.join("config.json")).unwrap();
    let weights = fs::read(published.join("model.safetensors")).unwrap();
    let [encoder, head] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let names = SafeTensors::deserialize(&weights).unwrap();
    let mut map: Map<String, Value> =
        names.names().into_iter().map(|name| (name.to_owned(), json!(encoder))).collect();
    fs::write(folder.join(encoder), &weights).unwrap();
    let identity = (0..WIDTH * WIDTH).map(|place| (place % (WIDTH + 1) == 0) as u8 as f32);
    write(
        &folder.join(head),
        BTreeMap::from([
            (
                "heads.probe.weight",
                (Dtype::F32, vec![WIDTH, WIDTH], identity.flat_map(f32::to_le_bytes).collect()),
            ),
            ("heads.probe.bias", (Dtype::F32, vec![WIDTH], vec![0; 4 * WIDTH])),
        ]),
    );
    for name in ["heads.probe.weight", "heads.probe.bias"] {
        map.insert(name.to_owned(), json!(head));
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

fn write_batch(sentences: &[Vec<i64>], path: &Path) {
    let longest = sentences.iter().map(Vec::len).max().unwrap();
    let padded = |value: fn(i64) -> i64| -> Vec<u8> {
        let row = |ids: &Vec<i64>| {
            let mut row: Vec<i64> = ids.iter().map(|&id| value(id)).collect();
            row.resize(longest, 0);
            row
        };
        sentences.iter().flat_map(row).flat_map(i64::to_le_bytes).collect()
    };
    let shape = vec![sentences.len(), longest];
    write(
        path,
        BTreeMap::from([
            ("input_ids", (Dtype::I64, shape.clone(), padded(|id| id))),
            ("attention_mask", (Dtype::I64, shape, padded(|_| 1))),
            ("labels.probe", (Dtype::I64, vec![sentences.len()], vec![0; 8 * sentences.len()])),
        ]),
    );
}

#[test]
fn hidden_states_equal_transformers() {
    let Some(published) = env::var_os("FROSTLINE_MINILM").map(PathBuf::from) else {
        println!("skipped: FROSTLINE_MINILM does not name the model folder");
        return;
    };
    let expected = read_expected();
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    write_model(&published, &path("model"));
    write_batch(&expected.sentences, &path("batch.safetensors"));
    for (pooling, vectors) in [("mean", &expected.mean), ("cls", &expected.first)] {
        let mut command = Command::cargo_bin("frostline").unwrap();
        command.current_dir(root.path());
        command.args(["step", "--model", "model", "--batch", "batch.safetensors"]);
        command.args(["--task", "probe=384", "--freeze", "all", "--pooling", pooling]);
        command.args(["--device", "cpu", "--dtype", "f32", "--dump", "out.safetensors"]);
        command.assert().success();
        let bytes = fs::read(path("out.safetensors")).unwrap();
        let dump = SafeTensors::deserialize(&bytes).unwrap();
        let actual = rows(numbers(&dump, "logits.probe", f32::from_le_bytes));
        assert_eq!(actual.len(), vectors.len());
        for (row, (actual, expected)) in actual.iter().zip(vectors).enumerate() {
            let norm =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let pairs = actual.iter().zip(expected);
            let error = norm(&mut pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)))
                / norm(&mut expected.iter().map(|&b| f64::from(b)));
            println!("{pooling}, sentence {row}: relative error {error:.1e}");
            assert!(error <= RELATIVE, "{pooling}, sentence {row}: relative error {error:.1e}");
        }
    }
}
