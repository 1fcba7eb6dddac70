//! Freezes that follow each other, and rates of single parameters.

use crate::tensors::read_model;
use crate::train::log;
use crate::{Workspace, number};

const TRAIN: &str = "--model model --task topic=reviews.csv --device cpu --json --learning-rate 1e-3 \
                     --lr-scheduler-type constant --warmup-steps 0.0 --weight-decay 0 --batch-size 16 --output \
                     trained";

fn train(workspace: &Workspace, more: &[&str]) -> serde_json::Value {
    let mut arguments: Vec<&str> = std::iter::once("train").chain(TRAIN.split(' ')).collect();
    arguments.retain(|argument| !argument.is_empty());
    arguments.extend(more);
    let output = workspace.run_all(&arguments);
    serde_json::from_str(&crate::stdout_of(&output, &arguments.join(" "))).unwrap()
}

/// The largest change of a tensor from the model's own.
fn change(workspace: &Workspace, name: &str) -> f64 {
    let [before, after] = ["model", "trained"].map(|folder| {
        let bytes = &read_model(&workspace.path(folder))[name].bytes;
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>()
    });
    before.into_iter().zip(after).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

const LAYERS: [&str; 3] = [
    "encoder.layer.0.output.dense.weight",
    "encoder.layer.1.output.dense.weight",
    "encoder.layer.2.output.dense.weight",
];

/// AdamW moves a value in its first step by the learning rate, whatever the gradient (but for epsilon): a tensor whose
/// first step is the run's fourth must move as far as one in the run's first.
#[test]
fn a_tensor_counts_its_own_steps() {
    let workspace = Workspace::new();
    let more = ["--schedule", "0:backbone @3:lower:2", "--max-steps", "4"];
    let report = train(&workspace, &more);
    assert_eq!(report["freeze"], "0:backbone @3:lower:2");
    let moved = change(&workspace, LAYERS[2]);
    assert!((moved - 1e-3).abs() <= 1e-5, "{moved}");
    assert_eq!((change(&workspace, LAYERS[0]), change(&workspace, LAYERS[1])), (0.0, 0.0));
}

#[test]
fn changes_are_announced_and_logged() {
    let workspace = Workspace::new();
    let output = workspace.run_all(&[
        "train",
        "--model",
        "model",
        "--task",
        "topic=reviews.csv",
        "--schedule",
        "0:backbone 1:lower:2 @5:none",
        "--num-train-epochs",
        "2",
        "--batch-size",
        "16",
        "--device",
        "cpu",
        "--output",
        "trained",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    crate::stdout_of(&output, "train");
    for words in ["0.00: backbone frozen from here", "1.00: lower:2 frozen", "1.67: none frozen"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    let (lines, _) = log(&workspace, "trained");
    let changes: Vec<_> = lines.iter().filter(|line| line.get("freeze").is_some()).collect();
    let steps: Vec<_> = changes.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 3, 5]);
    let values: Vec<f64> =
        changes.iter().map(|line| number(&line["trainable_parameters"])).collect();
    assert!(values[0] < values[1] && values[1] < values[2], "{values:?}");
    let shares: Vec<f64> = changes.iter().map(|line| number(&line["flops_share"])).collect();
    assert!(0.0 < shares[0] && shares[0] < shares[1] && shares[1] < 1.0, "{shares:?}");
    assert_eq!(shares[2], 1.0);
    assert!(change(&workspace, LAYERS[0]) > 0.0);
}

/// What was trained and is frozen later keeps what it learned, and counts as trained.
#[test]
fn what_is_frozen_later_stays() {
    let workspace = Workspace::new();
    let report = train(&workspace, &["--schedule", "0:none @1:backbone", "--max-steps", "3"]);
    let moved = change(&workspace, LAYERS[0]);
    assert!((moved - 1e-3).abs() <= 1e-5, "{moved}");
    // The pooler gets no gradient from a mean.
    assert_eq!(number(&report["frozen"]["n_tensors"]), 2.0);
}

#[test]
fn rates_fall_from_layer_to_layer_and_follow_names() {
    let workspace = Workspace::new();
    let more = [
        "--max-steps",
        "1",
        "--layer-lr-decay",
        "0.5",
        "--param-learning-rate",
        "encoder.layer.1.*=1e-2",
    ];
    train(&workspace, &more);
    let moved = LAYERS.map(|name| change(&workspace, name));
    for (moved, expected) in moved.into_iter().zip([0.25e-3, 1e-2, 1e-3]) {
        assert!((moved - expected).abs() <= 0.01 * expected, "{moved} for {expected}");
    }
}

#[test]
fn schedules_that_cannot_be_are_refused() {
    let workspace = Workspace::new();
    let refused = |schedule: &str, named: &[&str]| {
        let arguments =
            ["train", "--model", "model", "--task", "topic=reviews.csv", "--output", "t"];
        let mut arguments = arguments.to_vec();
        arguments.extend(["--batch-size", "16", "--device", "cpu", "--schedule", schedule]);
        let output = workspace.run_all(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(named.iter().all(|name| stderr.contains(name)), "{stderr}");
        assert!(!workspace.path("t").exists());
    };
    refused("1:none", &["--schedule", "begin at 0"]);
    refused("0:backbone 3:none", &["3:none begins behind the end", "9 steps"]);
    refused("0:backbone @3:none 1:lower:1", &["1:lower:1 does not begin behind", "3 steps"]);
    refused("0:all", &["nothing trains"]);
    refused("0:lower:9", &["beyond the model's 3 layers"]);
    let more = "train --model model --task topic=reviews.csv --output t --device cpu";
    workspace.refused(&format!("{more} --schedule 0:none --freeze all"), 2, &["--schedule"]);
    workspace.refused(&format!("{more} --layer-lr-decay 1.5"), 2, &["--layer-lr-decay", "1.5"]);
    workspace.refused(
        &format!("{more} --param-learning-rate x*=1e-3"),
        2,
        &["x*=0.001: no tensor"],
    );
}
