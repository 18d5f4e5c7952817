//! Training of BLIP-2: both pre-training stages and fine-tuning, on any burn backend.
//!
//! A step's way: batch -> [`stage`] (frozen parts on the inner backend, trainable module on the
//! autodiff backend) -> [`losses`] -> gradients by name -> [`optim`] -> [`run`] (loop, checkpoints, logs).
//! Shapes use the legend of `blip2_model`; additionally `W` is the number of processes and
//! `K = B * W` the global batch.

pub mod cli;
pub mod data;
pub mod distributed;
pub mod eval;
pub mod initial;
pub mod losses;
pub mod optim;
pub mod params;
pub mod recipe;
pub mod run;
mod say;
pub mod stage;
