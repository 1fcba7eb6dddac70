//! A run replaces and removes only what a run wrote; and whoever is cut off at any moment finds a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::Workspace;

const TRAIN: &str = "train --model model --task topic=reviews.csv --task sentiment=reviews.csv --max-steps 4 \
                     --batch-size 16 --learning-rate 1e-3 --save-steps 2 --device cpu --output out";

/// Names that people have beside a model, and in its folders; some begin as ours do.
const FOREIGN: [&str; 8] = [
    "notes.md",
    ".hidden/notes",
    "src/train.py",
    "runs/events.out.tfevents.1.other",
    "checkpoint-2/notes.md",
    "checkpoint-best/model.safetensors",
    "1_Pooling/old.json",
    "model.safetensors.bak",
];

/// Every file below a folder, links as what they say.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
                continue;
            }
            let bytes = match path.is_symlink() {
                true => fs::read_link(&path).unwrap().to_string_lossy().into_owned().into_bytes(),
                false => fs::read(&path).unwrap(),
            };
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), bytes);
        }
    }
    found
}

fn add_foreign(workspace: &Workspace, folder: &str) {
    for name in FOREIGN {
        let path = workspace.path(folder).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("dear {name}")).unwrap();
    }
    std::os::unix::fs::symlink("notes.md", workspace.path(folder).join("link")).unwrap();
}

#[track_caller]
fn assert_foreign(workspace: &Workspace, folder: &str, what: &str) {
    let found = files(&workspace.path(folder));
    for name in FOREIGN {
        let bytes = found.get(name).unwrap_or_else(|| panic!("{what}: {name} is gone"));
        assert_eq!(bytes, format!("dear {name}").as_bytes(), "{what}: {name}");
    }
    assert_eq!(found["link"], b"notes.md", "{what}");
}

/// What a folder holds of ours: no foreign file, and no list, which a switch has two of.
fn own(workspace: &Workspace, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let mut own = files(&workspace.path(folder));
    own.retain(|name, _| {
        !FOREIGN.contains(&name.as_str()) && name != "link" && !name.contains("frostline-manifest")
    });
    own
}

#[test]
fn every_way_of_writing_leaves_them_alone() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("out")).unwrap();
    add_foreign(&workspace, "out");
    workspace.ok(&format!("{TRAIN} --logging-dir out/runs"));
    assert_foreign(&workspace, "out", "train");
    assert!(workspace.names("out/runs").len() > 1, "the log of this run is gone");
    let written = workspace.names("out");
    for more in [
        "--overwrite",
        "--overwrite --save-total-limit 1",
        "--overwrite --logging-dir out/runs --drift",
        "--resume",
        "--overwrite --save-strategy epoch --freeze backbone",
    ] {
        workspace.ok(&format!("{TRAIN} {more}"));
        assert_foreign(&workspace, "out", more);
    }
    assert!(
        written
            .iter()
            .filter(|name| !name.starts_with("check"))
            .all(|name| workspace.names("out").contains(name))
    );
    workspace.ok("predict --model out reviews.csv --embeddings out/vectors.npy --device cpu");
    assert_foreign(&workspace, "out", "predict");
    workspace.ok("bench --model out --task topic=5 --rounds 1 --warmup 0 --report out/page.html --device cpu");
    assert_foreign(&workspace, "out", "bench");

    fs::create_dir(workspace.path("exported")).unwrap();
    add_foreign(&workspace, "exported");
    workspace.ok("export --model out --output exported");
    workspace.ok("export --model out --head topic --output exported --overwrite");
    assert_foreign(&workspace, "exported", "export");
    assert!(workspace.path("exported/2_Dense/labels.json").exists());
    workspace.ok("export --model out --output exported --overwrite");
    assert!(!workspace.path("exported/2_Dense").exists(), "what was ours is replaced");
}

#[test]
fn a_file_of_a_needed_name_that_is_not_ours_is_refused() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("out")).unwrap();
    workspace.write("out/tokenizer.json", "mine");
    for more in ["", "--overwrite"] {
        workspace.refused(&format!("{TRAIN} {more}"), 1, &["tokenizer.json", "move that"]);
    }
    fs::remove_file(workspace.path("out/tokenizer.json")).unwrap();
    workspace.ok(TRAIN);
    let edited = format!("{}\n", workspace.read("out/config.json"));
    workspace.write("out/config.json", &edited);
    workspace.refused(&format!("{TRAIN} --overwrite"), 1, &["config.json", "edited"]);
    assert_eq!(workspace.read("out/config.json"), edited);
}

