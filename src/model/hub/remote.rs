//! Files of one repository of the hub, over HTTP.

use std::time::Duration;

use ureq::http::{HeaderMap, Method, Response, Uri};
use ureq::{Agent, Body, BodyReader};

use super::is_plain;

/// How long a connection, and each silence within an answer, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Redirects that are followed one after the other.
const MOST_HOPS: usize = 8;

/// One repository on the hub.
pub struct Remote<'a> {
    agent: Agent,
    endpoint: &'a str,
    token: Option<&'a str>,
    repo: &'a str,
}

/// A file that the hub has.
pub struct Answer {
    /// The URL that was asked for.
    pub url: String,
    /// The commit that the revision is.
    pub commit: String,
    /// What the content is called in the cache: the SHA-256 of large files, git's hash of others.
    pub etag: String,
    /// The file's size, where the hub says it.
    pub n_bytes: Option<u64>,
    pub body: BodyReader<'static>,
}

/// Why there is no answer; what is said ends a sentence.
pub enum Failure {
    /// The repository has no file of that name. It is certain where the hub says so, and not where a mirror or a proxy
    /// finds nothing.
    NoFile {
        is_certain: bool,
    },
    Unreachable(String),
    Refused(String),
}

impl<'a> Remote<'a> {
    pub fn new(endpoint: &'a str, token: Option<&'a str>, repo: &'a str) -> Self {
        // Redirects are followed here: the first hop has the file's name and size, and the token is for the hub alone.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("frostline/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .timeout_per_write(Some(PATIENCE))
            .build();
        Self { agent: config.new_agent(), endpoint, token, repo }
    }

    /// Where a file is.
    pub fn url(&self, revision: &str, file: &str) -> String {
        format!("{}/{}/resolve/{revision}/{file}", self.endpoint, self.repo)
    }

    /// Asks for a file; its body is yet to be read.
    ///
    /// # Errors
    /// As [`Failure`] says.
    pub fn get(&self, revision: &str, file: &str) -> Result<Answer, Failure> {
        let url = self.url(revision, file);
        let (mut commit, mut etag, mut n_bytes) = (None, None, None);
        let mut at = url.clone();
        for _ in 0..MOST_HOPS {
            let response = self.call(Method::GET, &at)?;
            let headers = response.headers();
            if self.is_hub(&at) {
                let new_etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
                etag = new_etag.or(etag);
                commit = header(headers, "x-repo-commit").or(commit);
                n_bytes = header(headers, "x-linked-size").and_then(|n| n.parse().ok()).or(n_bytes);
            }
            let status = response.status();
            if status.is_redirection() {
                at = redirected(&at, headers).ok_or_else(|| {
                    Failure::Refused(format!("{at} is redirected to no place that can be asked"))
                })?;
                continue;
            }
            if !status.is_success() {
                return Err(self.refusal(revision, &url, &response));
            }
            let body = response.into_body();
            let not_hub = |what: &str| {
                let problem = format!("{url} does not answer as a hub does (no {what})");
                Failure::Refused(problem)
            };
            return Ok(Answer {
                commit: commit
                    .filter(|one| is_plain(one))
                    .ok_or_else(|| not_hub("X-Repo-Commit"))?,
                etag: (etag.map(|etag| bare(&etag).to_owned()))
                    .filter(|etag| is_plain(etag))
                    .ok_or_else(|| not_hub("ETag"))?,
                n_bytes: n_bytes.or(body.content_length()),
                body: body.into_reader(),
                url,
            });
        }
        Err(Failure::Refused(format!("{url} is redirected without end")))
    }

    /// Whether the hub has a file, as far as it says.
    pub fn has(&self, revision: &str, file: &str) -> bool {
        let mut at = self.url(revision, file);
        for _ in 0..MOST_HOPS {
            let Ok(response) = self.call(Method::HEAD, &at) else { return false };
            let status = response.status();
            if !status.is_redirection() {
                return status.is_success();
            }
            match redirected(&at, response.headers()) {
                // Another name of the repository, which may lack the file.
                Some(next) if self.is_hub(&next) => at = next,
                // Where the content lies.
                next => return next.is_some(),
            }
        }
        false
    }

