//! What is written down when loss or gradients stop being finite: enough to find the samples.

use std::path::{Path, PathBuf};

use blip2_model::atomic;
use serde::Serialize;

use super::RunError;

/// Contents of `nonfinite-*.json`.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Optimizer step.
    pub step: u64,
    /// This process.
    pub rank: usize,
    /// Norm of the averaged gradients, as text because JSON has no infinities.
    pub gradient_norm: String,
    /// One entry per micro-batch.
    pub micro_batches: Vec<MicroBatch<'a>>,
}

/// A micro-batch of the failed step.
#[derive(Debug, Serialize)]
pub struct MicroBatch<'a> {
    /// Loss parts, as text.
    pub losses: Vec<(&'static str, String)>,
    /// Keys of its samples.
    pub keys: &'a [String],
}

/// Writes the report into the run folder and returns its path.
pub fn write(folder: &Path, report: &Report<'_>) -> Result<PathBuf, RunError> {
    let path = folder.join(format!(
        "nonfinite-step-{:08}-rank-{}.json",
        report.step, report.rank
    ));
    let text = serde_json::to_string_pretty(report).unwrap_or_default();
    write_atomically(&path, text.as_bytes()).map_err(RunError::io(&path))?;
    Ok(path)
}

/// Writes a file whole or not at all; folders are made.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(atomic::folder_of(path))?;
    atomic::write(path, bytes)
}
