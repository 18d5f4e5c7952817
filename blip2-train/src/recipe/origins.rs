//! Places that weights come from, all seen under the names of Hugging Face's BLIP-2 files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blip2_model::checkpoint::lavis;
use blip2_model::checkpoint::view::View;
use blip2_model::language::{KeyTable, LanguageConfig};
use blip2_model::weights::{TensorInfo, TensorSource, checkpoint_dir};

use super::RecipeError;
use super::architecture::place;
use crate::run::CheckpointStore;
use crate::run::checkpoint::Found;

/// Which of its tensors a place contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Base,
    /// Everything but a language model.
    Bridge,
    /// The image encoder without `ln_vision`.
    Vision,
    /// The language model.
    Language,
    /// BERT.
    Bert,
}

/// Whether a name belongs to the image encoder; `ln_vision` trains with the Q-Former and is none of it.
pub fn is_vision(name: &str) -> bool {
    name.starts_with("vision_model.") && !name.starts_with("vision_model.post_layernorm.")
}

impl Role {
    fn wants(self, name: &str) -> bool {
        match self {
            Self::Base | Self::Bert => true,
            Self::Bridge => !name.starts_with("language_model."),
            Self::Vision => is_vision(name),
            Self::Language => name.starts_with("language_model."),
        }
    }
}

/// Opens a place of a recipe for a role.
pub fn open(
    text: &str,
    role: Role,
    vision_layers: usize,
    language: Option<&LanguageConfig>,
) -> Result<Arc<dyn TensorSource>, RecipeError> {
    let folder = weights_folder(&place(text)?)?;
    let opened = checkpoint_dir::open(&folder)?;
    let source: Box<dyn TensorSource> = match naming(opened.source.as_ref()) {
        _ if role == Role::Bert => Box::new(View::renamed(opened.source, bert_names)),
        Naming::HuggingFace => opened.source,
        Naming::Lavis => Box::new(lavis::first_blocks(opened.source, vision_layers)),
        // an encoder as transformers saves it alone (DINOv2); its last norm becomes the start of `ln_vision`
        Naming::Other if role == Role::Vision => {
            let inside = |name: &str| Some(format!("vision_model.{name}"));
            Box::new(View::renamed(opened.source, inside))
        }
        Naming::Other => {
            let table = language.map(KeyTable::of);
            let alone = |name: &str| {
                let path = table.as_ref().and_then(|table| table.path(name));
                let name = path.and_then(|path| table.as_ref()?.name(&path));
                name.map(|name| format!("language_model.{name}"))
            };
            Box::new(View::renamed(opened.source, alone))
        }
    };
    let keep = |name: &str| role.wants(name).then(|| name.to_string());
    Ok(Arc::new(View::renamed(source, keep)))
}

/// For a run, its best checkpoint, else its newest; for anything else, itself.
pub fn weights_folder(path: &Path) -> Result<PathBuf, RecipeError> {
    if !path.join("checkpoints").is_dir() {
        return Ok(path.to_owned());
    }
    Ok(checkpoint_of(path)?.folder)
}

/// The best checkpoint of a run, else the newest.
pub fn checkpoint_of(run: &Path) -> Result<Found, RecipeError> {
    let store = CheckpointStore::open(run, 1)?;
    let (newest, skipped) = store.latest()?;
    let Some(newest) = newest else {
        return match skipped.into_iter().next() {
            Some(error) => Err(error.into()),
            None => Err(RecipeError::missing(
                "checkpoint",
                format!(
                    "{} is a run without a checkpoint; let it run longer",
                    run.display()
                ),
            )),
        };
    };
    let best = newest
        .state
        .best
        .map(|best| best.step)
        .filter(|&step| step != newest.state.step);
    match best
        .map(|step| store.folder(step))
        .filter(|folder| folder.exists())
    {
        Some(folder) => Ok(crate::run::checkpoint::load_state(&folder)?),
        None => Ok(newest),
    }
}

