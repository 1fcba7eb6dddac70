//! The hidden states of all layers in one pass, and their means over the tokens of a text.

mod common;

use std::path::{Path, PathBuf};

use common::{
    assert_close, families_and_poolings, network_of, random_batch, random_values, same_bits,
    tiny_config,
};
use frostline::backend::{StepState, Timing};
use frostline::batch::Batch;
use frostline::data::{BatchLimit, Corpus, Dataset, Packer, TaskSource, TokenRules, Tokenizer};
use frostline::features::{Features, layer_means, layer_vectors, pooled};
use frostline::freeze::FreezeMask;
use frostline::model::{Group, ModelFolder, Network, Pooling, Source};
use frostline::plan::hidden::compile_hidden;
use frostline::plan::{Capacity, Op, StepOptions};
use frostline::predict::Predictor;
use frostline::session::{Engine, Session};
use frostline::tensor::DType;

const LENGTHS: [usize; 4] = [5, 1, 9, 3];

fn options(compute: DType, dropout: bool) -> StepOptions {
    // Larger than the batch: states have the batch's rows all the same.
    let capacity = Capacity { tokens: 24, sequences: 5, max_length: 12 };
    StepOptions { dropout, ..StepOptions::plain(capacity, compute) }
}

/// Everything behind a plan of the encoder alone: what each layer reads, and what the last gives.
fn check(engine: Engine, network: &Network) {
    let mut session = engine.session(network.clone(), random_values(network, 3)).unwrap();
    let batch = random_batch(network, &LENGTHS, 1);
    // Asked for, and left out.
    let step = session.compile_hidden(&options(engine.compute, true)).unwrap();
    let states = session.hidden_states(&step, &batch).unwrap();
    assert_eq!(states.len(), network.layers.len() + 1);
    let plain = options(engine.compute, false);
    for (layer, state) in states[..network.layers.len()].iter().enumerate() {
        let prefix = session.compile_prefix(Group::Layer(layer), &plain).unwrap();
        let rows = session.prefix_rows(&prefix, &batch).unwrap();
        assert!(same_bits(state, &rows), "{engine:?} {:?} layer {layer}", network.config.family);
    }
    let (last, vectors) = last_hidden_and_pooled(&mut session, &batch, &plain);
    assert!(same_bits(&states[network.layers.len()], &last), "{engine:?}");
    let first = &states[0];
    assert!(states[1..].iter().all(|state| state.len() == first.len() && state != first));
    if network.pooling == Pooling::Mean {
        let cols = network.config.hidden_size;
        let mut means = Vec::new();
        for ends in batch.cu_seqlens.windows(2) {
            let tokens = &last[ends[0] as usize * cols..ends[1] as usize * cols];
            let sum = |col: usize| tokens[col..].iter().step_by(cols).sum::<f32>();
            means.extend((0..cols).map(|col| sum(col) / (ends[1] - ends[0]) as f32));
        }
        assert_close("means", &means, &vectors, 1e-6);
    }
}

fn last_hidden_and_pooled(
    session: &mut Session,
    batch: &Batch,
    options: &StepOptions,
) -> (Vec<f32>, Vec<f32>) {
    let mask = FreezeMask::all(session.network().params.len());
    let step = session.compile(&mask, options).unwrap();
    session.run(&step, batch, &StepState::FORWARD, Timing::Off).unwrap();
    (session.last_hidden(&step).unwrap(), session.pooled(&step).unwrap())
}

#[test]
fn layers_read_what_a_prefix_gives_on_the_cpu() {
    for (family, pooling) in families_and_poolings() {
        check(Engine::CPU, &network_of(&tiny_config(family, 3), pooling));
    }
}

#[cfg(feature = "emulator")]
#[test]
fn layers_read_what_a_prefix_gives_on_the_kernels() {
    use frostline::session::Device;
    for compute in [DType::F32, DType::Bf16] {
        for (family, pooling) in families_and_poolings().into_iter().take(3) {
            let engine = Engine { device: Device::Emulated { graphs: true }, compute };
            check(engine, &network_of(&tiny_config(family, 2), pooling));
        }
    }
}

