//! BLIP-2 inference: a [`Session`] is a model with its processor on a device; the binary `blip2` is a thin
//! layer of verbs over it.

pub mod cli;
pub mod output;
pub mod session;

pub use session::{Request, Session};
