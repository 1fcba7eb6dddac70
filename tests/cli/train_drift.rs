//! What training changed: how far parts moved, what was forgotten, how tasks fared before.

use serde_json::Value;

use crate::tensors::read_model;
use crate::{SENTIMENTS, TOPICS, Workspace, assert_keys, number, words};

const TRAIN: &str = "train --model model --task topic=reviews.csv --batch-size 16 --learning-rate 1e-2 \
                     --device cpu --holdout 0.3";

/// A workspace with a third data set: who says it, told by the word in front.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let mut rows = "body\tspeaker\tsplit\n".to_owned();
    for (at, topic) in TOPICS.iter().chain(&TOPICS).enumerate() {
        for (row, sentiment) in SENTIMENTS.iter().enumerate() {
            let split = if (at + row) % 3 == 0 { "test" } else { "train" };
            for (speaker, opening) in [("old", "the"), ("young", "this very")] {
                rows += &format!("{opening} {topic} is {sentiment}\t{speaker}\t{split}\n");
            }
        }
    }
    workspace.write("speakers.tsv", &rows);
    workspace
}

const FORGETTING: &str =
    "--forgetting voice=speakers.tsv:body:speaker --forgetting mood=moods.jsonl::sentiment";

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

#[track_caller]
fn part<'a>(report: &'a Value, name: &str) -> &'a Value {
    list(&report["drift"]).iter().find(|one| one["group"] == name).unwrap()
}

#[test]
fn frozen_parts_do_not_move_and_others_do() {
    let workspace = workspace();
    let report = workspace.json(&format!(
        "{TRAIN} --task sentiment=reviews.csv --freeze lower:2+head:sentiment --max-steps 6 --drift \
         --output trained --json"
    ));
    let names: Vec<&str> =
        list(&report["drift"]).iter().map(|one| one["group"].as_str().unwrap()).collect();
    let expected =
        ["embeddings", "layer 0", "layer 1", "layer 2", "pooler", "head topic", "head sentiment"];
    assert_eq!(names, expected);
    for name in ["embeddings", "layer 0", "layer 1"] {
        let part = part(&report, name);
        assert_keys(part, &["group", "weights", "cka", "rows"]);
        assert_eq!(part["rows"], 14, "the evaluation rows");
        assert_eq!(part["weights"], 0.0, "{name}");
        assert!((number(&part["cka"]) - 1.0).abs() <= 1e-6, "{part}");
    }
    let moved = part(&report, "layer 2");
    assert!(number(&moved["weights"]) > 1e-3, "{moved}");
    let cka = number(&moved["cka"]);
    assert!(cka > 0.0 && cka < 1.0 - 1e-6, "{cka}");
    for (name, is_frozen) in [("pooler", true), ("head topic", false), ("head sentiment", true)] {
        let part = part(&report, name);
        assert_eq!(number(&part["weights"]) == 0.0, is_frozen, "{part}");
        assert_eq!((&part["cka"], &part["rows"]), (&Value::Null, &Value::Null));
    }
    check_against_files(&workspace, number(&moved["weights"]));
    assert_eq!(report["forgetting"], Value::Null);

    // The model has both heads, of which one is frozen over a backbone that moved.
    assert_keys(&report["before"], &["topic", "sentiment"]);
    for (task, is_frozen) in [("topic", false), ("sentiment", true)] {
        let before = &report["before"][task];
        assert_keys(before, &["accuracy", "macro_f1", "head_frozen"]);
        assert_eq!(before["head_frozen"], is_frozen);
        let gap = &report["gap"][task];
        assert_keys(gap, &["train_accuracy", "test_accuracy", "gap"]);
        assert_eq!(gap["test_accuracy"], report["eval"][task]["accuracy"]);
        // 31 training rows, of which as many are taken as there are evaluation rows: 14.
        let n_right = 14.0 * number(&gap["train_accuracy"]);
        assert!((n_right - n_right.round()).abs() <= 1e-9, "{gap}");
        let difference = number(&gap["train_accuracy"]) - number(&gap["test_accuracy"]);
        assert!((number(&gap["gap"]) - difference).abs() <= 1e-12, "{gap}");
    }
    let written = workspace.read_json("trained/drift.json");
    for key in ["drift", "forgetting", "gap", "before"] {
        assert_eq!(written[key], report[key], "{key}");
    }
}

