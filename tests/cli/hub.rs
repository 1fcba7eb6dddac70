//! Models by name, from a hub that runs in the test: downloaded once, then read from the cache.

mod server;

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Workspace, stdout_of};
use server::{COMMIT, Hub, listen};

const PREDICT: &str = "predict --model org/tiny reviews.csv --embeddings e.npy --device cpu";

/// Everything in a folder, by path from there.
fn tree(root: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

const REPO: &str = "home/hub/models--org--tiny";

/// What needs the configuration alone gets no more; what needs weights gets the rest, of the same commit. Then the
/// hub is asked no more.
#[test]
fn downloaded_once() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    let output = hub.run(&workspace, "plan --model org/tiny --task topic=5", &[]);
    stdout_of(&output, "plan");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let url = format!("downloading {}/org/tiny/resolve/main/config.json (", hub.endpoint);
    assert!(stderr.contains(&url), "{stderr}");
    let configs = ["config.json", "frostline.json", "modules.json", "1_Pooling/config.json"];
    assert_eq!(hub.files_asked(), configs);

    hub.ok(&workspace, PREDICT);
    let (asked, stored) = hub.asked();
    let all_pinned = asked.iter().all(|(path, _)| path.contains(&format!("/resolve/{COMMIT}/")));
    assert!(
        all_pinned && !asked.iter().any(|(path, _)| path.ends_with("/config.json")),
        "{asked:?}"
    );
    assert_eq!(stored, [("GET /model.safetensors".to_owned(), None)]);
    // The layout that other programs find it by.
    assert_eq!(workspace.read(&format!("{REPO}/refs/main")), COMMIT);
    let snapshot = format!("{REPO}/snapshots/{COMMIT}");
    let files = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(tree(&workspace.path(&snapshot)), files);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean");
    let weights = fs::read(golden.join("model.safetensors")).unwrap();
    let sha256: String = Sha256::digest(&weights).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(fs::read(workspace.path(&format!("{REPO}/blobs/{sha256}"))).unwrap(), weights);
    let target = |file: &str| fs::read_link(workspace.path(&format!("{snapshot}/{file}"))).unwrap();
    assert_eq!(target("model.safetensors"), Path::new("../../blobs").join(&sha256));
    assert!(target("1_Pooling/config.json").starts_with("../../../blobs"));
    assert_eq!(tree(&workspace.path(&format!("{REPO}/blobs"))).len(), 4);
    assert!(workspace.path(&format!("{REPO}/.no_exist/{COMMIT}/vocab.txt")).is_file());

    let embeddings = fs::read(workspace.path("e.npy")).unwrap();
    hub.ok(&workspace, "plan --model org/tiny --task topic=5");
    hub.ok(&workspace, PREDICT);
    assert_eq!(hub.asked(), (vec![], vec![]), "the cache has everything");
    let offline = hub.run(&workspace, PREDICT, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(stdout_of(&offline, PREDICT), "");
    assert_eq!(fs::read(workspace.path("e.npy")).unwrap(), embeddings);
    hub.ok(&workspace, &PREDICT.replace("org/tiny", &format!("org/tiny@{COMMIT}")));
    assert_eq!(hub.asked(), (vec![], vec![]), "the commit is there under its own name, too");

    // A folder of that name comes first.
    fs::create_dir_all(workspace.path("org/tiny")).unwrap();
    hub.refused(&workspace, PREDICT, &[], &["org/tiny", "config.json"]);
    assert_eq!(hub.asked(), (vec![], vec![]));
}

/// The model is the one of the folder that it was made of.
#[test]
fn trains_and_exports_like_a_folder() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    let train =
        "train --model MODEL --task topic=reviews.csv --max-steps 2 --device cpu --pooling mean";
    hub.ok(&workspace, &format!("{} --output by_name", train.replace("MODEL", "org/tiny")));
    hub.ok(&workspace, &format!("{} --output by_folder", train.replace("MODEL", "model")));
    let weights = |folder| fs::read(workspace.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("by_name") == weights("by_folder"));
    assert!(workspace.path("by_name/tokenizer.json").is_file());
    hub.ok(&workspace, "export --model org/tiny --output exported");
    assert!(workspace.path("exported/model.safetensors").is_file());
    // The hub's model pools so.
    assert!(workspace.read("exported/1_Pooling/config.json").contains("cls_token\": true"));
}

#[test]
fn revisions() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    hub.ok(&workspace, "plan --model org/tiny@v1");
    assert_eq!(workspace.read(&format!("{REPO}/refs/v1")), COMMIT);
    assert!(!workspace.path(&format!("{REPO}/refs/main")).exists());
    hub.refused(&workspace, "plan --model org/tiny@v2", &[], &["org/tiny@v2", "no revision v2"]);
}

