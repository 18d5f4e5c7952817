//! Cross-crate tests: parity with transformers on every backend of the build. One binary, because every test binary instantiates the models anew.

mod generation;
mod losses;
mod nano;
mod parity;
mod support;
