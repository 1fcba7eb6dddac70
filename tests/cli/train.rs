//! What a training run does, and what it says of it.

use serde_json::{Value, json};

use crate::{SENTIMENTS, TOPICS, Workspace, assert_keys, number};

const TWO_TASKS: &str = "train --model model --task topic=reviews.csv --task sentiment=reviews.csv";

/// Lines of the log: steps, and evaluations.
pub fn log(workspace: &Workspace, folder: &str) -> (Vec<Value>, Vec<Value>) {
    let text = workspace.read(&format!("{folder}/train_log.jsonl"));
    assert!(text.ends_with('\n'));
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.partition(|line| line.get("eval").is_none())
}

#[test]
fn two_tasks_from_one_file() {
    let workspace = Workspace::new();
    let before = workspace.names(".");
    let report = workspace
        .json(&format!("{TWO_TASKS} --max-steps 5 --batch-size 16 --output trained --json"));
    assert_keys(
        &report,
        &[
            "output",
            "freeze",
            "steps",
            "train_runtime",
            "train_steps_per_second",
            "trainable_parameters",
            "parameters",
            "eval",
            "confusion",
            "best",
            "frozen",
            "forgetting",
            "drift",
            "gap",
            "before",
        ],
    );
    assert_eq!(report["steps"], 5);
    assert_eq!(report["trainable_parameters"], crate::ALL_TRAINED);
    assert_eq!(report["parameters"], crate::ALL_TRAINED + crate::POOLER);
    assert_eq!(report["frozen"], json!({"n_tensors": 2, "n_values": crate::POOLER}));

    let expected = [
        "config.json",
        "frostline-manifest.json",
        "frostline.json",
        "model.safetensors",
        "tokenizer.json",
        "train_log.jsonl",
        "trainer_state.json",
    ];
    assert_eq!(workspace.names("trained"), expected.map(str::to_owned).into());
    let mut after = workspace.names(".");
    assert!(after.remove("trained"));
    assert_eq!(after, before, "temporary files are left");
    for name in ["config.json", "tokenizer.json"] {
        assert_eq!(
            workspace.read(&format!("trained/{name}")),
            workspace.read(&format!("model/{name}"))
        );
    }
    assert_eq!(
        workspace.read_json("trained/frostline.json"),
        json!({
            "pooling": "mean",
            "tasks": {"topic": {"labels": TOPICS}, "sentiment": {"labels": SENTIMENTS}},
            "freeze": "none",
        })
    );

    // 45 rows, of which a tenth is held out: three batches an epoch.
    let (steps, evaluations) = log(&workspace, "trained");
    assert_eq!(steps.len(), 5);
    for (at, line) in (1..).zip(&steps) {
        assert_keys(line, &["step", "epoch", "loss", "grad_norm", "learning_rate"]);
        assert_eq!(line["step"], at);
        // Both are the same division.
        assert_eq!(number(&line["epoch"]), f64::from(at) / 3.0);
        assert!(number(&line["loss"]) > 0.0 && number(&line["grad_norm"]) > 0.0, "{line}");
    }
    let at_steps: Vec<&Value> = evaluations.iter().map(|line| &line["step"]).collect();
    assert_eq!(at_steps, [3, 5]);
    for line in &evaluations {
        assert_keys(line, &["step", "epoch", "eval_loss", "eval_runtime", "eval"]);
        assert_keys(&line["eval"], &["topic", "sentiment"]);
        for task in ["topic", "sentiment"] {
            let quality = &line["eval"][task];
            assert_keys(quality, &["accuracy", "macro_f1"]);
            for value in [&quality["accuracy"], &quality["macro_f1"]] {
                assert!((0.0..=1.0).contains(&number(value)), "{line}");
            }
        }
    }
    assert_eq!(report["eval"], evaluations[1]["eval"]);
}

#[test]
fn two_tasks_from_two_files() {
    let workspace = Workspace::new();
    let train = "train --model model --task topic=topics.tsv --task sentiment=moods.jsonl \
                 --max-steps 4 --batch-size 16 --output trained";
    let output = workspace.run(train);
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    for file in ["topics.tsv", "moods.jsonl"] {
        let is_counted =
            |line: &str| line.contains(file) && line.contains("45 rows read, 0 skipped");
        assert!(stderr.lines().any(is_counted), "{stderr}");
    }
    let settings = workspace.read_json("trained/frostline.json");
    assert_eq!(settings["tasks"]["topic"]["labels"], json!(TOPICS));
    assert_eq!(settings["tasks"]["sentiment"]["labels"], json!(SENTIMENTS));
    // 40 rows of each file train, in batches of 16 that mix both.
    let (steps, _) = log(&workspace, "trained");
    assert_eq!(number(&steps[3]["epoch"]), 4.0 / 5.0);
    let text = workspace.ok(&format!("{train} --overwrite"));
    for words in ["for 4 steps", "topic: accuracy", "sentiment: accuracy", "wrote trained"] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}

