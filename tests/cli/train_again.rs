//! A model that was written can be used like any other: trained further, planned, stepped.

use serde_json::json;

use crate::{ALL_TRAINED, Workspace};

/// Labels in an order that is not that of their bytes, as an earlier run may have had them.
fn trained_before() -> Workspace {
    let workspace = Workspace::new();
    let settings = json!({
        "pooling": "cls",
        "tasks": {
            "topic": {"labels": ["song", "phone", "battery", "screen", "camera"]},
            "sentiment": {"labels": ["good", "fine", "bad"]},
        },
        "freeze": "lower:1",
    });
    workspace.write("model/frostline.json", &settings.to_string());
    workspace
}

#[test]
fn known_labels_keep_their_order() {
    let workspace = trained_before();
    let known = workspace.read_json("model/frostline.json");
    workspace.ok(
        "train --model model --task sentiment=reviews.csv --task topic=reviews.csv --max-steps 2 \
         --output second",
    );
    let settings = workspace.read_json("second/frostline.json");
    assert_eq!(settings["tasks"], known["tasks"]);
    assert_eq!((&settings["pooling"], &settings["freeze"]), (&json!("cls"), &json!("none")));
    workspace.ok(
        "train --model second --task sentiment=reviews.csv --task topic=reviews.csv --max-steps 2 \
         --freeze lower:2 --pooling mean --output third",
    );
    let settings = workspace.read_json("third/frostline.json");
    assert_eq!(settings["tasks"], known["tasks"]);
    assert_eq!((&settings["pooling"], &settings["freeze"]), (&json!("mean"), &json!("lower:2")));
}

/// The order of labels is what the rows of the head mean: a model goes on where it was.
#[test]
fn training_goes_on_where_it_was() {
    let workspace = Workspace::new();
    let train = "train --task topic=reviews.csv --task sentiment=reviews.csv --batch-size 15 \
                 --eval topic=reviews.csv --eval sentiment=reviews.csv --json";
    let learned = workspace.json(&format!(
        "{train} --model model --max-steps 300 --learning-rate 3e-3 --head-learning-rate 1e-2 \
         --output first"
    ));
    // The first step of the default warm-up has a rate of 0.
    let again = workspace.json(&format!("{train} --model first --max-steps 1 --output second"));
    assert_eq!(again["eval"], learned["eval"]);
    let weights = |folder: &str| std::fs::read(workspace.path(folder).join("model.safetensors"));
    assert!(weights("first").unwrap() == weights("second").unwrap());
}

#[test]
fn unknown_labels_are_refused() {
    let workspace = trained_before();
    workspace.write("more.csv", "text,topic\nthe camera,camera\nthe box,box\n");
    workspace.refused(
        "train --model model --task topic=more.csv --holdout 0 --max-steps 1 --output second",
        1,
        &["more.csv", "box", "topic"],
    );
}

/// A subset of the labels keeps the head whole.
#[test]
fn absent_labels_keep_their_rows() {
    let workspace = trained_before();
    workspace.write("some.csv", "text,topic\nthe camera,camera\nthe song,song\na song,song\n");
    workspace.ok("train --model model --task topic=some.csv --max-steps 1 --output second");
    let settings = workspace.read_json("second/frostline.json");
    assert_eq!(settings["tasks"]["topic"]["labels"].as_array().unwrap().len(), 5);
}

#[test]
fn other_commands_know_its_tasks() {
    let workspace = Workspace::new();
    workspace.ok(
        "train --model model --task topic=topics.tsv --task sentiment=moods.jsonl --max-steps 1 \
         --output trained",
    );
    let plan = workspace.json("plan --model trained --json");
    assert_eq!(plan["trainable_parameters"], ALL_TRAINED);
    let text = workspace.ok("plan --model trained --freeze head:sentiment --diff none");
    assert!(text.contains("heads.sentiment.weight"), "{text}");
    workspace
        .ok("step --model trained --batch batch.safetensors --task topic=5 --task sentiment=3 \
         --dump out.safetensors");
    workspace.refused(
        "step --model trained --batch batch.safetensors --task topic=6 --task sentiment=3 \
         --dump out.safetensors",
        1,
        &["model.safetensors", "heads.topic.weight", "5", "6"],
    );
}

/// Before the first step a run says what it took the data and the model for.
#[test]
fn what_was_inferred_is_said() {
    let workspace = Workspace::new();
    let stderr = |arguments: &str| {
        let output = workspace.run(arguments);
        assert!(
            output.status.success(),
            "{arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stderr).unwrap()
    };
    let mut rows = "text,topic\n".to_owned();
    for at in 0..6 {
        rows += &format!(
            "the phone is {at} good,Phone\nthe song is {at} bad,phone\nthe screen {at} is fine,nan\n"
        );
    }
    workspace.write("odd.csv", &(rows + "the phone is 0 good,\n"));
    let run = "--max-steps 1 --holdout 0.2 --device cpu";
    let text = stderr(&format!(
        "train --model model --task fresh=odd.csv:text:topic {run} --freeze lower:1 --output odd"
    ));
    for words in [
        "task fresh: 14 rows to train, 4 to evaluate; 3 labels, Phone",
        "task fresh: `Phone`, `phone` are different labels",
        "task fresh: `nan`",
        "head fresh: not in the model, begins at random",
        "layers 1 to 2",
        "head fresh 51",
        "trains ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("embeddings"), "{text}");
    let text =
        stderr(&format!("train --model model --task topic=reviews.csv {run} --output plain"));
    assert!(!text.contains("different labels") && !text.contains("at random"), "{text}");
}
