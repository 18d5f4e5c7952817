//! The index of a folder for `blip2 search`: the contrastive embedding of every picture, by content.
//!
//! Two files: `NAME.safetensors` holds one `[Q, embed]` tensor per content, called `MODEL.SHA256`, so that vectors
//! of another model or of another picture can never be taken for the right ones; `NAME.json` says which file had
//! which content, size and time of change. Both are replaced as a whole.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use blip2_model::nn::Kernels;
use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, writer};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cache::{self, FeatureCache};
use super::interrupt::Interrupt;
use super::pictures::{self, Bad};
use super::sink::replace;
use crate::Session;

/// Pictures embedded between two saves: a run that is cut off loses no more than these.
const SAVE_EVERY: usize = 512;

/// One picture of the folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Path below the folder.
    pub file: String,
    size: u64,
    modified_ns: u64,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Sidecar {
    version: u32,
    model: String,
    written_ns: u64,
    pictures: Vec<Entry>,
}

/// What an update did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Pictures whose content was embedded.
    pub embedded: usize,
    /// Files that moved, or whose content was known.
    pub known: usize,
    /// Entries of files that are gone.
    pub removed: usize,
}

/// See the module documentation.
pub(super) struct Index {
    folder: PathBuf,
    path: PathBuf,
    model: String,
    written_ns: u64,
    entries: Vec<Entry>,
    stored: HashMap<String, TensorBytes>,
    fresh: HashMap<String, Vec<f32>>,
}

