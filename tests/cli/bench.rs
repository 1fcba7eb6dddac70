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
    assert_keys(
        &document,
        &["environment", "settings", "ceilings", "baseline", "shapes", "scenarios"],
    );
    assert_eq!(document["baseline"], "none");
    assert_eq!(document["environment"]["device"], "cpu");
    assert_eq!(document["environment"]["frostline"], env!("CARGO_PKG_VERSION"));
    let shape = &document["shapes"][0];
    assert_eq!((&shape["batch_size"], &shape["max_length"]), (&4.into(), &8.into()));
    assert_eq!((&shape["mean_tokens"], &shape["aa"]), (&32.0.into(), &Value::Null));
    assert_eq!(shape["batch_lengths"][0], serde_json::json!([8, 8, 8, 8]));
    assert_eq!(shape["warmup_rounds"], 1);
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
            "batch_size",
            "max_length",
            "trainable_parameters",
            "flops",
            "bytes",
            "device_ms",
            "phase_ms",
            "predicted_ms",
            "ops",
            "regime",
            "input_gradients",
            "energy",
            "findings",
            "step_ms",
            "speedup",
            "memory_bytes",
            "quality",
            "training",
        ],
    );
    whole(&row["trainable_parameters"]);
    for field in ["flops", "bytes", "phase_ms", "predicted_ms"] {
        assert_keys(&row[field], &PHASES);
    }
    check_prediction(row);
    for phase in PHASES {
        let (flops, bytes) = (whole(&row["flops"][phase]), whole(&row["bytes"][phase]));
        assert_eq!(flops > 0, bytes > 0, "{row}");
        assert!(number(&row["phase_ms"][phase]) >= 0.0, "{row}");
    }
    assert!(number(&row["device_ms"]["median"]) > 0.0, "{row}");
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

