//! A folder of pictures as a data set, without code: `images/` with `captions.jsonl` or `captions.csv`, or each picture
//! with a `.txt` of the same name beside it.

use std::path::{Path, PathBuf};

use super::annotations::{AnnotationConfig, AnnotationSet, Entry};
use super::checked;
use super::sample::{DataError, Problem};

/// Caption files looked for, in this order; the `metadata` names are those of Hugging Face image folders.
pub const CAPTION_FILES: [&str; 7] = [
    "captions.jsonl",
    "captions.csv",
    "captions.tsv",
    "captions.json",
    "metadata.jsonl",
    "metadata.csv",
    "annotations.json",
];

/// Extensions taken for pictures.
pub const IMAGE_EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Opens `dir`. Fields of `config` other than `path` and `images` hold for the caption file.
///
/// Picture paths may be relative to `dir` or to `dir/images`.
pub fn open_folder(dir: &Path, config: &AnnotationConfig) -> Result<AnnotationSet, DataError> {
    let inner = dir.join("images");
    if let Some(path) = CAPTION_FILES
        .iter()
        .map(|name| dir.join(name))
        .find(|p| p.is_file())
    {
        let set = checked::open(&AnnotationConfig {
            path,
            images: Some(config.images.clone().unwrap_or_else(|| dir.to_owned())),
            ..config.clone()
        })?;
        let below_images = config.images.is_none()
            && set
                .image_names()
                .find(|name| inner.join(name).exists() || dir.join(name).exists())
                .is_some_and(|name| !dir.join(name).exists());
        return Ok(if below_images { set.with_images(inner) } else { set });
    }
    if let Some(split) = &config.split {
        return Err(checked::no_splits(dir, split));
    }
    let root = if inner.is_dir() { inner } else { dir.to_owned() };
    let mut images = Vec::new();
    collect(&root, Path::new(""), &mut images)?;
    if images.is_empty() {
        return Err(DataError::UnknownKind { path: dir.to_owned() });
    }
    let entries = images.into_iter().map(|image| sidecar(&root, image)).collect();
    Ok(AnnotationSet::from_entries(dir, root, entries, config.pairs))
}

/// Pictures below `root`, sorted by path so that their numbers are the same on every machine.
fn collect(root: &Path, below: &Path, out: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let dir = root.join(below);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(DataError::io(&dir))? {
        let entry = entry.map_err(DataError::io(&dir))?;
        names.push((
            entry.file_name(),
            entry.file_type().map_err(DataError::io(entry.path()))?,
        ));
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in names {
        let path = below.join(&name);
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if kind.is_dir() {
            collect(root, &path, out)?;
        } else if extension.is_some_and(|e| IMAGE_EXTENSIONS.contains(&e.as_str())) {
            out.push(path);
        }
    }
    Ok(())
}

/// One caption per line of the text file; a picture without one has none.
fn sidecar(root: &Path, image: PathBuf) -> Result<Entry, Problem> {
    let text = ["txt", "caption"]
        .iter()
        .map(|e| root.join(image.with_extension(e)))
        .find(|p| p.is_file());
    let captions = match text {
        None => Vec::new(),
        Some(path) => {
            let bytes = std::fs::read(&path).map_err(Problem::file(path))?;
            let lines = Problem::utf8("txt", &bytes)?.lines().map(str::trim);
            lines.filter(|l| !l.is_empty()).map(str::to_owned).collect()
        }
    };
    Ok(Entry {
        image: image.to_string_lossy().into_owned(),
        captions,
        label: None,
        question: None,
        image_id: Some(image.with_extension("").to_string_lossy().into_owned()),
        image_index: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample::ImageSource;
    use super::*;

    fn write(dir: &Path, name: &str, body: &[u8]) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }

    fn open(dir: &Path) -> AnnotationSet {
        open_folder(dir, &AnnotationConfig::new(dir)).unwrap()
    }

    #[test]
    fn caption_file_with_pictures_below_images_or_beside_it() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        write(dir, "images/a.jpg", b"1");
        write(
            dir,
            "captions.jsonl",
            b"{\"image\":\"a.jpg\",\"caption\":[\"x\",\"y\"]}\n{\"image\":\"a.jpg\",\"caption\":\"z\"}\n",
        );
        let set = open(dir);
        assert_eq!(set.len(), 3);
        let sample = set.sample(1).unwrap().unwrap();
        assert_eq!((sample.captions[0].as_str(), sample.image_index), ("y", Some(0)));
        assert_eq!(sample.image, ImageSource::Path(dir.join("images/a.jpg")));

        write(
            dir,
            "captions.jsonl",
            b"{\"image\":\"images/a.jpg\",\"caption\":\"x\"}\n",
        );
        assert_eq!(
            open(dir).sample(0).unwrap().unwrap().image,
            ImageSource::Path(dir.join("images/a.jpg"))
        );
        std::fs::remove_file(dir.join("captions.jsonl")).unwrap();
        write(dir, "captions.csv", b"file_name,text\nb.png,hello\n");
        write(dir, "b.png", b"1");
        assert_eq!(
            open(dir).sample(0).unwrap().unwrap().image,
            ImageSource::Path(dir.join("b.png"))
        );
    }

    #[test]
    fn text_beside_pictures() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        write(dir, "sub/b.JPG", b"1");
        write(dir, "sub/b.txt", b"one\n two \n\n");
        write(dir, "a.png", b"1");
        write(dir, "c.png", b"1");
        write(dir, "c.txt", b"\xff");
        let set = open(dir);
        assert_eq!(set.len(), 4);
        let ids: Vec<_> = [0, 2, 3]
            .iter()
            .map(|&i| set.sample(i).unwrap().unwrap().image_id.unwrap())
            .collect();
        assert_eq!(ids, ["a", "sub/b", "sub/b"]);
        assert_eq!(set.sample(3).unwrap().unwrap().captions, ["two"]);
        assert_eq!(set.sample(1).unwrap().unwrap_err().problem.kind(), "not_utf8");
        assert!(matches!(
            open_folder(&dir.join("sub/none"), &AnnotationConfig::new(dir)),
            Err(DataError::Io { .. })
        ));
    }
}
