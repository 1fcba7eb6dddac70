//! The document of `bench --json`, which others parse.

use serde_json::Value;

use crate::{ALL_TRAINED, POOLER, SENTIMENT, TOPIC, Workspace, assert_keys, number, words};

const BENCH: &str = "bench --model model --task topic=5 --task sentiment=3 --batch-size 4 \
                     --max-length 8 --rounds 3 --warmup 1";
const PHASES: [&str; 3] = ["forward", "backward", "optimizer"];

/// Each freezes what the one before it freezes, and more.
const NESTED: [&str; 6] = ["none", "lower:0", "lower:2", "lower:3", "backbone+head:topic", "all"];

/// The scenario of a freeze.
#[track_caller]
fn scenario<'a>(document: &'a Value, freeze: &str) -> &'a Value {
    let scenarios = document["scenarios"].as_array().unwrap();
    let found: Vec<&Value> = scenarios.iter().filter(|row| row["freeze"] == freeze).collect();
    assert_eq!(found.len(), 1, "{freeze}");
    found[0]
}

fn freezes(document: &Value) -> Vec<&str> {
    document["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["freeze"].as_str().unwrap())
        .collect()
}

#[track_caller]
fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

fn total_flops(row: &Value) -> u64 {
    PHASES.iter().map(|phase| whole(&row["flops"][phase])).sum()
}

/// Every key and type, then what holds between the numbers.
#[test]
fn document() {
    let workspace = Workspace::new();
    let before = workspace.names(".");
    let scenarios = "lower:2,none,backbone,head:topic,all";
    let document = workspace.json(&format!("{BENCH} --scenarios {scenarios} --device cpu --json"));
    assert_eq!(workspace.names("."), before);
    assert_keys(&document, &["environment", "settings", "ceilings", "baseline", "scenarios"]);
    assert_eq!(document["baseline"], "none");
    assert_eq!(document["environment"]["device"], "cpu");
    assert_eq!(document["environment"]["frostline"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["settings"]["mean_tokens"], 32.0);
    // The baseline first, then as typed.
    assert_eq!(freezes(&document), ["none", "lower:2", "backbone", "head:topic", "all"]);
    for row in document["scenarios"].as_array().unwrap() {
        check_shape(row);
        check_memory(row);
    }
    let baseline = &document["scenarios"][0]["speedup"];
    for field in ["predicted", "measured", "low", "high"] {
        assert_eq!(number(&baseline[field]), 1.0, "{field}");
    }
    for (freeze, n_trained) in [
        ("none", ALL_TRAINED),
        ("lower:2", crate::LAYER + TOPIC + SENTIMENT),
        ("backbone", TOPIC + SENTIMENT),
        ("head:topic", ALL_TRAINED - TOPIC),
        ("all", 0),
    ] {
        assert_eq!(scenario(&document, freeze)["trainable_parameters"], n_trained, "{freeze}");
    }
    let all = scenario(&document, "all");
    for (freeze, field) in [("gradients", 0), ("optimizer", 0), ("activations", 0)] {
        assert_eq!(all["memory_bytes"][freeze], field, "{freeze}");
    }
    for field in ["flops", "bytes"] {
        assert_eq!((whole(&all[field]["backward"]), whole(&all[field]["optimizer"])), (0, 0));
    }
}

fn check_shape(row: &Value) {
    assert_keys(
        row,
        &[
            "freeze",
            "trainable_parameters",
            "flops",
            "bytes",
            "phase_ms",
            "step_ms",
            "speedup",
            "memory_bytes",
            "quality",
            "training",
        ],
    );
    whole(&row["trainable_parameters"]);
    for field in ["flops", "bytes", "phase_ms"] {
        assert_keys(&row[field], &PHASES);
    }
    for phase in PHASES {
        let (flops, bytes) = (whole(&row["flops"][phase]), whole(&row["bytes"][phase]));
        assert_eq!(flops > 0, bytes > 0, "{row}");
        assert!(number(&row["phase_ms"][phase]) >= 0.0, "{row}");
    }
    assert!(whole(&row["flops"]["forward"]) > 0 && number(&row["phase_ms"]["forward"]) > 0.0);

    assert_keys(&row["step_ms"], &["median", "low", "high", "times", "outliers"]);
    let times: Vec<f64> = row["step_ms"]["times"].as_array().unwrap().iter().map(number).collect();
    assert_eq!(times.len(), 3);
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    assert!(sorted[0] > 0.0);
    assert_eq!(number(&row["step_ms"]["median"]), sorted[1], "{row}");
    let (low, high) = (number(&row["step_ms"]["low"]), number(&row["step_ms"]["high"]));
    assert!(low <= sorted[1] && sorted[1] <= high, "{row}");

    assert_keys(&row["speedup"], &["ideal", "predicted", "measured", "low", "high"]);
    let speedup = |field: &str| number(&row["speedup"][field]);
    assert!(speedup("ideal") >= 1.0 && speedup("predicted") >= 1.0, "{row}");
    assert!(0.0 < speedup("low") && speedup("low") <= speedup("measured"), "{row}");
    assert!(speedup("measured") <= speedup("high"), "{row}");
    assert_eq!((&row["quality"], &row["training"]), (&Value::Null, &Value::Null));
}

fn check_memory(row: &Value) {
    let kinds = ["weights", "gradients", "optimizer", "activations", "workspace"];
    let memory = &row["memory_bytes"];
    let mut all = kinds.to_vec();
    all.extend(["peak_planned", "peak_measured"]);
    assert_keys(memory, &all);
    let n_trained = whole(&row["trainable_parameters"]);
    // An f32 a value, a gradient and two moments a trained one.
    assert_eq!(memory["weights"], 4 * (ALL_TRAINED + POOLER));
    assert_eq!(memory["gradients"], 4 * n_trained);
    assert_eq!(memory["optimizer"], 8 * n_trained);
    assert!(whole(&memory["workspace"]) > 0);
    let sum: u64 = kinds.iter().map(|kind| whole(&memory[*kind])).sum();
    assert_eq!(memory["peak_planned"], sum);
    if cfg!(target_os = "linux") {
        // The weights at least.
        assert!(whole(&memory["peak_measured"]) >= 4 * (ALL_TRAINED + POOLER), "{memory}");
    }
}

#[test]
fn nothing_rises_where_more_is_frozen() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!("{BENCH} --scenarios {} --json", NESTED.join(",")));
    assert_eq!(freezes(&document), NESTED);
    for pair in document["scenarios"].as_array().unwrap().windows(2) {
        let title = format!("{} to {}", pair[0]["freeze"], pair[1]["freeze"]);
        for field in ["flops", "bytes"] {
            for phase in PHASES {
                let (less, more) = (whole(&pair[0][field][phase]), whole(&pair[1][field][phase]));
                assert!(more <= less, "{title}: {field} of {phase} rise from {less} to {more}");
            }
        }
        for kind in ["weights", "gradients", "optimizer", "activations", "peak_planned"] {
            let memory = |row: &Value| whole(&row["memory_bytes"][kind]);
            assert!(memory(&pair[1]) <= memory(&pair[0]), "{title}: {kind}");
        }
        assert!(total_flops(&pair[1]) < total_flops(&pair[0]), "{title}");
        let ideal = |row: &Value| number(&row["speedup"]["ideal"]);
        assert!(ideal(&pair[0]) < ideal(&pair[1]), "{title}");
    }
}

