//! What counts how much in the loss: weights of tasks and labels, smoothing, several batches a step; and dropout in the
//! frozen part.

use serde_json::json;

use crate::tensors::read_model;
use crate::train::log;
use crate::{Workspace, number};

const TRAIN: &str = "train --model model --task topic=reviews.csv --task sentiment=reviews.csv \
                     --batch-size 16 --cache off --overwrite --output trained";

/// The losses of all steps.
fn losses(workspace: &Workspace, options: &str) -> Vec<f64> {
    workspace.ok(&format!("{TRAIN} {options}"));
    log(workspace, "trained").0.iter().map(|line| number(&line["loss"])).collect()
}

/// The loss before anything has changed.
fn first_loss(workspace: &Workspace, options: &str) -> f64 {
    losses(workspace, &format!("--max-steps 1 {options}"))[0]
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
}

/// A workspace whose model drops nothing out, so that losses can be compared.
fn without_dropout() -> Workspace {
    let workspace = Workspace::new();
    let mut config = workspace.read_json("model/config.json");
    for key in ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"] {
        config[key] = json!(0.0);
    }
    workspace.write("model/config.json", &config.to_string());
    workspace
}

/// Losses are sums of f32: a few roundings.
const ROUNDING: f64 = 2e-6;

#[test]
fn several_batches_a_step_are_one_batch() {
    let workspace = without_dropout();
    for freeze in ["none", "lower:1", "backbone"] {
        // 40 training rows: an epoch is three steps, the last of half a batch, which is one part.
        let common = format!("--freeze {freeze} --learning-rate 1e-3 --num-train-epochs 2");
        let whole = losses(&workspace, &common);
        let parts = format!("{common} --batch-size 8 --gradient-accumulation-steps 2");
        let in_parts = losses(&workspace, &parts);
        assert_eq!((whole.len(), in_parts.len()), (6, 6), "{freeze}");
        for (whole, in_parts) in whole.iter().zip(&in_parts) {
            // AdamW divides by the gradient's size: what was rounding noise there counts here.
            assert_near(*in_parts, *whole, 1e-3);
        }
        assert_near(in_parts[0], whole[0], ROUNDING);
    }
}

/// With dropout above the frost line, whose masks must be those of the same batches.
#[test]
fn several_batches_a_step_read_a_cache() {
    let workspace = Workspace::new();
    let common = "--freeze lower:1 --max-steps 6 --batch-size 8 --gradient-accumulation-steps 3";
    let model = |cache: &str| {
        workspace.ok(&format!("{TRAIN} {common}").replace("--cache off", cache));
        read_model(&workspace.path("trained"))
    };
    assert_eq!(model("--cache host"), model("--cache off"));
}

/// Epochs of so many tokens have different numbers of batches; a run that goes on finds its place among them.
#[test]
fn epochs_of_unequal_length_go_on_where_they_stopped() {
    let workspace = Workspace::new();
    for (name, options) in [
        ("tokens", "--batch-tokens 40 --num-train-epochs 5"),
        ("parts", "--batch-tokens 40 --num-train-epochs 5 --gradient-accumulation-steps 2"),
        ("even", "--batch-tokens 40 --num-train-epochs 5 --even-batches"),
    ] {
        let train =
            format!("{TRAIN} {options}").replace("--batch-size 16", "").replace("--overwrite", "");
        let to = |folder: &str| train.replace("trained", folder);
        let (whole, rest) = (format!("{name}-whole"), format!("{name}-rest"));
        workspace.ok(&format!("{} --save-steps 1", to(&whole)));
        let (steps, evaluations) = log(&workspace, &whole);
        let ends: Vec<f64> = evaluations.iter().map(|line| number(&line["epoch"])).collect();
        assert_eq!(ends, [1.0, 2.0, 3.0, 4.0, 5.0], "{name}");
        assert_eq!(steps.len() as f64, number(&evaluations[4]["step"]), "{name}");
        // From a step within the fourth epoch.
        let step = number(&evaluations[2]["step"]) as u64 + 1;
        let checkpoint = format!("checkpoint-{step}");
        std::fs::create_dir(workspace.path(&rest)).unwrap();
        let from = workspace.path(&format!("{whole}/{checkpoint}"));
        std::fs::rename(from, workspace.path(&format!("{rest}/{checkpoint}"))).unwrap();
        workspace.ok(&format!("{} --resume", to(&rest)));
        assert_eq!(log(&workspace, &rest).0, steps, "{name}");
        let models = [&whole, &rest].map(|folder| read_model(&workspace.path(folder)));
        assert_eq!(models[0], models[1], "{name}");
    }
}

