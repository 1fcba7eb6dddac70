//! Checkpoints: runs that are killed, go on, and end as if nothing had happened.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::train::log;
use crate::{Workspace, assert_keys};

const TRAIN: &str = "train --model model --task topic=reviews.csv --task sentiment=reviews.csv --holdout 0.2 \
                     --num-train-epochs 6 --batch-size 4 --learning-rate 1e-3 --eval-steps 7 --device cpu \
                     --load-best-model-at-end --json";

fn schedule() -> [&'static str; 2] {
    ["--schedule", "0:backbone 2:lower:1 4:none"]
}

fn arguments(more: &str) -> Vec<&str> {
    let mut arguments: Vec<&str> = TRAIN.split_whitespace().collect();
    arguments.extend(schedule());
    arguments.extend(more.split_whitespace());
    arguments
}

fn start(workspace: &Workspace, more: &str) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_frostline"))
        .current_dir(workspace.0.path())
        .args(arguments(more))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What must be equal in two runs: the model, and the log but for times.
fn outcome(workspace: &Workspace, folder: &str) -> (Vec<u8>, Vec<serde_json::Value>) {
    let (steps, mut evaluations) = log(workspace, folder);
    for line in &mut evaluations {
        line.as_object_mut().unwrap().remove("eval_runtime");
    }
    let model = fs::read(workspace.path(&format!("{folder}/model.safetensors"))).unwrap();
    (model, [steps, evaluations].concat())
}

/// 20 kills, at moments that sweep over the run's length and so over steps, evaluations and saves.
#[test]
fn killed_runs_end_with_the_same_bytes() {
    let workspace = Workspace::new();
    let begun = Instant::now();
    assert!(start(&workspace, "--output unbroken --save-steps 2").wait().unwrap().success());
    let mut length = begun.elapsed();
    let expected = outcome(&workspace, "unbroken");
    let more = "--output killed --save-steps 2 --save-total-limit 3 --resume";
    let (mut n_started, mut n_killed, mut begins_anew) = (0_u32, 0, false);
    while n_killed < 20 {
        if std::mem::take(&mut begins_anew) {
            fs::remove_dir_all(workspace.path("killed")).unwrap();
        }
        let mut run = start(&workspace, more);
        // Within the first two thirds of a whole run; the golden ratio spreads the moments.
        let share = (f64::from(n_started) * 0.618_034).fract() * 0.66;
        std::thread::sleep(length.mul_f64(share));
        n_started += 1;
        assert!(
            n_started <= 200,
            "only {n_killed} of {n_started} runs were still going on when they were killed"
        );
        let has_ended = run.try_wait().unwrap().is_some();
        run.kill().unwrap();
        run.wait().unwrap();
        if has_ended {
            // What remained was shorter, or the machine has become faster.
            length = length.mul_f64(0.9);
        } else {
            n_killed += 1;
            if n_killed % 5 != 0 {
                continue;
            }
            assert!(start(&workspace, more).wait().unwrap().success(), "after kill {n_killed}");
        }
        assert!(outcome(&workspace, "killed") == expected, "another model after kill {n_killed}");
        begins_anew = true;
    }
    let names = workspace.names("killed");
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.starts_with("checkpoint-")).count(), 3);
}

