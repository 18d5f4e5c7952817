//! BLIP-2 models, weights, processor and generation, generic over burn's [`Backend`](burn::tensor::backend::Backend).
//!
//! Data's way: file -> [`processor`] -> [`vision`] -> [`qformer`] -> projection -> [`language`]
//! (prefill, decode) -> text. Nothing here reads the terminal, parses arguments or trains.
//!
//! Shape legend used in every docstring: `B` batch, `N` patches (class token included), `Q` queries,
//! `T` text length, `S` attended length, `D` width, `H` heads, `V` vocabulary.

pub mod atomic;
pub mod backend;
pub mod blip2;
pub mod catalogue;
pub mod checkpoint;
pub mod config;
pub mod doctor;
pub mod generate;
pub mod language;
pub mod memory;
pub mod module_path;
pub mod nn;
pub mod processor;
pub mod qformer;
pub mod sentence;
pub mod session;
pub mod untrusted;
pub mod vision;
pub mod weights;
