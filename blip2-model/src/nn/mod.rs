//! Building blocks shared by every encoder and language model.
//!
//! Weights keep the layout of the published files (`[out, in]` for linear maps), so that loading,
//! exporting and memory-mapping never transpose.

pub mod activation;
pub mod attention;
pub mod context;
pub mod embedding;
pub mod gradients;
pub mod kernels;
pub mod kv_cache;
pub mod linear;
pub mod mask;
pub mod norm;

pub use activation::Activation;
pub use attention::{in_heads, merge_heads, split_heads};
pub use context::Context;
pub use embedding::{Embedding, pick};
pub use kernels::Kernels;
pub use kv_cache::KvCache;
pub use linear::{Linear, LinearConfig};
pub use mask::PadMask;
pub use norm::{LayerNorm, RmsNorm};
