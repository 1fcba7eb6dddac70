//! `plan`: what a step consists of, without weights and without a device.

use std::fs;

use serde_json::Value;

use crate::{ALL_TRAINED, SENTIMENT, TOPIC, Workspace, assert_keys, number};

const PHASES: [&str; 3] = ["forward", "backward", "optimizer"];

#[test]
fn published_sizes() {
    let workspace = Workspace::new();
    // 30522 words, 512 positions, 2 types, 384 columns, 6 layers of 1536, a head of 4.
    let d = 384;
    let layer = 4 * (d * d + d) + 2 * 1536 * d + 1536 + d + 4 * d;
    let minilm = (30522 + 512 + 2) * d + 2 * d + 6 * layer + 4 * (d + 1);
    let plan = workspace.json("plan --arch minilm-l6 --task topic=4 --batch-size 8 --json");
    assert_eq!(plan["trainable_parameters"], minilm);
    assert_eq!(plan["capacity"]["tokens"], 8 * 128);
    for arch in
        ["bert-base", "bert-large", "roberta-base", "roberta-large", "distilbert-base", "minilm-l6"]
    {
        let text = workspace.ok(&format!("plan --arch {arch} --freeze backbone"));
        assert!(text.contains("freeze backbone: 32 sequences of 128 tokens, f32"), "{text}");
    }
}

#[test]
fn document() {
    let workspace = Workspace::new();
    let plan = workspace.json(
        "plan --model model --task topic=5 --task sentiment=3 --batch-size 4 --max-length 8 \
         --freeze lower:2 --json",
    );
    assert_keys(
        &plan,
        &[
            "freeze",
            "cached",
            "gradient_accumulation_steps",
            "capacity",
            "trainable_parameters",
            "phases",
            "total",
            "data_parallel",
            "memory_bytes",
            "ops",
        ],
    );
    assert_eq!(plan["freeze"], "lower:2");
    assert_eq!(plan["trainable_parameters"], crate::LAYER + TOPIC + SENTIMENT);
    assert_keys(&plan["phases"], &PHASES);
    let ops = plan["ops"].as_array().unwrap();
    for field in ["flops", "bytes"] {
        let sum_of = |phase: &str| -> u64 {
            let of_phase = ops.iter().filter(|op| op["phase"] == phase);
            of_phase.map(|op| op[field].as_u64().unwrap()).sum()
        };
        for phase in PHASES {
            assert_eq!(plan["phases"][phase][field], sum_of(phase), "{phase}");
        }
        assert_eq!(plan["total"][field], PHASES.map(sum_of).iter().sum::<u64>());
    }
    // No gradient of anything that is frozen.
    let outputs = ops.iter().flat_map(|op| op["outputs"].as_array().unwrap());
    let gradients: Vec<&str> =
        outputs.map(|name| name.as_str().unwrap()).filter(|name| name.starts_with("d.")).collect();
    assert!(gradients.iter().any(|name| name.starts_with("d.encoder.layer.2.")), "{gradients:?}");
    for frozen in ["d.embeddings.", "d.encoder.layer.0.", "d.encoder.layer.1.", "d.l0.", "d.l1."] {
        assert!(!gradients.iter().any(|name| name.starts_with(frozen)), "{frozen}: {gradients:?}");
    }
}

/// config.json is enough; a folder without heads gets those that are asked for.
#[test]
fn a_folder_with_config_alone() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("bare")).unwrap();
    fs::copy(workspace.path("model/config.json"), workspace.path("bare/config.json")).unwrap();
    let tasks = "--task topic=5 --task sentiment=3 --json";
    let plan = workspace.json(&format!("plan --model bare {tasks}"));
    assert_eq!(plan["trainable_parameters"], ALL_TRAINED);
    // The longest that the model reads, where that is under 128.
    assert_eq!(plan["capacity"]["tokens"], 32 * 11);
    let full = workspace.json(&format!("plan --model model {tasks}"));
    assert_eq!(plan["total"], full["total"]);
    // What needs weights says so.
    workspace.refused(
        "bench --model bare --task topic=5 --rounds 1",
        1,
        &["bare", "model.safetensors"],
    );
}

#[test]
fn differences() {
    let workspace = Workspace::new();
    let tasks = "--task topic=5 --task sentiment=3";
    let text = workspace.ok(&format!("plan --model model {tasks} --freeze head:topic --diff none"));
    assert!(text.contains("against none"), "{text}");
    let gone: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with('-')).collect();
    assert!(gone.iter().any(|line| line.contains("d.heads.topic.weight")), "{text}");
    assert!(!gone.iter().any(|line| line.contains("d.heads.sentiment.weight")), "{text}");
    for line in [format!("{ALL_TRAINED} values"), format!("{} values", ALL_TRAINED - TOPIC)] {
        assert!(text.contains(&line), "{line:?} is not in {text}");
    }
    let same = workspace.ok(&format!("plan --model model {tasks} --freeze none --diff none"));
    let signs = same.lines().filter(|line| line.trim_start().starts_with(['-', '<', '>', '+']));
    assert_eq!(signs.count(), 0, "{same}");
}

