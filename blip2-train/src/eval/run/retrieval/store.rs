//! Embeddings of a retrieval evaluation on disk, one record per batch, so that a run that goes on does not compute them
//! again.
//!
//! A record is `count: u32, values: u32, count x position: u64, values x f32, CRC-32C of all that: u32`, little-endian.
//! The batches are kept as they were made: products over the same shapes give the same bits before and after a stop.
//! A record that was cut off or damaged ends the file.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::eval::EvalError;
use crate::run::crc32c::crc32c;

/// Embeddings of one batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// Positions of what is embedded.
    pub at: Vec<usize>,
    /// Row-major, `[at, ...]`.
    pub values: Vec<f32>,
}

impl Part {
    /// What is left when rows that are `known` are taken out.
    pub fn without(self, known: &HashSet<usize>) -> Self {
        if !self.at.iter().any(|at| known.contains(at)) {
            return self;
        }
        let width = self.values.len() / self.at.len();
        let mut left = Self {
            at: Vec::new(),
            values: Vec::new(),
        };
        for (at, row) in self.at.iter().zip(self.values.chunks(width)) {
            if !known.contains(at) {
                left.at.push(*at);
                left.values.extend_from_slice(row);
            }
        }
        left
    }
}

/// An open file of records.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    file: File,
}

impl Store {
    /// Opens or creates a file and reads what it holds; what follows the last good record is removed.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn open(path: &Path) -> Result<(Self, Vec<Part>), EvalError> {
        let fault = || EvalError::file(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(fault())?;
        let (parts, end) = read_from(path, 0)?;
        file.set_len(end).map_err(fault())?;
        file.seek(SeekFrom::Start(end)).map_err(fault())?;
        let path = path.to_path_buf();
        Ok((Self { path, file }, parts))
    }

    /// Appends a batch and hands it to the operating system in one piece.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn append(&mut self, part: &Part) -> Result<(), EvalError> {
        let mut bytes = Vec::with_capacity(12 + 8 * part.at.len() + 4 * part.values.len());
        bytes.extend((part.at.len() as u32).to_le_bytes());
        bytes.extend((part.values.len() as u32).to_le_bytes());
        bytes.extend(part.at.iter().flat_map(|&at| (at as u64).to_le_bytes()));
        bytes.extend(part.values.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(crc32c(&bytes).to_le_bytes());
        self.file.write_all(&bytes).map_err(EvalError::file(&self.path))
    }
}

/// The good records of a file from byte `from` on, and where they end.
///
/// # Errors
/// [`EvalError::File`].
pub(super) fn read_from(path: &Path, from: u64) -> Result<(Vec<Part>, u64), EvalError> {
    let fault = || EvalError::file(path);
    let mut file = File::open(path).map_err(fault())?;
    file.seek(SeekFrom::Start(from)).map_err(fault())?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(fault())?;
    let (parts, whole) = read(&bytes);
    Ok((parts, from + whole as u64))
}

/// The good records at the beginning, and how many bytes these are.
fn read(bytes: &[u8]) -> (Vec<Part>, usize) {
    let (mut parts, mut whole) = (Vec::new(), 0);
    while let Some((part, length)) = record(&bytes[whole..]) {
        parts.push(part);
        whole += length;
    }
    (parts, whole)
}

fn record(bytes: &[u8]) -> Option<(Part, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (count, values) = (number(0)? as usize, number(4)? as usize);
    let first = count.checked_mul(8)?.checked_add(8)?;
    let end = values.checked_mul(4)?.checked_add(first)?;
    if number(end)? != crc32c(&bytes[..end]) {
        return None;
    }
    let at = bytes[8..first].chunks_exact(8).map(|b| {
        let low = b.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        low as usize
    });
    let floats = bytes[first..end]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let part = Part {
        at: at.collect(),
        values: floats.collect(),
    };
    (count > 0).then_some((part, end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(first: usize, count: usize) -> Part {
        Part {
            at: (first..first + count).collect(),
            values: (0..3 * count).map(|i| (first + i) as f32 * 0.1).collect(),
        }
    }

    #[test]
    fn records_come_back_and_a_torn_or_damaged_end_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.0.bin");
        let (mut store, found) = Store::open(&path).unwrap();
        assert!(found.is_empty());
        let parts = [part(0, 4), part(1 << 33, 2), part(9, 1)];
        parts.iter().for_each(|part| store.append(part).unwrap());
        assert_eq!(Store::open(&path).unwrap().1, parts);

        let whole = std::fs::read(&path).unwrap();
        let last = whole.len() - (12 + 8 + 12);
        for cut in [last + 1, last + 9, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut store, found) = Store::open(&path).unwrap();
            assert_eq!(found, parts[..2], "cut at {cut}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), last as u64);
            store.append(&parts[2]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        for damaged in [0, 4, 8, 20] {
            let mut bytes = whole.clone();
            bytes[last + damaged] ^= 0x40;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Store::open(&path).unwrap().1, parts[..2], "byte {damaged}");
        }
    }
}