/// Ops divide a phase, shares a step.
fn check_prediction(row: &Value) {
    let ops = row["ops"].as_array().unwrap();
    for phase in PHASES {
        let of_phase = || ops.iter().filter(|op| op["phase"] == phase);
        let sum = |field: &str| of_phase().map(|op| whole(&op[field])).sum::<u64>();
        // All batches are of one size.
        assert_eq!(sum("flops"), whole(&row["flops"][phase]), "{row}");
        assert_eq!(sum("bytes"), whole(&row["bytes"][phase]), "{row}");
        let predicted: f64 = of_phase().map(|op| number(&op["predicted_ms"])).sum();
        let expected = number(&row["predicted_ms"][phase]);
        // Sums of the same numbers in another order.
        assert!((predicted - expected).abs() <= 1e-12 * expected, "{predicted}, {expected}");
        assert!(of_phase().all(|op| number(&op["measured_ms"]) > 0.0), "{row}");
    }
    let shares: Vec<f64> =
        row["regime"]["shares"].as_object().unwrap().values().map(number).collect();
    assert_eq!(shares.len(), 4);
    assert!((shares.iter().sum::<f64>() - 1.0).abs() <= 1e-12, "{shares:?}");
    let bound = row["regime"]["bound"].as_str().unwrap();
    let largest = number(&row["regime"]["shares"][bound]);
    assert!(shares.iter().all(|share| *share <= largest), "{row}");
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
    // One in each table: of times, predictions, families and memory.
    for (freeze, n_trained) in
        [("none", "8,036"), ("lower:2", "2,492"), ("head:topic", "7,951"), ("all", "0")]
    {
        let of_freeze: Vec<_> = rows.iter().filter(|row| row.first() == Some(&freeze)).collect();
        assert_eq!(of_freeze.len(), 4, "{freeze}:\n{text}");
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

/// Every pair of sizes, each beside its own baseline.
#[test]
fn a_matrix_of_shapes() {
    let workspace = Workspace::new();
    let run = "bench --model model --task topic=5 --batch-size 2,4,2 --max-length 5,8 --rounds 2 \
               --warmup 0 --scenarios lower:2 --device cpu";
    let document =
        workspace.json(&format!("{run} --json --export-csv m.csv --export-markdown m.md"));
    let shapes = document["shapes"].as_array().unwrap();
    let sizes: Vec<(u64, u64)> = (shapes.iter())
        .map(|shape| (whole(&shape["batch_size"]), whole(&shape["max_length"])))
        .collect();
    assert_eq!(sizes, [(2, 5), (4, 5), (2, 8), (4, 8)]);
    let rows = document["scenarios"].as_array().unwrap();
    assert_eq!(rows.len(), 8);
    for (pair, (n, length)) in rows.chunks(2).zip(sizes) {
        for row in pair {
            assert_eq!((whole(&row["batch_size"]), whole(&row["max_length"])), (n, length));
        }
        assert_eq!((&pair[0]["freeze"], &pair[1]["freeze"]), (&"none".into(), &"lower:2".into()));
        assert_eq!(pair[0]["speedup"]["measured"], 1.0);
        let ideal = total_flops(&pair[0]) as f64 / total_flops(&pair[1]) as f64;
        assert!((number(&pair[1]["speedup"]["ideal"]) - ideal).abs() <= 1e-12 * ideal);
    }
    assert!(total_flops(&rows[0]) < total_flops(&rows[6]));
    assert_eq!(workspace.read("m.csv").lines().count(), 9);
    assert!(workspace.read("m.md").contains("| lower:2 | 4 x 5 |"));
    let text = workspace.ok(run);
    assert!(
        text.lines().any(|line| words(line).starts_with(&["lower:2", "4", "x", "8"])),
        "{text}"
    );

    workspace.refused(&format!("{run} --batch-tokens 40"), 2, &["--batch-tokens", "--batch-size"]);
    let task = "--task mood=reviews.csv";
    workspace.refused(
        &format!("bench --model model {task} --batch-size 2,4 --train"),
        2,
        &["--train", "--batch-size"],
    );
}

/// The baseline against itself, as often as was asked for.
#[test]
fn against_itself() {
    let workspace = Workspace::new();
    let run = format!("{BENCH} --scenarios none --device cpu --rounds 8");
    let document = workspace.json(&format!("{run} --aa 5 --json"));
    let aa = &document["shapes"][0]["aa"];
    let intervals = aa["intervals"].as_array().unwrap();
    assert_eq!(intervals.len(), 5);
    let mut n_hold = 0;
    for interval in intervals {
        let [low, median, high] = ["low", "median", "high"].map(|field| number(&interval[field]));
        assert!(0.0 < low && low <= median && median <= high, "{interval}");
        // Two runs of one step differ; a measurement that compared a list with itself would not.
        assert!(low < high, "{interval}");
        n_hold += u32::from(low <= 1.0 && 1.0 <= high);
    }
    assert_eq!(number(&aa["coverage"]), f64::from(n_hold) / 5.0);
    assert!(number(&aa["width"]) > 0.0);
    let text = workspace.ok(&format!("{run} --aa"));
    assert!(text.contains("the baseline against itself: "), "{text}");
    workspace.refused(&format!("{run} --aa 0"), 2, &["--aa", "0"]);
}

/// Needs no model and no data.
#[test]
fn ceilings_alone() {
    let workspace = Workspace::new();
    let document = workspace.json("bench --ceilings --device cpu --json");
    assert_keys(&document, &["environment", "ceilings"]);
    for field in ["gemm_flops_per_second", "copy_bytes_per_second", "op_seconds"] {
        assert!(number(&document["ceilings"][field]) > 0.0, "{document}");
    }
    let text = workspace.ok("bench --ceilings --device cpu");
    assert!(
        text.contains("GFLOP/s") && text.contains("GB/s") && text.contains("us an op"),
        "{text}"
    );
    workspace.refused("bench --device cpu", 2, &["--model", "--task"]);
}

/// What passes through frozen weights is said; a freeze from below says nothing.
#[test]
fn findings() {
    let workspace = Workspace::new();
    let specs = "head:topic,layers:1..2,all+keep:*.bias,lower:2,backbone,all";
    let document = workspace.json(&format!("{BENCH} --scenarios {specs} --json"));
    // Six products and two heads, less those of the lowest layer that trains.
    let of = |freeze: &str| {
        let gradients = &scenario(&document, freeze)["input_gradients"];
        (whole(&gradients["n"]), whole(&gradients["n_frozen"]))
    };
    assert_eq!(of("none"), (20, 0));
    assert_eq!(of("head:topic"), (20, 1));
    assert_eq!(of("layers:1..2"), (20, 6));
    assert_eq!((of("lower:2"), of("backbone"), of("all")), ((5, 0), (0, 0), (0, 0)));
    let (n, n_frozen) = of("all+keep:*.bias");
    assert!(n_frozen == n && n > 10, "{n_frozen} of {n}");
    for (freeze, says) in [
        ("head:topic", true),
        ("layers:1..2", true),
        ("all+keep:*.bias", true),
        ("lower:2", false),
        ("backbone", false),
    ] {
        let found = scenario(&document, freeze)["findings"].as_array().unwrap();
        let text = found.iter().map(|text| text.as_str().unwrap()).collect::<String>();
        assert_eq!(text.contains("above something that trains"), says, "{freeze}: {text}");
    }
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
        assert_eq!(rows.count(), 4, "{markdown}");
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