impl Index {
    /// Opens the index of `folder` for a model, or an empty one if there is none that can be used.
    pub fn open(folder: &Path, path: Option<&Path>, model: &str) -> Self {
        let path = path.map_or_else(|| folder.join(".blip2-index.safetensors"), Path::to_path_buf);
        let mut index = Self {
            folder: folder.to_path_buf(),
            model: model.to_string(),
            written_ns: 0,
            entries: Vec::new(),
            stored: load(&path, model).unwrap_or_default(),
            fresh: HashMap::new(),
            path,
        };
        let sidecar = std::fs::read(index.sidecar()).ok();
        let sidecar: Option<Sidecar> = sidecar.and_then(|json| serde_json::from_slice(&json).ok());
        if let Some(sidecar) = sidecar.filter(|s| s.version == 1 && s.model == model) {
            index.written_ns = sidecar.written_ns;
            index.entries = sidecar.pictures;
            index.entries.retain(|e| index.stored.contains_key(&e.sha256));
        }
        index
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn sidecar(&self) -> PathBuf {
        self.path.with_extension("json")
    }

    /// Brings the index up to date with `files`: embeds what is new or changed, forgets what is gone, saves.
    pub fn update<B: Kernels>(
        &mut self,
        files: &[PathBuf],
        session: &Session<B>,
        feature_cache: Option<&FeatureCache>,
        batch: usize,
        quiet: bool,
        interrupt: &Interrupt,
    ) -> Result<(Changes, Vec<Bad>)> {
        let mut changes = Changes::default();
        let old: HashMap<String, Entry> = self.entries.drain(..).map(|e| (e.file.clone(), e)).collect();
        let mut todo = Vec::new();
        for file in files {
            let unchanged = old
                .get(&self.name(file))
                .filter(|entry| stamp(file) == Some((entry.size, entry.modified_ns)))
                // changed within the clock's resolution of the last look: look again
                .filter(|entry| entry.modified_ns < self.written_ns);
            match unchanged {
                Some(entry) => self.entries.push(entry.clone()),
                None => todo.push(file.clone()),
            }
        }
        let present: HashSet<String> = files.iter().map(|file| self.name(file)).collect();
        changes.removed = old.keys().filter(|name| !present.contains(*name)).count();
        let known: HashSet<String> = self.stored.keys().cloned().collect();
        let wanted = |hash: &str| !known.contains(hash) && !feature_cache.is_some_and(|c| c.has(hash));
        let mut unsaved = 0;
        let result = pictures::in_batches(&todo, batch, quiet, interrupt, wanted, |batch| {
            let (have, missing): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .partition(|p| known.contains(&p.hash) || self.fresh.contains_key(&p.hash));
            changes.known += have.len();
            changes.embedded += missing.len();
            for picture in have {
                self.note(&picture.path, picture.hash);
            }
            if missing.is_empty() {
                return Ok(());
            }
            let (missing, encoded) = cache::encode(session, feature_cache, missing)?;
            let vectors = session.image_projections(&encoded);
            let vectors = vectors.context("this checkpoint has no contrastive projection")?;
            unsaved += missing.len();
            for (picture, vector) in missing.into_iter().zip(vectors) {
                self.fresh.insert(picture.hash.clone(), vector);
                self.note(&picture.path, picture.hash);
            }
            if unsaved >= SAVE_EVERY {
                unsaved = 0;
                self.save(session)?;
            }
            Ok(())
        });
        let order: HashMap<String, usize> = files
            .iter()
            .enumerate()
            .map(|(i, file)| (self.name(file), i))
            .collect();
        self.entries.sort_by_key(|entry| order.get(&entry.file).copied());
        let nothing_yet = self.entries.is_empty() && !self.path.exists();
        if changes != Changes::default() && !nothing_yet {
            self.save(session)?;
        }
        Ok((changes, result?))
    }

    /// Largest cosine of each picture with a text `[embed]`, best first, ties in order of name.
    pub fn search(&self, text: &[f32]) -> Result<Vec<(f32, PathBuf)>> {
        let mut hits = self
            .entries
            .par_iter()
            .map(|entry| {
                let stored;
                let vector = match (self.fresh.get(&entry.sha256), self.stored.get(&entry.sha256)) {
                    (Some(vector), _) => vector,
                    (None, Some(tensor)) => {
                        stored = tensor.to_f32_vec()?;
                        &stored
                    }
                    (None, None) => unreachable!("an entry is made together with its vector"),
                };
                let dot = |query: &[f32]| query.iter().zip(text).map(|(a, b)| a * b).sum::<f32>();
                let cosine = vector
                    .chunks_exact(text.len())
                    .map(dot)
                    .fold(f32::NEG_INFINITY, f32::max);
                Ok((cosine, self.folder.join(&entry.file)))
            })
            .collect::<Result<Vec<_>>>()?;
        hits.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        Ok(hits)
    }

    fn name(&self, file: &Path) -> String {
        file.strip_prefix(&self.folder)
            .unwrap_or(file)
            .display()
            .to_string()
    }

    fn note(&mut self, file: &Path, sha256: String) {
        let (size, modified_ns) = stamp(file).unwrap_or_default();
        self.entries.push(Entry {
            file: self.name(file),
            size,
            modified_ns,
            sha256,
        });
    }

    fn save<B: Kernels>(&mut self, session: &Session<B>) -> Result<()> {
        let queries = session.model.config.num_query_tokens;
        let used: BTreeSet<&String> = self.entries.iter().map(|e| &e.sha256).collect();
        let infos: Vec<TensorInfo> = used
            .into_iter()
            .map(|hash| {
                let shape = match (self.stored.get(hash), self.fresh.get(hash)) {
                    (Some(tensor), _) => tensor.shape().to_vec(),
                    (None, vector) => vec![queries, vector.map_or(0, Vec::len) / queries.max(1)],
                };
                TensorInfo {
                    name: format!("{}.{hash}", self.model),
                    dtype: DType::F32,
                    shape,
                }
            })
            .collect();
        let prefix = self.model.len() + 1;
        writer::write_file(&self.path, &infos, &mut |info| {
            let hash = &info.name[prefix..];
            match (self.stored.get(hash), self.fresh.get(hash)) {
                (Some(tensor), _) => Ok(tensor.clone()),
                (None, vector) => {
                    TensorBytes::from_f32(info.shape.clone(), vector.cloned().unwrap_or_default())
                }
            }
        })
        .with_context(|| {
            format!(
                "the index {} cannot be written; name another place with --index",
                self.path.display()
            )
        })?;
        self.written_ns = nanoseconds(SystemTime::now());
        let sidecar = Sidecar {
            version: 1,
            model: self.model.clone(),
            written_ns: self.written_ns,
            pictures: self.entries.clone(),
        };
        replace(&self.sidecar(), &serde_json::to_string_pretty(&sidecar)?)?;
        self.stored = load(&self.path, &self.model)?;
        self.fresh.clear();
        Ok(())
    }
}

/// The vectors of one model in an index file, without copying them.
fn load(path: &Path, model: &str) -> Result<HashMap<String, TensorBytes>> {
    let file = SafetensorsFile::open(path)?;
    let mut found = HashMap::new();
    for info in file.infos() {
        let hash = info
            .name
            .strip_prefix(model)
            .and_then(|rest| rest.strip_prefix('.'));
        if let Some(hash) = hash {
            found.insert(hash.to_string(), file.get(&info.name)?);
        }
    }
    Ok(found)
}

fn stamp(file: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.len(), nanoseconds(meta.modified().ok()?)))
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}
