//! `step`: what it prints; its numbers are held against PyTorch elsewhere.

use crate::tensors::read_file;
use crate::{Workspace, assert_keys, number};

const STEP: &str = "step --model model --batch batch.safetensors --task topic=5 --task sentiment=3 \
                    --dump out.safetensors";

/// The one element of a dumped tensor.
fn scalar(workspace: &Workspace, name: &str) -> f64 {
    let raw = &read_file(&workspace.path("out.safetensors"))[name];
    assert_eq!(raw.shape, [1]);
    f64::from(f32::from_le_bytes(raw.bytes[..].try_into().unwrap()))
}

#[test]
fn document() {
    let workspace = Workspace::new();
    let report = workspace.json(&format!("{STEP} --json"));
    let expected = ["dump", "steps", "loss", "losses", "last_losses", "grad_norm"];
    assert_keys(&report, &expected);
    assert_eq!((&report["dump"], &report["steps"]), (&"out.safetensors".into(), &1.into()));
    for losses in ["losses", "last_losses"] {
        assert_keys(&report[losses], &["topic", "sentiment"]);
    }
    assert_eq!(report["losses"], report["last_losses"]);
    // What is printed is what is dumped, up to the digits of an f32 in decimal.
    let same = |printed: &serde_json::Value, name: &str| {
        let (printed, dumped) = (number(printed), scalar(&workspace, name));
        assert!((printed - dumped).abs() <= 1e-6 * dumped, "{name}: {printed}, {dumped}");
    };
    same(&report["loss"], "loss");
    same(&report["losses"]["topic"], "loss.topic");
    same(&report["losses"]["sentiment"], "loss.sentiment");
    let sum = number(&report["losses"]["topic"]) + number(&report["losses"]["sentiment"]);
    // The sum of two f32, rounded once.
    assert!((number(&report["loss"]) - sum).abs() <= 1e-6 * sum);

    // The norm is that of the dumped gradients.
    let dump = read_file(&workspace.path("out.safetensors"));
    let gradients = dump.iter().filter(|(name, _)| name.starts_with("grad."));
    let squares = gradients
        .flat_map(|(_, raw)| raw.bytes.chunks_exact(4))
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    // About 8000 squares summed in f32.
    assert!((number(&report["grad_norm"]) - norm).abs() <= 1e-5 * norm, "{report}, {norm}");
}

#[test]
fn several_steps_go_down() {
    let workspace = Workspace::new();
    let report = workspace.json(&format!("{STEP} --steps 20 --learning-rate 1e-2 --json"));
    for task in ["topic", "sentiment"] {
        let (first, last) = (number(&report["losses"][task]), number(&report["last_losses"][task]));
        assert!(last < first, "{task}: {first} to {last}");
    }
    let dump = read_file(&workspace.path("out.safetensors"));
    let n_params = dump.keys().filter(|name| name.starts_with("param.")).count();
    assert_eq!(n_params, 59);
}

#[test]
fn text() {
    let workspace = Workspace::new();
    let text = workspace.ok(STEP);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("loss ") && lines[0].contains("topic "), "{text}");
    assert_eq!(lines[1], "wrote out.safetensors");
    let text = workspace.ok(&format!("{STEP} --steps 2"));
    assert!(text.contains("loss before step 2: "), "{text}");
}

/// Without clipping and with everything frozen nobody needs a norm.
#[test]
fn norms_that_nobody_needs() {
    let workspace = Workspace::new();
    for options in ["--freeze all", "--max-grad-norm 0"] {
        let report = workspace.json(&format!("{STEP} --json {options}"));
        assert!(report["grad_norm"].is_null(), "{options}: {report}");
    }
}

/// The model's own files are not to be lost, and what is no ordinary file is not to be replaced.
#[test]
fn a_dump_replaces_ordinary_files_alone() {
    let workspace = Workspace::new();
    let step = "step --model model --batch batch.safetensors --task topic=5 --task sentiment=3 \
                --device cpu --dump";
    let weights = std::fs::read(workspace.path("model/model.safetensors")).unwrap();
    workspace.refused(&format!("{step} model/model.safetensors"), 2, &["--dump", "overwrite"]);
    std::os::unix::fs::symlink("model/model.safetensors", workspace.path("link")).unwrap();
    workspace.refused(&format!("{step} link"), 2, &["--dump", "overwrite"]);
    // As a cache of models keeps them: the folder holds links.
    let (file, blob) = (workspace.path("model/model.safetensors"), workspace.path("blob"));
    std::fs::rename(&file, &blob).unwrap();
    std::os::unix::fs::symlink(&blob, &file).unwrap();
    for dump in ["model/model.safetensors", "blob", "./batch.safetensors"] {
        workspace.refused(&format!("{step} {dump}"), 2, &["--dump", dump, "overwrite"]);
    }
    assert_eq!(std::fs::read(&file).unwrap(), weights);

    workspace.write("target", "old");
    std::os::unix::fs::symlink("target", workspace.path("other")).unwrap();
    workspace.ok(&format!("{step} other"));
    assert!(!workspace.path("other").is_symlink());
    assert!(std::fs::metadata(workspace.path("other")).unwrap().len() > 100);
    assert_eq!(workspace.read("target"), "old", "what a link points to is not written");
}
