//! Cross-crate tests: parity with transformers on every backend of the build. One binary, because every test binary instantiates the models anew.

mod generation;
mod half;
mod lavis;
mod losses;
mod parity;
mod support;
