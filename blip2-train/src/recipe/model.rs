//! `[model]`: the architecture, and where every part's initial weights come from.

use blip2_model::checkpoint::PartDtype;
use serde::{Deserialize, Serialize};

use super::{RecipeError, StageKind};

/// Architecture and initial weights. One of `base`, `config` and `vit_model` names the architecture.
///
/// Wherever a place for weights is asked for, it is a folder in Hugging Face's form, the id of one on the hub, a
/// LAVIS `.pth` file, or a run of this program (its best checkpoint, else its newest, counts).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A whole BLIP-2 checkpoint: architecture, weights and tokenizers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Architecture alone: path of a `config.json`, or the same as a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigSource>,
    /// Published image encoder, LAVIS's `vit_model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vit_model: Option<VitModel>,
    /// Published OPT, `facebook/opt-2.7b` or a folder with its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_model: Option<String>,
    /// Published T5, `google/flan-t5-xl` or a folder with its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub t5_model: Option<String>,
    /// LLaMA or Vicuna folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_model: Option<String>,
    /// Number of query tokens of an architecture made from `vit_model`; 32 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_query_token: Option<usize>,
    /// Side of the pictures; a position table of another size is resized as LAVIS does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Both dropout probabilities of the Q-Former, instead of the architecture's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qformer_dropout: Option<f64>,
    /// What happens to an image encoder or language model without weights.
    pub init: Init,
    /// Trained Q-Former, queries, heads and `ln_vision` (and the encoder, if it was trained with them). Of several
    /// places the first that has a tensor counts.
    #[serde(skip_serializing_if = "Places::is_empty")]
    pub bridge_from: Places,
    /// Image encoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_from: Option<String>,
    /// Language model, also under the names it has outside of BLIP-2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language_from: Option<String>,
    /// BERT, from which the Q-Former starts: self-attention, embeddings, head, and the text feed-forward also as
    /// the queries' one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qformer_from: Option<String>,
    /// Folder of the language model's tokenizer, if it is not beside its weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Folder of the Q-Former's tokenizer, if it is not beside its weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qformer_tokenizer: Option<String>,
    /// Dtype of a frozen image encoder.
    pub vit_precision: Precision,
    /// Dtype of a frozen language model.
    pub llm_precision: Precision,
    /// The Q-Former reads text in stage 2 too (question answering).
    pub qformer_text_input: bool,
}

/// No, one or several places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "Vec<String>")]
pub struct Places(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Places {
    fn from(places: OneOrMany) -> Self {
        match places {
            OneOrMany::One(place) => Self(vec![place]),
            OneOrMany::Many(places) => Self(places),
        }
    }
}

impl From<Places> for Vec<String> {
    fn from(places: Places) -> Self {
        places.0
    }
}

impl Places {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the given order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A configuration by path or in place.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ConfigSource {
    /// Path of a `config.json`.
    Path(String),
    /// The configuration itself.
    Table(toml::Table),
}

/// Image encoders of LAVIS's BLIP-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VitModel {
    /// EVA-CLIP ViT-g/14, 39 blocks.
    #[serde(rename = "eva_clip_g")]
    EvaClipG,
    /// CLIP ViT-L/14, 23 blocks.
    #[serde(rename = "clip_L")]
    ClipL,
}

/// Encoder and language model without weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// An error: a frozen part that was never trained is a mistake in nearly every recipe.
    #[default]
    Weights,
    /// Drawn from the seed.
    Random,
}

/// Dtype of a frozen part's matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// As in the file.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// 4 bytes.
    #[serde(rename = "f32", alias = "fp32", alias = "float32")]
    F32,
    /// 2 bytes, 5 exponent bits.
    #[serde(rename = "f16", alias = "fp16", alias = "float16")]
    F16,
    /// 2 bytes, 8 exponent bits.
    #[serde(rename = "bf16", alias = "bfloat16")]
    BF16,
}

impl From<Precision> for PartDtype {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Auto => Self::Auto,
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::BF16 => Self::BF16,
        }
    }
}

impl ModelSection {
    pub(super) fn check(&self, stage: StageKind) -> Result<(), RecipeError> {
        let given = [
            self.base.is_some(),
            self.config.is_some(),
            self.vit_model.is_some(),
        ];
        let given = given.into_iter().filter(|&given| given).count();
        let language = [&self.opt_model, &self.t5_model, &self.llm_model];
        let language = language.into_iter().flatten().count();
        let alone = stage == StageKind::LanguageModel && language == 1;
        if given > 1 || (given == 0 && !alone) {
            return Err(RecipeError::missing(
                "model.base",
                "exactly one of `base`, `config` and `vit_model` names the architecture",
            ));
        }
        if language > 1 {
            return Err(RecipeError::setting(
                "model.opt_model",
                language,
                "one language model at most: `opt_model`, `t5_model` or `llm_model`",
            ));
        }
        match self.qformer_dropout {
            Some(probability) if !(0.0..1.0).contains(&probability) => Err(RecipeError::setting(
                "model.qformer_dropout",
                probability,
                "a probability, at least 0 and below 1",
            )),
            _ => Ok(()),
        }
    }

    /// The language model named by `opt_model`, `t5_model` or `llm_model`.
    pub fn language_model(&self) -> Option<&str> {
        let names = [&self.opt_model, &self.t5_model, &self.llm_model];
        names.into_iter().flatten().next().map(String::as_str)
    }
}
