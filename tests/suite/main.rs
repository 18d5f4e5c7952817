//! Cross-crate tests: parity, backends, command contract.
