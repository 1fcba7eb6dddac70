//! Models by name, from a hub that runs in the test: downloaded once, then read from the cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::{Workspace, stdout_of};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const PREDICT: &str = "predict --model org/tiny reviews.csv --embeddings e.npy --device cpu";

/// A request: method and path, and the token that it bore.
type Request = (String, Option<String>);

/// What the hub has, and how it misbehaves.
#[derive(Default)]
struct State {
    /// By path in the repository `org/tiny`.
    files: BTreeMap<String, Vec<u8>>,
    /// Answer everything with this status and X-Error-Code.
    refuses: Option<(u16, &'static str)>,
    /// Who does not bear this token is refused.
    token: Option<&'static str>,
    /// Ends the weights after so many bytes, once.
    cut: Option<usize>,
    /// Sends other bytes of weights, as many as it should, once.
    spoiled: bool,
    /// Redirects to `/moved` first, as for a repository that was renamed.
    is_renamed: bool,
    requests: Vec<Request>,
    /// What the other server, which large files lie on, was asked.
    storage_requests: Vec<Request>,
}

/// A hub on two ports, as the real one has two hosts: weights are redirected to the second.
struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// With the golden model bert-mean as `org/tiny`.
    fn new() -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean");
        let mut state = State::default();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            state.files.insert(name.to_owned(), fs::read(golden.join(name)).unwrap());
        }
        let pooling = "{\"pooling_mode_cls_token\": true, \"pooling_mode_mean_tokens\": false}";
        state.files.insert("1_Pooling/config.json".to_owned(), pooling.into());
        let state = Arc::new(Mutex::new(state));
        let (hub, storage) = (listen(), listen());
        let storage_url = format!("http://{}", storage.local_addr().unwrap());
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        serve(hub, state.clone(), move |state, request, stream| {
            state.requests.push(request.clone());
            answer(state, &request, &storage_url, stream);
        });
        serve(storage, state.clone(), |state, request, stream| {
            state.storage_requests.push(request.clone());
            let file = request.0.strip_prefix("GET /").unwrap();
            let mut body = state.files[file].clone();
            if std::mem::take(&mut state.spoiled) {
                body[9] ^= 1;
            }
            let n_sent = state.cut.take().unwrap_or(body.len());
            send(stream, "200 OK", &[("Content-Length", &body.len().to_string())], &body[..n_sent]);
        });
        Self { endpoint, state }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What was asked since the last call, of the hub and of the storage.
    fn asked(&self) -> (Vec<Request>, Vec<Request>) {
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.requests), std::mem::take(&mut state.storage_requests))
    }

    /// Paths that were asked for since the last call, from behind the revision on.
    fn files_asked(&self) -> Vec<String> {
        let (requests, _) = self.asked();
        let file = |(request, _): &Request| {
            request.split("/resolve/").nth(1).unwrap().split_once('/').unwrap().1.to_owned()
        };
        requests.iter().map(file).collect()
    }

    /// Runs frostline against this hub, with the cache `home/hub`.
    fn run(&self, workspace: &Workspace, arguments: &str, env: &[(&str, &str)]) -> Output {
        let mut command = workspace.command();
        command.env("HF_HOME", workspace.path("home")).env("HF_ENDPOINT", &self.endpoint);
        command.env_remove("HF_HUB_OFFLINE");
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.envs(env.iter().copied()).args(arguments.split_whitespace()).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, workspace: &Workspace, arguments: &str) -> String {
        stdout_of(&self.run(workspace, arguments, &[]), arguments)
    }

    /// Runs a command that must be refused with one sentence that has all of `named`.
    #[track_caller]
    fn refused(
        &self,
        workspace: &Workspace,
        arguments: &str,
        env: &[(&str, &str)],
        named: &[&str],
    ) {
        let output = self.run(workspace, arguments, env);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments}: {stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert_eq!(stderr.lines().last(), Some(errors[0]), "an error of several lines: {stderr}");
        for name in named {
            assert!(errors[0].contains(name), "{name:?} is not named: {stderr}");
        }
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Answers one connection after the other, until the tests end.
fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    answer: impl Fn(&mut State, Request, &mut TcpStream) + Send + 'static,
) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            // A connection that asks for nothing is none of ours.
            let Some(Ok(first)) = lines.next() else { continue };
            let request = first.strip_suffix(" HTTP/1.1").unwrap().to_owned();
            let mut token = None;
            for line in lines.map(|line| line.unwrap()).take_while(|line| !line.is_empty()) {
                let (name, value) = line.split_once(": ").unwrap();
                if name.eq_ignore_ascii_case("authorization") {
                    token = Some(value.to_owned());
                }
            }
            answer(&mut state.lock().unwrap(), (request, token), &mut stream);
        }
    });
}

