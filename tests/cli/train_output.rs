//! Where a run's folder goes, and that the same run gives the same bytes.

use std::fs;

use crate::Workspace;

const TRAIN: &str = "train --model model --task topic=reviews.csv --task sentiment=reviews.csv \
                     --max-steps 4 --batch-size 16 --learning-rate 1e-3";

#[test]
fn an_existing_folder_is_kept_unless_overwrite_is_given() {
    let workspace = Workspace::new();
    workspace.ok(&format!("{TRAIN} --output out"));
    workspace.refused(&format!("{TRAIN} --output out"), 2, &["out", "--overwrite"]);
    workspace.write("out/mine.txt", "stale");

    let before = workspace.names(".");
    workspace.ok(&format!("{TRAIN} --output out --overwrite --freeze backbone"));
    assert_eq!(workspace.names("."), before, "temporary files are left");
    assert_eq!(workspace.read("out/mine.txt"), "stale");
    assert_eq!(workspace.read_json("out/frostline.json")["freeze"], "backbone");
}

/// A model goes into an empty folder, and among other files.
#[test]
fn a_folder_of_other_files_keeps_them() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("out")).unwrap();
    workspace.ok(&format!("{TRAIN} --output out"));
    fs::create_dir(workspace.path("home")).unwrap();
    workspace.write("home/mine.txt", "dear");
    for run in ["--output home", "--output home --overwrite"] {
        workspace.ok(&format!("{TRAIN} {run}"));
    }
    assert_eq!(workspace.read("home/mine.txt"), "dear");
}

/// A run that fails in the end leaves the folder that it was to replace as it was.
#[test]
fn a_failed_run_replaces_nothing() {
    let workspace = Workspace::new();
    workspace.ok(&format!("{TRAIN} --output out"));
    workspace.write("out/mine.txt", "dear");
    let run = format!("{TRAIN} --output out --overwrite");
    workspace.refused(&format!("{run} --freeze all"), 2, &["nothing trains"]);
    workspace.refused(
        &format!("{run} --learning-rate 1e30 --warmup-steps 0"),
        1,
        &["NaN", "--learning-rate"],
    );
    assert_eq!(workspace.read("out/mine.txt"), "dear");
}

#[test]
fn folders_that_cannot_be_written() {
    let workspace = Workspace::new();
    workspace.refused(&format!("{TRAIN} --output absent/out"), 1, &["--output", "absent"]);
    workspace.refused(&format!("{TRAIN} --output reviews.csv --overwrite"), 1, &["reviews.csv"]);
    workspace.ok(&format!("{TRAIN} --output slash/"));
    assert!(workspace.path("slash/model.safetensors").exists());
}

/// The model that is read is never replaced.
#[test]
fn a_model_is_not_trained_in_its_place() {
    let workspace = Workspace::new();
    let old = fs::read(workspace.path("model/model.safetensors")).unwrap();
    let run = format!("{TRAIN} --output model --overwrite --freeze lower:2");
    workspace.refused(&run, 2, &["would replace", "--model model"]);
    assert!(fs::read(workspace.path("model/model.safetensors")).unwrap() == old);
}

#[test]
fn files_are_readable_like_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let workspace = Workspace::new();
    workspace.ok(&format!("{TRAIN} --output out"));
    let mode =
        |name: &str| fs::metadata(workspace.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("out") & 0o555, 0o555);
    for name in workspace.names("out") {
        assert_eq!(mode(&format!("out/{name}")) & 0o444, 0o444, "{name}");
    }
}

/// The model and the log apart from its clocks.
fn result(workspace: &Workspace, options: &str) -> (Vec<u8>, Vec<serde_json::Value>) {
    workspace.ok(&format!("{TRAIN} --output out --overwrite {options}"));
    let (steps, _) = crate::train::log(workspace, "out");
    (fs::read(workspace.path("out/model.safetensors")).unwrap(), steps)
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let workspace = Workspace::new();
    let first = result(&workspace, "--threads 1");
    for threads in ["--threads 1", "--threads 2", "--threads 2"] {
        let again = result(&workspace, threads);
        assert!(first.0 == again.0, "{threads}: other weights");
        assert_eq!(first.1, again.1, "{threads}: another log");
    }
    let named = result(&workspace, "--seed 42 --device cpu --dtype f32");
    assert!(result(&workspace, "").0 == named.0, "the defaults are not what they are said to be");
}

#[test]
fn another_seed_gives_other_bytes() {
    let workspace = Workspace::new();
    let first = result(&workspace, "");
    let second = result(&workspace, "--seed 43");
    assert!(first.0 != second.0 && first.1 != second.1);
}

/// sentence-transformers' own files say how the trained model pools, not how the one it came from did.
#[test]
fn pooling_as_sentence_transformers_says_it() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("model/1_Pooling")).unwrap();
    workspace.write("model/modules.json", "[]");
    let settings = r#"{"word_embedding_dimension": 16, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#;
    workspace.write("model/1_Pooling/config.json", settings);
    workspace.ok(&format!("{TRAIN} --output same"));
    assert_eq!(workspace.read("same/1_Pooling/config.json"), settings);
    assert_eq!(workspace.read("same/modules.json"), "[]");

    workspace.ok(&format!("{TRAIN} --output cls --pooling cls"));
    let written = workspace.read_json("cls/1_Pooling/config.json");
    assert_eq!(written["pooling_mode_cls_token"], true);
    assert_eq!(written["pooling_mode_mean_tokens"], false);
    assert_eq!(written["word_embedding_dimension"], 16);

    // There is no word for the tanh pooler.
    workspace.ok(&format!("{TRAIN} --output pooler --pooling pooler"));
    assert!(!workspace.path("pooler/modules.json").exists());
    assert!(!workspace.path("pooler/1_Pooling").exists());
}

/// What a run leaves out, it says.
#[test]
fn what_is_left_out_is_said() {
    let workspace = Workspace::new();
    let stderr = |arguments: &str| {
        let output = workspace.run(arguments);
        assert!(output.status.success(), "{arguments}");
        String::from_utf8(output.stderr).unwrap()
    };
    workspace.ok(&format!("{TRAIN} --output both"));
    let text = stderr(
        "train --model both --task topic=reviews.csv --max-steps 1 --output one --holdout 0",
    );
    assert!(text.contains("head `sentiment` is left out"), "{text}");

    workspace.write("held.csv", "text,topic\nthe phone is good,phone\n");
    let text = stderr(&format!("{TRAIN} --eval topic=held.csv --output other"));
    assert!(text.contains("task sentiment has no evaluation rows"), "{text}");
}
