//! What LAVIS has in its code and Hugging Face in files: tokenizers with their extra tokens, the end of a caption,
//! the preprocessor.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::open::read_object;
use super::tokenizers::{with_setting, with_special_token};
use crate::checkpoint::companions::{Companions, QFORMER_TOKENIZER};
use crate::checkpoint::files::{FilesError, ModelFiles};
use crate::config::Blip2Config;
use crate::language::LanguageConfig;
use crate::processor::{ImageProcessorConfig, TextTokenizer, TokenizerKind};
use crate::weights::TensorSource;

/// Puts a model together from its tensors, its configuration (`json` is its text) and the folders of its tokenizers.
pub(super) fn finish(
    mut config: Blip2Config,
    mut json: Value,
    source: Box<dyn TensorSource>,
    llm: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
) -> Result<ModelFiles, FilesError> {
    let mut files = Companions::default();
    let mut generation = None;
    if let Some(folder) = &llm {
        let mut settings = generation_settings(folder, &json)?;
        files = language_files(folder, &mut config, &mut json, &mut settings)?;
        let text = pretty(&Value::Object(settings));
        files = files.with_text("generation_config.json", text.clone());
        generation = Some((folder.join("generation_config.json"), text));
    }
    if let Some(folder) = &tokenizer {
        let prefix = match llm {
            Some(_) => format!("{QFORMER_TOKENIZER}/"),
            None => String::new(),
        };
        files = files.and(query_files(folder)?, &prefix);
    }
    let images = ImageProcessorConfig::blip2(config.vision_config.image_size() as u32);
    files = files
        .with_text("config.json", pretty(&json))
        .with_text("preprocessor_config.json", pretty(&images.to_json()));
    if llm.is_some() && config.image_token_index.is_some() {
        let processor = json!({
            "num_query_tokens": config.num_query_tokens,
            "processor_class": "Blip2Processor",
        });
        files = files.with_text("processor_config.json", pretty(&processor));
    }
    Ok(ModelFiles {
        config,
        source,
        images,
        language_tokenizer: llm,
        query_tokenizer: tokenizer,
        generation,
        companions: files,
    })
}

/// `generation_config.json` of the language model, its token ids filled in from the configuration.
fn generation_settings(folder: &Path, json: &Value) -> Result<Map<String, Value>, FilesError> {
    let path = folder.join("generation_config.json");
    let mut settings = match path.is_file() {
        true => read_object(&path)?,
        false => Map::new(),
    };
    for field in [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
    ] {
        if let (None, Some(id)) = (settings.get(field), json["text_config"].get(field)) {
            settings.insert(field.into(), id.clone());
        }
    }
    Ok(settings)
}

/// Tokenizer files of the language model; sets the end of a text and the id of `<image>` in all three places.
fn language_files(
    folder: &Path,
    config: &mut Blip2Config,
    json: &mut Value,
    settings: &mut Map<String, Value>,
) -> Result<Companions, FilesError> {
    let files = Companions::tokenizer_of(folder);
    let (kind, rows) = match &config.text_config {
        Some(LanguageConfig::Opt(opt)) => (TokenizerKind::Opt, opt.vocab_size),
        Some(LanguageConfig::T5(t5)) => (TokenizerKind::T5, t5.vocab_size),
        _ => return Ok(files),
    };
    let tokenizer = TextTokenizer::from_folder(folder, kind).map_err(FilesError::Tokenizer)?;
    if let (Some(LanguageConfig::Opt(opt)), Some(newline)) =
        (&mut config.text_config, tokenizer.special().newline)
    {
        // LAVIS ends a caption at the first newline
        settings.insert("eos_token_id".into(), newline.into());
        json["text_config"]["eos_token_id"] = newline.into();
        opt.eos_token_id = i64::from(newline);
    }
    if config.image_token_index.is_some() {
        return Ok(files);
    }
    // the first id behind the vocabulary, if the embeddings have a spare row there as all published ones do
    let (image, files) = match (tokenizer.special().image, tokenizer.vocab_size()) {
        (Some(image), _) => (image, files),
        (None, next) if next < rows => {
            let image = next as u32;
            (image, with_special_token(files, "", "<image>", image))
        }
        _ => return Ok(files),
    };
    config.image_token_index = Some(i64::from(image));
    json["image_token_index"] = image.into();
    Ok(files)
}

/// Tokenizer files of the Q-Former with `[DEC]`.
fn query_files(folder: &Path) -> Result<Companions, FilesError> {
    let tokenizer = TextTokenizer::from_folder(folder, TokenizerKind::Bert).map_err(FilesError::Tokenizer)?;
    let mut files = Companions::tokenizer_of(folder);
    let listed = ["tokenizer.json", "vocab.txt", "added_tokens.json"]
        .iter()
        .any(|name| files.text(name).is_some_and(|text| text.contains("[DEC]")));
    if let (Some(dec), false) = (tokenizer.special().dec, listed) {
        files = with_special_token(files, "", "[DEC]", dec);
    }
    let files = with_setting(files, "", "bos_token", "[DEC]");
    Ok(match files.text("tokenizer_config.json") {
        Some(text) if text.contains("tokenizer_class") => files,
        _ => with_setting(files, "", "tokenizer_class", "BertTokenizer"),
    })
}

fn pretty(json: &Value) -> String {
    serde_json::to_string_pretty(json).unwrap_or_default() + "\n"
}