/// With the backbone frozen so little is left that it can be counted by hand.
#[test]
fn flops_of_the_heads() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!("{BENCH} --scenarios backbone --json"));
    let row = scenario(&document, "backbone");
    // Four rows with labels: of each logit's gradient a product with 16 columns and a sum.
    assert_eq!(row["flops"]["backward"], 4 * (5 + 3) * (2 * 16 + 1));
    // A value: 2 for the norm, 13 for AdamW, 1 for clipping; the matrices decay.
    assert_eq!(row["flops"]["optimizer"], (2 + 13 + 1) * (TOPIC + SENTIMENT) + (5 + 3) * 16);
    let unclipped =
        workspace.json(&format!("{BENCH} --scenarios backbone --max-grad-norm 0 --json"));
    let row = scenario(&unclipped, "backbone");
    assert_eq!(row["flops"]["optimizer"], 13 * (TOPIC + SENTIMENT) + (5 + 3) * 16);
}

/// What the plan says does not depend on the run; without names the three usual scenarios run.
#[test]
fn plans_are_the_same_in_every_run() {
    let workspace = Workspace::new();
    let documents = ["--threads 1", "--threads 2 --seed 7"]
        .map(|options| workspace.json(&format!("{BENCH} --json {options}")));
    assert_eq!(freezes(&documents[0]), ["none", "backbone", "all"]);
    for freeze in ["none", "backbone", "all"] {
        let [a, b] = [&documents[0], &documents[1]].map(|document| scenario(document, freeze));
        assert_eq!((&a["flops"], &a["bytes"]), (&b["flops"], &b["bytes"]));
        assert_eq!(a["memory_bytes"]["peak_planned"], b["memory_bytes"]["peak_planned"]);
    }
    let threads = documents.map(|document| whole(&document["environment"]["threads"]));
    assert_eq!(threads, [1, 2]);
}

#[test]
fn lists_of_scenarios() {
    let workspace = Workspace::new();
    let mut arguments: Vec<&str> = BENCH.split_whitespace().collect();
    arguments.extend(["--json", "--scenarios", "all, lower:1 ,all,none,lower:1"]);
    let text = crate::stdout_of(&workspace.run_all(&arguments), "spaces");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(freezes(&document), ["none", "all", "lower:1"]);

    for (scenarios, named) in [
        ("none,bodybone", "bodybone"),
        ("none,,all", "empty"),
        ("none,lower:4", "lower:4"),
        ("none,head:mood", "head:mood"),
    ] {
        workspace.refused(&format!("{BENCH} --scenarios {scenarios} --json"), 2, &[named]);
    }
}

