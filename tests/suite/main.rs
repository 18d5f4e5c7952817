//! Cross-crate tests: parity with transformers on every backend of the build, the command's contract,
//! robustness. One binary, because every test binary instantiates the models anew.

mod parity;
mod support;
