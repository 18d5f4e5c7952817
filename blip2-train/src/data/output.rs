//! Files written whole or not at all, names that are safe on any disk.

mod partial;

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use blip2_model::atomic;
use tempfile::NamedTempFile;

use super::sample::DataError;

/// A file that appears under its name only when it is complete.
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts writing beside `path`; folders are made, and what a killed process left of it is taken away.
    pub fn create(path: &Path) -> Result<Self, DataError> {
        let folder = atomic::folder_of(path);
        std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        let file = partial::create(path).map_err(DataError::io(folder))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    /// Syncs and renames into place, over a file of that name.
    pub fn commit(self) -> Result<(), DataError> {
        let failed = DataError::io(&self.path);
        let finish = || {
            let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
            atomic::keep(file, &self.path)
        };
        finish().map_err(failed)
    }

    /// The error type for a failed write to this file.
    pub fn failed(&self) -> impl FnOnce(io::Error) -> DataError + use<> {
        DataError::io(self.path.clone())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `bytes` to `path` in one go.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(file.failed())?;
    file.commit()
}

/// Makes keys from foreign names: letters, digits, `-`, `_` and inner `/` stay, anything else becomes `_`.
///
/// No dots, so that a key is never cut short nor leads out of a folder.
pub fn safe_key(name: &str) -> String {
    let pieces: Vec<String> = name
        .split('/')
        .filter(|piece| !piece.is_empty() && piece.chars().any(|c| c != '.'))
        .map(|piece| {
            piece
                .chars()
                .map(|c| {
                    if c.is_alphanumeric() || "-_".contains(c) {
                        c
                    } else {
                        '_'
                    }
                })
                .collect()
        })
        .collect();
    // a file name holds 255 bytes; the extension needs some
    let mut key = pieces.join("/");
    let mut end = key.len().min(200);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    key.truncate(end);
    if key.is_empty() { "_".to_owned() } else { key }
}

/// Gives every name once; a repeated one gets a number.
#[derive(Default)]
pub struct Unique(HashMap<String, u64>);

impl Unique {
    /// `name`, or `name-2`, `name-3`, ...
    pub fn of(&mut self, name: String) -> String {
        let mut candidate = name.clone();
        while let Some(count) = self.0.get_mut(&name) {
            *count += 1;
            candidate = format!("{name}-{count}");
            if !self.0.contains_key(&candidate) {
                break;
            }
        }
        self.0.insert(candidate.clone(), 1);
        candidate
    }
}

/// Appends files to a tar stream: sorted names are the caller's affair, times and owners are left at 0.
pub fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, body: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_safe_and_unique() {
        assert_eq!(safe_key("a/b.c:d"), "a/b_c_d");
        assert_eq!(safe_key("../../etc/passwd"), "etc/passwd");
        assert_eq!(safe_key("/.."), "_");
        assert_eq!(safe_key(&"é".repeat(300)).len(), 200);
        let mut unique = Unique::default();
        let got: Vec<String> = ["a", "b", "a", "a-2", "a"]
            .iter()
            .map(|n| unique.of((*n).into()))
            .collect();
        assert_eq!(got, ["a", "b", "a-2", "a-2-2", "a-3"]);
    }

    #[test]
    fn a_file_appears_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/y.txt");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path().join("x")).unwrap().count(), 0);
        write_file(&path, b"whole").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }
}
