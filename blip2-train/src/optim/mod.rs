//! From gradients to new weights: averaging, global-norm clipping, parameter groups, AdamW, learning-rate
//! schedule, loss scaling, LoRA. Everything works on parameters by name, flattened, in f32.

pub mod accumulate;
pub mod adamw;
pub mod clip;
pub mod groups;
pub mod scaler;
pub mod schedule;

pub use accumulate::{Accumulator, average_over_processes};
pub use adamw::{AdamW, AdamWConfig};
pub use clip::{clip_to_norm, global_norm};
pub use groups::{Group, GroupRule, LayerDecay};
pub use scaler::{LossScaler, ScalerConfig};
pub use schedule::{Schedule, Shape};
