//! `bench` on files of labelled text, and what a freeze does to accuracy.

use serde_json::Value;

use crate::{Workspace, assert_keys, number, words};

const BENCH: &str = "bench --model model --task topic=reviews.csv --task sentiment=reviews.csv \
                     --batch-size 9 --rounds 3 --warmup 1";

fn row<'a>(document: &'a Value, freeze: &str) -> &'a Value {
    let scenarios = document["scenarios"].as_array().unwrap();
    scenarios.iter().find(|row| row["freeze"] == freeze).unwrap()
}

#[test]
fn files_without_training() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!("{BENCH} --json"));
    assert!(document["scenarios"].as_array().unwrap().iter().all(|row| row["quality"].is_null()));
    // Nine rows of 6 to 8 tokens.
    let mean = number(&document["shapes"][0]["mean_tokens"]);
    assert!((9.0 * 6.0..=9.0 * 8.0).contains(&mean), "{mean}");
    let flops = |options: &str| {
        let document = workspace.json(&format!("{BENCH} --json {options}"));
        number(&row(&document, "all")["flops"]["forward"])
    };
    let (whole, cut) = (flops(""), flops("--max-length 4"));
    assert!(cut < whole, "{cut} FLOPs where texts are cut, {whole} where they are not");
    let two_files = "bench --model model --task topic=topics.tsv --task sentiment=moods.jsonl \
                     --batch-size 9 --rounds 2 --json";
    workspace.json(two_files);
}

#[test]
fn training() {
    let workspace = Workspace::new();
    let before = workspace.names(".");
    let document = workspace.json(&format!(
        "{BENCH} --scenarios none,backbone,head:topic,lower:3+head:topic,all --train --max-steps 6 \
         --json"
    ));
    assert_eq!(workspace.names("."), before);
    for freeze in ["none", "backbone", "head:topic", "lower:3+head:topic"] {
        let row = row(&document, freeze);
        check_quality(&row["quality"]);
        let training = &row["training"];
        assert_keys(
            training,
            &[
                "train_quality",
                "quality_before",
                "seconds",
                "frozen_tensors_proven",
                "forgetting",
                "drift",
                "log",
            ],
        );
        check_quality(&training["train_quality"]);
        assert!(number(&training["seconds"]) > 0.0);
        // A scenario with a frozen head starts from trained heads, and says how good they were.
        if freeze.contains("head:") {
            check_quality(&training["quality_before"]);
        } else {
            assert_eq!(training["quality_before"], Value::Null);
        }
    }
    // 59 tensors of which 4 are the heads' and 2 the pooler's, which nothing reaches.
    let n_proven = |freeze: &str| &row(&document, freeze)["training"]["frozen_tensors_proven"];
    assert_eq!(n_proven("none"), 2);
    assert_eq!(n_proven("backbone"), 59 - 4);
    assert_eq!(n_proven("head:topic"), 2 + 2);
    assert_eq!(n_proven("lower:3+head:topic"), 59 - 2);
    // Nothing trains: there is nothing to tell.
    assert_eq!(row(&document, "all")["quality"], Value::Null);
    assert_eq!(row(&document, "all")["training"], Value::Null);
}

#[track_caller]
fn check_quality(quality: &Value) {
    assert_keys(quality, &["topic", "sentiment"]);
    for task in ["topic", "sentiment"] {
        assert_keys(&quality[task], &["accuracy", "macro_f1"]);
        for field in ["accuracy", "macro_f1"] {
            assert!((0.0..=1.0).contains(&number(&quality[task][field])), "{quality}");
        }
    }
}

/// `bench --train` is `train`: the same freeze, data and seed give the same accuracy.
#[test]
fn training_is_that_of_train() {
    let workspace = Workspace::new();
    let options = "--task topic=reviews.csv --task sentiment=reviews.csv --batch-size 9 \
                   --max-steps 40 --learning-rate 2e-3 --model model --json";
    let document =
        workspace.json(&format!("bench {options} --rounds 1 --scenarios none,lower:2 --train"));
    for freeze in ["none", "lower:2"] {
        let report =
            workspace.json(&format!("train {options} --freeze {freeze} --overwrite --output out"));
        assert_eq!(row(&document, freeze)["quality"], report["eval"], "{freeze}");
    }
}

/// A frozen head from a trained model: its accuracy is known before, and `--init` is used.
#[test]
fn heads_from_a_trained_model() {
    let workspace = Workspace::new();
    let data = "--task topic=reviews.csv --task sentiment=reviews.csv --eval topic=reviews.csv \
                --eval sentiment=reviews.csv --batch-size 15";
    let learned = workspace.json(&format!(
        "train --model model {data} --freeze backbone --max-steps 100 --learning-rate 3e-2 \
         --output heads --json"
    ));
    let document = workspace.json(&format!(
        "bench --model model {data} --scenarios head:topic --rounds 1 --train --init heads \
         --max-steps 2 --json"
    ));
    let training = &row(&document, "head:topic")["training"];
    // The frozen head is the trained one; the other starts as the model has it.
    assert_eq!(training["quality_before"]["topic"], learned["eval"]["topic"]);
    assert_ne!(training["quality_before"]["sentiment"], learned["eval"]["sentiment"]);
    workspace.refused(
        &format!("bench --model model {data} --scenarios head:topic --rounds 1 --init heads"),
        2,
        &["--init", "--train"],
    );
}

#[test]
fn text_shows_quality() {
    let workspace = Workspace::new();
    let text = workspace.ok(&format!("{BENCH} --scenarios backbone,all --train --max-steps 2"));
    for said in ["topic", "sentiment", "accuracy", "macro-F1", "proven equal"] {
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
    // The last of its rows is that of the table of quality.
    let backbone = text.lines().map(words).rfind(|row| row.first() == Some(&"backbone")).unwrap();
    assert_eq!(backbone.last(), Some(&"55"), "{text}");
}

/// One file that needs no other, and says what the document says.
#[test]
fn the_page() {
    let workspace = Workspace::new();
    workspace.write("a<b>&c.csv", &workspace.read("reviews.csv"));
    let run = "bench --model model --task topic=a<b>&c.csv --task sentiment=a<b>&c.csv --batch-size 9 \
               --rounds 3 --warmup 1 --scenarios lower:2,head:topic,all --train --max-steps 12 \
               --report page.html --export-json bench.json";
    workspace.ok(run);
    let page = workspace.read("page.html");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    for outside in ["http:", "https:", "src=", "href=", "url(", "<script", "@import", "NaN", "inf"]
    {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;b&gt;&amp;c") && !page.contains("<b>"), "a name became markup");
    // Time, memory, two tasks, training, roofline.
    assert_eq!(page.matches("<svg ").count(), 6);
    for tag in ["svg", "table", "figure", "title", "text", "dl", "pre"] {
        let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
        assert_eq!(page.matches(&open).count(), page.matches(&close).count(), "{tag}");
    }
    let document = workspace.read_json("bench.json");
    for row in document["scenarios"].as_array().unwrap() {
        let freeze = row["freeze"].as_str().unwrap();
        assert!(page.contains(&format!("<td>{freeze}</td>")), "{freeze}");
        assert!(page.contains(&format!(">{freeze}</text>")), "{freeze}");
    }
    let file = &document["settings"]["data"][0];
    let sha256 = file["sha256"].as_str().unwrap();
    assert!(page.contains(&format!("SHA-256 {sha256}")) && sha256.len() == 64, "{file}");
}