/// The relative change of layer 2, from the two model files.
#[track_caller]
fn check_against_files(workspace: &Workspace, found: f64) {
    let [before, after] = ["model", "trained"].map(|folder| read_model(&workspace.path(folder)));
    let (mut moved, mut norm) = (0.0, 0.0);
    for (name, tensor) in before.iter().filter(|(name, _)| name.contains("encoder.layer.2.")) {
        let values = |bytes: &[u8]| -> Vec<f64> {
            let (values, _) = bytes.as_chunks::<4>();
            values.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        };
        for (a, b) in values(&tensor.bytes).into_iter().zip(values(&after[name].bytes)) {
            moved += (b - a).powi(2);
            norm += a * a;
        }
    }
    let expected = f64::sqrt(moved / norm);
    assert!((found - expected).abs() <= 1e-12, "{found}, not {expected}");
}

/// A frozen backbone gives the same vectors, and so the same probes; a trained one does not.
#[test]
fn a_frozen_backbone_forgets_nothing() {
    let workspace = workspace();
    let train = |freeze: &str, options: &str| {
        workspace.json(&format!(
            "{TRAIN} {FORGETTING} --freeze {freeze} --max-steps 6 --output {freeze} --json {options}"
        ))
    };
    let frozen = train("backbone", "");
    let sets = list(&frozen["forgetting"]);
    assert_eq!((&sets[0]["name"], &sets[1]["name"]), (&"voice".into(), &"mood".into()));
    for set in sets {
        assert_keys(set, &["name", "rows_train", "rows_test", "before", "after", "change"]);
        assert_keys(&set["before"], &["accuracy", "macro_f1", "converged"]);
        assert_eq!(set["before"], set["after"]);
        assert_eq!(
            (&set["change"]["accuracy"], &set["change"]["macro_f1"]),
            (&0.0.into(), &0.0.into())
        );
        assert_eq!(set["before"]["converged"], true);
    }
    // By the column, and by the holdout.
    assert_eq!((&sets[0]["rows_train"], &sets[0]["rows_test"]), (&40.into(), &20.into()));
    assert_eq!((&sets[1]["rows_train"], &sets[1]["rows_test"]), (&31.into(), &14.into()));
    // One word decides: a probe on vectors of words that differ finds it.
    assert!(number(&sets[0]["before"]["accuracy"]) > 0.9, "{}", sets[0]);
    for key in ["drift", "gap", "before"] {
        assert_eq!(frozen[key], Value::Null, "{key}");
    }

    let trained = train("none", "--max-steps 30 --learning-rate 5e-2");
    for (set, frozen) in list(&trained["forgetting"]).iter().zip(sets) {
        assert_eq!(set["before"], frozen["before"], "the same encoder, the same probe");
        let change = number(&set["after"]["accuracy"]) - number(&set["before"]["accuracy"]);
        assert!((number(&set["change"]["accuracy"]) - change).abs() <= 1e-12, "{set}");
    }
    assert!(
        list(&trained["forgetting"]).iter().any(|set| set["before"] != set["after"]),
        "{trained}"
    );
}

/// Nothing that is measured changes what is trained, dropout, the best model and checkpoints included.
#[test]
fn the_model_is_the_same_with_and_without() {
    let workspace = workspace();
    let more = "--freeze lower:1 --num-train-epochs 2 --load-best-model-at-end --eval-steps 1";
    workspace.ok(&format!("{TRAIN} {more} --output without"));
    workspace.ok(&format!("{TRAIN} {more} --drift {FORGETTING} --output with"));
    let [without, with] = ["without", "with"].map(|folder| {
        std::fs::read(workspace.path(&format!("{folder}/model.safetensors"))).unwrap()
    });
    assert!(without == with, "the models differ");
    let mut names = workspace.names("with");
    assert!(names.remove("drift.json"));
    assert_eq!(names, workspace.names("without"));
}

