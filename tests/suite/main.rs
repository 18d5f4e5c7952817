//! Cross-crate tests: parity with transformers on every backend of the build. One binary, because every test binary instantiates the models anew.

mod doctor;
mod generation;
#[cfg(any(
    feature = "flex",
    feature = "cuda",
    feature = "rocm",
    feature = "vulkan",
    feature = "wgpu",
    feature = "metal"
))]
mod half;
mod kernels;
mod lavis;
mod losses;
mod memory;
// training from nothing is compared with itself, not with a reference: one backend is enough
#[cfg(feature = "flex")]
mod nano;
mod parity;
mod session;
mod support;
mod user_problems;
