//! Tests of [`super`]: every kind of file against Pillow, and damaged files.

use super::*;
use crate::processor::fixtures::{json, numbers, path, sha};

fn files() -> Vec<(String, Vec<u8>)> {
    let names = json("images.json")
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect::<Vec<_>>();
    names
        .into_iter()
        .map(|n| (n.clone(), std::fs::read(path("images").join(n)).unwrap()))
        .collect()
}

#[test]
fn pixels_equal_pillow() {
    for (name, entry) in json("images.json").as_object().unwrap() {
        let file = path("images").join(name);
        let image = decode_file(&file, &DecodeOptions::default()).unwrap();
        let size = numbers(&entry["size"]);
        assert_eq!([image.width(), image.height()], size[..], "{name}");
        if let Some(expected) = entry["sha256"].as_str() {
            assert_eq!(sha(image.as_raw()), expected, "{name}");
        } else {
            let expected = path("images/expected").join(format!("{name}.png"));
            let expected = decode_file(expected, &DecodeOptions::default()).unwrap();
            let pairs = image.as_raw().iter().zip(expected.as_raw());
            let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= tolerance(name), "{name}: {worst} levels off");
        }
        if let Some(expected) = entry["white_sha256"].as_str() {
            let options = DecodeOptions {
                alpha: Alpha::OnWhite,
                ..DecodeOptions::default()
            };
            assert_eq!(
                sha(decode_file(&file, &options).unwrap().as_raw()),
                expected,
                "{name} on white"
            );
        }
    }
}

/// Levels of difference from libjpeg-turbo and libwebp.
fn tolerance(name: &str) -> u8 {
    match name {
        // integer arithmetic that the WebP specification fixes
        "lossy.webp" => 0,
        // the JPEG standard leaves the rounding of the inverse transform, of the colour conversion and of
        // chroma interpolation to the decoder: about one level each
        _ => 3,
    }
}

#[test]
fn orientation_can_be_ignored() {
    let options = DecodeOptions {
        apply_orientation: false,
        ..DecodeOptions::default()
    };
    let turned = decode_file(path("images/orientation6.jpg"), &DecodeOptions::default()).unwrap();
    let stored = decode_file(path("images/orientation6.jpg"), &options).unwrap();
    assert_eq!(
        (turned.width(), turned.height()),
        (stored.height(), stored.width())
    );
    assert_eq!(image::imageops::rotate90(&stored), turned);
}

#[test]
fn failures_are_typed_and_name_the_file() {
    let options = DecodeOptions::default();
    let decode = |bytes: &[u8]| decode_bytes(bytes, "holiday.jpg", &options).unwrap_err();
    let missing = decode_file("no/such/file.png", &options).unwrap_err();
    assert!(missing.to_string().contains("no/such/file.png"));
    assert!(matches!(decode(b""), ProcessorError::EmptyImage { .. }));
    assert!(matches!(
        decode(b"hello there"),
        ProcessorError::UnknownImageFormat { .. }
    ));
    assert!(matches!(
        decode(b"GIF89a\x01\0\x01\0\0\0\0"),
        ProcessorError::UnknownImageFormat { .. }
    ));
    for (name, bytes) in files() {
        for keep in [4, 12, 20, bytes.len() / 2, bytes.len() - 13] {
            if name == "animated.webp" && keep >= bytes.len() / 2 {
                // the first frame, all that is wanted, is complete
                continue;
            }
            let error = decode(&bytes[..keep]);
            assert!(error.to_string().contains("holiday.jpg"), "{error}");
            if keep >= 12 {
                assert!(
                    matches!(error, ProcessorError::TruncatedImage { .. }),
                    "{name}: {error:?}"
                );
            }
        }
    }
}

/// png 0.18 indexes past the end of a PLTE chunk whose length is no multiple of 3.
#[test]
fn panics_of_decoders_become_errors() {
    let file = path("damaged/short_palette.png");
    let error = decode_file(file, &DecodeOptions::default()).unwrap_err();
    assert!(matches!(error, ProcessorError::DecodeImage { .. }), "{error:?}");
    assert!(error.to_string().contains("short_palette.png"), "{error}");
}

#[test]
fn truncated_jpeg_on_request() {
    let bytes = std::fs::read(path("images/444.jpg")).unwrap();
    let options = DecodeOptions {
        allow_truncated: true,
        ..DecodeOptions::default()
    };
    let image = decode_bytes(&bytes[..bytes.len() - 40], "x", &options).unwrap();
    assert_eq!(image.dimensions(), (37, 29));
}

#[test]
fn pixel_limit_is_checked_before_decoding() {
    let at = DecodeOptions {
        max_pixels: 37 * 29,
        ..DecodeOptions::default()
    };
    let below = DecodeOptions {
        max_pixels: 37 * 29 - 1,
        ..DecodeOptions::default()
    };
    for (name, bytes) in files() {
        assert!(decode_bytes(&bytes, &name, &at).is_ok(), "{name}");
        let error = decode_bytes(&bytes, &name, &below).unwrap_err();
        assert!(
            matches!(error, ProcessorError::ImageTooLarge { limit: 1072, .. }),
            "{error}"
        );
    }
    // a header that promises 60,000 x 60,000 pixels, with nothing behind it
    let mut bytes = std::fs::read(path("images/rgb.png")).unwrap();
    bytes[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = decode_bytes(&bytes, "bomb.png", &DecodeOptions::default()).unwrap_err();
    assert!(
        matches!(error, ProcessorError::ImageTooLarge { width: 60000, .. }),
        "{error}"
    );
    assert_eq!(read_header(&bytes, "bomb.png").unwrap().height, 60000);
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| {
            if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 }
        })
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 400, ..Default::default() })]
    #[test]
    fn damaged_files_never_panic(
        file in 0usize..64,
        edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0u8..), 0..12),
        keep in proptest::prelude::any::<proptest::sample::Index>(),
        cut in proptest::prelude::any::<bool>(),
    ) {
        let files = files();
        let (name, mut bytes) = files[file % files.len()].clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let options = DecodeOptions { max_pixels: 1 << 20, allow_truncated: true, ..DecodeOptions::default() };
        if let Ok(image) = decode_bytes(&bytes, &name, &options) {
            assert!(u64::from(image.width()) * u64::from(image.height()) <= 1 << 20);
        }
    }
}
