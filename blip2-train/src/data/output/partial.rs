//! Files in the making: `.NAME.RANDOM.tmp` beside NAME, locked by the process that writes it. One without a lock was
//! left by a process that was killed; whoever writes NAME next takes it away.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use blip2_model::atomic::folder_of;
use tempfile::NamedTempFile;

/// Bytes of NAME that are kept: a file name holds 255.
const NAME_BYTES: usize = 200;
const SUFFIX: &str = ".tmp";

/// Files in the making by folder, as they were when this process first wrote there: those of killed processes are
/// older than that, and a folder of many pictures is not listed for each.
static FOUND: Mutex<BTreeMap<PathBuf, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());

/// A new file in the making for `path`, whose folder must exist; removed when dropped unless it is kept.
pub(super) fn create(path: &Path) -> io::Result<NamedTempFile> {
    let prefix = prefix(path);
    clear(path, &prefix);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    // what the umask leaves, as for any new file, not the private rights of a temporary one
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let file = builder.tempfile_in(folder_of(path))?;
        match file.as_file().try_lock() {
            // another process came between and is about to take it away
            Err(TryLockError::WouldBlock) => continue,
            // a file system without locks: nothing is ever cleared on it
            Err(TryLockError::Error(_)) => return Ok(file),
            Ok(()) if file.path().exists() => return Ok(file),
            Ok(()) => {} // it has done so already
        }
    }
}

fn prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!(".{}.", &name[..end])
}

/// Takes away what killed processes left of `path`. Nothing depends on it, so that a failure is none.
fn clear(path: &Path, prefix: &str) {
    let Ok(mut found) = FOUND.lock() else { return };
    let folder = folder_of(path);
    let left = found.entry(folder.to_path_buf()).or_insert_with(|| list(folder));
    left.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let random = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_suffix(SUFFIX));
        // `.a.tar.` also begins the names of a file `a.tar.gz`
        let ours = random.is_some_and(|random| !random.contains('.'));
        if ours {
            remove_unlocked(file);
        }
        !ours
    });
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with('.') && name.ends_with(SUFFIX)
        })
        .collect()
}

/// The lock is held until the file is gone: see [`create`].
fn remove_unlocked(path: &Path) {
    if let Ok(file) = File::options().read(true).write(true).open(path)
        && file.try_lock().is_ok()
    {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_file;
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_taken_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [
            ".s.tar.aB3dE6.tmp",
            ".s.tar.gz.aB3dE6.tmp",
            ".other.tar.aB3dE6.tmp",
        ] {
            std::fs::write(at(name), b"half").unwrap();
        }
        let live = File::create(at(".s.tar.xxxxxx.tmp")).unwrap();
        live.try_lock().unwrap();
        write_file(&at("s.tar"), b"whole").unwrap();
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                ".other.tar.aB3dE6.tmp",
                ".s.tar.gz.aB3dE6.tmp",
                ".s.tar.xxxxxx.tmp",
                "s.tar"
            ]
        );
        // a name as long as the disk allows leaves room for the rest
        write_file(&at(&"n".repeat(255)), b"whole").unwrap();
    }
}
