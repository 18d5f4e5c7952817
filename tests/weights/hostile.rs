//! Nasty files, and good ones with bytes changed: every reader answers with content or a typed error, without a panic
//! and without a single large allocation. The same functions are the targets of `tests/fuzz/`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blip2_model::untrusted::{self, Tally};

use crate::support::fixture;

/// The system's allocator, with the largest request of each thread on record.
pub struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // the record may be gone while its thread ends
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

/// No file here is larger than a few hundred kilobytes; 64 MiB is what a strided view may expand to.
const MOST: usize = 80 << 20;

type Entry = (&'static str, fn(&[u8]) -> Tally, &'static [&'static str], usize);

/// Prefix of the stored cases, reader, good files to change, how many changes.
const ENTRIES: [Entry; 6] = [
    (
        "config",
        untrusted::config,
        &[
            "parity/opt/config.json",
            "parity/t5/config.json",
            "parity/opt/preprocessor_config.json",
        ],
        1000,
    ),
    (
        "safetensors",
        untrusted::safetensors,
        &[
            "weights/dtypes.safetensors",
            "weights/sharded/model-00001-of-00003.safetensors",
        ],
        2000,
    ),
    (
        "torch",
        untrusted::torch,
        &[
            "weights/lavis.pth",
            "weights/views.pth",
            "weights/lavis_legacy.pth",
            "weights/views_protocol4.pth",
        ],
        1000,
    ),
    (
        "index",
        untrusted::index,
        &["weights/sharded/model.safetensors.index.json"],
        1000,
    ),
    (
        "tokenizer",
        untrusted::tokenizer,
        &[
            "parity/itm/tokenizer.json",
            "parity/t5/tokenizer.json",
            "processor/tokenizers/bert/vocab.txt",
        ],
        40,
    ),
    (
        "image",
        untrusted::image,
        &[
            "processor/images/420.jpg",
            "processor/images/grey16.png",
            "processor/images/lossy.webp",
        ],
        300,
    ),
];

fn stored(prefix: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fixture("hostile-weights"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(&format!("{prefix}-"))
        })
        .collect();
    files.sort();
    files
}

/// Runs a reader on bytes, and on failure says which bytes they were.
fn survive(reader: fn(&[u8]) -> Tally, bytes: &[u8], what: &str) -> Tally {
    LARGEST.with(|largest| largest.set(0));
    let start = Instant::now();
    let outcome = std::panic::catch_unwind(|| reader(bytes));
    let Ok(tally) = outcome else {
        panic!("{what}: a reader panicked on {} bytes", bytes.len())
    };
    let largest = LARGEST.with(Cell::get);
    assert!(largest <= MOST, "{what}: {largest} bytes at once");
    // a guard against endless loops, generous for a busy machine
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{what}: {:?}",
        start.elapsed()
    );
    tally
}

fn run(index: usize) {
    let (prefix, reader, good, changes) = ENTRIES[index];
    let cases = stored(prefix);
    assert!(cases.len() >= 9, "{prefix}: only {} stored cases", cases.len());
    for path in &cases {
        let tally = survive(reader, &std::fs::read(path).unwrap(), &path.display().to_string());
        let is_good = path.to_string_lossy().ends_with("-good");
        assert!(tally.good > 0 || !is_good, "{} was refused", path.display());
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + index as u64);
    let mut refused = 0;
    for name in good {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let tally = survive(reader, &bytes, name);
        assert!(tally.good > 0, "{name} is a good file and was refused");
        for round in 0..changes {
            let changed = random.change(&bytes);
            let tally = survive(reader, &changed, &format!("{name}, change {round}"));
            refused += u32::from(tally.bad > 0);
        }
    }
    assert!(refused > 0, "{prefix}: no change was ever noticed");
}

#[test]
fn configurations() {
    run(0);
}

#[test]
fn safetensors() {
    run(1);
}

#[test]
fn torch_files() {
    run(2);
}

#[test]
fn indexes() {
    run(3);
}

#[test]
fn tokenizers() {
    run(4);
}

#[test]
fn images() {
    run(5);
}

/// A checkpoint whose index points out of its folder is refused before anything is opened.
#[test]
fn an_index_cannot_name_files_elsewhere() {
    for name in ["index-parent", "index-absolute"] {
        let bytes = std::fs::read(fixture("hostile-weights").join(name)).unwrap();
        assert_eq!(untrusted::index(&bytes), Tally { good: 0, bad: 1 }, "{name}");
    }
    assert!(!Path::new("model.safetensors.index.json").exists());
}

/// xorshift: the same changes on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    /// One to eight changes, most of them near the start, where headers are.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.next(8) {
            let reach = match self.next(3) {
                0 => bytes.len(),
                _ => bytes.len().min(600),
            };
            let at = self.next(reach);
            match self.next(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.next(8),
                1 if at < bytes.len() => bytes[at] = self.next(256) as u8,
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + self.next(9)).min(bytes.len());
                    bytes.drain(at.min(end)..end);
                }
                4 => {
                    let fill = [0, 0xff, b'9', b'-', b'['][self.next(5)];
                    let count = self.next(9);
                    bytes.splice(at..at, std::iter::repeat_n(fill, count));
                }
                _ => {
                    let end = (at + self.next(40)).min(bytes.len());
                    let again = bytes[at.min(end)..end].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        bytes
    }
}
