//! Bytes as annotation files of every format: nothing may panic, and every failure is a typed error.
#![no_main]

use blip2_train::data::untrusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    blip2_fuzz::caught_panics_are_errors();
    untrusted::json(bytes);
});