#[test]
fn weights_in_shards() {
    let (workspace, hub) = (Workspace::with_model("bert-mean"), Hub::new());
    let map = hub.set(|state| {
        let weights = state.files.remove("model.safetensors").unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let names =
            tensors.names().into_iter().map(|name| format!("\"{name}\": \"a.safetensors\""));
        let map = names.collect::<Vec<_>>().join(", ");
        let index = format!("{{\"weight_map\": {{{map}}}}}");
        state.files.insert("model.safetensors.index.json".to_owned(), index.clone().into());
        index
    });
    hub.refused(&workspace, PREDICT, &[], &["names a.safetensors", "/a.safetensors is not found"]);
    let index = format!("{REPO}/snapshots/{COMMIT}/model.safetensors.index.json");
    assert!(!workspace.path(&index).exists(), "it comes last");
    // A name that would mean something in a URL.
    hub.set(|state| {
        let map = b"{\"weight_map\": {\"a\": \"a.safetensors?b#c\"}}".to_vec();
        state.files.insert("model.safetensors.index.json".to_owned(), map);
    });
    hub.asked();
    hub.refused(&workspace, PREDICT, &[], &["a.safetensors?b#c", "plain file name"]);
    assert!(!hub.files_asked().iter().any(|file| file.starts_with("a.")));
    hub.set(|state| _ = state.files.insert("model.safetensors.index.json".to_owned(), map.into()));
    let weights = fs::read(workspace.path("model/model.safetensors")).unwrap();
    hub.set(|state| _ = state.files.insert("a.safetensors".to_owned(), weights));
    hub.ok(&workspace, PREDICT);
    assert!(workspace.path(&index).exists());
    hub.asked();
    hub.ok(&workspace, PREDICT);
    assert_eq!(hub.asked(), (vec![], vec![]));
}

#[test]
fn pickled_weights_are_not_read() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    hub.set(|state| {
        let weights = state.files.remove("model.safetensors").unwrap();
        state.files.insert("pytorch_model.bin".to_owned(), weights);
    });
    let named = ["--model org/tiny", "only pytorch_model.bin", "safetensors"];
    hub.refused(&workspace, PREDICT, &[], &named);
    let (asked, stored) = hub.asked();
    assert_eq!(
        asked.last().unwrap().0,
        format!("HEAD /org/tiny/resolve/{COMMIT}/pytorch_model.bin")
    );
    assert!(stored.is_empty(), "it was downloaded");
    hub.set(|state| _ = state.files.remove("pytorch_model.bin"));
    for is_renamed in [false, true] {
        hub.set(|state| state.is_renamed = is_renamed);
        hub.refused(&workspace, PREDICT, &[], &["no weights in safetensors"]);
    }
    hub.ok(&workspace, "plan --model org/tiny");
}

/// The token goes to the hub, wherever it redirects, and to nobody else.
#[test]
fn tokens() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    hub.set(|state| (state.token, state.is_renamed) = (Some("hf_right"), true));
    let named = ["--model org/tiny", "401", "private or not there", "set HF_TOKEN"];
    hub.refused(&workspace, PREDICT, &[], &named);
    let named = ["--model org/tiny", "401", "the token (HF_TOKEN", "may not read it"];
    hub.refused(&workspace, PREDICT, &[("HF_TOKEN", "hf_wrong")], &named);
    assert_eq!(hub.asked().0[1].1.as_deref(), Some("Bearer hf_wrong"));
    hub.refused(&workspace, PREDICT, &[("HF_TOKEN", "a\u{1}b")], &["with this HF_TOKEN"]);
    hub.asked();
    let kept_back = [("HF_TOKEN", "hf_right"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
    hub.refused(&workspace, PREDICT, &kept_back, &["401", "HF_HUB_DISABLE_IMPLICIT_TOKEN"]);
    assert!(hub.asked().0.iter().all(|(_, token)| token.is_none()));

    fs::create_dir_all(workspace.path("home")).unwrap();
    workspace.write("home/token", "hf_right\n");
    hub.ok(&workspace, PREDICT);
    let (asked, stored) = hub.asked();
    assert!(
        asked.iter().all(|(_, token)| token.as_deref() == Some("Bearer hf_right")),
        "{asked:?}"
    );
    assert_eq!(stored, [("GET /model.safetensors".to_owned(), None)]);
}

#[test]
fn what_a_hub_refuses() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    let named = ["--model org/none", "no folder", "no such model", "404", hub.endpoint.as_str()];
    hub.refused(&workspace, "plan --model org/none", &[], &named);
    hub.refused(&workspace, "plan --model bare", &[], &["--model bare", "no such model"]);
    let cases: [(u16, &str, &[&str]); 4] = [
        (404, "", &["404", "no such model", "config.json"]),
        (403, "GatedRepo", &["403", "gated", "HF_TOKEN"]),
        (401, "", &["401", "HF_TOKEN"]),
        (503, "", &["503", "try again"]),
    ];
    for (status, code, named) in cases {
        hub.set(|state| state.refuses = Some((status, code)));
        hub.refused(&workspace, "plan --model org/tiny", &[], named);
    }
    assert!(tree(&workspace.path("home")).is_empty(), "{:?}", tree(&workspace.path("home")));
    // What looks like a path is none of the hub's.
    hub.asked();
    for path in ["./org/tiny", "/org/tiny", "~/tiny", "a/b/c", "org/tiny/", "../tiny"] {
        hub.refused(&workspace, &format!("plan --model {path}"), &[], &[path, "no such directory"]);
    }
    assert_eq!(hub.asked(), (vec![], vec![]));
}

