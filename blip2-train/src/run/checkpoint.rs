//! Checkpoints: everything a run needs to go on as if nothing had happened, in one folder that appears
//! complete or not at all.
//!
//! `checkpoints/step-00001000/` holds `model.safetensors` (the trained tensors under Hugging Face names, f32)
//! with an optional `config.json`, `optimizer.safetensors` (moments), and `state.json` (step, random state,
//! data cursor, digests of the frozen parts, and of the other files). A folder is written under another
//! name, synced, and renamed; it is deleted the same way, so a kill at any moment leaves only whole ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError, writer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fingerprint::hex;
use super::guard::write_atomically;
use crate::optim::LossScaler;

/// Trained tensors.
pub const MODEL: &str = "model.safetensors";
/// Moments of the optimizer.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Everything else; written last.
pub const STATE: &str = "state.json";
/// Format of [`TrainState`].
const VERSION: u32 = 1;

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A tensor file could not be read or written.
    #[error(transparent)]
    Weights(#[from] Box<WeightsError>),
    /// `state.json` is not what this version writes.
    #[error(
        "{path}: {source}; it was written by another version or damaged, resume from an older checkpoint"
    )]
    State {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        #[source]
        source: serde_json::Error,
    },
    /// The format is newer or older.
    #[error("{path}: checkpoint format {found}, this program reads {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A file is not the one that was written.
    #[error("{path} is damaged (its checksum differs); resume from an older checkpoint")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A parameter has no name in files.
    #[error("parameter {path} has no name in the key tables")]
    Unnamed {
        /// Its path.
        path: String,
    },
    /// Checkpoint and module have different parameters.
    #[error(
        "the checkpoint belongs to another architecture: missing {missing:?}, unknown {unknown:?}, other shapes {reshaped:?}"
    )]
    Mismatch {
        /// In the module only.
        missing: Vec<String>,
        /// In the file only.
        unknown: Vec<String>,
        /// Name, shape in the module, shape in the file.
        reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    },
    /// A frozen part is not the one the run was started with.
    #[error(
        "the frozen {part} is not the one this run was started with; load the same weights, or start a new run from the checkpoint's model.safetensors"
    )]
    FrozenChanged {
        /// Which part.
        part: String,
    },
    /// The data source does not take the cursor.
    #[error(
        "the data source does not accept the checkpoint's position; resume with the same data configuration"
    )]
    Cursor(#[source] super::SourceError),
}

impl From<WeightsError> for CheckpointError {
    fn from(error: WeightsError) -> Self {
        Self::Weights(Box::new(error))
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + use<> {
    let path = path.to_owned();
    move |source| CheckpointError::Io { path, source }
}

/// What `state.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Format.
    pub version: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Samples seen by all processes.
    pub samples: u64,
    /// All random numbers are drawn from ChaCha8 streams whose key is a digest of the seed, the purpose
    /// and the step, so seed and step are the whole random state, whatever the number of processes.
    pub seed: u64,
    /// Loss scale, where there is one.
    pub scaler: Option<LossScaler>,
    /// Best validation so far.
    pub best: Option<Best>,
    /// Data cursor of every process, in rank order.
    pub cursors: Vec<Value>,
    /// Updates of every parameter.
    pub updates: BTreeMap<String, u64>,
    /// Configuration of the run.
    pub config: Value,
    /// Digests of the frozen parts.
    pub frozen: BTreeMap<String, String>,
    /// The other files.
    pub files: BTreeMap<String, FileRecord>,
}

/// Best validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Step it was measured at.
    pub step: u64,
    /// Value of the metric that decides.
    pub value: f64,
}

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// A tensor to write: name and shape, values fetched when its turn comes.
pub struct Pending<'a> {
    /// Name in the file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub fetch: Box<dyn Fn() -> Vec<f32> + 'a>,
}

/// A checkpoint about to be written.
pub struct Contents<'a> {
    /// `files` is filled in while writing.
    pub state: TrainState,
    /// Trained tensors under their file names.
    pub model: Vec<Pending<'a>>,
    /// Moments.
    pub optimizer: Vec<Pending<'a>>,
    /// Text of `config.json`, so that the folder opens as a model.
    pub config_json: Option<&'a str>,
}

/// A complete checkpoint on disk.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// Its state.
    pub state: TrainState,
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    root: PathBuf,
    keep_last: usize,
}

impl CheckpointStore {
    /// `run/checkpoints`; keeps the newest `keep_last` and the best.
    pub fn open(run: &Path, keep_last: usize) -> Result<Self, CheckpointError> {
        let root = run.join("checkpoints");
        std::fs::create_dir_all(&root).map_err(io_error(&root))?;
        Ok(Self {
            root,
            keep_last: keep_last.max(1),
        })
    }

    /// Removes what a killed process was writing or deleting. Only for the process that writes.
    pub fn remove_leftovers(&self) -> Result<(), CheckpointError> {
        for name in self.names()?.iter().filter(|name| name.starts_with('.')) {
            let path = self.root.join(name);
            std::fs::remove_dir_all(&path).map_err(io_error(&path))?;
        }
        Ok(())
    }