/// What is measured is the model that is written, not the last step's.
#[test]
fn the_best_model_is_what_is_measured() {
    let workspace = workspace();
    let report = workspace.json(&format!(
        "{TRAIN} --freeze lower:2 --num-train-epochs 4 --load-best-model-at-end --eval-steps 1 --drift \
         --learning-rate 5e-2 --output trained --json"
    ));
    assert!(report["best"]["step"].as_u64() < report["steps"].as_u64(), "{}", report["best"]);
    check_against_files(&workspace, number(&part(&report, "layer 2")["weights"]));
}

#[test]
fn people_see_tables() {
    let workspace = workspace();
    let text = workspace.ok(&format!(
        "{TRAIN} --task fresh=moods.jsonl::sentiment --freeze lower:3+head:topic --drift {FORGETTING} \
         --max-steps 2 --output trained"
    ));
    let row = |first: &str| -> Vec<&str> {
        let is_row = |line: &&str| words(line).first() == Some(&first);
        words(text.lines().find(is_row).unwrap_or_else(|| panic!("no {first} in {text}")))
    };
    assert_eq!(row("embeddings"), ["embeddings", "0", "1.0000"]);
    assert_eq!(row("pooler"), ["pooler", "0", "-"]);
    assert_eq!(row("voice")[1..3], ["40", "20"]);
    assert_eq!(row("voice")[5], "+0.000");
    // A new head says nothing before training.
    assert_eq!(row("fresh")[..3], ["fresh", "trained", "-"]);
    assert_eq!(row("topic")[..2], ["topic", "frozen"]);
    assert_eq!(row("topic")[4], "+0.000");
}

/// Without evaluation rows hidden states are those of training rows, and tasks have nothing to compare.
#[test]
fn drift_without_evaluation_rows() {
    let workspace = workspace();
    let report = workspace.json(
        "train --model model --task topic=reviews.csv --holdout 0 --drift --max-steps 2 --device cpu \
         --output trained --json",
    );
    assert!(number(&part(&report, "layer 2")["cka"]) > 0.0);
    assert_eq!((&report["gap"], &report["before"]), (&Value::Null, &Value::Null));
}

/// A probe is fitted on so many rows, taken from the whole of a file that is sorted by label.
#[test]
fn large_sets_are_cut_and_that_is_said() {
    let workspace = workspace();
    let row = |label: &str, split: &str| format!("the {label},{label},{split}\n");
    let rows = row("phone", "train").repeat(2500) + &row("song", "train").repeat(2500);
    let tests = row("phone", "test") + &row("song", "test");
    workspace.write("large.csv", &format!("text,label,split\n{rows}{tests}"));
    let output = workspace.run(&format!(
        "{TRAIN} --max-steps 1 --forgetting large=large.csv --output trained --json"
    ));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let said = "--forgetting large: probes are fitted on 4000 of 5000 training rows";
    assert!(stderr.contains(said), "{stderr}");
    let set = &report["forgetting"][0];
    assert_eq!((&set["rows_train"], &set["rows_test"]), (&4000.into(), &2.into()));
    assert_eq!(set["after"]["accuracy"], 1.0, "both labels are known: {set}");
}

#[test]
fn bad_data_is_refused_before_training() {
    let workspace = workspace();
    workspace.write("one.csv", "text,label\nthe phone,a\nthe song,a\nthe screen,a\n");
    let tests = "text,label,split\nthe phone,a,train\nthe song,b,train\nthe screen,c,test\n";
    workspace.write("tests.csv", tests);
    let train = format!("{TRAIN} --output trained");
    for (set, status, named) in [
        ("x=speakers.tsv", 1, &["speakers.tsv", "no column `text`"][..]),
        ("x=speakers.tsv:body", 1, &["speakers.tsv", "no column `label`"]),
        ("x=one.csv", 1, &["one.csv", "`x`", "`a` is the only class"]),
        ("x=tests.csv", 1, &["tests.csv", "line 4", "`c`"]),
        ("x=none.csv", 1, &["none.csv"]),
        ("x", 2, &["--forgetting", "no `=`"]),
        (
            "x=moods.jsonl::sentiment --forgetting x=topics.tsv",
            2,
            &["--forgetting", "`x`", "twice"],
        ),
        ("x=topics.tsv --holdout 0", 2, &["--forgetting x", "--holdout"]),
    ] {
        workspace.refused(&format!("{train} --forgetting {set}"), status, named);
    }
}

