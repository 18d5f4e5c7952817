use std::path::PathBuf;

use super::super::rng::KeyedRng;
use super::*;

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"))
}

/// Files of `folder` with one of these extensions, by name.
fn files(folder: &str, extensions: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(fixtures().join(folder))
        .expect("fixtures")
        .map(|entry| entry.expect("fixtures").path())
        .filter(|path| {
            extensions
                .iter()
                .any(|e| path.extension().is_some_and(|x| x == *e))
        })
        .collect();
    found.sort();
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read(&path).expect("fixture"));
    found.into_iter().map(read).collect()
}

/// Overwrites, inserts, removes, repeats and cuts; one to eight times.
fn mutated(bytes: &[u8], rng: &mut KeyedRng) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'"', b'/'];
    let mut out = bytes.to_vec();
    for _ in 0..=rng.below(8) {
        let len = out.len() as u64;
        if len == 0 {
            break;
        }
        let at = rng.below(len) as usize;
        let to = (at + 1 + rng.below(64) as usize).min(out.len());
        match rng.below(6) {
            0 => out[at] = rng.below(256) as u8,
            1 => out[at] ^= 1 << rng.below(8),
            2 => out[at..to].fill(TELLING[rng.below(8) as usize]),
            3 => drop(out.drain(at..to)),
            4 => {
                let piece = out[at..to].to_vec();
                let place = rng.below(len) as usize;
                drop(out.splice(place..place, piece));
            }
            _ => out.truncate(at),
        }
    }
    out
}

/// Runs `entry` on every file and on `times` mutations of each; a panic names the file and the number of the mutation.
fn besiege(purpose: &str, files: &[(String, Vec<u8>)], times: u64, entry: impl Fn(&[u8]) -> Tally) -> Tally {
    assert!(!files.is_empty());
    let mut sum = Tally::default();
    for (name, bytes) in files {
        for number in 0..=times {
            let mut rng = KeyedRng::new(
                2026,
                purpose,
                &[
                    name.rsplit('/').next().unwrap_or("").as_bytes(),
                    &number.to_le_bytes(),
                ],
            );
            let input = if number == 0 {
                bytes.clone()
            } else {
                mutated(bytes, &mut rng)
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| entry(&input)));
            let tally = result.unwrap_or_else(|_| panic!("{name}, mutation {number}: {} bytes", input.len()));
            sum.good += tally.good;
            sum.bad += tally.bad;
        }
    }
    sum
}

#[test]
fn tar_input() {
    let files = files("hostile", &["tar", "gz"]);
    let sum = besiege("tar", &files, 400, tar);
    // most mutations of a shard leave some of its samples whole and damage others
    assert!(sum.good > 500 && sum.bad > 500, "{sum:?}");
}

#[test]
fn annotation_input() {
    let files = files("hostile", &["json", "jsonl", "csv", "tsv"]);
    let sum = besiege("json", &files, 100, json);
    assert!(sum.good > 1000 && sum.bad > 1000, "{sum:?}");
}

#[test]
fn picture_input() {
    let mut all = files("hostile", &["png", "jpg", "webp"]);
    all.extend(files("parity/images", &["png"]));
    let sum = besiege("image", &all, 150, image);
    assert!(sum.good > 100 && sum.bad > 1000, "{sum:?}");
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_input() {
    let mut all = files("parquet", &["parquet"]);
    all.extend(files("hostile", &["parquet"]));
    let sum = besiege("parquet", &all, 700, parquet);
    assert!(sum.good > 1000 && sum.bad > 500, "{sum:?}");
}