/// Weights that end early, or are others than the hub says, are not kept; the next try gets them.
#[test]
fn broken_downloads_leave_nothing() {
    for spoiled in [false, true] {
        let (workspace, hub) = (Workspace::new(), Hub::new());
        hub.set(|state| {
            state.cut = (!spoiled).then_some(1000);
            state.spoiled = spoiled;
        });
        let problem = if spoiled { "SHA-256" } else { "after 1000 of " };
        let named = ["--model org/tiny", "model.safetensors", problem, "try again"];
        hub.refused(&workspace, PREDICT, &[], &named);
        let left = tree(&workspace.path(REPO));
        let is_unfinished =
            |path: &String| path.contains("safetensors") || path.contains("incomplete");
        assert!(!left.iter().any(is_unfinished), "{left:?}");
        assert_eq!(left.iter().filter(|path| path.starts_with("blobs")).count(), 3, "{left:?}");
        let offline = [("HF_HUB_OFFLINE", "1")];
        hub.refused(&workspace, PREDICT, &offline, &["not in the cache", "HF_HUB_OFFLINE"]);
        hub.asked();
        hub.ok(&workspace, PREDICT);
        let asked = hub.files_asked();
        assert_eq!(asked, ["model.safetensors"], "what was whole is not asked for again");
    }
}

#[test]
fn no_network() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    let offline = [("HF_HUB_OFFLINE", "1")];
    let cache = workspace.path("home/hub");
    let named =
        ["--model org/tiny: is no folder, and is not in the cache", cache.to_str().unwrap()];
    hub.refused(&workspace, PREDICT, &offline, &named);
    hub.refused(&workspace, PREDICT, &offline, &["; HF_HUB_OFFLINE is set"]);
    assert_eq!(hub.asked(), (vec![], vec![]));
    // A port that nobody listens on any more.
    let nobody = format!("http://{}", listen().local_addr().unwrap());
    let away = [("HF_ENDPOINT", nobody.as_str())];
    let named = ["--model org/tiny", "not in the cache", nobody.as_str(), "cannot be reached"];
    hub.refused(&workspace, PREDICT, &away, &named);

    // A copy that others left, which has all that matters, serves without the hub.
    hub.ok(&workspace, PREDICT);
    fs::remove_dir_all(workspace.path(&format!("{REPO}/.no_exist"))).unwrap();
    let output = hub.run(&workspace, PREDICT, &away);
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("cannot be reached") && stderr.contains("copy in the cache"),
        "{stderr}"
    );
    stdout_of(&hub.run(&workspace, PREDICT, &offline), PREDICT);
}

#[test]
fn where_the_cache_is() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    let elsewhere = workspace.path("elsewhere").to_str().unwrap().to_owned();
    let plan = "plan --model org/tiny";
    stdout_of(&hub.run(&workspace, plan, &[("HF_HUB_CACHE", &elsewhere)]), plan);
    assert!(workspace.path("elsewhere/models--org--tiny/refs/main").is_file());
    assert!(!workspace.path("home").exists());
    // A file where the cache should be.
    workspace.write("home", "");
    hub.refused(&workspace, plan, &[], &["home/hub/models--org--tiny"]);
    // The shell expands this only where it stands unquoted.
    let home = [("HOME", elsewhere.as_str()), ("HF_HOME", "~/hf")];
    stdout_of(&hub.run(&workspace, plan, &home), plan);
    assert!(workspace.path("elsewhere/hf/hub/models--org--tiny/refs/main").is_file());
}

