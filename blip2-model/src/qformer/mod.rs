//! The Querying Transformer (paper section 3.1; `lavis/models/blip2_models/Qformer.py`, Hugging Face
//! `Blip2QFormerModel`): BERT layers whose self-attention is shared by learned queries and text, with
//! cross-attention to the image every second layer for the queries only, and separate feed-forwards.

mod bridge;
mod config;
mod heads;
mod layer;
mod model;

pub use bridge::{Bridge, BridgeConfig};
pub use config::QFormerConfig;
pub use heads::{LmHead, Projection, l2_normalise};
pub use layer::{Attention, FeedForward, QFormerLayer};
pub use model::{ImageKeys, QFormer, QueryPass, TextEmbeddings};
