//! Checkpoints: reading and writing files, and the hub.
//!
//! [`checkpoint_dir::open`] looks at a path and gives a [`TensorSource`]; the sources read safetensors and torch
//! files, single or sharded, through memory maps.

pub mod checkpoint_dir;
pub mod error;
mod fault;
pub mod fingerprint;
#[cfg(test)]
mod fixtures;
pub mod hub;
pub mod pickle;
mod room;
pub mod safetensors;
mod shard_plan;
pub mod sharded;
pub mod source;
pub(crate) mod staging;
pub mod tensor;
pub mod torch;
pub mod torch_writer;
pub mod writer;

pub use checkpoint_dir::{CheckpointKind, Opened};
pub use error::{ShapeMismatch, WeightsError};
pub use source::TensorSource;
pub use tensor::{DType, TensorBytes, TensorInfo};