#[test]
fn what_is_no_endpoint() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    let with_password = hub.endpoint.replace("http://", "http://me:s3cret@");
    let cases = [
        ("huggingface.co", "HF_ENDPOINT huggingface.co: expected a URL"),
        ("https://my hub", "HF_ENDPOINT https://my hub: is no URL"),
        (&with_password, "HF_ENDPOINT: the URL"),
    ];
    for (endpoint, named) in cases {
        let env = [("HF_ENDPOINT", endpoint), ("HF_TOKEN", "hf_right")];
        let output = hub.run(&workspace, "plan --model org/tiny", &env);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(named) && !stderr.contains("s3cret"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert_eq!(hub.asked(), (vec![], vec![]));
}

/// What transformers leaves in the cache: a model with no note of the files that only others ask for. It serves
/// whatever the hub says, or the disk.
#[test]
fn a_copy_that_is_enough_is_used() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    hub.ok(&workspace, PREDICT);
    let forget = || {
        let notes = workspace.path(&format!("{REPO}/.no_exist"));
        let _ = fs::remove_file(&notes).or_else(|_| fs::remove_dir_all(&notes));
    };
    let uses_copy = |env: &[(&str, &str)], named: &str| {
        forget();
        let _ = fs::remove_file(workspace.path("e.npy"));
        let output = hub.run(&workspace, PREDICT, env);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        let all = stderr.contains(named) && stderr.contains("using the copy in the cache");
        assert!(all && !stderr.contains("error:"), "{named}: {stderr}");
        assert!(workspace.path("e.npy").is_file());
    };
    for (status, code) in [(429, ""), (503, ""), (404, "RepoNotFound"), (403, "GatedRepo")] {
        hub.set(|state| state.refuses = Some((status, code)));
        uses_copy(&[], &status.to_string());
    }
    hub.set(|state| (state.refuses, state.token) = (None, Some("hf_right")));
    uses_copy(&[("HF_TOKEN", "hf_expired")], "the token (HF_TOKEN");
    hub.set(|state| state.token = None);
    // A cache that takes no note is no reason to say anything.
    forget();
    workspace.write(&format!("{REPO}/.no_exist"), "");
    let output = hub.run(&workspace, PREDICT, &[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !stderr.contains("cache"), "{stderr}");
    // One that does not take a file either: a folder stands in its place.
    let vocabulary = b"[UNK]\n".to_vec();
    let hash: String = Sha256::digest(&vocabulary).iter().map(|b| format!("{b:02x}")).collect();
    let place = format!("{REPO}/blobs/{}", &hash[..40]);
    fs::create_dir_all(workspace.path(&place)).unwrap();
    workspace.write(&format!("{place}/file"), "");
    hub.set(|state| _ = state.files.insert("vocab.txt".to_owned(), vocabulary));
    uses_copy(&[], &place);
    // Without a copy that is enough all of these are errors.
    fs::remove_file(workspace.path(&format!("{REPO}/snapshots/{COMMIT}/model.safetensors")))
        .unwrap();
    hub.refused(&workspace, PREDICT, &[], &[&place]);
}

/// That a file is absent is noted for good, so only a hub that says so is believed.
#[test]
fn only_what_is_certain_is_noted() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    hub.set(|state| state.is_terse = true);
    hub.ok(&workspace, PREDICT);
    assert!(!workspace.path(&format!("{REPO}/.no_exist")).exists());
    // The file is there the next time.
    hub.set(|state| {
        state.is_terse = false;
        state.files.insert("frostline.json".to_owned(), b"{\"pooling\": \"mean\"}".to_vec());
    });
    hub.asked();
    hub.ok(&workspace, PREDICT);
    assert!(hub.files_asked().contains(&"frostline.json".to_owned()));
    assert!(workspace.path(&format!("{REPO}/snapshots/{COMMIT}/frostline.json")).is_file());
    assert!(workspace.path(&format!("{REPO}/.no_exist/{COMMIT}/vocab.txt")).is_file());
}

/// Processes that measure memory open the folder that was found.
#[test]
fn a_bench_looks_a_model_up_once() {
    let (workspace, hub) = (Workspace::new(), Hub::new());
    // Nothing is noted, so that every look-up asks again.
    hub.set(|state| state.is_terse = true);
    hub.ok(
        &workspace,
        "bench --model org/tiny --task topic=5 --scenarios none --batch-size 2 --max-length 8 --rounds 2 --warmup 1 \
         --device cpu",
    );
    let asked = hub.files_asked();
    assert_eq!(asked.iter().filter(|file| *file == "frostline.json").count(), 1, "{asked:?}");
}
