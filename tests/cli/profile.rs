//! `profile`: the step op by op.

use serde_json::Value;

use crate::{Workspace, assert_keys, number, words};

const PROFILE: &str = "profile --model model --task topic=5 --task sentiment=3 --batch-size 4 \
                       --max-length 8 --rounds 2 --warmup 0";

fn sum(rows: &[Value], field: &str) -> f64 {
    rows.iter().map(|row| number(&row[field])).sum()
}

/// Every op of the plan is there, in its order, with its cost; the times add up.
#[test]
fn document() {
    let workspace = Workspace::new();
    let before = workspace.names(".");
    let document =
        workspace.json(&format!("{PROFILE} --freeze lower:2 --against none --device cpu --json"));
    assert_eq!(workspace.names("."), before);
    let keys =
        ["environment", "settings", "ceilings", "occupancy_on_compute_capability", "profiles"];
    assert_keys(&document, &keys);
    let [lower, none] = document["profiles"].as_array().unwrap().as_slice() else {
        panic!("{document}")
    };
    for (profile, freeze) in [(lower, "lower:2"), (none, "none")] {
        assert_keys(profile, &["freeze", "ms", "ops"]);
        assert_eq!(profile["freeze"], freeze);
        let plan = workspace.json(&format!(
            "plan --model model --task topic=5 --task sentiment=3 --batch-size 4 --max-length 8 \
             --freeze {freeze} --json"
        ));
        let (ops, planned) = (profile["ops"].as_array().unwrap(), plan["ops"].as_array().unwrap());
        assert_eq!(ops.len(), planned.len());
        for (op, planned) in ops.iter().zip(planned) {
            for field in ["op", "flops", "bytes"] {
                assert_eq!(op[field], planned[field], "{freeze}");
            }
            assert!(number(&op["ms"]) > 0.0 && number(&op["floor_ms"]) > 0.0, "{op}");
            assert_eq!(op["launches"], Value::Array(Vec::new()), "the CPU launches no kernel");
        }
        let (total, all) = (number(&profile["ms"]), sum(ops, "ms"));
        assert!((total - all).abs() <= 1e-9 * all, "{total} ms, and its ops {all}");
    }
}

/// The table of what a freeze removes names the ops that are gone.
#[test]
fn tables() {
    let workspace = Workspace::new();
    let text = workspace.ok(&format!("{PROFILE} --freeze all --against none --device cpu"));
    let (_, comparison) = text.split_once("all against none\n").unwrap();
    let row = |name: &str| {
        let row = comparison.lines().map(words).find(|row| row.first() == Some(&name));
        row.unwrap_or_else(|| panic!("no row {name}: {comparison}"))
    };
    assert_eq!(row("gemm_wgrad")[2], "gone");
    assert_eq!(row("adamw_step")[2], "gone");
    assert_eq!(row("gemm_fwd")[1], row("gemm_fwd")[2]);
}

/// Chrome's format: events nest, and their durations are the times of the document.
#[test]
fn trace() {
    let workspace = Workspace::new();
    let document = workspace
        .json(&format!("{PROFILE} --trace step.json --device cpu --freeze lower:2 --json"));
    let trace = workspace.read_json("step.json");
    let events = trace["traceEvents"].as_array().unwrap();
    let whole: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    let phases = ["forward", "backward", "optimizer"];
    let (outer, inner): (Vec<&Value>, Vec<&Value>) =
        whole.into_iter().partition(|event| phases.contains(&event["name"].as_str().unwrap()));
    assert_eq!(outer.len(), 3);
    let ops = document["profiles"][0]["ops"].as_array().unwrap();
    assert_eq!(inner.len(), ops.len());
    let span = |event: &Value| {
        let start = number(&event["ts"]);
        (start, start + number(&event["dur"]))
    };
    for event in &inner {
        let (start, end) = span(event);
        let holds = outer.iter().filter(|phase| {
            let (first, last) = span(phase);
            first <= start + 1e-6 && end <= last + 1e-6
        });
        assert_eq!(holds.count(), 1, "{event} lies in one phase");
    }
    let total: f64 = inner.iter().map(|event| number(&event["dur"])).sum();
    let expected = number(&document["profiles"][0]["ms"]) * 1e3;
    assert!((total - expected).abs() <= 1e-6 * expected);

    workspace.refused(&format!("{PROFILE} --trace absent/step.json"), 1, &["--trace", "absent"]);
    workspace.refused(&format!("{PROFILE} --trace model"), 1, &["--trace", "model", "folder"]);
}

#[test]
fn capture_ranges_that_no_profiler_can_have() {
    let workspace = Workspace::new();
    for (steps, named) in [("3:3", "no step"), ("3", "colon"), ("a:2", "\"a\"")] {
        let arguments = format!("{PROFILE} --profile-steps {steps}");
        workspace.refused(&arguments, 2, &["--profile-steps", named]);
    }
    workspace.refused(&format!("{PROFILE} --device cpu --profile-steps 1:2"), 2, &["--device"]);
    #[cfg(feature = "emulator")]
    workspace.refused(
        &format!("{PROFILE} --device emulated --rounds 1 --profile-steps 0:2"),
        2,
        &["--profile-steps 0:2", "1 steps", "--rounds"],
    );
}

/// On the emulator ops are kernels, and what they do is counted.
#[cfg(feature = "emulator")]
#[test]
fn emulated() {
    let workspace = Workspace::new();
    let document = workspace.json(&format!("{PROFILE} --device emulated --json"));
    let ops = document["profiles"][0]["ops"].as_array().unwrap();
    for op in ops {
        let launches = op["launches"].as_array().unwrap();
        assert!(!launches.is_empty(), "{op}");
        for launch in launches {
            assert!(number(&launch["counts"]["global_sectors"]) > 0.0, "{launch}");
            let used = number(&launch["sectors_used"]);
            assert!(used > 0.0 && used <= 1.0, "{launch}");
        }
    }
    let mmas = |name: &str| {
        let of_op = ops.iter().filter(|op| op["op"] == name);
        of_op
            .flat_map(|op| op["launches"].as_array().unwrap())
            .map(|launch| number(&launch["counts"]["mma"]))
            .sum::<f64>()
    };
    assert!(mmas("gemm_fwd") > 0.0 && mmas("gemm_wgrad") > 0.0);
    assert_eq!(mmas("adamw_step"), 0.0);
    // Its times mean nothing, and are not there.
    assert!(ops.iter().all(|op| op["ms"].is_null() && op["floor_ms"].is_null()));
    workspace.refused(&format!("{PROFILE} --device emulated --trace t.json"), 2, &["--trace"]);
    let text = workspace.ok(&format!("{PROFILE} --device emulated --freeze all --against none"));
    assert!(text.lines().any(|line| words(line) == ["gemm_wgrad", "12", "gone"]), "{text}");
    assert!(text.contains("conflicts") && text.contains("adamw_step"), "{text}");
}
