//! Panics of foreign parsers, turned into errors.
//!
//! The PNG decoder and the tokenizer library panic on some damaged files; one such file must not end a run over
//! thousands. Without unwinding (`panic = "abort"`) this cannot help.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a parser panicked with.
#[derive(Debug, thiserror::Error)]
#[error("the parser gave up: {0}")]
pub(super) struct Panicked(String);

/// Runs `work`, which must leave nothing behind that is used after a panic.
pub(super) fn guard<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Panicked(text.unwrap_or("no reason given").to_owned())
    })
}
