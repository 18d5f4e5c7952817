//! Tokenizers of a recipe: beside the weights that know their vocabulary, or where the recipe says.

use std::path::{Path, PathBuf};

use blip2_model::checkpoint::companions::QFORMER_TOKENIZER;
use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;
use blip2_model::processor::{TextTokenizer, TokenizerKind};

use super::architecture::place;
use super::{Recipe, RecipeError, StageKind};

/// Files of which one makes a folder that of a tokenizer.
const FILES: [&str; 3] = ["tokenizer.json", "vocab.txt", "vocab.json"];

/// A tokenizer and its files.
#[derive(Clone, Debug)]
pub struct Found {
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// Its folder.
    pub folder: PathBuf,
}

/// Tokenizers that a stage needs.
#[derive(Clone, Debug)]
pub struct Tokenizers {
    /// The language model's.
    pub language: Option<Found>,
    /// BERT's.
    pub qformer: Option<Found>,
}

impl Tokenizers {
    /// Finds and reads them, and checks their sizes against the model's tables.
    pub fn open(recipe: &Recipe, config: &Blip2Config) -> Result<Self, RecipeError> {
        let model = &recipe.model;
        let language = match (recipe.stage, &config.text_config) {
            (StageKind::Stage1, _) | (_, None) => None,
            (_, Some(language)) => {
                let places = [
                    model.tokenizer.as_deref(),
                    model.language_model(),
                    model.language_from.as_deref(),
                    model.base.as_deref(),
                ];
                let (kind, rows) = match language {
                    LanguageConfig::Opt(c) => (TokenizerKind::Opt, c.vocab_size),
                    LanguageConfig::T5(c) => (TokenizerKind::T5, c.vocab_size),
                    LanguageConfig::Llama(c) => (TokenizerKind::Llama, c.vocab_size),
                };
                Some(find(
                    &places,
                    &[""],
                    kind,
                    "model.tokenizer",
                    "text_config",
                    rows,
                )?)
            }
        };
        let reads = recipe.stage == StageKind::Stage1
            || (recipe.stage == StageKind::Stage2 && model.qformer_text_input);
        let qformer = match reads {
            false => None,
            true => {
                let mut places = vec![model.qformer_tokenizer.as_deref(), model.qformer_from.as_deref()];
                places.extend(model.bridge_from.iter().map(Some));
                places.push(model.base.as_deref());
                let inside = [QFORMER_TOKENIZER, "export/qformer_tokenizer", "", "export"];
                let rows = config.qformer_config.vocab_size;
                Some(find(
                    &places,
                    &inside,
                    TokenizerKind::Bert,
                    "model.qformer_tokenizer",
                    "qformer_config",
                    rows,
                )?)
            }
        };
        Ok(Self { language, qformer })
    }
}

/// The first folder with a tokenizer.
fn find(
    places: &[Option<&str>],
    inside: &[&str],
    kind: TokenizerKind,
    key: &'static str,
    part: &'static str,
    rows: usize,
) -> Result<Found, RecipeError> {
    let mut looked = Vec::new();
    for text in places.iter().flatten() {
        let root = place(text)?;
        let folders = inside.iter().map(|inside| root.join(inside));
        for folder in folders {
            if !has_tokenizer(&folder) {
                looked.push(folder.display().to_string());
                continue;
            }
            let tokenizer = TextTokenizer::from_folder(&folder, kind)?;
            // the placeholder of pictures comes last and is never looked up
            let placeholder = tokenizer.special().image.map(|id| id as usize + 1);
            let size = tokenizer.vocab_size();
            let tokens = if placeholder == Some(size) { size - 1 } else { size };
            if tokens > rows {
                return Err(RecipeError::Vocabulary {
                    folder,
                    tokens,
                    part,
                    rows,
                });
            }
            return Ok(Found { tokenizer, folder });
        }
    }
    Err(RecipeError::missing(
        key,
        match looked.is_empty() {
            true => "give the folder with its tokenizer.json".to_string(),
            false => format!("no tokenizer.json in {}", looked.join(", ")),
        },
    ))
}

fn has_tokenizer(folder: &Path) -> bool {
    FILES.iter().any(|file| folder.join(file).is_file())
}
