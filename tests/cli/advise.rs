//! Where to put the frost line: what is said, and what is refused.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Workspace, assert_keys, number};

const ADVISE: &str = "advise --model model --device cpu";
const TASKS: &str = "--task topic=reviews.csv --task sentiment=reviews.csv --holdout 0.3";

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn freezes(rows: &Value) -> Vec<&str> {
    list(rows).iter().map(|row| row["freeze"].as_str().unwrap()).collect()
}

#[test]
fn everything_is_said_about_every_task_and_depth() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!("{ADVISE} {TASKS} --json"));
    assert_keys(&document, &["environment", "settings", "models"]);
    let model = &document["models"][0];
    assert_eq!(freezes(&model["costs"]), ["backbone", "lower:2", "lower:1", "none"]);
    for cost in list(&model["costs"]) {
        assert!(
            number(&cost["run_seconds"]) > 0.0 && number(&cost["step_seconds"]) > 0.0,
            "{cost}"
        );
        assert_eq!(cost["cache"].is_null(), cost["freeze"] == "none", "{cost}");
    }
    assert_eq!(model["costs"][3]["flops_share"], 1.0);
    for (task, n_labels) in list(&model["tasks"]).iter().zip([5, 3]) {
        let points = list(&task["curve"]["points"]);
        assert_eq!(points.len(), 2 * 4, "two poolings of four hidden states");
        for point in points {
            let accuracy = number(&point["accuracy"]);
            assert!((0.0..=1.0).contains(&accuracy), "{point}");
            assert!(number(&point["logme"]).is_finite(), "{point}");
        }
        assert_eq!(list(&task["classes"]).len(), n_labels);
    }
    let recommendation = &model["recommendation"];
    let freeze = recommendation["freeze"].as_str().unwrap();
    assert!(freezes(&model["costs"]).contains(&freeze), "{recommendation}");
    assert_eq!(model["advised"], freeze);
    assert!(model["sweep"].is_null());
    assert_eq!(recommendation["learning_rate"], 5e-5_f32);
}

#[test]
fn people_and_pages_are_told_the_same() {
    let workspace = Workspace::new();
    let text = workspace.ok(&format!(
        "{ADVISE} {TASKS} --export-json advice.json --export-markdown advice.md --report advice.html"
    ));
    let document = workspace.read_json("advice.json");
    let freeze = document["models"][0]["recommendation"]["freeze"].as_str().unwrap();
    let line = format!("Recommended: --freeze {freeze} ");
    let (markdown, page) = (workspace.read("advice.md"), workspace.read("advice.html"));
    for shown in [&text, &markdown, &page] {
        assert!(shown.contains(&line), "{shown}");
        assert!(shown.contains("What the frozen encoder tells of sentiment"), "{shown}");
        assert!(!shown.contains("NaN"), "{shown}");
        assert!(shown.contains("no score is known to predict the right depth: --prove"), "{shown}");
    }
    assert_eq!(page.matches("<svg").count(), 2, "a curve for each task");
}

#[test]
fn the_sweep_decides() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!(
        "{ADVISE} {TASKS} --prove=full --seeds 2 --num-train-epochs 2 --batch-size 8 --learning-rate 1e-2 --json"
    ));
    let model = &document["models"][0];
    let sweep = &model["sweep"];
    assert_eq!(list(&sweep["trials"]).len(), 4 * 2);
    assert_eq!(model["recommendation"]["freeze"], sweep["verdict"]["cheapest"]);
    assert_eq!(model["recommendation"]["confidence"], "measured");
    let reason = model["recommendation"]["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("measured: "), "{reason}");
    // Three scores of two tasks, over all depths.
    assert_eq!(list(&model["agreement"]).len(), 6);
    for one in list(&model["agreement"]) {
        assert_eq!(one["n_depths"], 4, "{one}");
    }
    for trial in list(&sweep["trials"]) {
        assert_eq!(trial["is_cached"], trial["freeze"] != "none", "{trial}");
    }
}

#[test]
fn limits_are_kept() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!("{ADVISE} {TASKS} --max-memory 1kB --json"));
    let model = &document["models"][0];
    assert!(list(&model["costs"]).iter().all(|cost| cost["fits"] == false));
    assert!(model["recommendation"]["freeze"].is_null());
    workspace.refused(
        &format!("{ADVISE} {TASKS} --max-memory 1kB --prove"),
        2,
        &["model", "no depth stays within memory of 0 MB", "--max-memory"],
    );
    workspace.refused(&format!("{ADVISE} {TASKS} --budget soon"), 2, &["--budget", "10min"]);
    // A limit between the depths: what is more frozen needs less.
    let bytes: Vec<f64> =
        list(&model["costs"]).iter().map(|cost| number(&cost["memory_bytes"])).collect();
    assert!(bytes.is_sorted() && bytes[1] < bytes[3], "{bytes:?}");
    let limit = bytes[1] as u64;
    let document = workspace.json(&format!("{ADVISE} {TASKS} --max-memory {limit}B --json"));
    let model = &document["models"][0];
    let fits: Vec<&Value> = list(&model["costs"]).iter().map(|cost| &cost["fits"]).collect();
    assert_eq!(fits, [true, true, bytes[2] == bytes[1], false]);
    let freeze = model["recommendation"]["freeze"].as_str().unwrap();
    assert!(["backbone", "lower:2"].contains(&freeze), "{freeze}");
}

