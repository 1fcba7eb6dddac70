//! What training writes down: lines of the log, and TensorBoard's events.

use std::fs;

use crate::train::log;
use crate::{Workspace, number};

const TRAIN: &str =
    "train --model model --task topic=reviews.csv --batch-size 8 --max-steps 7 --device cpu";

#[test]
fn a_line_has_the_mean_loss_of_its_steps() {
    let workspace = Workspace::new();
    workspace.ok(&format!("{TRAIN} --output each"));
    workspace.ok(&format!("{TRAIN} --output some --logging-steps 3"));
    let (each, _) = log(&workspace, "each");
    let (some, evaluations) = log(&workspace, "some");
    let steps: Vec<u64> = some.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 6, 7], "and the last");
    for (line, range) in some.iter().zip([0..3, 3..6, 6..7]) {
        let n = range.len() as f64;
        let mean = each[range].iter().map(|line| number(&line["loss"])).sum::<f64>() / n;
        assert!((number(&line["loss"]) - mean).abs() <= 1e-6 * mean, "{line}");
    }
    assert!(!evaluations.is_empty());
    assert_eq!(workspace.read_json("some/trainer_state.json")["logging_steps"], 3);
    workspace.refused(&format!("{TRAIN} --output no --logging-steps 0"), 2, &["--logging-steps"]);
}

/// The payloads of a file of records.
fn payloads(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        found.push(&rest[12..12 + length]);
        rest = &rest[12 + length + 4..];
    }
    found
}

#[test]
fn tensorboard_gets_every_line() {
    let workspace = Workspace::new();
    workspace.ok(&format!("{TRAIN} --output trained --logging-dir events --logging-steps 2"));
    let names = workspace.names("events");
    let name = names.first().unwrap();
    assert!(names.len() == 1 && name.starts_with("events.out.tfevents."), "{names:?}");
    let bytes = fs::read(workspace.path(&format!("events/{name}"))).unwrap();
    let payloads = payloads(&bytes);
    let (steps, evaluations) = log(&workspace, "trained");
    assert_eq!(payloads.len(), 1 + steps.len() + evaluations.len());
    let holds =
        |payload: &[u8], text: &str| payload.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds(payloads[0], "brain.Event:2"));
    let first = steps[0]["loss"].as_f64().unwrap() as f32;
    let tag = b"train/loss".as_slice();
    let at = payloads[1].windows(tag.len()).position(|window| window == tag).unwrap() + tag.len();
    // Behind the tag the value's key, then the value.
    assert_eq!(payloads[1][at..at + 5], [&[0x15], first.to_le_bytes().as_slice()].concat());
    let has = |tag: &str| payloads.iter().filter(|payload| holds(payload, tag)).count();
    assert_eq!((has("train/learning_rate"), has("train/grad_norm")), (steps.len(), steps.len()));
    assert_eq!(
        (has("eval/loss"), has("eval/topic_accuracy")),
        (evaluations.len(), evaluations.len())
    );
}

/// Even batches train on every row once an epoch, in as many steps.
#[test]
fn even_batches_are_batches() {
    let workspace = Workspace::new();
    let run = |more: &str| {
        let train =
            "train --model model --task topic=reviews.csv --batch-size 8 --num-train-epochs 2";
        let report = workspace.json(&format!("{train} --device cpu --json {more}"));
        let tokens =
            workspace.read_json("trained/trainer_state.json")["num_input_tokens_seen"].clone();
        (report["steps"].clone(), tokens)
    };
    assert_eq!(run("--output trained"), run("--output trained --overwrite --even-batches"));
}
