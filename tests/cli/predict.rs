//! `predict`: labels and probabilities of texts, and embeddings.

use assert_cmd::Command;
use frostline::model::WeightFile;
use serde_json::Value;

use crate::{SENTIMENTS, TOPICS, Workspace, number, words};

/// A workspace with a model that was trained on its reviews.
fn trained() -> Workspace {
    let workspace = Workspace::new();
    workspace.ok(
        "train --model model --task topic=reviews.csv --task sentiment=reviews.csv --output trained \
         --num-train-epochs 2 --learning-rate 1e-2 --holdout 0.3 --device cpu",
    );
    workspace
}

const PREDICT: &str = "predict --model trained --device cpu";

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Rows of `reviews.csv`: text, topic, sentiment.
fn reviews(workspace: &Workspace) -> Vec<Vec<String>> {
    let text = workspace.read("reviews.csv");
    text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

/// The trainer counts how often its network is right; so does who reads the predictions.
#[test]
fn predictions_are_what_training_evaluated() {
    let workspace = Workspace::new();
    let rows: String =
        reviews(&workspace).iter().map(|row| row.join(",") + ",test\n").collect::<String>();
    let train = rows.replace(",test", ",train");
    workspace.write("split.csv", &format!("text,topic,sentiment,split\n{train}{rows}"));
    let report = workspace.json(
        "train --model model --task topic=split.csv --task sentiment=split.csv --output trained \
         --num-train-epochs 8 --learning-rate 1e-2 --device cpu --json",
    );
    let predictions = json_lines(&workspace.ok(&format!("{PREDICT} reviews.csv --json")));
    let reviews = reviews(&workspace);
    assert_eq!(predictions.len(), reviews.len());
    for (column, task) in [(1, "topic"), (2, "sentiment")] {
        let is_right =
            |(row, one): &(&Vec<String>, &Value)| one[task]["label"] == row[column].as_str();
        let n_right = reviews.iter().zip(&predictions).filter(is_right).count();
        let accuracy = number(&report["eval"][task]["accuracy"]);
        assert!((n_right as f64 / reviews.len() as f64 - accuracy).abs() <= 1e-9, "{task}");
    }
    // The task with five labels was learnt to some degree, or the comparison would say little.
    assert!(number(&report["eval"]["topic"]["accuracy"]) > 0.25);
}

#[test]
fn formats_agree() {
    let workspace = trained();
    let lines = json_lines(&workspace.ok(&format!("{PREDICT} reviews.csv --format jsonl")));
    let csv = workspace.ok(&format!("{PREDICT} reviews.csv:text --format csv --batch-size 7"));
    let table = workspace.ok(&format!("{PREDICT} reviews.csv"));
    let mut csv = csv.lines();
    assert_eq!(csv.next(), Some("text,sentiment,sentiment_probability,topic,topic_probability"));
    let mut table = table.lines();
    assert_eq!(words(table.next().unwrap()), ["text", "sentiment", "topic"]);
    for line in &lines {
        let text = line["text"].as_str().unwrap();
        let csv: Vec<&str> = csv.next().unwrap().split(',').collect();
        let table = table.next().unwrap();
        assert!(csv[0] == text && table.starts_with(text), "{table}");
        for (task, labels, column) in [("topic", &TOPICS[..], 3), ("sentiment", &SENTIMENTS[..], 1)]
        {
            let all = line[task]["probabilities"].as_object().unwrap();
            assert!(all.keys().eq(labels.iter()), "{line}");
            let sum: f64 = all.values().map(number).sum();
            assert!((sum - 1.0).abs() <= 1e-12, "{line}");
            let label = line[task]["label"].as_str().unwrap();
            let probability = number(&line[task]["probability"]);
            assert_eq!(number(&all[label]), probability);
            assert!(all.values().all(|other| number(other) <= probability));
            assert_eq!(csv[column], label);
            // Batches of another size change sums by rounding alone.
            let printed: f64 = csv[column + 1].parse().unwrap();
            assert!((printed - probability).abs() <= 2e-6, "{printed}, {probability}");
            assert!(table.contains(&format!("{label} ({probability:.2})")), "{table}");
        }
    }
    assert!(!lines.is_empty() && csv.next().is_none() && table.next().is_none());
}

/// Lines of stdin are texts, as are those of a file that is no table.
#[test]
fn lines_of_text() {
    let workspace = trained();
    let texts = "the song is good\nthe, \"screen\"\r\n\nthis new camera is bad";
    workspace.write("texts.txt", texts);
    let from_file = workspace.ok(&format!("{PREDICT} texts.txt --json"));
    let mut command = Command::cargo_bin("frostline").unwrap();
    let output = command
        .current_dir(workspace.path("."))
        .args(PREDICT.split(' '))
        .arg("--json")
        .write_stdin(texts)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), from_file);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("4 texts of ") && stderr.contains("texts/s"), "{stderr}");
    let texts: Vec<Value> = json_lines(&from_file).iter().map(|one| one["text"].clone()).collect();
    assert_eq!(texts, ["the song is good", "the, \"screen\"", "", "this new camera is bad"]);
    assert_eq!(workspace.ok(&format!("{PREDICT} texts.txt --format csv")).lines().count(), 5);
}

