//! The cached frozen prefix, from the command line.

use std::fs;

use crate::Workspace;

const TRAIN: &str = "train --model model --task topic=reviews.csv --num-train-epochs 3 \
                     --learning-rate 1e-3";

/// Trains into `trained`; gives the bytes of the model and what was said of the cache.
#[track_caller]
fn train(workspace: &Workspace, more: &str) -> (Vec<u8>, String) {
    let output = workspace.run(&format!("{TRAIN} --overwrite --output trained {more}"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    crate::stdout_of(&output, more);
    let said = stderr.lines().find(|line| line.starts_with("cache:")).unwrap().to_owned();
    (fs::read(workspace.path("trained/model.safetensors")).unwrap(), said)
}

#[test]
fn a_cache_changes_no_byte_wherever_it_lies() {
    for (model, freeze) in [("bert-mean", "lower:2"), ("bert-pooler", "backbone")] {
        let workspace = Workspace::with_model(model);
        let pooling = if model == "bert-pooler" { "pooler" } else { "mean" };
        let with = |cache: &str| {
            let more =
                format!("--pooling {pooling} --freeze {freeze} --device cpu --cache-dir kept");
            train(&workspace, &format!("{more} --cache {cache}"))
        };
        let (expected, said) = with("off");
        assert_eq!(said, "cache: off");
        for (cache, words) in [
            ("auto", "filled in memory"),
            ("host", "filled in memory"),
            ("device", "filled in memory"),
            ("disk", "written: kept/"),
            ("disk", "found: kept/"),
        ] {
            let (model, said) = with(cache);
            assert!(model == expected, "{freeze} {cache}");
            assert!(said.contains(words), "{cache}: {said}");
        }
        assert_eq!(workspace.names("kept").len(), 1);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn a_cache_changes_no_byte_on_the_kernels() {
    let workspace = Workspace::new();
    for dtype in ["f32", "bf16"] {
        let with = |cache: &str| {
            let more = "--freeze lower:2 --device emulated --max-steps 6 --cache-dir kept";
            train(&workspace, &format!("{more} --dtype {dtype} --cache {cache}"))
        };
        let (expected, _) = with("off");
        for (cache, words) in
            [("host", "in memory"), ("device", "device's memory"), ("disk", "kept/")]
        {
            let (model, said) = with(cache);
            assert!(model == expected, "{dtype} {cache}");
            assert!(said.contains(words), "{cache}: {said}");
        }
    }
}

/// A file's name stands for all that its values depend on.
#[test]
fn other_models_texts_and_depths_have_other_files() {
    let workspace = Workspace::new();
    let n_files = |more: &str| {
        train(&workspace, &format!("--device cpu --cache disk --cache-dir kept {more}"));
        workspace.names("kept").len()
    };
    assert_eq!(n_files("--freeze lower:1"), 1);
    assert_eq!(n_files("--freeze lower:2"), 2);
    assert_eq!(n_files("--freeze lower:2 --weight-decay 0.1 --batch-size 8"), 2, "of no matter");
    assert_eq!(n_files("--freeze lower:2 --max-length 5"), 3);
    let text = workspace.read("reviews.csv").replacen("fast", "slow", 1);
    workspace.write("reviews.csv", &text);
    assert_eq!(n_files("--freeze lower:2"), 4);
    // What was cut off is no cache.
    let name = workspace.names("kept").into_iter().next().unwrap();
    let path = workspace.path(&format!("kept/{name}"));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let before = workspace.names("kept");
    for more in ["--freeze lower:1", "--freeze lower:2", "--freeze lower:2 --max-length 5"] {
        train(&workspace, &format!("--device cpu --cache disk --cache-dir kept {more}"));
    }
    assert_eq!(fs::read(&path).map(|bytes| bytes.len()).unwrap() % 4, 0);
    assert!(workspace.names("kept").is_superset(&before));
}

#[test]
fn auto_says_what_it_chose_and_why() {
    let workspace = Workspace::new();
    for (more, words) in [
        ("--freeze none", "off, nothing is frozen below"),
        ("--freeze lower:2 --max-steps 1", "off, a single epoch"),
        ("--freeze lower:2 --cache-limit 0", "off, the frozen part's output takes 0.0 MB"),
        ("--freeze lower:2", "filled in memory"),
    ] {
        let more = format!("--device cpu {more}");
        let (_, said) = train(&workspace, &more);
        assert!(said.contains(words), "{more}: {said}");
    }
}

#[test]
fn a_cache_that_cannot_be_is_refused() {
    let workspace = Workspace::new();
    let more = format!("{TRAIN} --device cpu --output new");
    let refused = |options: &str, named: &[&str]| {
        workspace.refused(&format!("{more} {options}"), 2, named);
    };
    refused("--freeze none --cache host", &["--cache", "nothing is frozen below"]);
    refused("--freeze lower:2 --cache host --cache-limit 0", &["--cache-limit", "0.0 MB"]);
    refused("--schedule 0:backbone --cache host", &["--cache", "--schedule"]);
}

#[test]
fn plan_and_bench_have_rows_of_their_own() {
    let workspace = Workspace::new();
    let model = "--model model --task topic=5";
    let plan = workspace.json(&format!("plan {model} --freeze lower:2 --cached --json"));
    let whole = workspace.json(&format!("plan {model} --freeze lower:2 --json"));
    assert_eq!((&plan["cached"], &whole["cached"]), (&true.into(), &false.into()));
    assert_eq!(plan["ops"][0]["op"], "prefix_load");
    let flops = |plan: &serde_json::Value| crate::number(&plan["phases"]["forward"]["flops"]);
    assert!(3.0 * flops(&plan) < 1.2 * flops(&whole), "one layer of three is left");
    let text = workspace.ok(&format!("plan {model} --freeze lower:2 --cached"));
    assert!(text.starts_with("freeze lower:2, its output cached: 32 sequences"), "{text}");
    workspace.refused(&format!("plan {model} --freeze none --cached"), 2, &["--cached", "none"]);

    let bench = "bench --model model --task topic=reviews.csv --rounds 4 --warmup 1 --device cpu --cached --json \
                 --scenarios lower:2,backbone,all";
    let document = workspace.json(bench);
    let rows = document["scenarios"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["freeze"].as_str().unwrap()).collect();
    assert_eq!(names, ["none", "lower:2", "lower:2 cached", "backbone", "backbone cached", "all"]);
    let of = |at: usize, key: &str| crate::number(&rows[at][key]["ideal"]);
    assert!(of(2, "speedup") > of(1, "speedup") && of(4, "speedup") > of(3, "speedup"));
    assert_eq!(rows[1]["trainable_parameters"], rows[2]["trainable_parameters"]);
}
