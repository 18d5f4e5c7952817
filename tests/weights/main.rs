//! Checkpoints from end to end: export, conversion in both directions, half precision, hostile input. On the pure Rust
//! CPU backend only, so that this binary builds in a fraction of the time of `suite`.

#![cfg(feature = "flex")]

mod convert;
mod export;
mod hostile;
#[path = "../suite/support.rs"]
#[allow(dead_code, unused_macros)]
mod support;

#[global_allocator]
static ALLOCATOR: hostile::Watched = hostile::Watched;