/// What an older version wrote has no list: the names of a model of ours are known, and nothing else is.
#[test]
fn a_model_without_a_list_can_be_replaced() {
    let workspace = Workspace::new();
    workspace.ok(TRAIN);
    for folder in ["out", "out/checkpoint-2", "out/checkpoint-4"] {
        fs::remove_file(workspace.path(folder).join("frostline-manifest.json")).unwrap();
    }
    add_foreign(&workspace, "out");
    workspace.ok(&format!("{TRAIN} --overwrite --freeze backbone"));
    assert_foreign(&workspace, "out", "without a list");
    assert_eq!(workspace.read_json("out/frostline.json")["freeze"], "backbone");
    // Our settings beside what is no model of ours say nothing.
    fs::create_dir(workspace.path("part")).unwrap();
    fs::copy(workspace.path("out/frostline.json"), workspace.path("part/frostline.json")).unwrap();
    workspace.write("part/config.json", "{\"mine\": 1}");
    let train = TRAIN.replace("--output out", "--output part");
    workspace.refused(&format!("{train} --overwrite"), 1, &["config.json", "no run of frostline"]);
    // Somebody's model is none of ours.
    fs::create_dir(workspace.path("other")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(workspace.path("model").join(name), workspace.path("other").join(name)).unwrap();
    }
    let train = TRAIN.replace("--output out", "--output other");
    workspace.refused(&format!("{train} --overwrite"), 1, &["config.json", "no run of frostline"]);
}

#[test]
fn what_is_read_is_not_replaced() {
    let workspace = Workspace::new();
    workspace.ok(TRAIN);
    let refused = |arguments: &str, named: &[&str]| {
        let before = files(workspace.0.path());
        workspace.refused(arguments, 2, named);
        assert!(files(workspace.0.path()) == before, "{arguments}");
    };
    let train = |model: &str, output: &str| {
        let train = TRAIN.replace("--model model", &format!("--model {model}"));
        train.replace("--output out", &format!("--output {output}"))
    };
    refused(&format!("{} --overwrite", train("out", "out")), &["--model out", "would replace"]);
    refused(&format!("{} --overwrite", train("out/checkpoint-2", "out")), &["checkpoint-2"]);
    std::os::unix::fs::symlink("out", workspace.path("alias")).unwrap();
    refused(&format!("{} --overwrite", train("alias", "./out/../out")), &["--model alias"]);
    refused(&format!("{} --overwrite", train("out", "alias")), &["would replace"]);
    refused("export --model out --output out --overwrite", &["--model out"]);
    // A model in a folder of the one that it comes from is nothing unusual.
    workspace.ok(&train("out", "out/stage2"));
    workspace.ok(&format!("{} --overwrite", train("out/stage2", "out/stage2/more")));
}

#[test]
fn folders_by_their_other_names() {
    let workspace = Workspace::new();
    fs::create_dir_all(workspace.path("x/y")).unwrap();
    workspace.write("x/y/mine.txt", "dear");
    workspace.ok(&TRAIN.replace("--output out", "--output ./x/../x"));
    workspace.ok(&TRAIN.replace("--output out", "--output ./x/../x --overwrite"));
    assert_eq!(workspace.read("x/y/mine.txt"), "dear");
    assert!(workspace.path("x/model.safetensors").exists());
    assert!(workspace.names(".").iter().all(|name| !name.starts_with('.')));
}

#[test]
fn places_that_cannot_be_folders() {
    let workspace = Workspace::new();
    std::os::unix::fs::symlink("nowhere", workspace.path("dangling")).unwrap();
    let train = TRAIN.replace("--output out", "--output dangling");
    workspace.refused(&train, 1, &["dangling", "link to nothing"]);
    // A file where a checkpoint would go stays, and the checkpoint gets another name.
    fs::create_dir(workspace.path("out")).unwrap();
    workspace.write("out/checkpoint-2", "dear");
    workspace.ok(TRAIN);
    assert_eq!(workspace.read("out/checkpoint-2"), "dear");
    assert!(workspace.path("out/checkpoint-2.2/checkpoint.json").exists());
}