#[test]
fn a_checkpoint_is_a_model_and_what_a_run_needs() {
    let workspace = Workspace::new();
    let mut more = arguments("--output trained --save-strategy epoch");
    more.extend(["--max-steps", "40"]);
    crate::stdout_of(&workspace.run_all(&more), "train");
    let names: Vec<String> =
        workspace.names("trained").into_iter().filter(|name| name.starts_with("check")).collect();
    assert_eq!(names, ["checkpoint-18", "checkpoint-27", "checkpoint-36", "checkpoint-9"]);
    let inside = workspace.names("trained/checkpoint-18");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "frostline.json"] {
        assert!(inside.contains(name), "{inside:?}");
    }
    let state = workspace.read_json("trained/checkpoint-18/trainer_state.json");
    assert_eq!((&state["global_step"], &state["epoch"]), (&18.into(), &2.0.into()));
    assert_keys(
        &workspace.read_json("trained/checkpoint-18/training_args.json"),
        &["freeze", "tasks", "pooling", "model_sha256", "data_sha256", "options"],
    );
    // Only heads had trained: their moments alone are there.
    let file = workspace.path("trained/checkpoint-9/optimizer.safetensors");
    let optimizer = crate::tensors::read_file(&file);
    let heads = ["topic", "sentiment"].map(|task| {
        ["weight", "bias"]
            .map(|part| ["m", "v"].map(|moment| format!("{moment}.heads.{task}.{part}")))
    });
    let mut expected: Vec<String> = heads.into_iter().flatten().flatten().collect();
    expected.sort();
    assert_eq!(optimizer.into_keys().collect::<Vec<_>>(), expected);
    workspace.ok("predict --model trained/checkpoint-18 reviews.csv --json --device cpu");
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let workspace = Workspace::new();
    assert!(start(&workspace, "--output whole --save-steps 10").wait().unwrap().success());
    let expected = outcome(&workspace, "whole");
    for (name, damage) in [
        ("checkpoint-50/optimizer.safetensors", 100),
        ("checkpoint-40/checkpoint.json", 100),
        ("checkpoint-30/model.safetensors", 5000),
    ] {
        let path = workspace.path(&format!("whole/{name}"));
        let mut bytes = fs::read(&path).unwrap();
        if name.ends_with("json") {
            bytes.truncate(damage);
        } else {
            bytes[damage] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
    }
    let output = workspace.run_all(&arguments("--output whole --save-steps 10 --resume"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    crate::stdout_of(&output, "train --resume");
    for words in [
        "passed over: whole/checkpoint-50/optimizer.safetensors: is damaged",
        "passed over: whole/checkpoint-40/checkpoint.json",
        "passed over: whole/checkpoint-30/model.safetensors: is damaged",
        "going on from whole/checkpoint-20",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert!(outcome(&workspace, "whole") == expected);
}

#[test]
fn a_run_goes_on_only_as_itself() {
    let workspace = Workspace::new();
    assert!(start(&workspace, "--output one --save-steps 10").wait().unwrap().success());
    let refused = |more: &str, named: &[&str]| {
        let output = workspace.run_all(&arguments(more));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(named.iter().all(|name| stderr.contains(name)), "{stderr}");
    };
    refused(
        "--output one --resume --seed 7 --weight-decay 0.5",
        &[
            "--resume",
            "checkpoint-50",
            "trained with",
            "--seed 42, this run has 7",
            "--weight-decay 0.01",
        ],
    );
    // Nothing else than what differs.
    let output = workspace.run_all(&arguments("--output one --resume --seed 7"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr.trim_end().ends_with("checkpoint-50 was trained with --seed 42, this run has 7"),
        "{stderr}"
    );
    refused("--output one", &["is there already", "--resume"]);
    refused("--output one --resume --overwrite", &["--overwrite"]);
    // A fresh run takes away what an earlier one left.
    let mut fresh = start(&workspace, "--output one --overwrite --save-steps 40");
    assert!(fresh.wait().unwrap().success());
    let checkpoints: Vec<String> =
        workspace.names("one").into_iter().filter(|name| name.starts_with("check")).collect();
    assert_eq!(checkpoints, ["checkpoint-40"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_so() {
    let workspace = Workspace::new();
    let expected = {
        assert!(start(&workspace, "--output unbroken").wait().unwrap().success());
        outcome(&workspace, "unbroken")
    };
    // Until a run was still going on when the signal came.
    for delay in [60, 30, 15, 120, 240] {
        let _ = fs::remove_dir_all(workspace.path("stopped"));
        let mut run = start(&workspace, "--output stopped");
        std::thread::sleep(Duration::from_millis(delay));
        let id = run.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().unwrap();
        let status = run.wait().unwrap();
        if status.code() != Some(130) {
            continue;
        }
        let names = workspace.names("stopped");
        assert!(names.iter().all(|name| name.starts_with("checkpoint-")), "{names:?}");
        assert_eq!(names.len(), 1);
        assert!(start(&workspace, "--output stopped --resume").wait().unwrap().success());
        assert!(outcome(&workspace, "stopped") == expected);
        return;
    }
    panic!("no run was stopped in time");
}