enum Naming {
    HuggingFace,
    Lavis,
    Other,
}

fn naming(source: &dyn TensorSource) -> Naming {
    let any = |prefixes: &[&str]| {
        let mut infos = source.infos().iter();
        infos.any(|info| prefixes.iter().any(|prefix| info.name.starts_with(prefix)))
    };
    if any(&[
        "vision_model.",
        "qformer.",
        "language_projection.",
        "language_model.",
    ]) {
        return Naming::HuggingFace;
    }
    let bare = ["blocks.", "transformer.resblocks.", "visual.transformer."];
    if any(&["visual_encoder.", "Qformer."]) || any(&bare) || is_lavis(source) {
        return Naming::Lavis;
    }
    Naming::Other
}

fn is_lavis(source: &dyn TensorSource) -> bool {
    let known = |info: &TensorInfo| lavis::to_huggingface(&info.name).is_some();
    source.infos().iter().all(known)
}

/// Names in BLIP-2 of a BERT tensor: the text feed-forward serves the queries too, where LAVIS copies it.
fn bert_names(name: &str) -> Vec<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    // TensorFlow's names of a norm, which the oldest files keep
    let name = name
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias");
    if let Some(rest) = name.strip_prefix("embeddings.LayerNorm.") {
        return vec![format!("qformer.layernorm.{rest}")];
    }
    if let Some(rest) = name.strip_prefix("embeddings.") {
        // BLIP-2 adds no type vector, and positions are counted, not stored
        let used = rest.starts_with("word_embeddings.") || rest.starts_with("position_embeddings.");
        return used.then(|| format!("embeddings.{rest}")).into_iter().collect();
    }
    if let Some(rest) = name.strip_prefix("cls.predictions.") {
        let used = rest == "bias" || rest.starts_with("transform.");
        return used
            .then(|| format!("qformer_lm_head.{rest}"))
            .into_iter()
            .collect();
    }
    let Some((index, rest)) = name
        .strip_prefix("encoder.layer.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Vec::new();
    };
    let layer = |rest: &str| format!("qformer.encoder.layer.{index}.{rest}");
    if let Some(rest) = rest.strip_prefix("attention.self.") {
        return vec![layer(&format!("attention.attention.{rest}"))];
    }
    for (text, query) in [
        ("intermediate.", "intermediate_query."),
        ("output.", "output_query."),
    ] {
        if let Some(tail) = rest.strip_prefix(text) {
            return vec![layer(rest), layer(&format!("{query}{tail}"))];
        }
    }
    vec![layer(rest)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bert_goes_to_the_text_branch_and_to_the_queries() {
        let to = |name| bert_names(name);
        assert_eq!(
            to("bert.embeddings.LayerNorm.gamma"),
            ["qformer.layernorm.weight"]
        );
        assert_eq!(
            to("bert.embeddings.word_embeddings.weight"),
            ["embeddings.word_embeddings.weight"]
        );
        assert!(to("bert.embeddings.token_type_embeddings.weight").is_empty());
        assert!(to("bert.pooler.dense.weight").is_empty());
        assert_eq!(
            to("encoder.layer.3.attention.self.query.bias"),
            ["qformer.encoder.layer.3.attention.attention.query.bias"]
        );
        assert_eq!(
            to("bert.encoder.layer.3.attention.output.LayerNorm.beta"),
            ["qformer.encoder.layer.3.attention.output.LayerNorm.bias"]
        );
        assert_eq!(
            to("bert.encoder.layer.11.output.dense.weight"),
            [
                "qformer.encoder.layer.11.output.dense.weight",
                "qformer.encoder.layer.11.output_query.dense.weight"
            ]
        );
        assert_eq!(
            to("cls.predictions.transform.LayerNorm.gamma"),
            ["qformer_lm_head.transform.LayerNorm.weight"]
        );
        assert!(to("cls.predictions.decoder.weight").is_empty());
    }
}