#[test]
fn the_loss_is_linear_in_weights_of_tasks() {
    let workspace = without_dropout();
    let of = |topic: f32| first_loss(&workspace, &format!("--task-weight topic={topic}"));
    let plain = first_loss(&workspace, "");
    assert_near(of(1.0), plain, ROUNDING);
    let topic = of(2.0) - plain;
    assert!(topic > 0.5, "{topic}");
    assert_near(of(3.0) - plain, 2.0 * topic, 4.0 * ROUNDING);
}

#[test]
fn labels_that_weigh_alike_change_nothing() {
    let workspace = without_dropout();
    let plain = first_loss(&workspace, "");
    let alike = first_loss(&workspace, "--class-weights sentiment=bad:3,fine:3,good:3");
    assert_near(alike, plain, ROUNDING);
    let other = first_loss(&workspace, "--class-weights sentiment=bad:30");
    assert!((other - plain).abs() > 1e-3, "{other} {plain}");
    // All 45 rows at once have every label as often as any other of its task.
    let all_rows = "--holdout 0 --batch-size 45";
    let balanced = first_loss(&workspace, &format!("{all_rows} --class-weights balanced"));
    assert_near(balanced, first_loss(&workspace, all_rows), ROUNDING);
}

#[test]
fn smoothing_is_linear_too() {
    let workspace = without_dropout();
    let of = |share: f32| first_loss(&workspace, &format!("--label-smoothing-factor {share}"));
    let (plain, once, twice) = (first_loss(&workspace, ""), of(0.2), of(0.4));
    assert!((once - plain).abs() > 1e-4, "{once} {plain}");
    assert_near(twice - plain, 2.0 * (once - plain), 4.0 * ROUNDING);
}

#[test]
fn dropout_in_the_frozen_part() {
    let workspace = Workspace::new();
    let deterministic = losses(&workspace, "--freeze lower:2 --max-steps 2");
    let dropped = losses(&workspace, "--freeze lower:2 --max-steps 2 --frozen-dropout");
    assert!(deterministic[0] != dropped[0]);
    // With nothing below the frost line the option changes nothing.
    let all = losses(&workspace, "--max-steps 2");
    assert_eq!(all, losses(&workspace, "--max-steps 2 --frozen-dropout"));
    let refused = format!("{TRAIN} --freeze lower:2 --frozen-dropout --cache device");
    let refused = refused.replace("--cache off ", "");
    workspace.refused(&refused, 2, &["--cache: with --frozen-dropout the frozen part gives"]);
}

#[test]
fn what_is_not_there_is_named() {
    let workspace = Workspace::new();
    for (options, words) in [
        (
            "--task-weight mood=2",
            "--task-weight mood: no such task; the tasks are topic, sentiment",
        ),
        ("--class-weights mood=balanced", "--class-weights mood: no such task"),
        (
            "--class-weights topic=car:2",
            "--class-weights car:2: there is no such label; those of topic are battery, ",
        ),
        ("--class-weights car:2", "song; those of sentiment are bad, fine, good"),
        (
            "--class-weights balanced --class-weights topic=song:2",
            "labels of task topic are weighted twice",
        ),
        ("--task-weight topic=2 --task-weight topic=3", "--task-weight topic: is given twice"),
    ] {
        workspace.refused(&format!("{TRAIN} {options}"), 2, &[words]);
    }
    for (options, words) in [
        ("--task-weight topic=0", "expected a weight above 0"),
        ("--task-weight topic", "expected TASK=WEIGHT"),
        ("--class-weights topic=rare", "expected balanced or LABEL:WEIGHT"),
        ("--label-smoothing-factor 1", "expected a share from 0, under 1"),
        ("--gradient-accumulation-steps 0", "expected a whole number from 1"),
    ] {
        workspace.refused(&format!("{TRAIN} {options}"), 2, &[words]);
    }
}

/// A head whose task weighs nothing else than before is the same, whatever the other task weighs.
#[test]
fn a_frozen_backbone_separates_tasks() {
    let workspace = without_dropout();
    let head = |options: &str| {
        workspace
            .ok(&format!("{TRAIN} --freeze backbone --max-grad-norm 0 --max-steps 3 {options}"));
        read_model(&workspace.path("trained"))
    };
    let (heavy, light) = (head("--task-weight topic=5"), head("--task-weight topic=1"));
    assert_eq!(heavy["heads.sentiment.weight"], light["heads.sentiment.weight"]);
    assert_ne!(heavy["heads.topic.weight"], light["heads.topic.weight"]);
}