    /// Whether a URL is the hub's own, which alone is told the token.
    fn is_hub(&self, url: &str) -> bool {
        origin(url).is_some_and(|own| origin(self.endpoint) == Some(own))
    }

    /// Asks with HEAD or GET, following no redirect.
    fn call(&self, method: Method, url: &str) -> Result<Response<Body>, Failure> {
        let uri: Uri =
            url.parse().map_err(|e| Failure::Refused(format!("{url} is no URL: {e}")))?;
        let request = match method {
            Method::HEAD => self.agent.head(uri),
            _ => self.agent.get(uri),
        };
        let token = self.token.filter(|_| self.is_hub(url));
        let request = match token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        request.call().map_err(|error| match error {
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                let with = if token.is_some() { " with this HF_TOKEN" } else { "" };
                Failure::Refused(format!("{url} cannot be asked{with}: {error}"))
            }
            error => {
                let place = origin(url)
                    .map_or(url.to_owned(), |(scheme, host)| format!("{scheme}://{host}"));
                Failure::Unreachable(format!("{place} cannot be reached: {error}"))
            }
        })
    }

    /// What an answer without a file means.
    fn refusal(&self, revision: &str, url: &str, response: &Response<Body>) -> Failure {
        let Remote { endpoint, repo, .. } = self;
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let status = response.status();
        match (status.as_u16(), code.as_str()) {
            (404, "RepoNotFound") => {
                Failure::Refused(format!("{endpoint} has no such model (404)"))
            }
            (404, "RevisionNotFound") => {
                Failure::Refused(format!("{endpoint}/{repo} has no revision {revision} (404)"))
            }
            (404, code) => Failure::NoFile { is_certain: code == "EntryNotFound" },
            (number @ (401 | 403), _) => {
                let advice = match (self.token, code.as_str()) {
                    (_, "GatedRepo") => {
                        "it is gated: accept its terms there, and set HF_TOKEN to a token that may read it"
                    }
                    (Some(_), _) => {
                        "it is private or not there, and the token (HF_TOKEN, or the file `token` in HF_HOME) \
                         may not read it"
                    }
                    (None, _) => {
                        "it is private or not there; if there is one, set HF_TOKEN to a token that may read it \
                         (and HF_HUB_DISABLE_IMPLICIT_TOKEN not at all)"
                    }
                };
                Failure::Refused(format!("{endpoint}/{repo} is refused ({number}): {advice}"))
            }
            _ => Failure::Refused(format!("{url} is answered with {status}: try again later")),
        }
    }
}

/// A header's value, if it is text.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// An ETag without its quotation marks and the mark of a weak one.
fn bare(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

/// Scheme and host (with port) of a URL.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// Where an answer sends who asked `url`: to a whole URL, never from https to http, or to another path.
fn redirected(url: &str, headers: &HeaderMap) -> Option<String> {
    let location = header(headers, "location")?;
    let (scheme, host) = origin(url)?;
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{scheme}://{host}{location}"));
    }
    let (next, _) = origin(&location)?;
    (next == "https" || next == scheme).then_some(location)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        let next = |url: &str, location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            redirected(url, &headers)
        };
        let hub = "https://hub.example/a/b?c";
        assert_eq!(next(hub, "/x/y?z").as_deref(), Some("https://hub.example/x/y?z"));
        assert_eq!(next(hub, "https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(next(hub, "http://cdn.example/x"), None, "no way back to plain text");
        assert_eq!(next(hub, "//cdn.example/x"), None);
        assert_eq!(next(hub, "x"), None);
        let local = next("http://localhost:80/a", "https://cdn.example/x");
        assert_eq!(local.as_deref(), Some("https://cdn.example/x"));
        assert_eq!(redirected(hub, &HeaderMap::new()), None);
    }

    #[test]
    fn etags_and_origins() {
        assert_eq!(bare("\"abc\""), "abc");
        assert_eq!(bare("W/\"abc\""), "abc");
        assert_eq!(origin("https://Hub.example:8/a"), origin("https://hub.example:8"));
        assert_ne!(origin("http://hub.example/a"), origin("https://hub.example"));
        assert_ne!(origin("http://hub.example:1"), origin("http://hub.example:2"));
    }
}
