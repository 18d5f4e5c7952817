//! Data: files in, batches of decoded and augmented samples out.
pub mod annotations;
pub mod augment;
pub mod capfilt;
mod checked;
pub mod convert;
pub mod facts;
pub mod folder;
pub mod formats;
pub mod inspect;
pub mod loader;
pub mod mixture;
mod official;
pub mod output;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod pattern;
pub mod pil;
pub mod pipeline;
pub mod prepare;
pub mod records;
pub mod rng;
pub mod sample;
pub mod shard;
mod slot;
pub mod source;
pub mod stats;
pub mod stream;
pub mod tar_reader;
#[cfg(test)]
pub(crate) mod testing;
pub mod untrusted;
pub mod verify;
pub mod webdataset;
