//! Key table of Hugging Face BLIP-2 files (`Blip2ForConditionalGeneration`, `Blip2ForImageTextRetrieval`,
//! the projection classes and `Blip2Model`; instantiated and read with transformers 4.57.6).
//!
//! The language-model rows are in [`crate::language::keys`].

use super::keys::Keys;
use crate::config::Blip2Config;
use crate::language::KeyTable;
use crate::language::keys::KeyRow;
use crate::vision::VisionConfig;

/// EVA-CLIP, and CLIP in the same form (Hugging Face has no BLIP-2 with CLIP).
const VISION: &[KeyRow] = &[
    (
        "vision_model.embeddings.class_embedding",
        "vision.embeddings.class_embedding",
    ),
    (
        "vision_model.embeddings.position_embedding",
        "vision.embeddings.position_embedding",
    ),
    ("vision_model.embeddings.patch_embedding.*", "vision.embeddings.*"), // convolution as a bare weight and bias
    ("vision_model.pre_layernorm.*", "vision.pre_layernorm.*"), // CLIP; Hugging Face has no CLIP BLIP-2
    ("vision_model.encoder.layers.{i}.*", "vision.layers.{i}.*"),
    ("vision_model.post_layernorm.*", "bridge.ln_vision.*"), // trains with the Q-Former
];

/// `Dinov2Model` in the place of the vision model. Hugging Face has no such BLIP-2.
const DINOV2: &[KeyRow] = &[
    (
        "vision_model.embeddings.cls_token",
        "vision.embeddings.class_embedding",
    ),
    (
        "vision_model.embeddings.position_embeddings",
        "vision.embeddings.position_embedding",
    ),
    (
        "vision_model.embeddings.patch_embeddings.projection.*",
        "vision.embeddings.*",
    ),
    (
        "vision_model.encoder.layer.{i}.layer_scale1.lambda1",
        "vision.layers.{i}.layer_scale1",
    ),
    (
        "vision_model.encoder.layer.{i}.layer_scale2.lambda1",
        "vision.layers.{i}.layer_scale2",
    ),
    (
        "vision_model.encoder.layer.{i}.attention.output.dense.*",
        "vision.layers.{i}.attention.dense.*",
    ),
    // after the special row
    (
        "vision_model.encoder.layer.{i}.attention.attention.*",
        "vision.layers.{i}.attention.*",
    ),
    ("vision_model.encoder.layer.{i}.*", "vision.layers.{i}.*"),
    ("vision_model.layernorm.*", "bridge.ln_vision.*"),
];

/// Q-Former and projections.
const BRIDGE: &[KeyRow] = &[
    ("query_tokens", "bridge.query_tokens"),
    ("embeddings.*", "bridge.qformer.embeddings.*"), // text branch, retrieval classes only
    ("qformer.layernorm.*", "bridge.qformer.layernorm.*"),
    (
        "qformer.encoder.layer.{i}.attention.output.dense.*",
        "bridge.qformer.layers.{i}.attention.dense.*",
    ),
    (
        "qformer.encoder.layer.{i}.attention.output.LayerNorm.*",
        "bridge.qformer.layers.{i}.attention.layer_norm.*",
    ),
    // after the special rows: a path below `attention` that is neither norm nor output projection
    (
        "qformer.encoder.layer.{i}.attention.attention.*",
        "bridge.qformer.layers.{i}.attention.*",
    ),
    (
        "qformer.encoder.layer.{i}.crossattention.output.dense.*",
        "bridge.qformer.layers.{i}.crossattention.dense.*",
    ),
    (
        "qformer.encoder.layer.{i}.crossattention.output.LayerNorm.*",
        "bridge.qformer.layers.{i}.crossattention.layer_norm.*",
    ),
    (
        "qformer.encoder.layer.{i}.crossattention.attention.*",
        "bridge.qformer.layers.{i}.crossattention.*",
    ),
    (
        "qformer.encoder.layer.{i}.intermediate.dense.*",
        "bridge.qformer.layers.{i}.ffn_text.intermediate.*",
    ),
    (
        "qformer.encoder.layer.{i}.output.dense.*",
        "bridge.qformer.layers.{i}.ffn_text.output.*",
    ),
    (
        "qformer.encoder.layer.{i}.output.LayerNorm.*",
        "bridge.qformer.layers.{i}.ffn_text.layer_norm.*",
    ),
    (
        "qformer.encoder.layer.{i}.intermediate_query.dense.*",
        "bridge.qformer.layers.{i}.ffn_query.intermediate.*",
    ),
    (
        "qformer.encoder.layer.{i}.output_query.dense.*",
        "bridge.qformer.layers.{i}.ffn_query.output.*",
    ),
    (
        "qformer.encoder.layer.{i}.output_query.LayerNorm.*",
        "bridge.qformer.layers.{i}.ffn_query.layer_norm.*",
    ),
    ("vision_projection.*", "bridge.vision_projection.linear.*"),
    ("text_projection.*", "bridge.text_projection.linear.*"),
    ("itm_head.*", "bridge.itm_head.*"),
    ("language_projection.*", "bridge.language_projection.*"),
    // Stage-1 parts that Hugging Face does not port; our own names, LAVIS's where it has one.
    ("temp", "bridge.temp"),
    ("qformer_lm_head.bias", "bridge.lm_head.bias"),
    ("qformer_lm_head.transform.dense.*", "bridge.lm_head.dense.*"),
    (
        "qformer_lm_head.transform.LayerNorm.*",
        "bridge.lm_head.layer_norm.*",
    ),
];

/// Buffers that old files carry.
const IGNORED: &[&str] = &[
    "embeddings.position_ids",
    "vision_model.embeddings.mask_token",
    "language_model.model.decoder.embed_positions.position_ids",
];

/// The table for a checkpoint of this configuration.
pub fn keys(config: &Blip2Config) -> Keys {
    let vision = match config.vision_config {
        VisionConfig::Eva(_) | VisionConfig::Clip(_) => VISION,
        VisionConfig::Dinov2(_) => DINOV2,
    };
    Keys::new(vec![vision, BRIDGE], config.language().map(KeyTable::of), IGNORED)
}
