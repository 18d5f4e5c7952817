//! Where batches come from, as far as the trainer cares.

use serde_json::Value;

/// Whatever a data source reports.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// An endless, resumable stream of batches for this process.
pub trait BatchSource<T> {
    /// The next batch.
    fn next_batch(&mut self) -> Result<T, SourceError>;

    /// Where the stream stands after the batches handed out so far.
    fn cursor(&self) -> Value;

    /// Goes to a cursor: the next batch is the one that followed there.
    fn seek(&mut self, cursor: &Value) -> Result<(), SourceError>;
}
