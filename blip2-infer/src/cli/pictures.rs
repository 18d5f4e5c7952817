//! Picture files on their way to the model: found, read ahead of the model in batches, and the bad ones kept for
//! the end.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::{Context as _, Result, bail};
use blip2_model::processor::{DecodeOptions, RgbImage, decode_bytes};
use blip2_model::sentence::sentence;
use blip2_model::weights::fingerprint::hex;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::interrupt::Interrupt;
use super::output::Stop;
use super::progress;

/// Endings of files that a folder is searched for.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// A picture file as read.
pub(super) struct Picture {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 of the file, hexadecimal.
    pub hash: String,
    /// Its pixels; absent if the caller did not need them.
    pub pixels: Option<RgbImage>,
}

/// A file that could not be read, and why.
pub(super) type Bad = (PathBuf, anyhow::Error);

/// Files as given, folders searched recursively in order of name.
pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        search(path, &mut files)?;
        if files.len() == before {
            bail!("{}: no jpg, png or webp pictures in this folder", path.display());
        }
    }
    Ok(files)
}

fn search(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut entries: Vec<PathBuf> = entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for entry in entries {
        let ending = entry.extension().and_then(|e| e.to_str());
        let known = ending.is_some_and(|e| ENDINGS.contains(&e.to_ascii_lowercase().as_str()));
        let linked = entry.is_symlink();
        if entry.is_dir() {
            // a link may lead back up
            if !linked {
                search(&entry, files)?;
            }
        } else if known {
            files.push(entry);
        }
    }
    Ok(())
}

/// Reads a file and, if `wanted` says so for its hash, its pixels.
pub(super) fn read(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Picture> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let hash = hex(&Sha256::digest(&bytes));
    let label = path.display().to_string();
    let pixels = wanted(&hash)
        .then(|| decode_bytes(&bytes, &label, &DecodeOptions::default()))
        .transpose()?;
    Ok(Picture {
        path: path.to_path_buf(),
        hash,
        pixels,
    })
}

/// Hands `files` to `work` in order, `batch` at a time (fewer where some are bad), while the next batch is being
/// read. Returns the files that could not be read.
///
/// # Errors
/// Those of `work`, and [`Stop::Interrupted`] after the batch during which Ctrl-C came.
pub(super) fn in_batches(
    files: &[PathBuf],
    batch: usize,
    quiet: bool,
    interrupt: &Interrupt,
    wanted: impl Fn(&str) -> bool + Sync,
    mut work: impl FnMut(Vec<Picture>) -> Result<()>,
) -> Result<Vec<Bad>> {
    let bar = progress::pictures(files.len(), quiet);
    let batch = batch.max(1);
    let (mut bad, mut done) = (Vec::new(), 0);
    let result = std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(1);
        let wanted = &wanted;
        scope.spawn(move || {
            for chunk in files.chunks(batch) {
                let read: Vec<_> = chunk.par_iter().map(|file| read(file, wanted)).collect();
                // a receiver that is gone has met an error of its own
                if sender.send(read).is_err() {
                    return;
                }
            }
        });
        for (chunk, read) in files.chunks(batch).zip(receiver) {
            if interrupt.is_requested() {
                let total = files.len();
                return Err(Stop::Interrupted { done, total }.into());
            }
            let mut good = Vec::with_capacity(chunk.len());
            for (file, picture) in chunk.iter().zip(read) {
                match picture {
                    Ok(picture) => good.push(picture),
                    Err(error) => bad.push((file.clone(), error)),
                }
            }
            if !good.is_empty() {
                work(good)?;
            }
            done += chunk.len();
            bar.inc(chunk.len() as u64);
        }
        Ok(())
    });
    bar.finish_and_clear();
    if result.is_err() {
        report(&bad);
    }
    result.map(|()| bad)
}

/// Names the files that were left out.
pub(super) fn report(bad: &[Bad]) {
    for (file, error) in bad {
        let (file, why) = (file.display().to_string(), sentence(error.as_ref()));
        match why.contains(&file) {
            true => eprintln!("skipped {why}"),
            false => eprintln!("skipped {file}: {why}"),
        }
    }
}

/// [`report`], and an error if nothing was left.
pub(super) fn conclude(bad: &[Bad], total: usize) -> Result<()> {
    report(bad);
    if bad.len() == total && !bad.is_empty() {
        bail!("none of the {total} pictures could be read");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_in_order_and_links_do_not_loop() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("b")).unwrap();
        for name in ["c.PNG", "b/1.jpg", "a.webp", "note.txt"] {
            std::fs::write(root.join(name), "x").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(root, root.join("b/up")).unwrap();
        let found = find(&[root.to_path_buf()]).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|f| f.strip_prefix(root).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a.webp", "b/1.jpg", "c.PNG"]);
    }

    #[test]
    fn batches_keep_the_order_and_bad_files_wait() {
        let dir = tempfile::tempdir().unwrap();
        let image = RgbImage::new(3, 2);
        let files: Vec<PathBuf> = (0..7).map(|i| dir.path().join(format!("{i}.png"))).collect();
        for (i, file) in files.iter().enumerate() {
            match i {
                4 => std::fs::write(file, "no picture").unwrap(),
                _ => image.save(file).unwrap(),
            }
        }
        let mut seen = Vec::new();
        let interrupt = Interrupt::default();
        let bad = in_batches(
            &files,
            2,
            true,
            &interrupt,
            |_| true,
            |pictures| {
                seen.extend(pictures.into_iter().map(|p| p.path));
                Ok(())
            },
        )
        .unwrap();
        let good: Vec<_> = files.iter().filter(|f| **f != files[4]).cloned().collect();
        assert_eq!(seen, good);
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].0, files[4]);
    }
}
