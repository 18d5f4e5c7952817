//! From a model id such as `Salesforce/blip2-opt-2.7b` to a local folder with everything that inference needs.
//!
//! Files live in the cache of `huggingface_hub` (`models--ORG--NAME/{blobs,refs,snapshots}`), so what Python has
//! downloaded is used as it is and the other way round. The network is behind [`HubClient`]; [`HttpClient`] is the
//! real one.

mod cache;
mod http;
mod settings;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use self::cache::RepoCache;
pub use self::http::HttpClient;
pub use self::settings::HubSettings;
use super::checkpoint_dir::{COMPANION_FILES, WEIGHT_FILES};
use super::error::{Result, WeightsError};
use super::sharded::ShardIndex;

/// Whether a model's name is a path on this machine, there or not, rather than an id of the form `ORG/NAME`.
pub fn is_local(name: &str) -> bool {
    Path::new(name).exists() || name.starts_with(['.', '/']) || name.matches('/').count() != 1
}

/// A model on the hub: `ORG/NAME` or `NAME`, optionally `@REVISION` (branch, tag or commit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `ORG/NAME`
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl FromStr for HubId {
    type Err = WeightsError;

    fn from_str(text: &str) -> Result<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |s: &str| {
            !s.is_empty()
                && s.len() <= 96
                && !s.starts_with(['.', '-'])
                && !s.ends_with(['.', '-'])
                && !s.contains("..")
                && !s.contains("--")
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let revision_word = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let valid_repo = repo.split('/').count() <= 2 && repo.split('/').all(word);
        if !valid_repo || !revision.split('/').all(revision_word) {
            return Err(WeightsError::Hub {
                id: text.to_owned(),
                fault: HubFault::BadId,
            });
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision == "main" {
            Ok(())
        } else {
            write!(f, "@{}", self.revision)
        }
    }
}

/// Why the hub could not provide a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubFault {
    /// The text is no model id.
    #[error(
        "not a model id; write ORG/NAME or ORG/NAME@REVISION, or give the path of a folder or file that exists"
    )]
    BadId,
    /// Offline, and the cache has nothing.
    #[error("not in the cache {cache} and offline mode is on; run once without --offline and HF_HUB_OFFLINE, or copy the model there", cache = cache.display())]
    NotCached {
        /// Folder of the repository in the cache.
        cache: PathBuf,
    },
    /// Offline, and the cache has only some of the files.
    #[error("the cache {folder} lacks {missing:?} and offline mode is on; run once without --offline and HF_HUB_OFFLINE", folder = folder.display())]
    Incomplete {
        /// Snapshot folder.
        folder: PathBuf,
        /// Names of the missing files.
        missing: Vec<String>,
    },
    /// No connection.
    #[error(
        "cannot reach {endpoint} ({reason}) and the model is not complete in the cache; check the network, or set HF_ENDPOINT to a mirror"
    )]
    Unreachable {
        /// Base address.
        endpoint: String,
        /// What the connection gave.
        reason: String,
    },
    /// The hub has no such model or revision.
    #[error(
        "the hub has no such model or revision (or it is private and no token was sent); check the spelling"
    )]
    NoSuchRepo,
    /// The hub wants a token, or another one.
    #[error(
        "access denied; accept the model's conditions on its page and set HF_TOKEN or run `hf auth login`"
    )]
    Denied,
    /// Any other answer of the hub.
    #[error("the hub answered with status {0}; try again later")]
    Status(u16),
    /// The answer could not be understood.
    #[error("the hub's answer could not be understood: {0}")]
    BadAnswer(serde_json::Error),
    /// The repository has no weights in a layout that is read here.
    #[error("the repository has no weights of the kinds model.safetensors or pytorch_model.bin")]
    NoWeights,
    /// The repository lacks a file that its own index names.
    #[error("the repository has no file `{0}`")]
    NoSuchFile(String),
    /// A download broke off more often than it is resumed.
    #[error("the download of {file} broke off ({reason}); run again to resume it")]
    Interrupted {
        /// File.
        file: String,
        /// What the connection gave.
        reason: String,
    },
    /// The content is not what the hub announced.
    #[error("{file} arrived damaged and was removed; run again to download it anew")]
    Corrupt {
        /// File.
        file: String,
    },
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository.
    pub name: String,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Name of its blob in the cache: the SHA-256 of a large file, the git object id of a small one.
    pub etag: Option<String>,
}

/// The files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Commit that the revision stands for.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

/// Told how downloads proceed. The unit type ignores it.
pub trait Progress {
    /// A file begins, or begins again after an interruption.
    fn begin(&mut self, file: &str, total: u64) {
        let _ = (file, total);
    }
    /// More bytes are there (those of an earlier, interrupted run come first, at once).
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }
    /// The file is complete.
    fn finish(&mut self) {}
}

impl Progress for () {}