#[test]
fn one_run_at_a_time() {
    let workspace = Workspace::new();
    let long = TRAIN.replace("--max-steps 4", "--max-steps 100000");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"));
    command.current_dir(workspace.0.path()).args(long.split_whitespace());
    command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut first = command.spawn().unwrap();
    while !workspace.path("out/checkpoint-2").exists() {
        std::thread::sleep(Duration::from_millis(20));
        assert!(first.try_wait().unwrap().is_none(), "the run ended");
    }
    let output = workspace.run(&format!("{TRAIN} --resume"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another run is writing into it"), "{stderr}");
    first.kill().unwrap();
    first.wait().unwrap();
    // A dead process holds nothing.
    workspace.ok(&TRAIN.replace("--max-steps 4", "--max-steps 2 --overwrite"));
}

/// What was written where a link stood takes the link's place: what it points to may be somebody's model.
#[test]
fn links_are_replaced_and_not_written_through() {
    let workspace = Workspace::new();
    workspace.write("dear.npy", "dear");
    std::os::unix::fs::symlink("dear.npy", workspace.path("vectors.npy")).unwrap();
    workspace.ok("predict --model model reviews.csv --embeddings vectors.npy --device cpu");
    assert_eq!(workspace.read("dear.npy"), "dear");
    assert!(!workspace.path("vectors.npy").is_symlink());
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        let (source, target) = (from.join(&name), to.join(&name));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        match source.is_symlink() {
            true => std::os::unix::fs::symlink(fs::read_link(source).unwrap(), target).unwrap(),
            false => fs::write(target, bytes).unwrap(),
        }
    }
}

/// Ends the process before each operation of a switch in turn.
#[test]
fn cut_off_anywhere_there_is_a_model() {
    let workspace = Workspace::new();
    workspace.ok(&TRAIN.replace("--output out", "--output trained"));
    workspace.ok("export --model trained --head topic --output start");
    let old = own(&workspace, "start");
    workspace.ok("export --model trained --output new");
    let new = own(&workspace, "new");
    assert_ne!(old, new);
    add_foreign(&workspace, "start");
    let export = ["export", "--model", "trained", "--output", "out", "--overwrite"];
    let (mut n_old, mut n_new, mut n_beside) = (0, 0, 0);
    for end in 0.. {
        for name in workspace.names(".").iter().filter(|name| name.starts_with(".frostline-out")) {
            let path = workspace.path(name);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        let _ = fs::remove_dir_all(workspace.path("out"));
        copy_tree(&workspace.path("start"), &workspace.path("out"));
        let mut command = workspace.command();
        let output =
            command.env("FROSTLINE_END_BEFORE", end.to_string()).args(export).output().unwrap();
        let what = format!("ended before operation {end}");
        assert_foreign(&workspace, "out", &what);
        if output.status.success() {
            assert!(end > 20, "only {end} operations were cut off");
            assert!(own(&workspace, "out") == new);
            break;
        }
        let left = own(&workspace, "out");
        if left.contains_key("config.json") {
            assert!(left == old || left == new, "{what}: {:?}", left.keys());
            if left == old { n_old += 1 } else { n_new += 1 }
        } else {
            n_beside += 1;
            let beside: Vec<String> = (workspace.names(".").into_iter())
                .filter(|name| name.starts_with(".frostline-out-"))
                .collect();
            assert_eq!(beside.len(), 1, "{what}");
            let place = format!("{}/model", beside[0]);
            assert!(own(&workspace, &place) == new, "{what}");
            // The next command says where it is; what it says works.
            let output = workspace.run("predict --model out reviews.csv --device cpu");
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && stderr.contains(&place), "{what}: {stderr}");
            if end % 5 == 0 {
                let cure = stderr.split('`').nth(1).unwrap_or_else(|| panic!("{stderr}"));
                let mut shell = std::process::Command::new("sh");
                let done =
                    shell.arg("-c").arg(cure).current_dir(workspace.0.path()).status().unwrap();
                assert!(done.success(), "{cure}");
                workspace.ok("predict --model out reviews.csv --embeddings v.npy --device cpu");
            }
        }
        workspace.ok(&export.join(" "));
        assert!(own(&workspace, "out") == new, "{what}, and again");
        assert_foreign(&workspace, "out", &format!("{what}, and again"));
    }
    assert!(n_old > 0 && n_new > 0 && n_beside > 5, "{n_old} {n_new} {n_beside}");
}
