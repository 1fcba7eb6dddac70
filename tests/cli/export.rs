//! `export`: folders for other libraries. That they load there, with the same probabilities, is
//! `tests/golden/check_export.py`'s to see; here their tensors are those of the model.

use frostline::model::WeightFile;
use serde_json::json;

use crate::{TOPICS, Workspace};

/// Trained with the pooling that the case is called by.
fn trained(case: &str) -> Workspace {
    let workspace = Workspace::with_model(case);
    let (_, pooling) = case.rsplit_once('-').unwrap();
    workspace.ok(&format!(
        "train --model model --task topic=reviews.csv --task sentiment=reviews.csv --output trained \
         --max-steps 2 --learning-rate 1e-2 --device cpu --pooling {pooling}"
    ));
    workspace
}

/// Asserts that a tensor of the one folder is one of the other, byte for byte.
#[track_caller]
fn assert_same(workspace: &Workspace, file: &str, name: &str, own: &str) {
    let exported = WeightFile::open_file(&workspace.path(file)).unwrap();
    let trained = WeightFile::open_file(&workspace.path("trained/model.safetensors")).unwrap();
    assert_eq!(exported.shape(name), trained.shape(own), "{name}");
    assert!(exported.shape(name).is_some(), "{name}");
    assert_eq!(exported.bytes(name).unwrap(), trained.bytes(own).unwrap(), "{name}");
}

#[test]
fn a_pooler_and_a_head_are_a_class_of_transformers() {
    for (case, class, pooler, head, prefix) in [
        (
            "bert-pooler",
            "BertForSequenceClassification",
            "bert.pooler.dense",
            "classifier",
            "bert.",
        ),
        (
            "xlm-roberta-pooler",
            "XLMRobertaForSequenceClassification",
            "classifier.dense",
            "classifier.out_proj",
            "roberta.",
        ),
    ] {
        let workspace = trained(case);
        let report = workspace.json("export --model trained --head topic --output topic --json");
        assert_eq!(report, json!({"output": "topic", "is": "sequence-classification"}));
        let config = workspace.read_json("topic/config.json");
        assert_eq!(config["architectures"], json!([class]));
        assert_eq!(config["label2id"][TOPICS[3]], 3);
        assert_eq!(config["id2label"]["3"], TOPICS[3]);
        let trained = workspace.path("trained/model.safetensors");
        let trained = WeightFile::open_file(&trained).unwrap();
        let own = |name: &str| {
            let prefixed = format!("{prefix}{name}");
            if trained.contains(&prefixed) { prefixed } else { name.to_owned() }
        };
        let file = "topic/model.safetensors";
        for part in ["weight", "bias"] {
            let theirs = own(&format!("pooler.dense.{part}"));
            assert_same(&workspace, file, &format!("{pooler}.{part}"), &theirs);
            let theirs = format!("heads.topic.{part}");
            assert_same(&workspace, file, &format!("{head}.{part}"), &theirs);
            let name = format!("encoder.layer.0.output.dense.{part}");
            assert_same(&workspace, file, &format!("{prefix}{name}"), &own(&name));
        }
        let exported = WeightFile::open_file(&workspace.path(file)).unwrap();
        assert!(
            !exported.contains("heads.topic.weight")
                && !exported.contains("heads.sentiment.weight")
        );
        workspace.refused("export --model trained --output encoder", 1, &["tanh pooler", "--head"]);
    }
}

#[test]
fn other_poolings_are_sentence_transformers() {
    for (case, mode) in
        [("bert-mean", "pooling_mode_mean_tokens"), ("distilbert-cls", "pooling_mode_cls_token")]
    {
        let workspace = trained(case);
        let text = workspace.ok("export --model trained --head topic --output topic");
        assert!(text.contains("no class of transformers") && text.contains("2_Dense"), "{text}");
        let modules = workspace.read_json("topic/modules.json");
        assert_eq!(modules.as_array().unwrap().len(), 3);
        assert_eq!(workspace.read_json("topic/1_Pooling/config.json")[mode], true);
        assert_eq!(workspace.read_json("topic/2_Dense/config.json")["out_features"], 5);
        assert_eq!(workspace.read_json("topic/2_Dense/labels.json"), json!(TOPICS));
        for part in ["weight", "bias"] {
            let (name, own) = (format!("linear.{part}"), format!("heads.topic.{part}"));
            assert_same(&workspace, "topic/2_Dense/model.safetensors", &name, &own);
        }
        workspace.ok("export --model trained --output encoder");
        let modules = workspace.read_json("encoder/modules.json");
        assert_eq!(modules.as_array().unwrap().len(), 2);
        // What it wrote is a model folder, which pools as before.
        workspace.ok("predict --model encoder reviews.csv --embeddings of_export.npy --device cpu");
        workspace.ok("predict --model trained reviews.csv --embeddings of_model.npy --device cpu");
        let bytes = |name: &str| std::fs::read(workspace.path(name)).unwrap();
        assert_eq!(bytes("of_export.npy"), bytes("of_model.npy"));
    }
}

#[test]
fn refusals() {
    let workspace = trained("bert-mean");
    workspace.refused(
        "export --model trained --head mood --output mood",
        1,
        &["trained", "`mood`", "sentiment, topic"],
    );
    workspace.refused("export --model model --head topic --output x", 1, &["`topic`", "none"]);
    workspace.refused("export --model trained --head topic --output trained", 2, &["--overwrite"]);
    workspace.refused("export --model absent --output x", 1, &["absent"]);
}