/// The network.
pub trait HubClient {
    /// Lists the files of a repository.
    fn list(&self, id: &HubId) -> Result<Listing>;

    /// Brings one file of a commit into the cache: its content to `blobs`, a link to `snapshots/COMMIT`. Resumes an
    /// interrupted download.
    fn fetch(&self, id: &HubId, commit: &str, file: &RemoteFile, progress: &mut dyn Progress) -> Result<()>;
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Folder with the files; open it with [`checkpoint_dir::open`](super::checkpoint_dir::open).
    pub folder: PathBuf,
    /// Commit.
    pub commit: String,
    /// Names of the files that were downloaded now.
    pub downloaded: Vec<String>,
    /// Why the hub could not be asked, if the cache stood in for it.
    pub not_refreshed: Option<String>,
}

/// Resolves a model id with the real client.
pub fn resolve(id: &HubId, settings: &HubSettings, progress: &mut dyn Progress) -> Result<Snapshot> {
    resolve_with(&HttpClient::new(settings)?, id, settings, progress)
}

/// Resolves a model id: config, tokenizer, preprocessor, and the weights in the layout that
/// [`checkpoint_dir::open`](super::checkpoint_dir::open) will choose. Files that are in the cache are not fetched
/// again. Offline, or when the hub cannot be reached, a complete snapshot in the cache is taken as it is.
///
/// # Errors
/// [`WeightsError::Hub`] with the id and a [`HubFault`]; [`WeightsError::DiskFull`].
pub fn resolve_with(
    client: &dyn HubClient,
    id: &HubId,
    settings: &HubSettings,
    progress: &mut dyn Progress,
) -> Result<Snapshot> {
    let cache = RepoCache::new(&settings.cache, id);
    if settings.offline {
        return cached(id, &cache, None);
    }
    let listing = match client.list(id) {
        Err(WeightsError::Hub {
            fault: HubFault::Unreachable { endpoint, reason },
            ..
        }) => {
            let unreachable = |_| WeightsError::Hub {
                id: id.to_string(),
                fault: HubFault::Unreachable {
                    endpoint,
                    reason: reason.clone(),
                },
            };
            return cached(id, &cache, Some(reason.clone())).map_err(unreachable);
        }
        listing => listing?,
    };
    let fault = |fault| WeightsError::Hub {
        id: id.to_string(),
        fault,
    };
    let find = |name: &str| listing.files.iter().find(|file| file.name == name);
    let weights = WEIGHT_FILES
        .iter()
        .find_map(|name| find(name))
        .ok_or_else(|| fault(HubFault::NoWeights))?;

    let mut downloaded = Vec::new();
    let mut ensure = |file: &RemoteFile| -> Result<()> {
        if !cache.has(&listing.commit, file)? {
            client.fetch(id, &listing.commit, file, progress)?;
            cache.verify(id, &listing.commit, file)?;
            downloaded.push(file.name.clone());
        }
        Ok(())
    };
    for file in COMPANION_FILES.iter().filter_map(|name| find(name)) {
        ensure(file)?;
    }
    ensure(weights)?;
    let folder = cache.snapshot(&listing.commit);
    if weights.name.ends_with(".index.json") {
        for shard in ShardIndex::read(&folder.join(&weights.name))?.shards() {
            ensure(find(shard).ok_or_else(|| fault(HubFault::NoSuchFile(shard.to_owned())))?)?;
        }
    }
    cache.set_ref(&id.revision, &listing.commit)?;
    Ok(Snapshot {
        folder,
        commit: listing.commit.clone(),
        downloaded,
        not_refreshed: None,
    })
}

/// A complete snapshot from the cache.
fn cached(id: &HubId, cache: &RepoCache, not_refreshed: Option<String>) -> Result<Snapshot> {
    let fault = |fault| WeightsError::Hub {
        id: id.to_string(),
        fault,
    };
    let commit = cache.commit_of(&id.revision).ok_or_else(|| {
        fault(HubFault::NotCached {
            cache: cache.root().to_owned(),
        })
    })?;
    let folder = cache.snapshot(&commit);
    let mut missing = Vec::new();
    if !folder.join("config.json").exists() {
        missing.push("config.json".to_owned());
    }
    match WEIGHT_FILES.iter().find(|name| folder.join(name).exists()) {
        None => missing.push(WEIGHT_FILES[0].to_owned()),
        Some(index) if index.ends_with(".index.json") => {
            let index = ShardIndex::read(&folder.join(index))?;
            missing.extend(
                index
                    .shards()
                    .into_iter()
                    .filter(|shard| !folder.join(shard).exists())
                    .map(str::to_owned),
            );
        }
        Some(_) => {}
    }
    if !missing.is_empty() {
        return Err(fault(HubFault::Incomplete { folder, missing }));
    }
    Ok(Snapshot {
        folder,
        commit,
        downloaded: Vec::new(),
        not_refreshed,
    })
}

#[cfg(test)]
mod tests;
