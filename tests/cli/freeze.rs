//! What `train` leaves alone under each freeze, and what it changes.

use std::collections::BTreeSet;

use safetensors::Dtype;

use crate::Workspace;
use crate::tensors::{metadata, read_model};

/// Trains under `freeze`, and checks that of the model's tensors exactly those change for which
/// `trains` is true, the others staying byte for byte; names, shapes and types all stay.
///
/// The rate is high so that no update is lost to the rounding of a narrow type.
#[track_caller]
fn check(case: &str, extra: &str, freeze: &str, trains: impl Fn(&str) -> bool) {
    let workspace = Workspace::with_model(case);
    let report = workspace.json(&format!(
        "train --model model --task topic=reviews.csv --task sentiment=reviews.csv --max-steps 2 \
         --batch-size 16 --learning-rate 1e-2 --warmup-steps 0 --freeze {freeze} --output trained \
         --json {extra}"
    ));
    let mut before = read_model(&workspace.path("model"));
    // What only pre-training needs is left out.
    before.retain(|name, _| !name.starts_with("cls.") && !name.starts_with("vocab_"));
    let after = read_model(&workspace.path("trained"));
    assert!(before.keys().eq(after.keys()), "{case}, {freeze}: {:?}", after.keys());
    let mut changed = BTreeSet::new();
    for (name, old) in &before {
        let new = &after[name];
        assert_eq!((old.dtype, &old.shape), (new.dtype, &new.shape), "{case}, {freeze}: {name}");
        if old.bytes != new.bytes {
            changed.insert(name.as_str());
        }
    }
    let expected: BTreeSet<&str> =
        before.keys().map(String::as_str).filter(|n| trains(n)).collect();
    assert_eq!(changed, expected, "{case}, {freeze}");
    assert_eq!(report["freeze"], freeze);
    assert_eq!(report["frozen"]["n_tensors"], before.len() - expected.len(), "{case}, {freeze}");
    let n_values = |names: &BTreeSet<&str>| -> usize {
        names.iter().map(|name| before[*name].shape.iter().product::<usize>()).sum()
    };
    assert_eq!(report["trainable_parameters"], n_values(&expected), "{case}, {freeze}");
    let settings = workspace.read_json("trained/frostline.json");
    assert_eq!(settings["freeze"], freeze);
    let file = workspace.path("trained/model.safetensors");
    assert_eq!(metadata(&file)["format"], "pt", "{case}");
    assert!(!crate::tensors::read_file(&file).keys().any(|name| name.contains("position_ids")));
}

/// With mean pooling the loss does not reach the pooler, so that it never moves.
fn check_bert(freeze: &str, trains: impl Fn(&str) -> bool) {
    check("bert-mean", "", freeze, |name| !name.starts_with("pooler.") && trains(name));
}

/// The layer that a tensor belongs to.
fn layer(name: &str) -> Option<usize> {
    name.split("layer.").nth(1)?.split('.').next()?.parse().ok()
}

fn is_head(name: &str) -> bool {
    name.starts_with("heads.")
}

fn is_embedding(name: &str) -> bool {
    name.starts_with("embeddings.")
}

#[test]
fn none_and_backbone() {
    check_bert("none", |_| true);
    check_bert("backbone", is_head);
}

#[test]
fn embeddings_and_pooler() {
    check_bert("embeddings", |name| !is_embedding(name));
    check_bert("pooler", |_| true);
    // With tanh pooling the pooler does train, unless it is frozen.
    check("bert-mean", "--pooling pooler", "none", |_| true);
    check("bert-mean", "--pooling pooler", "pooler", |name| !name.starts_with("pooler."));
    check("bert-mean", "--pooling pooler", "lower:3", |name| {
        name.starts_with("pooler.") || is_head(name)
    });
}

#[test]
fn layers() {
    check_bert("lower:0", |name| !is_embedding(name));
    check_bert("lower:2", |name| is_head(name) || layer(name) == Some(2));
    check_bert("lower:3", is_head);
    check_bert("layers:1..3", |name| !matches!(layer(name), Some(1 | 2)));
    check_bert("layers:2..3", |name| layer(name) != Some(2));
}