/// Nothing behind the last hidden state is computed, and nothing is kept for a backward pass.
#[test]
fn plans_end_with_the_last_layer() {
    for (family, pooling) in families_and_poolings() {
        let network = network_of(&tiny_config(family, 3), pooling);
        for compute in [DType::F32, DType::Bf16] {
            let (plan, states) = compile_hidden(&network, &options(compute, true));
            plan.verify().unwrap();
            let names: Vec<&str> = plan.ops.iter().map(Op::name).collect();
            assert_eq!(names.len(), 1 + 3 * 7, "{names:?}");
            assert!(!names.iter().any(|name| name.starts_with("pool") || name.contains("head")));
            let types: Vec<DType> = states.iter().map(|state| plan.buffer(*state).dtype).collect();
            assert_eq!(types, [DType::F32, DType::F32, DType::F32, compute], "{family:?}");
        }
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean")
}

/// Texts of one to eight words, so that batches are sorted by length.
fn texts() -> Vec<String> {
    let words = ["the", "phone", "is", "good", "a", "song", "very", "fast"];
    (0..30).map(|at| words[..1 + at * 5 % 8].join(" ")).collect()
}

fn corpus(folder: &ModelFolder) -> Corpus {
    let file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
    let row = |(at, text): (usize, String)| format!("{text},{}\n", at % 9);
    let rows: String = texts().into_iter().enumerate().map(row).collect();
    std::fs::write(file.path(), format!("text,kind\n{rows}")).unwrap();
    let task = TaskSource::parse(&format!("kind={}", file.path().display())).unwrap();
    let dataset = Dataset::load(&[task], &[], 0.0, 1, None).unwrap();
    let rules = TokenRules {
        vocab_size: folder.config.vocab_size,
        max_length: 11,
        type_vocab_size: folder.config.type_vocab_size,
        positions: folder.config.position_scheme(),
    };
    Corpus::new(dataset, &folder.dir, rules, |_| {}).unwrap()
}

fn row(features: &Features, at: usize) -> &[f32] {
    &features.values[at * features.cols..(at + 1) * features.cols]
}

/// Nine labels and one task here, other tasks in the network: vectors do not ask for labels.
fn check_texts(engine: Engine) {
    let source = Source::Folder(ModelFolder::open(&golden()).unwrap());
    let Source::Folder(folder) = &source else { panic!() };
    let tasks = [("topic".to_owned(), 5), ("sentiment".to_owned(), 3)];
    let network = source.network(&tasks, Some(Pooling::Mean)).unwrap();
    let values = source.initial_values(&network, 1).unwrap();
    let corpus = corpus(folder);
    let initial = values.clone();
    let mut session = engine.session(network.clone(), values.clone()).unwrap();
    let examples: Vec<usize> = (0..corpus.train.len()).rev().collect();
    let vectors = pooled(&mut session, &corpus, &corpus.train, &examples).unwrap();
    let means = layer_means(&mut session, &corpus, &corpus.train, &examples).unwrap();
    assert_eq!(means.len(), network.layers.len() + 1);
    assert_eq!(vectors.values.len(), 30 * 16);
    assert!(means.iter().all(|means| means.values.len() == 30 * 16 && means.cols == 16));

    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let encoded = Tokenizer::open(&folder.dir).unwrap().encode_all(&texts, 11, |_| {}).unwrap();
    let positions = network.config.position_scheme();
    let packer = Packer { limit: BatchLimit::Sequences(7), positions, n_tasks: 2 };
    let mut predictor = Predictor::new(engine.session(network, values).unwrap(), packer);
    let predictions = predictor.predict(&encoded).unwrap();
    for (at, prediction) in predictions.iter().rev().enumerate() {
        assert!(same_bits(row(&vectors, at), &prediction.pooled), "{engine:?}: text {at}");
        let last = &means[means.len() - 1];
        assert_close("the last layer's mean", row(last, at), &prediction.pooled, 1e-6);
    }
    // What the heads read with another pooling is the last layer's first token.
    let cls = source.network(&tasks, Some(Pooling::Cls)).unwrap();
    let mut cls = engine.session(cls, initial).unwrap();
    let vectors = pooled(&mut cls, &corpus, &corpus.train, &examples).unwrap();
    let n_done = std::cell::Cell::new(0);
    let progress = |n: usize| n_done.set(n_done.get() + n);
    let both = layer_vectors(&mut session, &corpus, &corpus.train, &examples, progress).unwrap();
    assert_eq!(n_done.get(), examples.len());
    assert!(same_bits(&both[both.len() - 1].cls.values, &vectors.values), "{engine:?}");
    assert!(both.iter().zip(&means).all(|(both, means)| both.mean == *means));
    // Another choice, in another order, gives the same rows.
    let few = layer_means(&mut session, &corpus, &corpus.train, &[4, 29, 0]).unwrap();
    for (few, all) in few.iter().zip(&means) {
        for (at, example) in [4, 29, 0].into_iter().enumerate() {
            assert!(same_bits(row(few, at), row(all, 29 - example)));
        }
    }
}

#[test]
fn vectors_of_texts_are_those_of_predict_on_the_cpu() {
    check_texts(Engine::CPU);
}

#[cfg(feature = "emulator")]
#[test]
fn vectors_of_texts_are_those_of_predict_on_the_kernels() {
    use frostline::session::Device;
    for compute in [DType::F32, DType::Bf16] {
        check_texts(Engine { device: Device::Emulated { graphs: true }, compute });
    }
}