#[test]
fn bench_says_what_each_freeze_protects() {
    let workspace = workspace();
    let bench = format!(
        "bench --model model --task topic=reviews.csv --batch-size 9 --rounds 2 --warmup 1 --device cpu \
         --scenarios none,lower:3,backbone,all --holdout 0.3 {FORGETTING} --learning-rate 1e-2"
    );
    let document = workspace.json(&format!("{bench} --train --max-steps 4 --json"));
    let training = |freeze: &str| {
        let rows = list(&document["scenarios"]);
        &rows.iter().find(|row| row["freeze"] == freeze).unwrap()["training"]
    };
    assert_eq!(training("all"), &Value::Null);
    for freeze in ["lower:3", "backbone"] {
        let frozen = training(freeze);
        assert!(list(&frozen["forgetting"]).iter().all(|set| set["before"] == set["after"]));
        assert!(number(&part(frozen, "layer 2")["cka"]) >= 1.0 - 1e-6);
    }
    let none = training("none");
    assert!(number(&part(none, "layer 2")["cka"]) < 1.0 - 1e-6);
    assert_eq!(list(&none["forgetting"]).len(), 2);
    // What was read is hashed.
    let files: Vec<&str> = (list(&document["settings"]["data"]).iter())
        .map(|file| file["file"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["moods.jsonl", "reviews.csv", "speakers.tsv"]);

    let text = workspace.ok(&format!("{bench} --train --max-steps 2"));
    assert!(text.contains("CKA of the") && text.contains("voice"), "{text}");
    let is_row = |line: &&str| words(line).first() == Some(&"backbone");
    let last = words(text.lines().rfind(is_row).unwrap());
    assert_eq!((last[2], last[4]), ("+0.000", "+0.000"));
    assert_eq!(last[5..], ["1.0000", "0"]);
    workspace.refused(&bench, 2, &["--forgetting", "--train"]);
}

/// A run that goes on is held against the model that it began with, not against its checkpoint.
#[test]
fn a_resumed_run_is_held_against_its_beginning() {
    let workspace = workspace();
    let run = format!("{TRAIN} --freeze lower:1 --max-steps 4 --save-steps 2");
    let options = format!("--drift {FORGETTING} --json");
    let whole = workspace.json(&format!("{run} {options} --output whole"));
    workspace.ok(&format!("{run} --output parts"));
    std::fs::remove_dir_all(workspace.path("parts/checkpoint-4")).unwrap();
    let parts = workspace.json(&format!("{run} {options} --output parts --resume"));
    for key in ["drift", "forgetting", "gap", "before"] {
        assert_eq!(parts[key], whole[key], "{key}");
    }
}

/// The same on the kernels, whatever their type: what is frozen is told from what is rounded.
#[cfg(feature = "emulator")]
#[test]
fn frozen_parts_do_not_move_on_the_kernels() {
    let workspace = workspace();
    for dtype in ["bf16", "f32"] {
        let report = workspace.json(&format!(
            "{TRAIN} --device emulated --dtype {dtype} --freeze lower:2 --max-steps 3 --drift \
             {FORGETTING} --output {dtype} --json"
        ));
        for name in ["embeddings", "layer 0", "layer 1"] {
            let part = part(&report, name);
            assert_eq!(part["weights"], 0.0, "{dtype} {name}");
            assert!((number(&part["cka"]) - 1.0).abs() <= 1e-6, "{dtype} {part}");
        }
        let moved = part(&report, "layer 2");
        assert!(number(&moved["weights"]) > 1e-3 && number(&moved["cka"]) < 1.0 - 1e-6, "{moved}");
    }
}
