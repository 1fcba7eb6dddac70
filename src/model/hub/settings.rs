//! What the environment says of hub and cache.

use std::path::PathBuf;

use ureq::http::Uri;

use crate::{Error, Result, files};

/// The variables of Hugging Face's libraries that are read here.
pub struct Settings {
    pub cache: PathBuf,
    /// A URL of scheme, host and perhaps path, without a slash at its end.
    pub endpoint: String,
    pub token: Option<String>,
    pub is_offline: bool,
}

impl Settings {
    /// Reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN (or the file `token` in HF_HOME), HF_HUB_OFFLINE and
    /// HF_HUB_DISABLE_IMPLICIT_TOKEN, which keeps tokens from being sent.
    ///
    /// # Errors
    /// No home folder and no HF_HOME; an HF_ENDPOINT that is no URL, or has a password in it.
    pub fn from_env() -> Result<Self> {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
        let path = |name: &str| {
            let path = std::env::var_os(name).filter(|path| !path.is_empty());
            path.map(|path| files::expand_home(path.into()))
        };
        let home = path("HF_HOME").or_else(|| Some(files::user_cache()?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::usage("HF_HOME: is not set, and there is no home folder for a cache of models")
        })?;
        let is_on = |name: &str| {
            let is_yes = |text: String| {
                ["1", "on", "yes", "true"].contains(&text.trim().to_ascii_lowercase().as_str())
            };
            text(name).is_some_and(is_yes)
        };
        let stored = || std::fs::read_to_string(home.as_ref()?.join("token")).ok();
        let token = match is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned()),
        };
        Ok(Self {
            cache,
            endpoint: text("HF_ENDPOINT")
                .as_deref()
                .map_or_else(|| Ok("https://huggingface.co".to_owned()), endpoint)?,
            token: token.filter(|token| !token.is_empty()),
            is_offline: is_on("HF_HUB_OFFLINE"),
        })
    }
}

/// Checks HF_ENDPOINT.
fn endpoint(text: &str) -> Result<String> {
    let endpoint = text.trim().trim_end_matches('/');
    // The endpoint stands in messages, where a password must not; it may hold what ends a host's name.
    if endpoint.contains('@') {
        return Err(Error::usage(
            "HF_ENDPOINT: the URL holds a name or a secret before an @, which is not taken: put a token \
             into HF_TOKEN",
        ));
    }
    let refuse = |problem: String| Error::usage(format!("HF_ENDPOINT {endpoint}: {problem}"));
    if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
        return Err(refuse("expected a URL that begins with https:// or http://".to_owned()));
    }
    let uri: Uri = endpoint.parse().map_err(|e| refuse(format!("is no URL: {e}")))?;
    match uri.host() {
        Some(host) if !host.is_empty() => Ok(endpoint.to_owned()),
        _ => Err(refuse("is no URL: it names no host".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(endpoint(" https://hub.example/a/ ").unwrap(), "https://hub.example/a");
        assert_eq!(endpoint("http://localhost:8080").unwrap(), "http://localhost:8080");
        for bad in ["hub.example", "ftp://hub.example", "https://my hub", "https://", "https://:80"]
        {
            let message = endpoint(bad).unwrap_err().to_string();
            assert!(message.contains("HF_ENDPOINT") && message.contains("URL"), "{bad}: {message}");
        }
        for secret in ["https://user:pass@hub.example", "https://u:pa/ss@hub.example", "u:pass@hub"]
        {
            let message = endpoint(secret).unwrap_err().to_string();
            assert!(message.contains("HF_ENDPOINT") && !message.contains("pa"), "{message}");
        }
    }
}
