//! A hub that runs in the test.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::{Workspace, stdout_of};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request: method and path, and the token that it bore.
pub type Request = (String, Option<String>);

/// What the hub has, and how it misbehaves.
#[derive(Default)]
pub struct State {
    /// By path in the repository `org/tiny`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Answer everything with this status and X-Error-Code.
    pub refuses: Option<(u16, &'static str)>,
    /// Who does not bear this token is refused.
    pub token: Option<&'static str>,
    /// Ends the weights after so many bytes, once.
    pub cut: Option<usize>,
    /// Sends other bytes of weights, as many as it should, once.
    pub spoiled: bool,
    /// Does not say what it does not find: a bare 404.
    pub is_terse: bool,
    /// Redirects to `/moved` first, as for a repository that was renamed.
    pub is_renamed: bool,
    pub requests: Vec<Request>,
    /// What the other server, which large files lie on, was asked.
    pub storage_requests: Vec<Request>,
}

/// A hub on two ports, as the real one has two hosts: weights are redirected to the second.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// With the golden model bert-mean as `org/tiny`.
    pub fn new() -> Self {
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

    pub fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// What was asked since the last call, of the hub and of the storage.
    pub fn asked(&self) -> (Vec<Request>, Vec<Request>) {
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.requests), std::mem::take(&mut state.storage_requests))
    }

    /// Paths that were asked for since the last call, from behind the revision on.
    pub fn files_asked(&self) -> Vec<String> {
        let (requests, _) = self.asked();
        let file = |(request, _): &Request| {
            request.split("/resolve/").nth(1).unwrap().split_once('/').unwrap().1.to_owned()
        };
        requests.iter().map(file).collect()
    }

    /// Runs frostline against this hub, with the cache `home/hub`.
    pub fn run(&self, workspace: &Workspace, arguments: &str, env: &[(&str, &str)]) -> Output {
        let mut command = workspace.command();
        command.env("HF_HOME", workspace.path("home")).env("HF_ENDPOINT", &self.endpoint);
        command.env_remove("HF_HUB_OFFLINE");
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.envs(env.iter().copied()).args(arguments.split_whitespace()).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, workspace: &Workspace, arguments: &str) -> String {
        stdout_of(&self.run(workspace, arguments, &[]), arguments)
    }

    /// Runs a command that must be refused with one sentence that has all of `named`.
    #[track_caller]
    pub fn refused(
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

pub fn listen() -> TcpListener {
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
        let code = [none, ("X-Error-Code", "EntryNotFound")];
        return send(stream, "404 Not Found", if state.is_terse { &code[..1] } else { &code }, b"");
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