#[test]
fn models_stand_side_by_side() {
    let workspace = Workspace::new();
    let sweep = "--prove --seeds 1 --max-steps 3 --batch-size 8";
    let text = workspace.ok(&format!("{ADVISE} --model model {TASKS} {sweep}"));
    let table = text.split("Models side by side").nth(1).unwrap();
    assert_eq!(table.matches("| model ").count(), 3, "a heading and two rows: {table}");
    assert!(table.contains("LogME, which was made for this choice"), "{table}");
    assert_eq!(text.matches("(confidence: measured)").count(), 2, "{text}");
}

#[test]
fn rates_are_those_that_runs_have() {
    let workspace = Workspace::new();
    let of = |options: &str| {
        let document = workspace.json(&format!("{ADVISE} {TASKS} {options} --json"));
        let advice = document["models"][0]["recommendation"].clone();
        let costs = document["models"][0]["costs"].clone();
        (advice["learning_rate"].clone(), costs[0]["head_learning_rate"].clone())
    };
    // The model has both heads, and learns with them alone at three times the rate.
    assert_eq!(of("--learning-rate 0.25"), (0.25.into(), 0.75.into()));
    assert_eq!(of("--learning-rate 0.25 --head-learning-rate 0.5"), (0.25.into(), 0.5.into()));
}

#[test]
fn vectors_are_kept_for_later_advice_and_only_for_the_same() {
    let workspace = Workspace::new();
    let of = |options: &str, word: &str| -> (Value, String) {
        let arguments = format!("{ADVISE} {TASKS} --cache disk --cache-dir kept {options} --json");
        let output = workspace.run(&arguments);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        let line = format!("vectors: {word}: ");
        let told: Vec<&str> = stderr.lines().filter_map(|one| one.strip_prefix(&line)).collect();
        assert_eq!(told.len(), 1, "{stderr}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        (document["models"][0]["tasks"].clone(), told[0].to_owned())
    };
    let (first, file) = of("", "written");
    // Another question about the same rows.
    let (second, again) = of("--budget 1h", "found");
    assert_eq!((&second, &again), (&first, &file));
    // Vectors of a file are those that were computed.
    let plain = workspace.json(&format!("{ADVISE} {TASKS} --json"));
    assert_eq!(plain["models"][0]["tasks"], first);
    for options in ["--seed 7", "--max-length 3"] {
        let (_, other) = of(options, "written");
        assert_ne!(other, file, "{options}: other rows or tokens");
    }
    let whole = std::fs::read(workspace.path(&file)).unwrap();
    std::fs::write(workspace.path(&file), &whole[..whole.len() - 1]).unwrap();
    let (mended, _) = of("", "written");
    assert_eq!(mended, first);
    assert_eq!(std::fs::read(workspace.path(&file)).unwrap(), whole);

    let small = format!("{ADVISE} {TASKS} --cache disk --cache-dir other --cache-limit 0");
    let stderr = String::from_utf8(workspace.run(&small).stderr).unwrap();
    assert!(stderr.contains("vectors: not kept"), "{stderr}");
    assert!(workspace.names("other").is_empty());
    let no_folder = format!("{ADVISE} {TASKS} --cache disk --cache-dir reviews.csv");
    workspace.refused(&no_folder, 1, &["reviews.csv"]);
}

#[cfg(unix)]
#[test]
fn a_stopped_sweep_leaves_what_the_scores_say() {
    let workspace = Workspace::new();
    // Longer than any machine takes until the signal comes.
    let arguments = format!("{ADVISE} {TASKS} --prove=full --seeds 1 --max-steps 1000000 --json");
    let mut run = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .current_dir(workspace.path("."))
        .args(arguments.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("the sweep should take")));
    let id = run.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert!(rest.iter().any(|line| line.contains("by the scores alone")), "{rest:?}");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let model = &document["models"][0];
    assert!(model["sweep"].is_null() && model["recommendation"]["freeze"].is_string());
}

