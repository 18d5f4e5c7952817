//! Where the cache is, which token to send, whether the network may be used: the environment variables that
//! `huggingface_hub` reads, so that both share one cache.

use std::path::PathBuf;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Settings of the hub.
#[derive(Clone)]
pub struct HubSettings {
    /// Folder that holds `models--ORG--NAME` folders.
    pub cache: PathBuf,
    /// Use the cache only.
    pub offline: bool,
    /// Base address.
    pub endpoint: String,
    /// Access token for gated or private models.
    pub token: Option<String>,
    /// How often an interrupted download is resumed before giving up.
    pub retries: usize,
}

impl std::fmt::Debug for HubSettings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cache,
            offline,
            endpoint,
            token,
            retries,
        } = self;
        f.debug_struct("HubSettings")
            .field("cache", cache)
            .field("offline", offline)
            .field("endpoint", endpoint)
            .field("token", &token.as_ref().map(|_| "set"))
            .field("retries", retries)
            .finish()
    }
}

impl HubSettings {
    /// From the process's environment: `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`), `HF_ENDPOINT`, `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`),
    /// `HF_TOKEN_PATH`, and the token file of `hf auth login`.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// From any set of variables.
    pub fn from_lookup(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let user_home = var("HOME")
            .or_else(|| var("USERPROFILE"))
            .map_or_else(std::env::temp_dir, PathBuf::from);
        let path = |name: &str| {
            var(name).map(|value| match value.strip_prefix('~') {
                Some(rest) if rest.is_empty() || rest.starts_with(['/', '\\']) => {
                    user_home.join(rest.trim_start_matches(['/', '\\']))
                }
                _ => PathBuf::from(value),
            })
        };
        let truth = |name: &str| {
            var(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()))
        };

        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME")
                .unwrap_or_else(|| user_home.join(".cache"))
                .join("huggingface")
        });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_file).ok());
        Self {
            cache,
            offline: truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE"),
            endpoint: var("HF_ENDPOINT")
                .unwrap_or_else(|| DEFAULT_ENDPOINT.into())
                .trim_end_matches('/')
                .to_owned(),
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            retries: 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_lookup(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |vars| settings(vars).cache;
        assert_eq!(
            cache(&[("HOME", "/h")]),
            PathBuf::from("/h/.cache/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
            PathBuf::from("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]),
            PathBuf::from("/h/hf/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]),
            PathBuf::from("/c")
        );
    }

    #[test]
    fn offline_endpoint_and_token() {
        let s = settings(&[
            ("HF_HUB_OFFLINE", "1"),
            ("HF_ENDPOINT", "http://localhost:1/"),
            ("HF_TOKEN", " t\n"),
        ]);
        assert!(s.offline);
        assert_eq!(
            (s.endpoint.as_str(), s.token.as_deref()),
            ("http://localhost:1", Some("t"))
        );
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!format!("{s:?}").contains("\" t"));

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).token.as_deref(), Some("from-file"));
        assert_eq!(
            settings(&[("HF_HOME", home), ("HF_TOKEN", "env")])
                .token
                .as_deref(),
            Some("env")
        );
    }
}