/// Rows without a label for a task, and rows held out by a column or by a file.
#[test]
fn splits_and_missing_labels() {
    let workspace = Workspace::new();
    let mut text = "text,topic,sentiment,split\n".to_owned();
    for (at, topic) in ["camera", "song", "camera", "song"].iter().enumerate() {
        let sentiment = ["good", "bad", "", "-100"][at];
        text += &format!("the {topic} {sentiment},{topic},{sentiment},train\n");
    }
    text += "a camera,camera,,test\na song,song,,test\n,song,good,train\n";
    workspace.write("split.csv", &text);
    let arguments = "train --model model --task kind=split.csv::topic --task mood=split.csv::sentiment \
                     --max-steps 2 --output trained --json";
    let output = workspace.run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("7 rows read, 1 skipped (1 without text, 0 without label)"),
        "{stderr}"
    );
    assert!(stderr.contains("4 to train, 2 to evaluate"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // No evaluation row has a mood.
    assert_eq!(report["eval"]["mood"], json!({"accuracy": null, "macro_f1": null}));
    assert!(report["eval"]["kind"]["accuracy"].is_number());

    // Without evaluation rows there is no evaluation.
    let report =
        workspace.json(&format!("{TWO_TASKS} --holdout 0 --max-steps 1 --output whole --json"));
    assert_eq!(report["eval"], Value::Null);
    assert!(log(&workspace, "whole").1.is_empty());

    workspace.write("only_test.csv", "text,topic,split\na,camera,test\nb,song,test\n");
    workspace.refused(
        "train --model model --task kind=only_test.csv::topic --max-steps 1 --output none",
        1,
        &["only_test.csv", "kind"],
    );
}

/// The rate rises on a line over the warm-up, then falls to 0 one step behind the last.
#[test]
fn learning_rate_follows_the_schedule() {
    let workspace = Workspace::new();
    let rates = |options: &str| -> Vec<f64> {
        workspace.ok(&format!(
            "{TWO_TASKS} --max-steps 10 --batch-size 8 --learning-rate 0.5e-3 --overwrite \
             --output trained {options}"
        ));
        let (steps, _) = log(&workspace, "trained");
        steps.iter().map(|line| number(&line["learning_rate"])).collect()
    };
    let close = |found: Vec<f64>, factors: [f64; 10]| {
        assert_eq!(found.len(), 10);
        for (found, factor) in found.iter().zip(factors) {
            // The rate is an f32 that was widened.
            assert!((found - 0.5e-3 * factor).abs() <= 1e-10, "{found}, not {factor} of the rate");
        }
    };
    let warm = [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
    close(rates("--warmup-steps 2"), warm);
    close(rates("--warmup_ratio 0.2"), warm);
    close(
        rates(""),
        [
            0.0,
            1.0,
            8.0 / 9.0,
            7.0 / 9.0,
            6.0 / 9.0,
            5.0 / 9.0,
            4.0 / 9.0,
            3.0 / 9.0,
            2.0 / 9.0,
            1.0 / 9.0,
        ],
    );
    close(rates("--warmup-steps 0 --lr-scheduler-type constant"), [1.0; 10]);
    let cosine = rates("--warmup-steps 0 --lr_scheduler_type cosine");
    assert!((cosine[0] - 0.5e-3).abs() <= 1e-10 && (cosine[5] - 0.25e-3).abs() <= 1e-10);
}

/// Epochs end where the rows end; a limit of tokens cuts other batches.
#[test]
fn epochs_and_batches() {
    let workspace = Workspace::new();
    let n_steps = |options: &str| {
        let report = workspace.json(&format!(
            "{TWO_TASKS} --holdout 0 --overwrite --output trained --json {options}"
        ));
        report["steps"].as_u64().unwrap()
    };
    // 45 rows in batches of 32 (the default), 10 and 45.
    assert_eq!(n_steps("--num-train-epochs 2"), 2 * 2);
    assert_eq!(n_steps("--num-train-epochs 1 --batch-size 10"), 5);
    assert_eq!(n_steps("--batch-size 45"), 3);
    // Steps beyond the epochs begin more of them.
    assert_eq!(n_steps("--num-train-epochs 1 --batch-size 45 --max-steps 4"), 4);
    // 15 rows each of 6, 7 and 8 tokens: 315 in all, at least six batches of at most 60.
    let n = n_steps("--num-train-epochs 1 --batch-tokens 60");
    assert!((6..=7).contains(&n), "{n} batches");
    // Cut at 4 tokens each, 15 rows fit.
    assert_eq!(n_steps("--num-train-epochs 1 --batch-tokens 60 --max-length 4"), 3);
}

#[test]
fn options_that_cannot_be() {
    let workspace = Workspace::new();
    for (options, named) in [
        ("--threads 0", "--threads"),
        ("--max-steps 0", "--max-steps"),
        ("--batch-size 0", "--batch-size"),
        ("--max-length 12", "11"),
        ("--max-length 2", "special tokens"),
        ("--batch-tokens 3", "--batch-tokens 3"),
        ("--warmup-steps 1.5", "--warmup-steps"),
        ("--holdout 1", "1"),
        ("--task topic=topics.tsv", "twice"),
        ("--task mood=3", "mood=3"),
        ("--eval mood=reviews.csv", "mood"),
    ] {
        workspace.refused(&format!("{TWO_TASKS} --output trained {options}"), 2, &[named]);
    }
}

/// A word decides each label: after enough steps the rows that it learned from are known.
#[test]
fn learns() {
    let workspace = Workspace::new();
    let quality = |options: &str| {
        let report = workspace.json(&format!(
            "{TWO_TASKS} --eval topic=reviews.csv --eval sentiment=reviews.csv --batch-size 15 \
             --overwrite --output trained --json {options}"
        ));
        ["topic", "sentiment"].map(|task| number(&report["eval"][task]["accuracy"]))
    };
    let barely = quality("--max-steps 1");
    assert!(barely.iter().all(|accuracy| *accuracy < 0.7), "{barely:?}");
    let learned = quality("--max-steps 300 --learning-rate 3e-3 --head-learning-rate 1e-2");
    assert!(learned.iter().all(|accuracy| *accuracy > 0.9), "{learned:?}");
}
