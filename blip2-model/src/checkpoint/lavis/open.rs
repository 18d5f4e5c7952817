//! A LAVIS checkpoint together with the files it leaves out -> everything a model needs.
//!
//! LAVIS saves what it trained. The image encoder, the language model and the tokenizers come from elsewhere: files
//! that are given, or found where LAVIS and its users keep them (beside the checkpoint, or in torch's download
//! folder).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::detect;
use super::error::{LavisError, MissingPart};
use super::finish::finish;
use super::names::{is_bare_encoder, is_lavis, under_huggingface_names};
use crate::checkpoint::files::{FilesError, ModelFiles};
use crate::checkpoint::view::{Merged, View};
use crate::config::Blip2Config;
use crate::language::{KeyTable, LanguageConfig};
use crate::weights::checkpoint_dir::{self, Opened};
use crate::weights::{TensorSource, WeightsError};

/// Where the parts are that a LAVIS checkpoint leaves out; `None` looks in the usual places.
#[derive(Clone, Debug, Default)]
pub struct LavisParts {
    /// `eva_vit_g.pth`, `clip_vit_L.pth`, or any BLIP-2 checkpoint with an image encoder.
    pub vision: Option<PathBuf>,
    /// Folder of an OPT or T5 model, or of a Hugging Face BLIP-2.
    pub llm: Option<PathBuf>,
    /// Folder with the files of bert-base-uncased, `[DEC]` added or not.
    pub tokenizer: Option<PathBuf>,
    /// JSON file with fields of `config.json` that win over what is detected. One with `architectures` is taken as
    /// it is.
    pub config: Option<PathBuf>,
}

const POSITIONS: &str = "vision_model.embeddings.position_embedding";
const WORD_TABLE: &str = "embeddings.word_embeddings.weight";

/// Opens a LAVIS checkpoint that [`checkpoint_dir::open`] has looked at.
///
/// # Errors
/// [`LavisError::Incomplete`] lists everything that is still needed, with the option to give it by.
pub fn open(opened: Opened, parts: &LavisParts) -> Result<ModelFiles, FilesError> {
    let path = opened.source.path().to_owned();
    if !is_lavis(opened.source.as_ref()) {
        return Err(if is_bare_encoder(opened.source.as_ref()) {
            LavisError::EncoderAlone { path }
        } else {
            let names = opened.source.infos().iter().take(5);
            LavisError::NotBlip2 {
                path,
                names: names.map(|info| info.name.clone()).collect(),
            }
        }
        .into());
    }
    let folder = opened.folder.clone();
    let has_t5 = opened.source.info("t5_proj.weight").is_some();
    let trained = under_huggingface_names(opened.source);
    let width_of = |name: &str, axis| trained.info(name).and_then(|info| info.shape.get(axis).copied());

    let mut missing = Vec::new();
    let vision = match trained.info(POSITIONS) {
        Some(_) => None,
        None => {
            let width = width_of("vision_model.post_layernorm.weight", 0).unwrap_or_default();
            let found = parts.vision.clone().or_else(|| find_encoder(&folder));
            if found.is_none() {
                missing.push(MissingPart::Vision { width });
            }
            found
        }
    };
    let llm = match width_of("language_projection.weight", 0) {
        None => None,
        Some(width) => {
            let family = if has_t5 { "T5" } else { "OPT" };
            let found = parts
                .llm
                .clone()
                .or_else(|| find_language_model(&folder, has_t5, width));
            if found.is_none() {
                missing.push(MissingPart::Language { family, width });
            }
            found
        }
    };
    let tokenizer = match trained.info(WORD_TABLE) {
        None => None,
        Some(_) => {
            let found = parts.tokenizer.clone().or_else(|| find_tokenizer(&folder));
            if found.is_none() {
                missing.push(MissingPart::QueryTokenizer);
            }
            found
        }
    };
    if !missing.is_empty() {
        return Err(LavisError::Incomplete { path, missing }.into());
    }

    let given = match &parts.config {
        Some(path) => read_object(path)?,
        None => Map::new(),
    };
    let has_language_model = trained
        .infos()
        .iter()
        .any(|info| info.name.starts_with("language_model."));
    let mut sources: Vec<Box<dyn TensorSource>> = vec![Box::new(trained)];
    if let Some(path) = &vision {
        sources.push(Box::new(encoder_alone(path)?));
    }
    let mut text = None;
    if let Some(folder) = &llm {
        let config = text_config(folder)?;
        if !has_language_model {
            sources.push(Box::new(language_model_alone(folder, &config)?));
        }
        text = Some(config);
    }
    let source = Merged::new(sources);
    let json = match given.contains_key("architectures") {
        true => Value::Object(given),
        false => detect::config(&source, text, &given)?,
    };
    let config = Blip2Config::from_json(&json.to_string()).map_err(|source| FilesError::Config {
        path: parts.config.clone().unwrap_or_else(|| path.clone()),
        source,
    })?;
    finish(config, json, Box::new(source), llm, tokenizer)
}