#[test]
fn heads() {
    check_bert("head:topic", |name| !name.starts_with("heads.topic."));
    check_bert("head:topic+head:sentiment", |name| !is_head(name));
    check_bert("backbone+head:sentiment", |name| name.starts_with("heads.topic."));
}

#[test]
fn names() {
    check_bert("name:*.attention.*", |name| !name.contains(".attention."));
    check_bert("name:*.query.*+name:embeddings.LayerNorm.*", |name| {
        !name.contains(".query.") && !name.starts_with("embeddings.LayerNorm.")
    });
    // Only the biases and the heads.
    check_bert("all+keep:*.bias+keep:heads.*", |name| name.ends_with(".bias") || is_head(name));
}

/// Each stores its weights in another way; bert-cls has the prefix and gamma and beta, and one word
/// for each freeze goes through all families.
#[test]
fn every_form_of_model_file() {
    for case in [
        "bert-cls",
        "bert-f16",
        "roberta-mean",
        "roberta-sharded",
        "distilbert-cls",
        "distilbert-mean",
    ] {
        let reaches = |name: &str| !name.contains("pooler.");
        check(case, "", "none", reaches);
        check(case, "", "lower:1", |name| {
            reaches(name) && !name.contains("embeddings.") && layer(name) != Some(0)
        });
        check(case, "", "backbone", is_head);
    }
}

#[test]
fn narrow_types_stay_narrow() {
    for (case, dtype) in [("bert-f16", Dtype::F16), ("roberta-sharded", Dtype::BF16)] {
        let workspace = Workspace::with_model(case);
        workspace.ok("train --model model --task topic=reviews.csv --max-steps 1 --output trained");
        let tensors = read_model(&workspace.path("trained"));
        assert!(tensors.values().all(|raw| raw.dtype == dtype), "{case}");
        let names = workspace.names("trained");
        assert!(
            !names.iter().any(|name| name.contains("index") || name.contains("-of-")),
            "{names:?}"
        );
    }
}

/// A task that the model has no head for gets one; heads of tasks that are not trained are left
/// out.
#[test]
fn new_heads() {
    let workspace = Workspace::new();
    workspace.ok(
        "train --model model --task mood=reviews.csv::sentiment --max-steps 1 --output trained",
    );
    let tensors = read_model(&workspace.path("trained"));
    let heads: Vec<&str> =
        tensors.keys().map(String::as_str).filter(|name| is_head(name)).collect();
    assert_eq!(heads, ["heads.mood.bias", "heads.mood.weight"]);
    assert_eq!(tensors["heads.mood.weight"].shape, [3, 16]);
    assert_eq!(tensors["heads.mood.weight"].dtype, Dtype::F32);
}

#[test]
fn nothing_left_to_train() {
    let workspace = Workspace::new();
    let train = "train --model model --task topic=reviews.csv --max-steps 1 --output trained";
    workspace.refused(&format!("{train} --freeze all"), 2, &["nothing trains"]);
    workspace.refused(&format!("{train} --freeze backbone+head:topic"), 2, &["nothing trains"]);
    // What is left trains only if the loss reaches it.
    workspace.refused(&format!("{train} --freeze all+keep:pooler.*"), 2, &["nothing trains"]);
}

/// A rate of 0 moves nothing; the heads may have a rate of their own.
#[test]
fn rates_of_backbone_and_heads() {
    let workspace = Workspace::new();
    let before = read_model(&workspace.path("model"));
    let changed = |rates: &str| -> Vec<String> {
        workspace.ok(&format!(
            "train --model model --task topic=reviews.csv --task sentiment=reviews.csv \
             --max-steps 2 --warmup-steps 0 --overwrite --output trained {rates}"
        ));
        let after = read_model(&workspace.path("trained"));
        let names = before.iter().filter(|(name, raw)| **raw != after[*name]);
        names.map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(changed("--learning-rate 0"), Vec::<String>::new());
    let heads = changed("--learning-rate 0 --head-learning-rate 1e-2");
    assert!(heads.len() == 4 && heads.iter().all(|name| is_head(name)), "{heads:?}");
    let rest = changed("--learning-rate 1e-2 --head-learning-rate 0");
    assert!(rest.len() == 59 - 2 - 4 && !rest.iter().any(|name| is_head(name)), "{rest:?}");
}
