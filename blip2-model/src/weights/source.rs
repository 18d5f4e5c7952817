//! What every checkpoint reader offers, and the memory-mapped file underneath all of them.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use super::error::{FileGuess, Result, WeightsError};
use super::tensor::{TensorBytes, TensorInfo};

/// A checkpoint: a list of tensors and their bytes, fetched one at a time.
pub trait TensorSource: Send + Sync {
    /// File (or index file) that the tensors come from; errors name it.
    fn path(&self) -> &Path;

    /// All tensors, in a fixed order with distinct names.
    fn infos(&self) -> &[TensorInfo];

    /// The content of one tensor, without a copy where the file holds it contiguous and aligned.
    ///
    /// # Errors
    /// [`WeightsError::NoSuchTensor`] for a name that is not in [`infos`](Self::infos).
    fn get(&self, name: &str) -> Result<TensorBytes>;

    /// Lets the pages of one tensor leave resident memory. Handles to its bytes stay valid: they are read from
    /// the file again on the next access. To be called once a tensor has been copied elsewhere.
    fn release(&self, name: &str) {
        let _ = name;
    }

    /// Dtype and shape of one tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.infos().iter().find(|info| info.name == name)
    }
}

/// A file mapped read-only. Cheap to clone; the map lives as long as any window into it.
///
/// The file must not be shortened while it is mapped: the operating system would end the process on access.
/// Programs that replace weights by renaming (as the writers here do) are safe.
#[derive(Debug, Clone)]
pub(crate) struct MappedFile {
    path: PathBuf,
    /// absent for bytes that never were in a file
    map: Option<Arc<Mmap>>,
    bytes: Bytes,
}

struct SharedMap(Arc<Mmap>);

impl AsRef<[u8]> for SharedMap {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl MappedFile {
    /// Maps a file after making sure that it is a regular, non-empty file and no Git LFS pointer.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| WeightsError::io(path, source);
        let file = File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound if path.symlink_metadata().is_ok() => WeightsError::NotFound {
                path: path.to_owned(),
                what: "the file that this link points to",
                remedy: "the copy or hub cache is incomplete, download the model again",
            },
            std::io::ErrorKind::NotFound => WeightsError::NotFound {
                path: path.to_owned(),
                what: "weights file",
                remedy: "check the path",
            },
            _ => io(source),
        })?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        if meta.len() == 0 {
            return Err(WeightsError::NotWeights {
                path: path.to_owned(),
                found: FileGuess::Empty,
            });
        }
        // SAFETY: the map is read-only and private to this type; that nobody shortens the file is the documented
        // condition of reading weights in place.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let bytes = Bytes::from_owner(SharedMap(map.clone()));
        if let Some(size) = lfs_pointer(&bytes) {
            return Err(WeightsError::LfsPointer {
                path: path.to_owned(),
                size,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            map: Some(map),
            bytes,
        })
    }

    /// Bytes that are in memory already, under a name for error messages.
    pub fn in_memory(name: &Path, bytes: Bytes) -> Self {
        Self {
            path: name.to_owned(),
            map: None,
            bytes,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Drops the pages of a range from resident memory.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            let len = range.end.min(map.len()).saturating_sub(range.start);
            // SAFETY: the map is a read-only view of a file, so dropping its pages loses nothing: the next access
            // reads the same bytes back.
            let advice =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, len) };
            // memory is only kept a little longer if the system will not take the hint
            let _ = advice;
        }
        #[cfg(not(unix))]
        let _ = (range, &self.map);
    }
}

/// `Some(size of the real file, if given)` when the content is a Git LFS pointer.
fn lfs_pointer(bytes: &[u8]) -> Option<Option<u64>> {
    const MAX_POINTER: usize = 1024;
    if bytes.len() > MAX_POINTER || !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return None;
    }
    let text = String::from_utf8_lossy(bytes);
    Some(
        text.lines()
            .find_map(|line| line.strip_prefix("size ")?.trim().parse().ok()),
    )
}

/// A guess at what a file without weights is, for the error message.
pub(crate) fn guess_content(bytes: &[u8]) -> FileGuess {
    let start = bytes
        .iter()
        .take(64)
        .skip_while(|b| b.is_ascii_whitespace())
        .copied()
        .collect::<Vec<u8>>();
    match start.to_ascii_lowercase().as_slice() {
        [] => FileGuess::Empty,
        s if s.starts_with(b"<!doctype") || s.starts_with(b"<html") || s.starts_with(b"<?xml") => {
            FileGuess::Html
        }
        [b'{' | b'[', ..] => FileGuess::Json,
        _ => FileGuess::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lfs_pointers_and_empty_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(
            &path,
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4688228520\n",
        )
        .unwrap();
        let err = MappedFile::open(&path).unwrap_err();
        assert!(
            matches!(
                err,
                WeightsError::LfsPointer {
                    size: Some(4688228520),
                    ..
                }
            ),
            "{err}"
        );
        assert!(err.to_string().contains("git lfs pull"));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(
            MappedFile::open(&path),
            Err(WeightsError::NotWeights {
                found: FileGuess::Empty,
                ..
            })
        ));
        assert!(matches!(
            MappedFile::open(dir.path()),
            Err(WeightsError::Io { .. })
        ));
        assert!(matches!(
            MappedFile::open(&dir.path().join("no")),
            Err(WeightsError::NotFound { .. })
        ));
    }

    #[test]
    fn bytes_outlive_the_source_and_survive_a_release() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let window = file.bytes().slice(1000..90_000);
        file.release(1000..90_000);
        file.release(90_000..usize::MAX);
        drop(file);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(window, content[1000..90_000]);
    }

    #[test]
    fn web_pages_are_recognised() {
        assert_eq!(guess_content(b"\n <!DOCTYPE html>"), FileGuess::Html);
        assert_eq!(guess_content(b"{\"error\": 1}"), FileGuess::Json);
        assert_eq!(guess_content(&[0, 1, 2]), FileGuess::Unknown);
    }
}
