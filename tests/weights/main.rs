//! Checkpoints from end to end: export, LAVIS files, conversion in both directions, hostile input. On the pure
//! Rust CPU backend only, so that this binary builds in a fraction of the time of `suite`.

#![cfg(feature = "flex")]

mod export;
#[path = "../suite/support.rs"]
#[allow(dead_code, unused_macros)]
mod support;
