//! SHA-256 of what an evaluation depends on.

use std::fs::File;
use std::path::{Path, PathBuf};

use blip2_model::weights::fingerprint::hex;
use sha2::{Digest, Sha256};

use crate::eval::EvalError;

/// SHA-256 of bytes, as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, read in pieces.
///
/// # Errors
/// [`EvalError::File`].
pub fn sha256_file(path: &Path) -> Result<String, EvalError> {
    let mut file = File::open(path).map_err(EvalError::file(path))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(EvalError::file(path))?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 over several files: of the lines `hash name`, in the order given. One file gives its own hash.
///
/// # Errors
/// [`EvalError::File`].
pub fn sha256_files(files: &[PathBuf]) -> Result<String, EvalError> {
    use rayon::prelude::*;
    if let [file] = files {
        return sha256_file(file);
    }
    let line = |file: &PathBuf| {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(format!("{} {name}\n", sha256_file(file)?))
    };
    let lines = files
        .par_iter()
        .map(line)
        .collect::<Result<Vec<_>, EvalError>>()?;
    Ok(sha256(lines.concat().as_bytes()))
}
