//! What every target shares.

use std::sync::Once;

/// Takes libFuzzer's panic hook out, which ends the process at every panic: those of the image, parquet and tokenizer
/// libraries are caught at their border and become typed errors. One that gets as far as the target still ends the
/// process. Nothing is printed unless `BLIP2_FUZZ_LOUD` is set, for the replay of a found case.
pub fn caught_panics_are_errors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        drop(std::panic::take_hook());
        if std::env::var_os("BLIP2_FUZZ_LOUD").is_none() {
            std::panic::set_hook(Box::new(|_| {}));
        }
    });
}