/// Encoder tensors of any checkpoint that has them, under Hugging Face names.
fn encoder_alone(path: &Path) -> Result<View, LavisError> {
    let opened = checkpoint_dir::open(path)?;
    let is_lavis = is_bare_encoder(opened.source.as_ref()) || is_lavis(opened.source.as_ref());
    let source: Box<dyn TensorSource> = match is_lavis {
        true => Box::new(under_huggingface_names(opened.source)),
        false => opened.source,
    };
    // the norm behind the encoder trains with the Q-Former
    let view = View::renamed(source, |name| {
        let wanted = name.starts_with("vision_model.") && !name.starts_with("vision_model.post_layernorm.");
        wanted.then(|| name.to_string())
    });
    match view.info(POSITIONS) {
        Some(_) => Ok(view),
        None => Err(LavisError::NotThePart {
            path: path.to_owned(),
            part: "image encoder",
            hint: "; LAVIS's files are eva_vit_g.pth and clip_vit_L.pth",
        }),
    }
}

/// `text_config` of a language model's folder, with the activation that LAVIS runs T5 with.
fn text_config(folder: &Path) -> Result<Value, LavisError> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Err(LavisError::NotThePart {
            path: folder.to_owned(),
            part: "config.json",
            hint: "; give the folder of an OPT or T5 model in Hugging Face's layout",
        });
    }
    let mut config = read_object(&path)?;
    if let Some(Value::Object(text)) = config.get("text_config") {
        return Ok(Value::Object(text.clone()));
    }
    if config.get("model_type").and_then(Value::as_str) == Some("t5") {
        config.insert("dense_act_fn".into(), "gelu".into());
    }
    for bookkeeping in ["architectures", "transformers_version", "_name_or_path"] {
        config.shift_remove(bookkeeping);
    }
    Ok(Value::Object(config))
}

/// Tensors of a language model under the names they have inside a BLIP-2.
fn language_model_alone(folder: &Path, config: &Value) -> Result<View, FilesError> {
    let text: LanguageConfig = serde_json::from_value(config.clone()).map_err(|source| LavisError::Json {
        path: folder.join("config.json"),
        source,
    })?;
    let table = KeyTable::of(&text);
    let opened = checkpoint_dir::open(folder).map_err(LavisError::from)?;
    let inside = opened
        .source
        .infos()
        .iter()
        .any(|info| info.name.starts_with("language_model."));
    Ok(View::renamed(opened.source, |name| match inside {
        true => name.starts_with("language_model.").then(|| name.to_string()),
        false => {
            // the first OPT files lack the outermost level of the names
            let canonical = table.path(name).and_then(|path| table.name(&path));
            Some(format!("language_model.{}", canonical.as_deref().unwrap_or(name)))
        }
    }))
}

pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, LavisError> {
    let text = std::fs::read(path).map_err(|e| WeightsError::io(path, e))?;
    serde_json::from_slice(&text).map_err(|source| LavisError::Json {
        path: path.to_owned(),
        source,
    })
}

/// LAVIS's encoder files beside the checkpoint, or where LAVIS downloads them to.
fn find_encoder(folder: &Path) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let torch = std::env::var_os("TORCH_HOME").map(PathBuf::from);
    let torch = torch.or_else(|| home.map(|home| home.join(".cache/torch")));
    let downloads = torch.map(|torch| torch.join("hub/checkpoints"));
    let folders = [Some(folder.to_owned()), downloads];
    let files = folders
        .into_iter()
        .flatten()
        .flat_map(|folder| ["eva_vit_g.pth", "clip_vit_L.pth"].map(|name| folder.join(name)));
    files.into_iter().find(|path| path.is_file())
}

/// A folder beside the checkpoint whose config.json is that of the language model.
fn find_language_model(folder: &Path, t5: bool, width: usize) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    folders.into_iter().find(|folder| {
        let config = read_object(&folder.join("config.json")).ok().map(Value::Object);
        let text = config.and_then(|config| serde_json::from_value::<LanguageConfig>(config).ok());
        text.is_some_and(|text| matches!(text, LanguageConfig::T5(_)) == t5 && text.embed_size() == width)
    })
}

/// A folder named as BERT on the hub beside the checkpoint.
fn find_tokenizer(folder: &Path) -> Option<PathBuf> {
    let folder = folder.join("bert-base-uncased");
    let has = |name: &str| folder.join(name).is_file();
    (has("vocab.txt") || has("tokenizer.json")).then_some(folder)
}
