//! A run: the loop over steps, checkpoints that resume to the bit, logs, reports, the feature store.
//!
//! A run folder holds `checkpoints/step-*/`, `metrics.jsonl`, `tensorboard/` and, after `report`,
//! `report.html`.

use std::path::PathBuf;

use crate::distributed::CollectiveError;
use crate::stage::StageError;

pub mod checkpoint;
pub mod collate;
pub mod crc32c;
#[cfg(feature = "dashboard")]
pub mod dashboard;
pub mod feature_cache;
pub mod feed;
pub mod fingerprint;
pub mod flops;
pub mod guard;
pub mod interrupt;
pub mod log;
pub mod memory;
pub mod plan;
pub mod progress;
pub mod report;
pub mod source;
pub mod text_feed;
pub mod tfevents;
pub mod trainer;
pub mod validation;

pub use checkpoint::{CheckpointError, CheckpointStore};
pub use interrupt::Interrupt;
pub use source::{BatchSource, SourceError};
pub use trainer::{Outcome, RunParts, Trainer, TrainerConfig};
pub use validation::{LossValidation, Validate};

/// Why a run stopped before its last step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Loss or gradients are not finite.
    #[error(
        "step {step}: loss or gradients are not finite; the samples of the step are listed in {report}. Resume from the last checkpoint with a lower learning rate, or look at those samples"
    )]
    NotFinite {
        /// Optimizer step.
        step: u64,
        /// File with sample keys and loss parts.
        report: PathBuf,
    },
    /// The stage could not compute a step.
    #[error("step {step}")]
    Stage {
        /// Optimizer step.
        step: u64,
        /// What went wrong.
        #[source]
        source: StageError,
    },
    /// No batch.
    #[error("step {step}: no batch")]
    Source {
        /// Optimizer step.
        step: u64,
        /// What the data source says.
        #[source]
        source: SourceError,
    },
    /// Saving or resuming failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Processes disagree or one is gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A log or report file could not be written.
    #[error("{path}: {source}; free some space or choose another run folder")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// An option makes no sense.
    #[error("{option} = {value}: {reason}")]
    Config {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        reason: &'static str,
    },
}

impl RunError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod real_width;
