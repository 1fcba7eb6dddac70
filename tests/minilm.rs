//! Published weights: all-MiniLM-L6-v2 against transformers, on real sentences.
//!
//! The model is fetched by `scripts/fetch_demo.py` into `demo/`, or lies where `FROSTLINE_MINILM` says;
//! without it the test says that it is skipped. `tests/golden/make_golden.py --minilm` writes the
//! expected values.

use std::path::{Path, PathBuf};
use std::{env, fs};

use frostline::backend::{StepState, Timing};
use frostline::batch::IGNORED_LABEL;
use frostline::data::{BatchLimit, Packer, Tokenizer};
use frostline::freeze::FreezeMask;
use frostline::model::weights::WeightFile;
use frostline::model::{ModelFolder, Pooling, Source};
use frostline::plan::{Capacity, StepOptions};
use frostline::session::Engine;
use frostline::tensor::DType;

/// Largest relative error ‖a - b‖ / ‖b‖. The values are f64 results; another plain f32 forward pass came
/// to 2.3e-6 of them, and six layers of another summation order cost a small factor.
const RELATIVE: f64 = 1e-5;

fn model_folder() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = env::var_os("FROSTLINE_MINILM").map_or(root.join("demo/minilm"), PathBuf::from);
    folder.join("model.safetensors").exists().then_some(folder)
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let square = |v: f32| f64::from(v) * f64::from(v);
    let distance: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|b| square(*b)).sum();
    let error = (distance / norm).sqrt();
    println!("{what}: relative error {error:.1e}");
    assert!(error <= RELATIVE, "{what}: relative error {error}");
}

#[test]
fn sentences_have_the_hidden_states_that_transformers_computes() {
    let Some(folder) = model_folder() else {
        eprintln!("skipped: no MiniLM, run python3 scripts/fetch_demo.py");
        return;
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/minilm");
    let text = fs::read_to_string(golden.join("sentences.json")).unwrap();
    let sentences: Vec<String> = serde_json::from_str(&text).unwrap();
    let expected = WeightFile::open_file(&golden.join("hidden.safetensors")).unwrap();

    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let encoded = Tokenizer::open(&folder).unwrap().encode_all(&texts, 256, |_| {}).unwrap();
    let source = Source::Folder(ModelFolder::open(&folder).unwrap());
    let network = source.network(&[("task".into(), 2)], None).unwrap();
    assert_eq!(network.pooling, Pooling::Mean, "the folder's 1_Pooling says mean");
    let packer = Packer {
        limit: BatchLimit::Sequences(texts.len()),
        positions: network.config.position_scheme(),
        n_tasks: 1,
    };
    let indices: Vec<usize> = (0..texts.len()).collect();
    let batch = packer.pack(&indices, &encoded, |_, _| IGNORED_LABEL);
    assert_eq!(batch.input_ids, expected.read_i32("input_ids", None).unwrap(), "token ids");

    let values = source.initial_values(&network, 1).unwrap();
    let options =
        StepOptions { dropout: true, ..StepOptions::plain(Capacity::of([&batch]), DType::F32) };
    let mut session = Engine::CPU.session(network, values).unwrap();
    let mask = FreezeMask::all(session.network().params.len());
    let step = session.compile(&mask, &options).unwrap();
    let state = StepState {
        step: 1,
        learning_rate: 0.0,
        head_learning_rate: 0.0,
        weight_decay: 0.0,
        seed: 0,
    };
    session.run(&step, &batch, &state, Timing::Off).unwrap();
    let hidden = session.last_hidden(&step).unwrap();
    let shape = [batch.n_tokens(), session.network().config.hidden_size];
    let all = expected.read_f32("last_hidden_state", &shape).unwrap();
    assert_close("all tokens", &hidden, &all);
    for (sentence, ends) in batch.cu_seqlens.windows(2).enumerate() {
        let tokens = ends[0] as usize * shape[1]..ends[1] as usize * shape[1];
        let what = format!("sentence {sentence} of {} tokens", ends[1] - ends[0]);
        assert_close(&what, &hidden[tokens.clone()], &all[tokens]);
    }
}
