//! Models by name: found in the cache of the Hugging Face hub on this machine, or downloaded into it.
//!
//! The cache and the variables of the environment are those of Hugging Face's own libraries: what they have
//! downloaded is found here, and what is downloaded here is found by them. This module is the only one that talks to
//! the network.

mod cache;
mod remote;
mod settings;

use std::path::PathBuf;

use super::folder::{COMPANIONS, MODULES, POOLING, SETTINGS};
use super::weights::{self, INDEX_FILE, SINGLE_FILE};
use crate::{Error, Result};
use cache::{Cached, Interrupted};
use remote::{Answer, Failure, Remote};
use settings::Settings;

/// The one file that every model has: its answer says which commit a revision is.
const CONFIG: &str = "config.json";

/// Weights that are pickled Python objects.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// A model's name on the hub: `org/name` or `name`, perhaps with `@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub repo: String,
    /// A branch, a tag or a commit; None for `main`.
    pub revision: Option<String>,
}

impl Name {
    /// Parses a name; None where the hub allows no such name (letters, digits, `-`, `_` and `.`), as for a path that
    /// begins with `.`, `/` or `~` or has more than one `/`.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let (owner, name) = match repo.split_once('/') {
            Some((owner, name)) => (Some(owner), name),
            None => (None, repo),
        };
        let parts = [owner, Some(name), revision];
        let is_name = parts.into_iter().flatten().all(is_plain) && !name.ends_with(".git");
        is_name.then(|| Self { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }
}

/// Whether the hub allows a text as part of a name; such a text is also safe in a path and in a URL.
fn is_plain(text: &str) -> bool {
    const LONGEST: usize = 96;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let at_edge = |c: char| "-.".contains(c);
    !text.is_empty()
        && text.len() <= LONGEST
        && text.chars().all(is_allowed)
        && !text.starts_with(at_edge)
        && !text.ends_with(at_edge)
        && !["--", ".."].iter().any(|pair| text.contains(pair))
}

/// What of a model a command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The configuration alone.
    Config,
    /// Weights and tokenizer too.
    All,
}

impl Need {
    /// The files beside the weights; only config.json must be there.
    fn files(self) -> impl Iterator<Item = &'static str> {
        let own = [CONFIG, SETTINGS, MODULES, POOLING];
        let more = COMPANIONS.into_iter().filter(move |name| self == Need::All && *name != CONFIG);
        own.into_iter().chain(more)
    }
}