/// The plan that is printed is the plan that is measured.
#[test]
fn costs_are_those_of_bench() {
    let workspace = Workspace::new();
    let shape =
        "--model model --task topic=5 --task sentiment=3 --batch-size 4 --max-length 8 --json";
    let freezes = ["none", "lower:2", "backbone", "head:topic", "all"];
    let bench = workspace
        .json(&format!("bench {shape} --rounds 1 --warmup 0 --scenarios {}", freezes.join(",")));
    for (row, freeze) in bench["scenarios"].as_array().unwrap().iter().zip(freezes) {
        assert_eq!(row["freeze"], freeze);
        let plan = workspace.json(&format!("plan {shape} --freeze {freeze}"));
        assert_eq!(plan["trainable_parameters"], row["trainable_parameters"]);
        for phase in PHASES {
            for field in ["flops", "bytes"] {
                assert_eq!(plan["phases"][phase][field], row[field][phase], "{freeze}, {phase}");
            }
        }
        for kind in ["weights", "gradients", "optimizer", "activations", "workspace"] {
            assert_eq!(plan["memory_bytes"][kind], row["memory_bytes"][kind], "{freeze}, {kind}");
        }
    }
}

#[test]
fn narrow_types_need_less() {
    let workspace = Workspace::new();
    let plan = |options: &str| workspace.json(&format!("plan --arch bert-base --json {options}"));
    let weights = |plan: &Value| number(&plan["memory_bytes"]["weights"]);
    // With everything frozen there are no masters: all but the vectors takes two bytes instead of four.
    let (wide, narrow) = (plan("--freeze all"), plan("--freeze all --dtype bf16"));
    let ratio = weights(&narrow) / weights(&wide);
    assert!((0.5..0.51).contains(&ratio), "{ratio}");
    let (wide, narrow) = (plan(""), plan("--dtype bf16"));
    assert_eq!(wide["trainable_parameters"], narrow["trainable_parameters"]);
    assert_eq!(wide["memory_bytes"]["gradients"], narrow["memory_bytes"]["gradients"]);
    let activations = |plan: &Value| number(&plan["memory_bytes"]["activations"]);
    assert!(activations(&narrow) < 0.6 * activations(&wide));
    // Trained matrices have a master: six bytes instead of four.
    assert!(weights(&narrow) > weights(&wide));
}

#[test]
fn refused() {
    let workspace = Workspace::new();
    for (options, named) in [
        ("--batch-size 0", "--batch-size"),
        ("--max-length 0", "--max-length"),
        ("--max-length 513", "512"),
        ("--freeze lower:13", "12"),
        ("--diff sideways", "sideways"),
        ("--task topic=1", "topic"),
        ("--max-grad-norm nan", "--max-grad-norm"),
    ] {
        workspace.refused(&format!("plan --arch bert-base {options}"), 2, &[named]);
    }
    workspace.refused("plan --model model --arch bert-base", 2, &["--model", "--arch"]);
    workspace.refused("plan", 2, &["--model"]);
}

/// Only trained gradients travel, and a GPU alone exchanges nothing.
#[test]
fn several_gpus() {
    let workspace = Workspace::new();
    let plan = |options: &str| {
        workspace
            .json(&format!("plan --model model --task topic=5 --task sentiment=3 --json {options}"))
    };
    let cluster = "--gpus 4 --interconnect 2 --gflops 10 --bandwidth 5";
    let mut steps = Vec::new();
    for (freeze, n_trained) in [
        ("none", ALL_TRAINED),
        ("lower:2", crate::LAYER + TOPIC + SENTIMENT),
        ("backbone", TOPIC + SENTIMENT),
        ("all", 0),
    ] {
        let found = &plan(&format!("--freeze {freeze} {cluster}"))["data_parallel"];
        let (exchange, step) = (&found["all_reduce"], &found["step"]);
        assert_eq!(exchange["gradient_bytes"], 4 * n_trained, "{freeze}");
        // 2 (4 - 1) / 4 of them, exactly.
        assert_eq!(number(&exchange["bytes_a_gpu"]), 6.0 * n_trained as f64);
        let exchange = number(&exchange["seconds"]);
        assert!((exchange - 3e-9 * n_trained as f64).abs() <= 1e-12 * exchange, "{exchange}");
        let [single, both, overlapped] =
            ["single_seconds", "seconds", "overlapped_seconds"].map(|name| number(&step[name]));
        assert!((both - single - exchange).abs() <= 1e-12 * both, "{step}");
        assert!(single <= overlapped && overlapped <= both, "{step}");
        assert!((number(&step["efficiency"]) - single / both).abs() <= 1e-12);
        steps.push(both);
    }
    assert!(steps.windows(2).all(|pair| pair[1] < pair[0]), "{steps:?}");
    let alone = plan("--gpus 1 --interconnect 2");
    assert_eq!(alone["data_parallel"]["all_reduce"]["bytes_a_gpu"], 0.0);
    assert!(alone["data_parallel"]["step"].is_null());
    assert!(plan("")["data_parallel"].is_null());

    let text = workspace.ok(&format!("plan --model model --task topic=5 --diff all {cluster}"));
    assert_eq!(text.matches("on 4 GPUs, a batch each").count(), 2, "{text}");
    assert!(text.contains("0.000 MB of gradients"), "{text}");
    for (options, named) in [
        ("--gpus 4", "--interconnect"),
        ("--interconnect 4", "--gpus"),
        ("--gpus 0 --interconnect 4", "--gpus"),
        ("--gpus 2 --interconnect NaN", "--interconnect"),
        ("--gpus 2 --interconnect -1", "--interconnect"),
        ("--gpus 2 --interconnect 4 --gflops 3", "--bandwidth"),
    ] {
        workspace.refused(&format!("plan --model model {options}"), 2, &[named]);
    }
}