#[test]
fn what_a_sweep_needs_is_asked_for_first() {
    let workspace = Workspace::new();
    let prove = |metric: &str| format!("{ADVISE} {TASKS} --prove --metric {metric}");
    workspace.refused(&prove("loss"), 2, &["--metric", "accuracy or macro_f1"]);
    workspace.refused(&prove("mood_accuracy"), 2, &["no task mood", "topic, sentiment"]);
    workspace.refused(&format!("{ADVISE} {TASKS} --metric accuracy"), 2, &["--prove"]);
}

/// `n` rows of two columns.
fn table(n: usize, row: impl Fn(usize) -> (String, String)) -> String {
    let rows = (0..n).map(|at| {
        let (text, label) = row(at);
        format!("{text}\t{label}\n")
    });
    format!("text\tlabel\n{}", rows.collect::<String>())
}

fn label(at: usize) -> String {
    ["good", "bad"][at % 2].to_owned()
}

#[test]
fn data_that_nothing_can_be_said_of_is_refused() {
    let workspace = Workspace::new();
    for (rows, words) in [
        (table(20, |at| (format!("the phone {at}"), "good".into())), ["good", "only class"]),
        (table(20, |at| ("the phone".into(), label(at))), ["`task`", "same text"]),
        (table(8, |at| (format!("the phone {at}"), label(at))), ["has 8", "at least 10"]),
    ] {
        workspace.write("rows.tsv", &rows);
        let arguments = format!("{ADVISE} --task task=rows.tsv --holdout 0");
        workspace.refused(&arguments, 1, &[&words[..], &["rows.tsv: "]].concat());
    }
    workspace.write("rows.tsv", &table(20, |at| (format!("the phone {at}"), label(at))));
    let no_test_rows = format!("{ADVISE} --task task=rows.tsv --holdout 0 --prove");
    workspace.refused(&no_test_rows, 2, &["--holdout", "split"]);
}

#[test]
fn little_and_odd_data_has_an_answer() {
    let workspace = Workspace::new();
    // The words that the tokenizer knows tell the labels apart.
    let plain = |at: usize| (format!("the phone is {} {at}", label(at)), label(at));
    let foreign = |at: usize| {
        let text = ["Der Akku hält lange", "Экран плохой", "手机 很 好"][at % 3];
        (format!("{text} {at}"), label(at / 3))
    };
    let single = |at: usize| match at {
        7 => ("the song is fine".to_owned(), "rare".to_owned()),
        at => plain(at),
    };
    for (name, rows) in [
        ("ten rows", table(10, plain)),
        ("a label with one example", table(20, single)),
        ("other languages", table(24, foreign)),
    ] {
        workspace.write("rows.tsv", &rows);
        let document = workspace.json(&format!("{ADVISE} --task task=rows.tsv --holdout 0 --json"));
        let model = &document["models"][0];
        let recommendation = &model["recommendation"];
        assert!(recommendation["freeze"].is_string(), "{name}: {recommendation}");
        assert_eq!(recommendation["confidence"], "low", "{name}: {recommendation}");
        let unvalidated = list(&model["tasks"][0]["curve"]["unvalidated"]);
        assert_eq!(unvalidated.len(), usize::from(name.starts_with("a label")), "{name}");
        assert_eq!(model["texts"]["reference_applies"], name != "other languages", "{name}");
    }
}

/// The kernels on the emulator: a sweep with both of its ways, and the figures of the CPU.
#[cfg(feature = "emulator")]
#[test]
fn kernels_advise_as_the_cpu_does() {
    let workspace = Workspace::new();
    let rows: Vec<String> =
        (0..20).map(|at| format!("the phone is {} {at}\t{0}", label(at))).collect();
    workspace.write("rows.tsv", &format!("text\tlabel\n{}\n", rows.join("\n")));
    let arguments =
        "advise --model model --task task=rows.tsv --holdout 0.3 --dtype f32 --batch-size 4 --json";
    let losses = |options: &str| -> Vec<f64> {
        let document = workspace.json(&format!("{arguments} {options}"));
        let model = &document["models"][0];
        assert_eq!(model["costs"].as_array().unwrap().len(), 4);
        let points = list(&model["tasks"][0]["curve"]["points"]).clone();
        points.iter().map(|point| number(&point["nll"])).collect()
    };
    let on_kernels = losses("--device emulated --prove=full --seeds 1 --max-steps 1");
    let on_cpu = losses("--device cpu");
    assert_eq!(on_kernels.len(), 8, "four hidden states in two poolings");
    for (a, b) in on_kernels.iter().zip(&on_cpu) {
        // Features differ in their last digits, which a fit on standardised ones may multiply.
        assert!((a - b).abs() <= 1e-3 * b.abs().max(1.0), "{on_kernels:?}, {on_cpu:?}");
    }
}
