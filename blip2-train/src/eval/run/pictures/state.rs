//! A hash that notices when a picture file of the data set has changed, without reading the pictures.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;

use crate::eval::results;

/// SHA-256 over path, size and time of change of each picture, whatever their order. `roots` are the folders that paths
/// may be relative to: without them the hash survives that the data set moves. `None` without pictures.
pub(super) fn of_files(pictures: &[&Path], roots: &[PathBuf]) -> Option<String> {
    let mut lines: Vec<String> = pictures.par_iter().map(|path| line(path, roots)).collect();
    lines.sort_unstable();
    lines.dedup();
    (!lines.is_empty()).then(|| results::sha256(lines.concat().as_bytes()))
}

fn line(path: &Path, roots: &[PathBuf]) -> String {
    let relative = roots.iter().find_map(|root| path.strip_prefix(root).ok());
    let name = relative.unwrap_or(path).display();
    match std::fs::metadata(path) {
        Ok(found) => {
            let changed = found.modified().ok();
            let changed = changed.and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()));
            format!("{name} {} {}\n", found.len(), changed.unwrap_or_default())
        }
        Err(_) => format!("{name} missing\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_picture_is_noticed_and_neither_order_nor_place_matter() {
        let dir = tempfile::tempdir().unwrap();
        let time = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let write = |folder: &str, name: &str, body: &str| {
            let path = dir.path().join(folder).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, body).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(time).unwrap();
            path
        };
        let hash = |paths: &[&PathBuf], folder: &str| {
            let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
            of_files(&paths, &[dir.path().join(folder)])
        };
        let (a, b) = (write("one", "a.png", "a"), write("one", "b/c.png", "bb"));
        let first = hash(&[&a, &b], "one");
        assert!(first.is_some());
        assert_eq!(hash(&[&b, &a, &b], "one"), first);
        let moved = (write("two", "a.png", "a"), write("two", "b/c.png", "bb"));
        assert_eq!(hash(&[&moved.0, &moved.1], "two"), first);
        let file = std::fs::File::options().write(true).open(&a).unwrap();
        file.set_modified(time + std::time::Duration::from_secs(1))
            .unwrap();
        assert_ne!(hash(&[&a, &b], "one"), first, "another time");
        write("two", "a.png", "aa");
        assert_ne!(hash(&[&moved.0, &moved.1], "two"), first, "another size");
        std::fs::remove_file(&b).unwrap();
        assert_ne!(hash(&[&a, &b], "one"), first, "one is gone");
        assert_eq!(hash(&[], "one"), None);
    }
}
