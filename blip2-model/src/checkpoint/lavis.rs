//! LAVIS checkpoints (`.pth`): their names, and the quirks that a table of names cannot express.
//!
//! A [`LavisSource`] shows such a file under Hugging Face names, so the rest of the engine knows one
//! family only: the EVA query and value biases become the bias of the fused projection (the key bias is a
//! constant zero in LAVIS), blocks that are never instantiated are dropped, copies of tied tensors too.

use std::path::Path;

use crate::language::keys::{KeyRow, substitute};
use crate::weights::{DType, TensorBytes, TensorInfo, TensorSource, WeightsError};

/// LAVIS name, Hugging Face name.
pub const ROWS: &[KeyRow] = &[
    ("query_tokens", "query_tokens"),
    ("ln_vision.*", "vision_model.post_layernorm.*"),
    // EVA-CLIP
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
    // CLIP
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
    // Q-Former
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
    ("opt_proj.*", "language_projection.*"),
    ("t5_proj.*", "language_projection.*"),
    ("opt_model.*", "language_model.*"),
    ("t5_model.*", "language_model.*"),
];

/// Copies and buffers.
const REDUNDANT: &[&str] = &[
    "Qformer.bert.embeddings.position_ids",
    "Qformer.cls.predictions.decoder.weight", // tied to the word table
    "Qformer.cls.predictions.decoder.bias",   // alias of predictions.bias
];

/// Hugging Face name of a LAVIS tensor.
pub fn to_huggingface(name: &str) -> Option<String> {
    ROWS.iter().find_map(|(lavis, hf)| substitute(lavis, name, hf))
}

/// Where the content of a Hugging Face tensor comes from in the LAVIS file.
enum Origin {
    Same(String),
    /// `[q_bias, 0, v_bias]`
    QkvBias {
        q: String,
        v: String,
    },
}

/// A LAVIS file under Hugging Face names.
pub struct LavisSource {
    inner: Box<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    origins: Vec<Origin>,
}

impl LavisSource {
    /// Wraps a LAVIS file. `vision_layers` blocks of the encoder are kept; files hold one more than is used.
    ///
    /// A file of the encoder alone has no `visual_encoder.` prefix; it is understood all the same.
    pub fn new(inner: Box<dyn TensorSource>, vision_layers: usize) -> Self {
        let bare = !inner
            .infos()
            .iter()
            .any(|info| to_huggingface(&info.name).is_some());
        let (mut infos, mut origins) = (Vec::new(), Vec::new());
        for info in inner.infos() {
            let lavis = if bare {
                format!("visual_encoder.{}", info.name)
            } else {
                info.name.clone()
            };
            if REDUNDANT.contains(&lavis.as_str()) {
                continue;
            }
            if let Some(block) = lavis.strip_suffix(".attn.q_bias") {
                let v = info.name.replace("q_bias", "v_bias");
                let (Some(name), Some(_)) =
                    (to_huggingface(&format!("{block}.attn.qkv.bias")), inner.info(&v))
                else {
                    continue;
                };
                if is_used(&name, vision_layers) {
                    let width = info.shape.iter().product::<usize>();
                    infos.push(TensorInfo {
                        name,
                        dtype: DType::F32,
                        shape: vec![3 * width],
                    });
                    origins.push(Origin::QkvBias {
                        q: info.name.clone(),
                        v,
                    });
                }
                continue;
            }
            if lavis.ends_with(".attn.v_bias") {
                continue;
            }
            // a name without a row stays as it is, so that the load report can list it
            let name = to_huggingface(&lavis).unwrap_or_else(|| info.name.clone());
            if is_used(&name, vision_layers) && !is_unused_head(&lavis) {
                infos.push(TensorInfo { name, ..info.clone() });
                origins.push(Origin::Same(info.name.clone()));
            }
        }
        Self {
            inner,
            infos,
            origins,
        }
    }
}

/// Whether a tensor belongs to a block that runs.
fn is_used(name: &str, vision_layers: usize) -> bool {
    let block = name
        .strip_prefix("vision_model.encoder.layers.")
        .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    block.is_none_or(|index| index < vision_layers)
}

/// Parts of the encoder files after the last block, which BLIP-2 does not use.
fn is_unused_head(lavis: &str) -> bool {
    ["ln_post.", "proj", "norm.", "fc_norm.", "head."]
        .iter()
        .any(|part| {
            lavis
                .strip_prefix("visual_encoder.")
                .is_some_and(|rest| rest.starts_with(part))
        })
}

impl TensorSource for LavisSource {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        let index = self.infos.iter().position(|info| info.name == name);
        let origin = index
            .and_then(|i| self.origins.get(i))
            .ok_or_else(|| WeightsError::NoSuchTensor {
                path: self.path().to_owned(),
                name: name.to_string(),
            })?;
        match origin {
            Origin::Same(original) => self.inner.get(original),
            Origin::QkvBias { q, v } => {
                let (q, v) = (self.inner.get(q)?.to_f32_vec()?, self.inner.get(v)?.to_f32_vec()?);
                let zeros = vec![0f32; q.len()];
                TensorBytes::from_f32(vec![3 * q.len()], [q, zeros, v].concat())
            }
        }
    }
}

/// Several files as one: a partial checkpoint together with the encoder and language model it leaves out.
/// The first file that has a name wins.
pub struct MergedSource {
    sources: Vec<Box<dyn TensorSource>>,
    infos: Vec<TensorInfo>,
}

impl MergedSource {
    /// Merges `sources`, the first one giving the path of error messages.
    pub fn new(sources: Vec<Box<dyn TensorSource>>) -> Self {
        let mut infos: Vec<TensorInfo> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for info in sources.iter().flat_map(|source| source.infos()) {
            if seen.insert(info.name.clone()) {
                infos.push(info.clone());
            }
        }
        Self { sources, infos }
    }
}

impl TensorSource for MergedSource {
    fn path(&self) -> &Path {
        self.sources.first().map_or(Path::new(""), |source| source.path())
    }

    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn get(&self, name: &str) -> Result<TensorBytes, WeightsError> {
        let source = self.sources.iter().find(|source| source.info(name).is_some());
        source
            .ok_or_else(|| WeightsError::NoSuchTensor {
                path: self.path().to_owned(),
                name: name.to_string(),
            })?
            .get(name)
    }

    fn release(&self, name: &str) {
        if let Some(source) = self.sources.iter().find(|source| source.info(name).is_some()) {
            source.release(name);
        }
    }
}
