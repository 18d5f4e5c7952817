//! Data: files in, batches of decoded and augmented samples out.
pub mod annotations;
pub mod augment;
pub mod facts;
pub mod folder;
pub mod formats;
pub mod loader;
pub mod mixture;
mod official;
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
mod testing;
pub mod verify;
pub mod webdataset;