#[test]
fn embeddings() {
    let workspace = trained();
    workspace.ok(&format!("{PREDICT} reviews.csv --embeddings all.safetensors"));
    workspace.ok(&format!("{PREDICT} reviews.csv --embeddings all.npy --batch-size 5"));
    let n = reviews(&workspace).len();
    let file = WeightFile::open_file(&workspace.path("all.safetensors")).unwrap();
    let values = file.read_f32("embeddings", &[n, 16]).unwrap();
    assert!(values.iter().all(|value| value.is_finite()));
    assert_ne!(values[..16], values[16..32]);
    let npy = npyz::NpyFile::new(std::fs::File::open(workspace.path("all.npy")).unwrap()).unwrap();
    assert_eq!(npy.shape(), [n as u64, 16]);
    let other: Vec<f32> = npy.into_vec().unwrap();
    let furthest = values.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest <= 1e-5, "{furthest}");

    // An encoder without heads has embeddings and no labels.
    let text = workspace.ok("predict --model model reviews.csv --embeddings own.npy --device cpu");
    assert_eq!(text, "");
    assert!(workspace.path("own.npy").is_file());
}

#[test]
fn refusals() {
    let workspace = trained();
    workspace.refused(
        "predict --model model reviews.csv --device cpu",
        1,
        &["frostline.json", "--embeddings"],
    );
    workspace.refused(
        &format!("{PREDICT} reviews.csv:words"),
        1,
        &["reviews.csv", "`words`", "`text`"],
    );
    workspace.refused(&format!("{PREDICT} absent.txt"), 1, &["absent.txt"]);
    workspace.refused(&format!("{PREDICT} model"), 1, &["model", "folder"]);
    workspace.refused(
        &format!("{PREDICT} reviews.csv --embeddings e.txt"),
        2,
        &["--embeddings", "e.txt", ".npy"],
    );
    workspace.refused(
        &format!("{PREDICT} reviews.csv --embeddings no/e.npy"),
        1,
        &["--embeddings", "no"],
    );
    workspace.refused(
        &format!("{PREDICT} reviews.csv --max-length 99"),
        2,
        &["--max-length 99", "11"],
    );
    workspace.refused(
        "predict --arch minilm-l6 reviews.csv --device cpu",
        2,
        &["--arch", "random"],
    );
    std::fs::write(workspace.path("latin.txt"), b"caf\xe9\n").unwrap();
    workspace.refused(&format!("{PREDICT} latin.txt"), 1, &["latin.txt", "line 1", "UTF-8"]);
    let settings = workspace.read("trained/frostline.json").replace("topic", "subject");
    workspace.write("trained/frostline.json", &settings);
    workspace.refused(&format!("{PREDICT} reviews.csv"), 1, &["subject", "heads.subject.weight"]);
}

/// A second text counts in training and in prediction alike.
#[test]
fn pairs_of_texts() {
    let workspace = Workspace::new();
    let text = workspace.read("reviews.csv");
    let (_, rows) = text.split_once('\n').unwrap();
    let pair = |row: &str| format!("the phone,{row}\n");
    let rows: String = rows.lines().map(pair).collect();
    // What tells the topics apart stands in the second text.
    workspace.write("pairs.csv", &format!("text,text_pair,topic,sentiment\n{rows}"));
    workspace.ok(
        "train --model model --task topic=pairs.csv --eval topic=pairs.csv --num-train-epochs 20 \
         --learning-rate 1e-2 --output trained --device cpu",
    );
    let lines = workspace.ok("predict --model trained pairs.csv --json --device cpu");
    let labels = |lines: &str| -> Vec<String> {
        let label = |line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["topic"]["label"].as_str().unwrap().to_owned()
        };
        lines.lines().map(label).collect()
    };
    let truth: Vec<&str> = rows.lines().map(|row| row.split(',').nth(2).unwrap()).collect();
    let right = labels(&lines).iter().zip(&truth).filter(|(label, truth)| label == *truth).count();
    assert!(right >= 40, "{right} of {}", truth.len());
    // Of the first text alone all answers are one.
    let alone = labels(&workspace.ok("predict --model trained pairs.csv:text --json --device cpu"));
    assert!(alone.iter().all(|label| *label == alone[0]));
}
