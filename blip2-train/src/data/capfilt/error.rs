//! Why a CapFilt job ends, and why a single shard is not written.

use std::path::PathBuf;

use serde::Serialize;

use crate::data::sample::{DataError, Problem};

/// Errors that end a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CapFiltError {
    /// A setting outside its range, a file that cannot be written, a model that fails.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Two shards would be written to one file.
    #[error(
        "two of the shards would become {name}; give each of their folders a run with an output folder of its own"
    )]
    OneName {
        /// The file.
        name: String,
    },
    /// The output folder was begun with other models or options.
    #[error("{}: the shards here are made with other settings: {differences}; give those, or name another output folder", path.display())]
    OtherSettings {
        /// The record.
        path: PathBuf,
        /// Each setting with both values.
        differences: String,
    },
    /// Shards, but no record of their settings.
    #[error(
        "{} exists, but no capfilt.json beside it says how it was made; name another output folder, or move it away",
        path.display()
    )]
    NoRecord {
        /// The first such shard.
        path: PathBuf,
    },
}

/// Why a shard is not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Loss {
    /// Reading it ended with an error.
    #[error("{0}")]
    Unreadable(#[from] DataError),
    /// It cannot be opened, breaks off, or is damaged between its samples, so that some are missing.
    #[error("{0}")]
    Damaged(Problem),
    /// Nothing in it.
    #[error("holds no sample")]
    Empty,
    /// Too many samples are bad.
    #[error(
        "{bad} of {seen} samples cannot be used, of which {allowed} may (`max_bad`); the last: `{key}`: {problem}"
    )]
    TooManyBad {
        /// Bad samples.
        bad: u64,
        /// All samples.
        seen: u64,
        /// The limit.
        allowed: u64,
        /// Key of the last bad one.
        key: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

impl Loss {
    /// Whether a problem is one of the shard rather than of a sample in it. Behind a damaged header reading goes on, but
    /// nobody knows how many samples lay between.
    pub fn is_of_the_shard(problem: &Problem) -> bool {
        problem.loses_shard() || matches!(problem, Problem::CorruptHeader { .. })
    }
}

/// A shard that is not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostShard {
    /// As given.
    pub shard: String,
    /// What is wrong, in words.
    pub reason: String,
}