/// What happens on the way to a model.
pub enum Event<'a> {
    /// A file comes; None where nobody says how large it is.
    Begins { url: &'a str, n_bytes: Option<u64> },
    /// So many bytes more of it are here.
    Bytes(u64),
    /// It is whole, and in the cache.
    Ends,
    /// Not all could be asked for or kept, and what the cache has is enough.
    UsesCopy { problem: &'a str },
}

/// The folder of a model: of the revision in the cache, whose missing files are downloaded first. `option` is what
/// names the model, for messages; `watch` is told how it goes.
///
/// # Errors
/// Where the cache has no copy that is enough: a model that is not on the hub, or not for this user; no network, or a
/// download that breaks off; a cache that cannot be written. Besides, settings and files of the cache that are wrong.
pub fn find(
    option: &str,
    name: &Name,
    need: Need,
    watch: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    let settings = Settings::from_env()?;
    let cached = Cached::new(&settings.cache, &name.repo);
    let revision = name.revision.as_deref().unwrap_or("main");
    let title = match &name.revision {
        Some(revision) => format!("{option} {}@{revision}", name.repo),
        None => format!("{option} {}", name.repo),
    };
    let commit = cached.commit_of(revision);
    // Enough to work with, even if the hub may have more.
    let mut enough = None;
    if let Some(commit) = &commit {
        let has_weights = need == Need::Config || has_weights(&cached, commit)?;
        let is_there = |file| cached.has(commit, file) || cached.is_known_absent(commit, file);
        if cached.has(commit, CONFIG) && has_weights {
            enough = Some(cached.snapshot(commit));
        }
        if enough.is_some() && need.files().all(is_there) {
            return Ok(cached.snapshot(commit));
        }
    }
    let not_cached = format!("is not in the cache {}", settings.cache.display());
    let nowhere = |problem: String| Error::Run(format!("{title}: is no folder, and {problem}"));
    if settings.is_offline {
        return enough.ok_or_else(|| nowhere(format!("{not_cached}; HF_HUB_OFFLINE is set")));
    }
    let remote = Remote::new(&settings.endpoint, settings.token.as_deref(), &name.repo);
    let download = Download { title: &title, remote, cached: &cached };
    match (download.run(revision, commit, need, watch), enough) {
        (Ok(snapshot), _) => Ok(snapshot),
        // Whatever the reason (no network, an expired token, a shared cache that is read-only): what is missing may
        // well be files that the model does not have, as beside what transformers has downloaded.
        (Err(stop), Some(snapshot)) => {
            watch(Event::UsesCopy { problem: &stop.problem() });
            Ok(snapshot)
        }
        (Err(Stop::Unreachable(problem)), None) => Err(nowhere(format!("{not_cached}; {problem}"))),
        (Err(Stop::Refused(problem)), None) => Err(nowhere(problem)),
        (Err(Stop::Fault(error)), None) => Err(error),
    }
}

/// Whether a snapshot has all its weights.
fn has_weights(cached: &Cached, commit: &str) -> Result<bool> {
    if cached.has(commit, SINGLE_FILE) {
        return Ok(true);
    }
    if !cached.has(commit, INDEX_FILE) {
        return Ok(false);
    }
    let shards = weights::shard_names(&cached.snapshot(commit).join(INDEX_FILE))?;
    Ok(shards.iter().all(|shard| cached.has(commit, shard)))
}

/// Why a download ends early.
enum Stop {
    Unreachable(String),
    Refused(String),
    Fault(Error),
}

impl Stop {
    fn problem(self) -> String {
        match self {
            Stop::Unreachable(problem) | Stop::Refused(problem) => problem,
            Stop::Fault(error) => error.to_string(),
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Fault(error)
    }
}

/// The hub has no such file; certain if it says so itself.
struct Absent {
    is_certain: bool,
}

struct Download<'a> {
    title: &'a str,
    remote: Remote<'a>,
    cached: &'a Cached,
}

impl Download<'_> {
    /// Brings what is missing of a revision, all of one commit: that of the cache, else what the hub says.
    fn run(
        &self,
        revision: &str,
        commit: Option<String>,
        need: Need,
        watch: &mut dyn FnMut(Event),
    ) -> std::result::Result<PathBuf, Stop> {
        let commit = match commit.filter(|commit| self.cached.has(commit, CONFIG)) {
            Some(commit) => commit,
            None => {
                let Ok(answer) = self.ask(revision, CONFIG)? else {
                    let url = self.remote.url(revision, CONFIG);
                    return Err(Stop::Refused(format!(
                        "there is no such model, or it has no config.json: {url} is not found (404)"
                    )));
                };
                let commit = answer.commit.clone();
                let blob = self.receive(answer, watch)?;
                self.cached.link(&commit, CONFIG, &blob)?;
                self.cached.set_ref(revision, &commit)?;
                commit
            }
        };
        for file in need.files().filter(|file| !self.cached.has(&commit, file)) {
            if !self.cached.is_known_absent(&commit, file) {
                self.bring(&commit, file, watch)?;
            }
        }
        if need == Need::All && !has_weights(self.cached, &commit)? {
            self.bring_weights(&commit, watch)?;
        }
        Ok(self.cached.snapshot(&commit))
    }

    fn bring_weights(
        &self,
        commit: &str,
        watch: &mut dyn FnMut(Event),
    ) -> std::result::Result<(), Stop> {
        if self.bring(commit, SINGLE_FILE, watch)? {
            return Ok(());
        }
        let Ok(answer) = self.ask(commit, INDEX_FILE)? else {
            let has = match PICKLED.into_iter().find(|file| self.remote.has(commit, file)) {
                Some(file) => format!("only {file}, which is not read: convert it to safetensors"),
                None => "no weights in safetensors".to_owned(),
            };
            let model = self.remote.url(commit, "").replace("/resolve/", "/tree/");
            return Err(Stop::Refused(format!("{} has {has}", model.trim_end_matches('/'))));
        };
        // The index comes last into the snapshot: where it stands, all shards do.
        let index = self.receive(answer, watch)?;
        for shard in weights::shard_names(&index)? {
            if !self.cached.has(commit, &shard) && !self.bring(commit, &shard, watch)? {
                let url = self.remote.url(commit, &shard);
                let problem = format!("names {shard}, but {url} is not found (404)");
                return Err(Error::content(&index, problem).into());
            }
        }
        Ok(self.cached.link(commit, INDEX_FILE, &index)?)
    }

    /// Brings one file into the snapshot; false where the hub has none of that name.
    fn bring(
        &self,
        commit: &str,
        file: &str,
        watch: &mut dyn FnMut(Event),
    ) -> std::result::Result<bool, Stop> {
        let answer = match self.ask(commit, file)? {
            Ok(answer) => answer,
            Err(Absent { is_certain }) => {
                if is_certain {
                    self.cached.note_absent(commit, file);
                }
                return Ok(false);
            }
        };
        let blob = self.receive(answer, watch)?;
        self.cached.link(commit, file, &blob)?;
        Ok(true)
    }

    fn ask(
        &self,
        revision: &str,
        file: &str,
    ) -> std::result::Result<std::result::Result<Answer, Absent>, Stop> {
        match self.remote.get(revision, file) {
            Ok(answer) => Ok(Ok(answer)),
            Err(Failure::NoFile { is_certain }) => Ok(Err(Absent { is_certain })),
            Err(Failure::Unreachable(problem)) => Err(Stop::Unreachable(problem)),
            Err(Failure::Refused(problem)) => Err(Stop::Refused(problem)),
        }
    }

    /// Reads what was asked for into a blob, whole or not at all.
    fn receive(
        &self,
        answer: Answer,
        watch: &mut dyn FnMut(Event),
    ) -> std::result::Result<PathBuf, Stop> {
        let Answer { url, etag, n_bytes, body, .. } = answer;
        if let Some(blob) = self.cached.blob(&etag) {
            return Ok(blob);
        }
        watch(Event::Begins { url: &url, n_bytes });
        let blob = self.cached.store(&etag, n_bytes, body, &mut |n| watch(Event::Bytes(n)));
        watch(Event::Ends);
        blob.map_err(|interrupted| match interrupted {
            Interrupted::Disk(error) => Stop::Fault(error),
            Interrupted::Network(problem) => {
                let advice = "what came of it is thrown away, try again";
                Stop::Fault(Error::Run(format!("{}: {url} {problem}; {advice}", self.title)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |repo: &str, revision: Option<&str>| {
            Some(Name { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
        };
        assert_eq!(Name::parse("bert-base-uncased"), name("bert-base-uncased", None));
        assert_eq!(Name::parse("org/all-MiniLM_L6.v2"), name("org/all-MiniLM_L6.v2", None));
        assert_eq!(Name::parse("org/name@v1.0"), name("org/name", Some("v1.0")));
        assert_eq!(Name::parse("_org/1"), name("_org/1", None));
        let paths = [
            "",
            "/",
            "./name",
            "../name",
            "/name",
            "~/name",
            "~",
            ".",
            "..",
            ".hidden",
            "a/b/c",
            "a/b/",
            "name/",
            "a//b",
            "a--b",
            "a..b",
            "-a",
            "a-",
            "a.",
            "org/-a",
            "a b",
            "a\\b",
            "größe",
            "org/name.git",
            "org/name@",
            "org/name@a/b",
            "org/name@../x",
            "a@b@c",
            "a?b",
            "a%2Fb",
        ];
        for path in paths {
            assert_eq!(Name::parse(path), None, "{path}");
        }
        assert!(Name::parse(&"a".repeat(96)).is_some() && Name::parse(&"a".repeat(97)).is_none());
    }

    #[test]
    fn a_plan_needs_no_weights_and_no_tokenizer() {
        let files: Vec<&str> = Need::Config.files().collect();
        assert_eq!(
            files,
            ["config.json", "frostline.json", "modules.json", "1_Pooling/config.json"]
        );
        let all: Vec<&str> = Need::All.files().collect();
        assert_eq!(all[..4], files);
        assert!(all.contains(&"tokenizer.json") && all.contains(&"vocab.txt"));
        let unique: std::collections::BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(unique.len(), all.len());
    }
}
