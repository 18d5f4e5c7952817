//! Opening the model of an evaluation. What is wrong with a LAVIS checkpoint is said here with options that `eval` has:
//! the library's advice names those of `blip2`.

use std::path::Path;

use anyhow::{Result, anyhow};
use blip2_model::checkpoint::{FilesError, LavisError};
use blip2_model::nn::Kernels;
use blip2_model::session::{Session, SessionError};

use super::args::RunArgs;

/// The model of `run`, from `folder`.
pub(super) fn open<B: Kernels>(run: &RunArgs, folder: &Path, device: &B::Device) -> Result<Session<B>> {
    run.device.open::<B>(folder, device).map_err(advise)
}

/// The error with a remedy that is at hand here.
fn advise(error: anyhow::Error) -> anyhow::Error {
    let Some(SessionError::Files(files)) = error.downcast_ref::<SessionError>() else {
        return error;
    };
    let FilesError::Lavis(lavis) = &**files else {
        return error;
    };
    let convert = |path: &Path, options: &str| format!("`blip2 convert {} FOLDER{options}`", path.display());
    match lavis {
        LavisError::Incomplete { path, missing } => {
            let missing: Vec<String> = missing.iter().map(|part| part.to_string()).collect();
            anyhow!(
                "{}: LAVIS leaves the frozen parts out of this file; give --model the complete folder that {} writes; \
                 that command still needs {}",
                path.display(),
                convert(path, ""),
                missing.join("; ")
            )
        }
        LavisError::Undetermined { path, fields } => anyhow!(
            "{}: the weights do not tell {}; write them into a JSON file in the form of config.json, and give --model the \
             complete folder that {} writes",
            path.display(),
            fields.join(", "),
            convert(path, " --config FILE")
        ),
        LavisError::EncoderAlone { path } => anyhow!(
            "{}: this is an image encoder alone; give a BLIP-2 checkpoint with --model",
            path.display()
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use blip2_model::checkpoint::lavis::MissingPart;

    use super::*;

    fn advice(error: LavisError) -> String {
        let error = SessionError::from(FilesError::Lavis(error));
        advise(anyhow::Error::new(error)).to_string()
    }

    #[test]
    fn options_that_eval_lacks_are_named_with_the_command_that_has_them() {
        let path = || std::path::PathBuf::from("a/m.pth");
        let undetermined = advice(LavisError::Undetermined {
            path: path(),
            fields: vec!["qformer_config.num_attention_heads"],
        });
        assert!(
            undetermined.contains("num_attention_heads")
                && undetermined.contains("`blip2 convert a/m.pth FOLDER --config FILE`"),
            "{undetermined}"
        );
        let incomplete = advice(LavisError::Incomplete {
            path: path(),
            missing: vec![MissingPart::QueryTokenizer],
        });
        assert!(
            incomplete
                .contains("`blip2 convert a/m.pth FOLDER` writes; that command still needs the tokenizer"),
            "{incomplete}"
        );
        let alone = advice(LavisError::EncoderAlone { path: path() });
        assert!(
            alone.contains("--model") && !alone.contains("--vision"),
            "{alone}"
        );
        let other = advise(anyhow!("something else")).to_string();
        assert_eq!(other, "something else");
    }
}
