//! The files of a checkpoint beside its weights: configuration, tokenizer, preprocessor, generation settings.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::weights::WeightsError;
use crate::weights::checkpoint_dir::COMPANION_FILES;
use crate::weights::staging::StagedFile;

/// Folder of the Q-Former's tokenizer in a checkpoint that has one for the language model as well.
pub const QFORMER_TOKENIZER: &str = "qformer_tokenizer";

/// Files of the Q-Former's tokenizer, relative to its folder.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// Settings of a tokenizer.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Where the settings of a tokenizer say how long its texts may be, in tokens.
pub const LONGEST_TEXT: &str = "model_max_length";

/// Longest text of the tokenizer in `folder`, in tokens, where its settings limit it.
pub fn longest_text(folder: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(folder.join(TOKENIZER_CONFIG)).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).ok()?;
    // "no limit" is written as 1e30, which is not an integer
    usize::try_from(config.get(LONGEST_TEXT)?.as_u64()?).ok()
}

#[derive(Clone, Debug)]
enum Content {
    Copy(PathBuf),
    Text(String),
}

/// A set of files to put beside weights, by name relative to the folder. Nothing is read before it is written.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    files: BTreeMap<String, Content>,
}

impl Companions {
    /// Every companion file that a folder has, the Q-Former's tokenizer included.
    pub fn of_folder(folder: impl AsRef<Path>) -> Self {
        let mut all = Self::default();
        all.add_folder(folder.as_ref(), &COMPANION_FILES, "");
        all.add_folder(
            &folder.as_ref().join(QFORMER_TOKENIZER),
            &TOKENIZER_FILES,
            "qformer_tokenizer/",
        );
        all
    }

    /// The tokenizer files of a folder, alone.
    pub fn tokenizer_of(folder: impl AsRef<Path>) -> Self {
        let mut all = Self::default();
        all.add_folder(folder.as_ref(), &TOKENIZER_FILES, "");
        all.add_folder(folder.as_ref(), &["spiece.model"], "");
        all
    }

    fn add_folder(&mut self, folder: &Path, names: &[&str], prefix: &str) {
        for name in names {
            let path = folder.join(name);
            if path.is_file() {
                self.files.insert(format!("{prefix}{name}"), Content::Copy(path));
            }
        }
    }

    /// Adds a file with this content, in place of one of the same name.
    pub fn with_text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.insert(name.into(), Content::Text(text.into()));
        self
    }

    /// Adds a copy of a file, in place of one of the same name.
    pub fn with_file(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.files.insert(name.into(), Content::Copy(path.into()));
        self
    }

    /// Both sets, the names of the other one behind `prefix`.
    pub fn and(mut self, other: Self, prefix: &str) -> Self {
        let others = other.files.into_iter();
        self.files
            .extend(others.map(|(name, content)| (format!("{prefix}{name}"), content)));
        self
    }

    /// Names relative to the folder.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Text of one of the files; `None` if it is not in the set or cannot be read.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.files.get(name)? {
            Content::Copy(path) => std::fs::read_to_string(path).ok(),
            Content::Text(text) => Some(text.clone()),
        }
    }

    /// The first file in `folder` that writing would replace with something else.
    ///
    /// # Errors
    /// A file that is to be copied cannot be read.
    pub fn conflict(&self, folder: &Path) -> Result<Option<PathBuf>, WeightsError> {
        for (name, content) in &self.files {
            let dest = folder.join(name);
            if dest.exists() && std::fs::read(&dest).ok() != Some(bytes_of(content)?) {
                return Ok(Some(dest));
            }
        }
        Ok(None)
    }

    /// Writes every file under a temporary name and renames it. Replaces what is there; see
    /// [`conflict`](Self::conflict).
    ///
    /// # Errors
    /// [`WeightsError::DiskFull`] and [`WeightsError::Io`] with the file.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
        let mut written = Vec::with_capacity(self.files.len());
        for (name, content) in &self.files {
            let dest = folder.join(name);
            let parent = dest.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).map_err(|e| WeightsError::io(parent, e))?;
            let bytes = bytes_of(content)?;
            let mut file = StagedFile::create(&dest)?;
            file.write_all(&bytes).map_err(|e| WeightsError::io(&dest, e))?;
            written.push(file.commit()?);
        }
        Ok(written)
    }
}

fn bytes_of(content: &Content) -> Result<Vec<u8>, WeightsError> {
    match content {
        Content::Copy(path) => std::fs::read(path).map_err(|e| WeightsError::io(path, e)),
        Content::Text(text) => Ok(text.clone().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_tokenizers_are_found_and_copied() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join(QFORMER_TOKENIZER)).unwrap();
        for (name, text) in [
            ("tokenizer.json", "a"),
            ("qformer_tokenizer/vocab.txt", "b"),
            ("README.md", "c"),
        ] {
            std::fs::write(from.path().join(name), text).unwrap();
        }
        let files = Companions::of_folder(from.path()).with_text("config.json", "{}");
        assert_eq!(
            files.names().collect::<Vec<_>>(),
            ["config.json", "qformer_tokenizer/vocab.txt", "tokenizer.json"]
        );
        assert_eq!(files.conflict(to.path()).unwrap(), None);
        files.write(to.path()).unwrap();
        assert_eq!(
            std::fs::read(to.path().join("qformer_tokenizer/vocab.txt")).unwrap(),
            b"b"
        );
        assert!(!to.path().join("README.md").exists());

        assert_eq!(files.conflict(to.path()).unwrap(), None, "the same content");
        std::fs::write(to.path().join("config.json"), "{ }").unwrap();
        let in_the_way = files.conflict(to.path()).unwrap();
        assert_eq!(in_the_way, Some(to.path().join("config.json")));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let to = tempfile::tempdir().unwrap();
        let files = Companions::default().with_file("vocab.txt", to.path().join("gone"));
        let message = files.write(to.path()).unwrap_err().to_string();
        assert!(message.contains("gone"), "{message}");
    }
}
