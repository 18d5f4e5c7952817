//! Files that appear under their name only when they are complete.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::error::{Result, WeightsError};
use crate::atomic;

/// A file being written under a temporary name in the folder of its destination. Dropped without
/// [`commit`](Self::commit), it is removed.
pub(crate) struct StagedFile {
    dest: PathBuf,
    file: BufWriter<NamedTempFile>,
    failed: bool,
    position: u64,
}

impl StagedFile {
    pub fn create(dest: &Path) -> Result<Self> {
        let file = atomic::beside(dest).map_err(|e| WeightsError::io(dest, e))?;
        Ok(Self {
            dest: dest.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            failed: false,
            position: 0,
        })
    }

    /// Writes everything to the disk, without giving the file its name.
    pub fn finish(self) -> Result<FinishedFile> {
        let Self {
            dest, file, failed, ..
        } = self;
        let io = |e| WeightsError::io(&dest, e);
        if failed {
            return Err(io(io::Error::other("an earlier write failed")));
        }
        let file = file.into_inner().map_err(|e| io(e.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        Ok(FinishedFile { dest, file })
    }

    /// [`finish`](Self::finish) and [`commit`](FinishedFile::commit).
    pub fn commit(self) -> Result<PathBuf> {
        self.finish()?.commit()
    }
}

// The zip writer tries to complete its archive even when it is dropped after an error, and complains on stderr when
// it cannot. So the error is reported once; from then on the file is a dummy that only keeps count.
impl Write for StagedFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = if self.failed {
            Ok(buf.len())
        } else {
            self.file.write(buf)
        };
        self.failed |= written.is_err();
        self.position += *written.as_ref().unwrap_or(&0) as u64;
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = if self.failed { Ok(()) } else { self.file.flush() };
        self.failed |= flushed.is_err();
        flushed
    }
}

impl Seek for StagedFile {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        let position = match pos {
            _ if !self.failed => self.file.seek(pos),
            SeekFrom::Start(position) => Ok(position),
            SeekFrom::Current(by) => Ok(self.position.saturating_add_signed(by)),
            SeekFrom::End(_) => Ok(self.position),
        };
        self.failed |= position.is_err();
        self.position = *position.as_ref().unwrap_or(&self.position);
        position
    }
}

/// A complete file that still has its temporary name.
pub(crate) struct FinishedFile {
    dest: PathBuf,
    file: NamedTempFile,
}

impl FinishedFile {
    /// Renames the file to its destination, replacing what is there.
    pub fn commit(self) -> Result<PathBuf> {
        let Self { dest, file } = self;
        file.persist(&dest)
            .map_err(|e| WeightsError::io(&dest, e.error))?;
        // the rename itself must reach the disk; where a folder cannot be opened (Windows) the system sees to it
        if let Ok(folder) = File::open(atomic::folder_of(&dest)) {
            let _ = folder.sync_all();
        }
        Ok(dest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("f");
        let mut file = StagedFile::create(&dest).unwrap();
        file.write_all(b"new").unwrap();
        assert!(!dest.exists());
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        std::fs::write(&dest, "old").unwrap();
        let mut file = StagedFile::create(&dest).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(file.commit().unwrap(), dest);
        assert_eq!(std::fs::read(&dest).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_failed_once_is_never_named() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("f");
        let mut file = StagedFile::create(&dest).unwrap();
        assert!(file.seek(SeekFrom::End(-1)).is_err());
        file.write_all(b"more").unwrap();
        assert!(file.commit().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
