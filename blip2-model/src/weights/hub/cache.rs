//! One repository in the cache folder of `huggingface_hub`: `refs/REVISION` names a commit, `snapshots/COMMIT/FILE`
//! links to `blobs/ETAG`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::error::{Result, WeightsError};
use super::{HubFault, HubId, RemoteFile};

/// Folder of one repository in the cache.
#[derive(Debug, Clone)]
pub struct RepoCache {
    root: PathBuf,
}

impl RepoCache {
    /// `CACHE/models--ORG--NAME`; need not exist.
    pub fn new(cache: &Path, id: &HubId) -> Self {
        Self {
            root: cache.join(format!("models--{}", id.repo.replace('/', "--"))),
        }
    }

    /// Folder of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Content of a file, by its etag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Commit that a branch or tag stood for when it was last looked up; a commit stands for itself if its
    /// snapshot is there.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let named = fs::read_to_string(self.root.join("refs").join(revision))
            .ok()
            .map(|c| c.trim().to_owned());
        named
            .or_else(|| Some(revision.to_owned()))
            .filter(|c| is_hex(c) && self.snapshot(c).is_dir())
    }

    /// Notes which commit a branch or tag stands for.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let io = |e| WeightsError::io(&path, e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let staged = path.with_extension("tmp");
        fs::write(&staged, commit).map_err(io)?;
        fs::rename(&staged, &path).map_err(io)
    }

    /// Whether a file of a commit is there. A blob that another commit has brought, or whose download was complete
    /// but not yet named, is linked instead of fetched again.
    pub fn has(&self, commit: &str, file: &RemoteFile) -> Result<bool> {
        let path = self.snapshot(commit).join(&file.name);
        let right_size = |path: &Path| {
            fs::metadata(path).is_ok_and(|meta| file.size.is_none_or(|size| size == meta.len()))
        };
        if right_size(&path) {
            return Ok(true);
        }
        let Some(etag) = file.etag.as_deref().filter(|etag| is_hex(etag)) else {
            return Ok(false);
        };
        let blob = self.blob(etag);
        if fs::symlink_metadata(&path).is_ok() {
            // a dangling link, or a file of another size
            fs::remove_file(&path).map_err(|e| WeightsError::io(&path, e))?;
        }
        if blob.exists() && !right_size(&blob) {
            fs::remove_file(&blob).map_err(|e| WeightsError::io(&blob, e))?;
        }
        // the client's name for a download under way; one that is complete (or longer than the file) cannot be
        // resumed
        let part = blob.with_extension("part");
        if let (Some(size), Ok(meta)) = (file.size, fs::metadata(&part))
            && meta.len() >= size
        {
            let intact =
                meta.len() == size && (etag.len() != 64 || sha256(&part).is_ok_and(|sum| sum == etag));
            let moved = if intact {
                fs::rename(&part, &blob)
            } else {
                fs::remove_file(&part)
            };
            moved.map_err(|e| WeightsError::io(&part, e))?;
        }
        if !blob.exists() {
            return Ok(false);
        }
        link(&blob, &path).map_err(|e| WeightsError::io(&path, e))?;
        Ok(true)
    }

    /// Checks a file that was just fetched: its size, and the SHA-256 of a large file. A damaged one is removed.
    pub(super) fn verify(&self, id: &HubId, commit: &str, file: &RemoteFile) -> Result<()> {
        let path = self.snapshot(commit).join(&file.name);
        let io = |e| WeightsError::io(&path, e);
        let len = fs::metadata(&path).map_err(io)?.len();
        let mut intact = file.size.is_none_or(|size| size == len);
        if let (true, Some(etag)) = (intact, file.etag.as_deref().filter(|etag| etag.len() == 64)) {
            intact = sha256(&path).map_err(io)? == etag;
        }
        if intact {
            return Ok(());
        }
        if let Ok(blob) = fs::canonicalize(&path) {
            fs::remove_file(&blob).map_err(io)?;
        }
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path).map_err(io)?;
        }
        Err(WeightsError::Hub {
            id: id.to_string(),
            fault: HubFault::Corrupt {
                file: file.name.clone(),
            },
        })
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Links a snapshot's file to its blob: relative, as `huggingface_hub` does; by a hard link or a copy where links
/// are not allowed.
fn link(blob: &Path, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    #[cfg(unix)]
    if let Some(name) = blob.file_name() {
        return std::os::unix::fs::symlink(Path::new("../../blobs").join(name), path);
    }
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}
