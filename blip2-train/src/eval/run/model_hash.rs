//! SHA-256 over the files of a model that the results of an evaluation depend on.

use std::path::{Path, PathBuf};

use blip2_model::checkpoint::{LavisParts, ModelFiles};
use blip2_model::session::SessionError;
use blip2_model::weights::WeightsError;
use blip2_model::weights::checkpoint_dir::COMPANION_FILES;
use rayon::prelude::*;

use super::RunError;
use crate::eval::EvalError;
use crate::eval::results;

/// Extensions of weights.
const WEIGHTS: [&str; 4] = ["safetensors", "bin", "pth", "pt"];

/// The hash of what `--model` names.
///
/// A Hugging Face folder gives that of its weights and settings. A single file (and a folder without `config.json`, as
/// LAVIS's checkpoints lie in) is read together with parts that may be anywhere: it gives the hash of the tensors and
/// settings that the model is put together from.
///
/// # Errors
/// [`RunError::NoModelFiles`] for a folder without weights; what reading gave.
pub fn model_sha256(model: &Path) -> Result<String, RunError> {
    match model.join("config.json").is_file() {
        true => of_folder(model),
        false => of_parts(model),
    }
}

fn of_folder(folder: &Path) -> Result<String, RunError> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut weights = 0;
    for folder in [folder.to_path_buf(), folder.join("qformer_tokenizer")] {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(EvalError::file(&folder))? {
            let path = entry.map_err(EvalError::file(&folder))?.path();
            let is_weights = path
                .extension()
                .is_some_and(|e| WEIGHTS.iter().any(|known| e == *known));
            let is_setting = path
                .file_name()
                .is_some_and(|name| COMPANION_FILES.iter().any(|known| name == *known));
            if path.is_file() && (is_weights || is_setting) {
                weights += usize::from(is_weights);
                files.push(path);
            }
        }
    }
    if weights == 0 {
        return Err(RunError::NoModelFiles {
            path: folder.to_path_buf(),
        });
    }
    files.sort();
    Ok(results::sha256_files(&files)?)
}

fn of_parts(model: &Path) -> Result<String, RunError> {
    let files = ModelFiles::open(model, &LavisParts::default()).map_err(SessionError::from)?;
    let tensor = |info: &blip2_model::weights::TensorInfo| {
        let hash = results::sha256(files.source.get(&info.name)?.bytes());
        files.source.release(&info.name);
        Ok(format!("{hash} {} {} {:?}\n", info.name, info.dtype, info.shape))
    };
    let mut lines = files
        .source
        .infos()
        .par_iter()
        .map(tensor)
        .collect::<Result<Vec<String>, WeightsError>>()
        .map_err(SessionError::from)?;
    if lines.is_empty() {
        return Err(RunError::NoModelFiles {
            path: model.to_path_buf(),
        });
    }
    lines.extend(files.companions.names().map(|name| {
        let text = files.companions.text(name).unwrap_or_default();
        format!("{} {name}\n", results::sha256(text.as_bytes()))
    }));
    Ok(results::sha256(lines.concat().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> tempfile::TempDir {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity/itm");
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        dir
    }

    /// Another value in the last tensor of the file.
    fn change(file: &Path) {
        let mut bytes = std::fs::read(file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file, bytes).unwrap();
    }

    #[test]
    fn a_folder_is_known_by_its_weights_and_all_its_settings() {
        let dir = model();
        let of = || model_sha256(dir.path()).unwrap();
        let mut seen = vec![of()];
        for name in ["added_tokens.json", "processor_config.json"] {
            std::fs::write(dir.path().join(name), "{}").unwrap();
            seen.push(of());
        }
        change(&dir.path().join("model.safetensors"));
        seen.push(of());
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        std::fs::remove_file(dir.path().join("expected.safetensors")).ok();
        let error = model_sha256(dir.path()).unwrap_err();
        assert!(matches!(error, RunError::NoModelFiles { .. }), "{error}");
    }

    #[test]
    fn a_file_is_known_by_its_tensors_and_what_it_is_read_with() {
        let dir = model();
        let file = dir.path().join("model.safetensors");
        let first = model_sha256(&file).unwrap();
        assert_eq!(model_sha256(&file).unwrap(), first);
        change(&file);
        let second = model_sha256(&file).unwrap();
        assert_ne!(second, first);
        std::fs::write(dir.path().join("added_tokens.json"), "{}").unwrap();
        assert_ne!(model_sha256(&file).unwrap(), second);
        std::fs::copy(&file, dir.path().join("copy.safetensors")).unwrap();
        let copy = model_sha256(&dir.path().join("copy.safetensors")).unwrap();
        assert_eq!(copy, model_sha256(&file).unwrap(), "what counts is the content");
    }
}