    /// Writes a checkpoint and deletes those that are no longer wanted.
    pub fn save(&self, mut contents: Contents<'_>) -> Result<PathBuf, CheckpointError> {
        let step = contents.state.step;
        let staging = self.root.join(format!(".writing-{step:08}"));
        if staging.exists() {
            std::fs::remove_dir_all(&staging).map_err(io_error(&staging))?;
        }
        std::fs::create_dir(&staging).map_err(io_error(&staging))?;
        let mut record = |name: &str| {
            let file = describe(&staging.join(name))?;
            contents.state.files.insert(name.into(), file);
            kill_point();
            Ok::<_, CheckpointError>(())
        };
        write_tensors(&staging.join(MODEL), &contents.model)?;
        record(MODEL)?;
        write_tensors(&staging.join(OPTIMIZER), &contents.optimizer)?;
        record(OPTIMIZER)?;
        if let Some(text) = contents.config_json {
            let path = staging.join("config.json");
            write_atomically(&path, text.as_bytes()).map_err(io_error(&path))?;
            record("config.json")?;
        }
        let path = staging.join(STATE);
        contents.state.version = VERSION;
        let state = serde_json::to_vec_pretty(&contents.state);
        let state = state.map_err(|source| CheckpointError::State {
            path: path.clone(),
            source,
        })?;
        write_atomically(&path, &state).map_err(io_error(&path))?;
        sync_folder(&staging)?;
        kill_point();

        let folder = self.folder(step);
        self.discard(&folder)?;
        std::fs::rename(&staging, &folder).map_err(io_error(&folder))?;
        sync_folder(&self.root)?;
        kill_point();
        self.prune(contents.state.best)?;
        Ok(folder)
    }

    /// The newest complete checkpoint, with those that had to be skipped because they are damaged.
    pub fn latest(&self) -> Result<(Option<Found>, Vec<CheckpointError>), CheckpointError> {
        let mut skipped = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match load_state(&self.folder(step)) {
                Ok(found) => return Ok((Some(found), skipped)),
                Err(error) => skipped.push(error),
            }
        }
        Ok((None, skipped))
    }

    /// Steps of the checkpoints, ascending.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let names = self.names()?;
        let steps = names
            .iter()
            .filter_map(|name| name.strip_prefix("step-")?.parse().ok());
        let mut steps: Vec<u64> = steps.collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Folder of a step's checkpoint.
    pub fn folder(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step:08}"))
    }

    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = std::fs::read_dir(&self.root).map_err(io_error(&self.root))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(io_error(&self.root))
    }

    fn prune(&self, best: Option<Best>) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(self.keep_last);
        for &step in &steps[..old] {
            if best.is_none_or(|best| best.step != step) {
                self.discard(&self.folder(step))?;
            }
        }
        Ok(())
    }

    /// Deletes a folder so that it never stands there half empty under its name.
    fn discard(&self, folder: &Path) -> Result<(), CheckpointError> {
        if !folder.exists() {
            return Ok(());
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let doomed = self.root.join(format!(".deleting-{name}"));
        if doomed.exists() {
            std::fs::remove_dir_all(&doomed).map_err(io_error(&doomed))?;
        }
        std::fs::rename(folder, &doomed).map_err(io_error(folder))?;
        kill_point();
        std::fs::remove_dir_all(&doomed).map_err(io_error(&doomed))
    }
}

/// Reads `state.json` of a checkpoint folder and checks the other files against it.
pub fn load_state(folder: &Path) -> Result<Found, CheckpointError> {
    let path = folder.join(STATE);
    let text = std::fs::read(&path).map_err(io_error(&path))?;
    let parse = |source| CheckpointError::State {
        path: path.clone(),
        source,
    };
    let value: Value = serde_json::from_slice(&text).map_err(parse)?;
    let found = value["version"].as_u64().unwrap_or(0) as u32;
    if found != VERSION {
        return Err(CheckpointError::Version { path, found });
    }
    let state: TrainState = serde_json::from_value(value).map_err(parse)?;
    for (name, expected) in &state.files {
        let path = folder.join(name);
        if describe(&path)? != *expected {
            return Err(CheckpointError::Damaged { path });
        }
    }
    Ok(Found {
        folder: folder.to_owned(),
        state,
    })
}

/// Name -> shape and f32 values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a file.
pub fn read_tensors(path: &Path) -> Result<Tensors, CheckpointError> {
    let file = SafetensorsFile::open(path)?;
    let mut tensors = BTreeMap::new();
    for info in file.infos() {
        let values = file.get(&info.name)?.to_f32_vec()?;
        file.release(&info.name);
        tensors.insert(info.name.clone(), (info.shape.clone(), values));
    }
    Ok(tensors)
}

fn write_tensors(path: &Path, tensors: &[Pending<'_>]) -> Result<(), CheckpointError> {
    let infos: Vec<TensorInfo> = tensors
        .iter()
        .map(|tensor| TensorInfo {
            name: tensor.name.clone(),
            dtype: DType::F32,
            shape: tensor.shape.clone(),
        })
        .collect();
    let by_name: BTreeMap<_, _> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    writer::write_file(path, &infos, &mut |info| {
        kill_point();
        let tensor = by_name[info.name.as_str()];
        TensorBytes::from_f32(tensor.shape.clone(), (tensor.fetch)())
    })?;
    Ok(())
}

fn describe(path: &Path) -> Result<FileRecord, CheckpointError> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut file, &mut hash).map_err(io_error(path))?;
    Ok(FileRecord {
        bytes,
        sha256: hex(&hash.finalize()),
    })
}

/// A rename is on the disk only when the folder is; where folders cannot be opened the system sees to it.
fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    match File::open(path) {
        Ok(folder) => folder.sync_all().map_err(io_error(path)),
        Err(_) => Ok(()),
    }
}

/// Where the kill test may strike: a tiny checkpoint is written too fast to be hit by chance.
#[cfg(not(test))]
fn kill_point() {}
#[cfg(test)]
fn kill_point() {
    let pause = std::env::var("BLIP2_TEST_CHECKPOINT_PAUSE_US");
    if let Some(micros) = pause.ok().and_then(|pause| pause.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_micros(micros));
    }
}

#[cfg(test)]
mod tests;
