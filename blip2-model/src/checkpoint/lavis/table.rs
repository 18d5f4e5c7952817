//! The one table of LAVIS names, read in both directions (`lavis/models/blip2_models/`, `eva_vit.py`,
//! `clip_vit.py`). Rows are grouped by what a checkpoint has, because a name of Hugging Face alone does not say
//! which encoder or language model it belongs to.

use crate::config::Blip2Config;
use crate::language::LanguageConfig;
use crate::language::keys::{KeyRow, substitute};
use crate::vision::VisionConfig;

/// What every BLIP-2 trains: LAVIS name, Hugging Face name.
const BRIDGE: &[KeyRow] = &[
    ("query_tokens", "query_tokens"),
    ("ln_vision.*", "vision_model.post_layernorm.*"),
    ("Qformer.bert.embeddings.LayerNorm.*", "qformer.layernorm.*"),
    (
        "Qformer.bert.embeddings.word_embeddings.*",
        "embeddings.word_embeddings.*",
    ),
    (
        "Qformer.bert.embeddings.position_embeddings.*",
        "embeddings.position_embeddings.*",
    ),
    (
        "Qformer.bert.encoder.layer.{i}.attention.self.*",
        "qformer.encoder.layer.{i}.attention.attention.*",
    ),
    (
        "Qformer.bert.encoder.layer.{i}.crossattention.self.*",
        "qformer.encoder.layer.{i}.crossattention.attention.*",
    ),
    ("Qformer.bert.encoder.*", "qformer.encoder.*"),
    ("Qformer.cls.predictions.bias", "qformer_lm_head.bias"),
    (
        "Qformer.cls.predictions.transform.*",
        "qformer_lm_head.transform.*",
    ),
    ("vision_proj.*", "vision_projection.*"),
    ("text_proj.*", "text_projection.*"),
    ("itm_head.*", "itm_head.*"),
    ("temp", "temp"),
];

/// EVA-CLIP. Biases of the fused projection are special, see [`names`](super::names).
const EVA: &[KeyRow] = &[
    (
        "visual_encoder.cls_token",
        "vision_model.embeddings.class_embedding",
    ),
    (
        "visual_encoder.pos_embed",
        "vision_model.embeddings.position_embedding",
    ),
    (
        "visual_encoder.patch_embed.proj.*",
        "vision_model.embeddings.patch_embedding.*",
    ),
    (
        "visual_encoder.blocks.{i}.norm1.*",
        "vision_model.encoder.layers.{i}.layer_norm1.*",
    ),
    (
        "visual_encoder.blocks.{i}.norm2.*",
        "vision_model.encoder.layers.{i}.layer_norm2.*",
    ),
    (
        "visual_encoder.blocks.{i}.attn.qkv.*",
        "vision_model.encoder.layers.{i}.self_attn.qkv.*",
    ),
    (
        "visual_encoder.blocks.{i}.attn.proj.*",
        "vision_model.encoder.layers.{i}.self_attn.projection.*",
    ),
    (
        "visual_encoder.blocks.{i}.mlp.*",
        "vision_model.encoder.layers.{i}.mlp.*",
    ),
];

/// CLIP.
const CLIP: &[KeyRow] = &[
    (
        "visual_encoder.class_embedding",
        "vision_model.embeddings.class_embedding",
    ),
    (
        "visual_encoder.positional_embedding",
        "vision_model.embeddings.position_embedding",
    ),
    (
        "visual_encoder.conv1.*",
        "vision_model.embeddings.patch_embedding.*",
    ),
    ("visual_encoder.ln_pre.*", "vision_model.pre_layernorm.*"),
    (
        "visual_encoder.transformer.resblocks.{i}.ln_1.*",
        "vision_model.encoder.layers.{i}.layer_norm1.*",
    ),
    (
        "visual_encoder.transformer.resblocks.{i}.ln_2.*",
        "vision_model.encoder.layers.{i}.layer_norm2.*",
    ),
    (
        "visual_encoder.transformer.resblocks.{i}.attn.in_proj_weight",
        "vision_model.encoder.layers.{i}.self_attn.qkv.weight",
    ),
    (
        "visual_encoder.transformer.resblocks.{i}.attn.in_proj_bias",
        "vision_model.encoder.layers.{i}.self_attn.qkv.bias",
    ),
    (
        "visual_encoder.transformer.resblocks.{i}.attn.out_proj.*",
        "vision_model.encoder.layers.{i}.self_attn.projection.*",
    ),
    (
        "visual_encoder.transformer.resblocks.{i}.mlp.c_fc.*",
        "vision_model.encoder.layers.{i}.mlp.fc1.*",
    ),
    (
        "visual_encoder.transformer.resblocks.{i}.mlp.c_proj.*",
        "vision_model.encoder.layers.{i}.mlp.fc2.*",
    ),
];