fn send(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    // Who hangs up early is told nothing more.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// The hub's answer to a request for a file.
fn answer(state: &State, (request, token): &Request, storage: &str, stream: &mut TcpStream) {
    let none = ("Content-Length", "0");
    if let Some((status, code)) = state.refuses {
        return send(stream, &format!("{status} Refused"), &[none, ("X-Error-Code", code)], b"");
    }
    if state.token.is_some_and(|right| *token != Some(format!("Bearer {right}"))) {
        return send(stream, "401 Unauthorized", &[none, ("X-Error-Code", "RepoNotFound")], b"");
    }
    let (method, path) = request.split_once(' ').unwrap();
    if state.is_renamed && !path.starts_with("/moved") {
        let moved = format!("/moved{path}");
        return send(stream, "307 Temporary Redirect", &[none, ("Location", &moved)], b"");
    }
    let path = path.trim_start_matches("/moved").strip_prefix("/org/tiny/resolve/");
    let Some((revision, file)) = path.and_then(|path| path.split_once('/')) else {
        return send(stream, "404 Not Found", &[none, ("X-Error-Code", "RepoNotFound")], b"");
    };
    if ![COMMIT, "main", "v1"].contains(&revision) {
        return send(stream, "404 Not Found", &[none, ("X-Error-Code", "RevisionNotFound")], b"");
    }
    let Some(body) = state.files.get(file) else {
        return send(stream, "404 Not Found", &[none, ("X-Error-Code", "EntryNotFound")], b"");
    };
    let sha256: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    let (size, place) = (body.len().to_string(), format!("{storage}/{file}"));
    let commit = ("X-Repo-Commit", COMMIT);
    if file.ends_with(".safetensors") || file.ends_with(".bin") {
        let etag = format!("\"{sha256}\"");
        let linked = [("X-Linked-Size", size.as_str()), ("X-Linked-Etag", &etag)];
        let headers = [none, ("Location", &place), commit, linked[0], linked[1]];
        return send(stream, "302 Found", &headers, b"");
    }
    let etag = format!("W/\"{}\"", &sha256[..40]);
    let headers = [("Content-Length", size.as_str()), ("ETag", &etag), commit];
    send(stream, "200 OK", &headers, if method == "HEAD" { b"" } else { body });
}

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
    hub.set(|state| {
        let weights = state.files.remove("model.safetensors").unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let names =
            tensors.names().into_iter().map(|name| format!("\"{name}\": \"a.safetensors\""));
        let map = names.collect::<Vec<_>>().join(", ");
        let index = format!("{{\"weight_map\": {{{map}}}}}");
        state.files.insert("model.safetensors.index.json".to_owned(), index.into());
    });
    hub.refused(&workspace, PREDICT, &[], &["names a.safetensors", "/a.safetensors is not found"]);
    let index = format!("{REPO}/snapshots/{COMMIT}/model.safetensors.index.json");
    assert!(!workspace.path(&index).exists(), "it comes last");
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
    hub.refused(&workspace, PREDICT, &[], &["no weights in safetensors"]);
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
    hub.refused(&workspace, PREDICT, &[("HF_TOKEN", "a\u{1}b")], &["HF_TOKEN"]);

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
    let endpoint = [("HF_ENDPOINT", "huggingface.co")];
    let output = hub.run(&workspace, plan, &endpoint);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("HF_ENDPOINT huggingface.co: expected a URL"), "{stderr}");
}
