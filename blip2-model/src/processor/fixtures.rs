//! What the tests of this module share: the files written by `tests/fixtures/gen/processor.py`.

use std::path::PathBuf;

use image::RgbImage;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(super) fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/processor"
    ))
    .join(name)
}

pub(super) fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

pub(super) fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// `[a, b, ...]` as numbers.
pub(super) fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

/// The generator script contains the same formula.
pub(super) fn synthetic(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (u64::from(x), u64::from(y));
        image::Rgb(std::array::from_fn(|c| {
            let c = c as u64;
            let smooth = ((x * x * 3 + y * y * 5 + x * y * 7) >> 6) + c * 71;
            let mut noise = ((x * 73856093) ^ (y * 19349663) ^ (c * 83492791)) & 0xFFFF_FFFF;
            noise ^= noise >> 13;
            noise = (noise * 0x5BD1_E995) & 0xFFFF_FFFF;
            noise ^= noise >> 15;
            (((smooth & 255) * 3 + (noise & 255)) >> 2) as u8
        }))
    })
}