#[test]
fn text_has_a_row_for_each_scenario() {
    let workspace = Workspace::new();
    let text = workspace.ok(&format!("{BENCH} --scenarios none,lower:2,head:topic,all"));
    let rows: Vec<Vec<&str>> = text.lines().map(words).collect();
    // One in the table of times, one in that of memory.
    for (freeze, n_trained) in
        [("none", "8,036"), ("lower:2", "2,492"), ("head:topic", "7,951"), ("all", "0")]
    {
        let of_freeze: Vec<_> = rows.iter().filter(|row| row.first() == Some(&freeze)).collect();
        assert_eq!(of_freeze.len(), 2, "{freeze}:\n{text}");
        assert_eq!(of_freeze[0][1], n_trained, "{text}");
    }
    for said in ["8308 parameters", "32 tokens in 4 sequences", "3 rounds", "GFLOP/s", "GB/s"] {
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
    assert!(!text.contains("accuracy"), "{text}");
}

#[test]
fn refused_combinations() {
    let workspace = Workspace::new();
    workspace.refused(&format!("{BENCH} --train"), 2, &["--train", "NAME=FILE"]);
    workspace.refused(&format!("{BENCH} --task mood=reviews.csv"), 2, &["mood=reviews.csv"]);
    workspace.refused(&format!("{BENCH} --max-length 12"), 2, &["--max-length", "12", "11"]);
    workspace.refused(&format!("{BENCH} --rounds 0"), 2, &["--rounds", "0"]);
    workspace.refused(
        "bench --arch bert-base --task topic=reviews.csv",
        2,
        &["--arch", "tokenizer"],
    );
    workspace.refused("bench --arch bert-tiny --task topic=3", 2, &["bert-tiny", "bert-base"]);
}

/// The files say what the document says; nothing that is read is written over.
#[test]
fn exports() {
    let workspace = Workspace::new();
    let files = "--export-json bench.json --export-csv bench.csv --export-markdown bench.md";
    let text = workspace.ok(&format!("{BENCH} --scenarios backbone,all --device cpu {files}"));
    let document = workspace.read_json("bench.json");
    assert_eq!(freezes(&document), ["none", "backbone", "all"]);

    let csv = workspace.read("bench.csv");
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 4);
    let column = |name: &str| {
        let at = lines[0].iter().position(|&heading| heading == name);
        at.unwrap_or_else(|| panic!("no column {name}: {csv}"))
    };
    for (line, row) in lines[1..].iter().zip(document["scenarios"].as_array().unwrap()) {
        assert_eq!(line.len(), lines[0].len());
        assert_eq!(line[column("freeze")], row["freeze"]);
        for (name, value) in [
            ("trainable_parameters", &row["trainable_parameters"]),
            ("forward_flops", &row["flops"]["forward"]),
            ("backward_bytes", &row["bytes"]["backward"]),
            ("optimizer_ms", &row["phase_ms"]["optimizer"]),
            ("step_ms", &row["step_ms"]["median"]),
            ("speedup_predicted", &row["speedup"]["predicted"]),
            ("speedup_high", &row["speedup"]["high"]),
            ("activations_bytes", &row["memory_bytes"]["activations"]),
            ("peak_planned_bytes", &row["memory_bytes"]["peak_planned"]),
        ] {
            let got: f64 = line[column(name)].parse().unwrap();
            assert_eq!(got, number(value), "{name}");
        }
    }

    let markdown = workspace.read("bench.md");
    for heading in ["| freeze | trained |", "| GFLOP forward | GFLOP backward |", "= peak planned"]
    {
        assert!(markdown.contains(heading), "{heading}: {markdown}");
    }
    for freeze in ["none", "backbone", "all"] {
        let rows = markdown.lines().filter(|line| line.starts_with(&format!("| {freeze} |")));
        assert_eq!(rows.count(), 2, "{markdown}");
    }
    // The same figures as on the terminal.
    let shown = text.lines().map(words).find(|row| row.first() == Some(&"backbone")).unwrap();
    let written = markdown.lines().find(|line| line.starts_with("| backbone |")).unwrap();
    assert_eq!(words(&written.replace('|', " ")), shown);

    for (options, status, named) in [
        ("--export-csv reviews.csv --task mood=reviews.csv", 2, "--export-csv reviews.csv"),
        ("--export-json model/config.json", 2, "--export-json model/config.json"),
        ("--export-markdown absent/bench.md", 1, "--export-markdown"),
        ("--export-json model", 1, "--export-json"),
        ("--export-json new --export-csv new", 2, "--export-csv"),
    ] {
        workspace.refused(&format!("{BENCH} {options}"), status, &[named]);
    }
}