/// `blip2_opt`.
const OPT: &[KeyRow] = &[
    ("opt_proj.*", "language_projection.*"),
    ("opt_model.*", "language_model.*"),
];

/// `blip2_t5`.
const T5: &[KeyRow] = &[
    ("t5_proj.*", "language_projection.*"),
    ("t5_model.*", "language_model.*"),
];

/// Hugging Face name of a LAVIS tensor.
pub fn to_huggingface(name: &str) -> Option<String> {
    let mut rows = [BRIDGE, EVA, CLIP, OPT, T5].into_iter().flatten();
    rows.find_map(|(lavis, hf)| substitute(lavis, name, hf))
}

/// The rows for one kind of model.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    encoder: &'static [KeyRow],
    language: &'static [KeyRow],
    /// Whether the encoder is CLIP's.
    pub is_clip: bool,
}

impl Family {
    /// The rows for models of this configuration; `None` if LAVIS has no such BLIP-2.
    pub fn of(config: &Blip2Config) -> Option<Self> {
        Some(Self {
            is_clip: matches!(config.vision_config, VisionConfig::Clip(_)),
            encoder: match config.vision_config {
                VisionConfig::Eva(_) => EVA,
                VisionConfig::Clip(_) => CLIP,
                VisionConfig::Dinov2(_) => return None,
            },
            language: match config.language() {
                None => &[],
                Some(LanguageConfig::Opt(_)) => OPT,
                Some(LanguageConfig::T5(_)) => T5,
                Some(LanguageConfig::Llama(_)) => return None,
            },
        })
    }

    /// LAVIS name of a Hugging Face tensor.
    pub fn to_lavis(self, name: &str) -> Option<String> {
        let mut rows = [BRIDGE, self.encoder, self.language].into_iter().flatten();
        rows.find_map(|(lavis, hf)| substitute(hf, name, lavis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::{OptConfig, T5Config};

    fn config(vision: VisionConfig, text: LanguageConfig) -> Blip2Config {
        let mut config = Blip2Config::from_json("{}").unwrap();
        config.vision_config = vision;
        config.text_config = Some(text);
        config
    }

    #[test]
    fn both_directions_agree_for_every_family() {
        let eva = config(
            VisionConfig::Eva(Default::default()),
            LanguageConfig::Opt(OptConfig::default()),
        );
        let clip = config(
            VisionConfig::Clip(Default::default()),
            LanguageConfig::T5(T5Config::default()),
        );
        let names = [
            (
                &eva,
                "visual_encoder.blocks.3.norm2.bias",
                "vision_model.encoder.layers.3.layer_norm2.bias",
            ),
            (
                &eva,
                "opt_model.model.decoder.layers.1.fc1.weight",
                "language_model.model.decoder.layers.1.fc1.weight",
            ),
            (
                &clip,
                "visual_encoder.conv1.weight",
                "vision_model.embeddings.patch_embedding.weight",
            ),
            (&clip, "t5_proj.bias", "language_projection.bias"),
            (
                &clip,
                "visual_encoder.transformer.resblocks.22.attn.in_proj_bias",
                "vision_model.encoder.layers.22.self_attn.qkv.bias",
            ),
            (&clip, "ln_vision.weight", "vision_model.post_layernorm.weight"),
            (
                &eva,
                "Qformer.bert.encoder.layer.2.crossattention.self.key.weight",
                "qformer.encoder.layer.2.crossattention.attention.key.weight",
            ),
            (
                &eva,
                "Qformer.bert.encoder.layer.11.output_query.LayerNorm.weight",
                "qformer.encoder.layer.11.output_query.LayerNorm.weight",
            ),
            (&eva, "Qformer.cls.predictions.bias", "qformer_lm_head.bias"),
        ];
        for (config, lavis, hf) in names {
            assert_eq!(to_huggingface(lavis).as_deref(), Some(hf));
            assert_eq!(Family::of(config).unwrap().to_lavis(hf).as_deref(), Some(lavis));
        }
        assert_eq!(to_huggingface("visual_encoder.head.weight"), None);
        assert!(Family::of(&clip).unwrap().is_clip && !Family::of(&eva).unwrap().is_clip);
    }
}
