//! Which of several evaluations is the best, and the model that is written then.

use serde_json::Value;

use crate::train::log;
use crate::{Workspace, assert_keys, number};

/// Trains on all reviews and evaluates on the same rows, so that who predicts them sees the same loss.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let text = workspace.read("reviews.csv");
    let (_, rows) = text.split_once('\n').unwrap();
    let of_split =
        |split: &str| rows.lines().map(|row| format!("{row},{split}\n")).collect::<String>();
    workspace.write(
        "split.csv",
        &format!("text,topic,sentiment,split\n{}{}", of_split("train"), of_split("test")),
    );
    workspace
}

/// A rate at which the loss goes up and down.
const TRAIN: &str = "train --model model --task topic=split.csv --task sentiment=split.csv --output trained \
                     --eval-steps 2 --warmup-steps 3 --learning-rate 5e-2 --lr-scheduler-type constant \
                     --device cpu --json";

/// The sum over the tasks of the mean cross-entropy of a model's predictions.
fn loss(workspace: &Workspace) -> f64 {
    let lines = workspace.ok("predict --model trained split.csv --json --device cpu");
    let text = workspace.read("split.csv");
    let rows = text.lines().skip(1).map(|row| row.split(',').collect::<Vec<_>>());
    let mut sum = 0.0;
    let mut n_rows = 0;
    for (line, row) in lines.lines().zip(rows) {
        let line: Value = serde_json::from_str(line).unwrap();
        for (task, label) in [("topic", row[1]), ("sentiment", row[2])] {
            sum -= number(&line[task]["probabilities"][label]).ln();
        }
        n_rows += 1;
    }
    assert!(n_rows > 0);
    sum / f64::from(n_rows)
}

#[test]
fn the_best_model_is_written() {
    let workspace = workspace();
    let report = workspace.json(&format!("{TRAIN} --max-steps 6 --load-best-model-at-end"));
    let (_, evaluations) = log(&workspace, "trained");
    let steps: Vec<u64> = evaluations.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4, 6]);
    let losses: Vec<f64> = evaluations.iter().map(|line| number(&line["eval_loss"])).collect();
    let at = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
    assert!(at + 1 < losses.len(), "the last is the best: choose another rate: {losses:?}");
    let best = &report["best"];
    assert_keys(best, &["metric", "value", "step", "kept"]);
    assert_eq!((&best["metric"], &best["kept"]), (&"eval_loss".into(), &true.into()));
    assert_eq!(number(&best["value"]), losses[at]);
    assert_eq!(best["step"], steps[at]);
    assert_eq!(report["eval"], evaluations[at]["eval"]);
    let counts = report["confusion"]["topic"]["counts"].as_array().unwrap();
    let rows = counts.iter().map(|row| row.as_array().unwrap().iter().map(number).sum::<f64>());
    assert_eq!(rows.collect::<Vec<_>>(), [9.0; 5], "45 rows of five topics");
    let right: f64 = (0..5).map(|at| number(&counts[at][at])).sum();
    assert!((right / 45.0 - number(&report["eval"]["topic"]["accuracy"])).abs() <= 1e-12);
    // Probabilities come from logits in f32.
    assert!((loss(&workspace) - losses[at]).abs() <= 1e-5, "another model was written");

    let state = workspace.read_json("trained/trainer_state.json");
    assert_eq!(state["best_metric"], best["value"]);
    assert_eq!((&state["global_step"], &state["best_global_step"]), (&6.into(), &best["step"]));
    assert!(number(&state["total_flos"]) > 0.0 && number(&state["num_input_tokens_seen"]) > 0.0);
    let history = state["log_history"].as_array().unwrap();
    assert_eq!(history.len(), 6 + 3);
    assert_eq!(history[2]["eval_topic_accuracy"], evaluations[0]["eval"]["topic"]["accuracy"]);

    // Without being asked for, the last one is.
    let report = workspace.json(&format!("{TRAIN} --max-steps 6 --overwrite"));
    assert!(report["best"].is_null());
    assert!((loss(&workspace) - losses[losses.len() - 1]).abs() <= 1e-5);
}

#[test]
fn training_stops_when_nothing_gets_better() {
    let workspace = workspace();
    let options =
        "--max-steps 24 --early-stopping-patience 2 --metric-for-best-model topic_accuracy";
    let report = workspace.json(&format!("{TRAIN} {options}"));
    let (steps, evaluations) = log(&workspace, "trained");
    let accuracies: Vec<f64> =
        evaluations.iter().map(|line| number(&line["eval"]["topic"]["accuracy"])).collect();
    let (mut best, mut n_worse, mut expected) = (f64::NEG_INFINITY, 0, 0);
    for accuracy in &accuracies {
        assert!(n_worse < 2, "it went on: {accuracies:?}");
        n_worse = if *accuracy > best { 0 } else { n_worse + 1 };
        best = best.max(*accuracy);
        expected += 2;
    }
    assert!(expected < 24, "it never stopped: {accuracies:?}");
    assert_eq!((n_worse, steps.len()), (2, expected));
    assert_eq!(report["steps"], expected);
    assert_eq!(number(&report["best"]["value"]), best);
    // The last model was written, and its quality is told.
    assert_eq!(report["best"]["kept"], false);
    assert_eq!(report["eval"], evaluations[evaluations.len() - 1]["eval"]);
}

#[test]
fn metrics_that_nothing_has() {
    let workspace = workspace();
    let asked = format!("{TRAIN} --load-best-model-at-end --metric-for-best-model");
    workspace.refused(&format!("{asked} f1"), 2, &["--metric-for-best-model", "TASK_accuracy"]);
    workspace.refused(&format!("{asked} mood_accuracy"), 2, &["mood", "topic, sentiment"]);
    workspace.refused(
        "train --model model --task topic=reviews.csv --output trained --holdout 0 --max-steps 1 \
         --early-stopping-patience 1 --device cpu",
        2,
        &["--holdout"],
    );
}
