//! Files that appear under their name only when they are complete.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::error::{Result, WeightsError};

/// A file being written under a temporary name in the folder of its destination. Dropped without
/// [`commit`](Self::commit), it is removed.
pub(super) struct StagedFile {
    dest: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl StagedFile {
    pub fn create(dest: &Path) -> Result<Self> {
        let folder = folder_of(dest);
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".tmp");
        // as for any new file: what the umask leaves
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|e| WeightsError::io(dest, e))?;
        Ok(Self { dest: dest.to_owned(), file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Writes everything to the disk, without giving the file its name.
    pub fn finish(self) -> Result<FinishedFile> {
        let Self { dest, file } = self;
        let io = |e| WeightsError::io(&dest, e);
        let file = file.into_inner().map_err(|e| io(e.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        Ok(FinishedFile { dest, file })
    }

    /// [`finish`](Self::finish) and [`commit`](FinishedFile::commit).
    pub fn commit(self) -> Result<PathBuf> {
        self.finish()?.commit()
    }
}

impl Write for StagedFile {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for StagedFile {
    fn seek(&mut self, pos: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(pos)
    }
}

/// A complete file that still has its temporary name.
pub(super) struct FinishedFile {
    dest: PathBuf,
    file: NamedTempFile,
}

impl FinishedFile {
    /// Renames the file to its destination, replacing what is there.
    pub fn commit(self) -> Result<PathBuf> {
        let Self { dest, file } = self;
        file.persist(&dest).map_err(|e| WeightsError::io(&dest, e.error))?;
        // the rename itself must reach the disk; where a folder cannot be opened (Windows) the system sees to it
        if let Ok(folder) = File::open(folder_of(&dest)) {
            let _ = folder.sync_all();
        }
        Ok(dest)
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
