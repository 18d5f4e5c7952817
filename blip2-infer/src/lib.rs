//! BLIP-2 inference on the command line: the binary `blip2` is a thin layer of verbs over [`Session`].

pub mod cli;

pub use blip2_model::session::{Request, Session};
