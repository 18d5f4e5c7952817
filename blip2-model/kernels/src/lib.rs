//! CPU kernels on plain slices: what a transformer needs and `burn-flex` 0.21 does slowly or not at all.
//!
//! Nothing here knows a tensor library, so that each file can be offered upstream on its own, and so that the
//! loops are compiled once, at full optimisation, whatever the profile of the crates that call them.
//! Every function picks its instructions at run time ([`level::Level`]); without AVX the portable form of the
//! same loop runs. Sums are in f32.

pub mod act;
pub mod attention;
pub mod copy;
pub mod gemm;
pub mod level;
pub mod math;
pub mod norm;
pub mod quant;
pub mod reduce;
mod simd;
pub mod skinny;

pub use act::Act;
