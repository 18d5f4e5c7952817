//! The real client, on the `hf-hub` crate.

use std::io::Read;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde::Deserialize;

use super::super::error::{Result, WeightsError};
use super::{HubClient, HubFault, HubId, HubSettings, Listing, Progress, RemoteFile};

/// Longest listing that is read.
const MAX_LISTING: u64 = 32 << 20;

/// Talks to the hub (or to a mirror of it) over HTTPS.
#[derive(Debug)]
pub struct HttpClient {
    api: Api,
    settings: HubSettings,
}

impl HttpClient {
    /// A client; connects to nothing yet.
    pub fn new(settings: &HubSettings) -> Result<Self> {
        let builder = ApiBuilder::from_cache(hf_hub::Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_retries(settings.retries)
            .with_progress(false);
        let api = builder.build().map_err(|e| WeightsError::Hub {
            id: settings.endpoint.clone(),
            fault: HubFault::Unreachable {
                endpoint: settings.endpoint.clone(),
                reason: e.to_string(),
            },
        })?;
        Ok(Self {
            api,
            settings: settings.clone(),
        })
    }

    fn repo(&self, id: &HubId, revision: &str) -> ApiRepo {
        self.api.repo(Repo::with_revision(
            id.repo.clone(),
            RepoType::Model,
            revision.to_owned(),
        ))
    }

    fn status_fault(&self, status: Option<u16>, reason: String) -> HubFault {
        match status {
            Some(401 | 403) => HubFault::Denied,
            Some(404) => HubFault::NoSuchRepo,
            Some(status) => HubFault::Status(status),
            None => HubFault::Unreachable {
                endpoint: self.settings.endpoint.clone(),
                reason,
            },
        }
    }
}

impl HubClient for HttpClient {
    fn list(&self, id: &HubId) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: String,
        }

        let hub = |fault| WeightsError::Hub {
            id: id.to_string(),
            fault,
        };
        let response = self
            .repo(id, &id.revision)
            .info_request()
            .query("blobs", "true")
            .call()
            .map_err(|e| {
                let reason = e.to_string();
                hub(self.status_fault(e.into_response().map(|r| r.status()), reason))
            })?;
        let answer: Answer = serde_json::from_reader(response.into_reader().take(MAX_LISTING))
            .map_err(|e| hub(HubFault::BadAnswer(e)))?;
        if answer.sha.len() != 40 || !answer.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(hub(HubFault::BadAnswer(serde::de::Error::custom(
                "`sha` is not a commit",
            ))));
        }
        let files = answer.siblings.into_iter().map(|s| RemoteFile {
            name: s.rfilename,
            size: s.size,
            etag: s.lfs.map(|l| l.sha256).or(s.blob_id),
        });
        Ok(Listing {
            commit: answer.sha,
            files: files.collect(),
        })
    }

    fn fetch(&self, id: &HubId, commit: &str, file: &RemoteFile, progress: &mut dyn Progress) -> Result<()> {
        // by commit, so that a branch that moves meanwhile cannot mix two versions
        let result = self
            .repo(id, commit)
            .download_with_progress(&file.name, Adapter(progress));
        // the crate notes the commit as a branch of its own name, which tells nothing
        let noted = super::RepoCache::new(&self.settings.cache, id)
            .root()
            .join("refs")
            .join(commit);
        let _ = std::fs::remove_file(noted);
        result.map(drop).map_err(|e| self.download_error(id, file, e))
    }
}

impl HttpClient {
    fn download_error(&self, id: &HubId, file: &RemoteFile, error: ApiError) -> WeightsError {
        let reason = error.to_string();
        let fault = match error {
            ApiError::TooManyRetries(inner) => return self.download_error(id, file, *inner),
            ApiError::IoError(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                ) =>
            {
                return WeightsError::io(&self.settings.cache, e);
            }
            ApiError::RequestError(e) => match e.into_response().map(|r| r.status()) {
                Some(404) => HubFault::NoSuchFile(file.name.clone()),
                None => HubFault::Interrupted {
                    file: file.name.clone(),
                    reason,
                },
                status => self.status_fault(status, reason),
            },
            _ => HubFault::Interrupted {
                file: file.name.clone(),
                reason,
            },
        };
        WeightsError::Hub {
            id: id.to_string(),
            fault,
        }
    }
}

struct Adapter<'p>(&'p mut dyn Progress);

impl hf_hub::api::Progress for Adapter<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.0.begin(filename, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.0.advance(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish();
    }
}
