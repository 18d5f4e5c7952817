//! The key table of a whole checkpoint: common rows plus those of its language model.

use crate::language::KeyTable;
use crate::language::keys::{KeyRow, substitute};

/// Prefix of the language model in files and in paths.
const LANGUAGE: (&str, &str) = ("language_model.", "language.");

/// Names in files <-> paths in modules, for every tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Keys {
    common: Vec<&'static [KeyRow]>,
    language: Option<KeyTable>,
    ignored: &'static [&'static str],
}

impl Keys {
    /// `ignored` names may be in a file although nothing reads them.
    pub fn new(
        common: Vec<&'static [KeyRow]>,
        language: Option<KeyTable>,
        ignored: &'static [&'static str],
    ) -> Self {
        Self {
            common,
            language,
            ignored,
        }
    }

    /// File name -> module path.
    pub fn path(&self, name: &str) -> Option<String> {
        if let (Some(language), Some(name)) = (&self.language, name.strip_prefix(LANGUAGE.0)) {
            return language.path(name).map(|path| format!("{}{path}", LANGUAGE.1));
        }
        let mut rows = self.common.iter().copied().flatten();
        rows.find_map(|(file, path)| substitute(file, name, path))
    }

    /// Module path -> file name.
    pub fn name(&self, path: &str) -> Option<String> {
        if let (Some(language), Some(path)) = (&self.language, path.strip_prefix(LANGUAGE.1)) {
            return language.name(path).map(|name| format!("{}{name}", LANGUAGE.0));
        }
        let mut rows = self.common.iter().copied().flatten();
        rows.find_map(|(file, module)| substitute(module, path, file))
    }

    /// Whether a file may hold this name although no parameter is behind it: buffers and copies of tied tensors.
    pub fn is_redundant(&self, name: &str) -> bool {
        let of_language = || {
            let (language, name) = (self.language.as_ref()?, name.strip_prefix(LANGUAGE.0)?);
            let alias = language.aliases().iter().any(|(copy, _)| *copy == name);
            Some(alias || language.is_ignored(name))
        };
        self.ignored.contains(&name) || of_language().unwrap_or(false)
    }

    /// The name of a copy that stands in for an absent original.
    pub fn alias_of(&self, name: &str) -> Vec<String> {
        let (Some(language), Some(name)) = (&self.language, name.strip_prefix(LANGUAGE.0)) else {
            return Vec::new();
        };
        language
            .aliases()
            .iter()
            .filter(|(_, original)| *original == name)
            .map(|(copy, _)| format!("{}{copy}", LANGUAGE.0))
            .collect()
    }
}
