//! LAVIS files under Hugging Face names and back, with the quirks that a table of names cannot express: EVA keeps
//! the query and value biases of its fused projection apart and has no key bias; CLIP's class token and position
//! table lack their unit axes; copies of tied tensors; blocks that never run.

use super::LavisError;
use super::table::{Family, to_huggingface};
use crate::checkpoint::view::{Origin, Piece, View};
use crate::weights::{TensorInfo, TensorSource};

/// Copies and buffers in LAVIS files.
const REDUNDANT: &[&str] = &[
    "Qformer.bert.embeddings.position_ids",
    "Qformer.cls.predictions.decoder.weight", // tied to the word table
    "Qformer.cls.predictions.decoder.bias",   // alias of predictions.bias
];

/// Parts of the encoder files behind the last block, which BLIP-2 does not use.
const UNUSED_HEADS: [&str; 5] = ["ln_post.", "proj", "norm.", "fc_norm.", "head."];

const WORD_TABLE: &str = "Qformer.bert.embeddings.word_embeddings.weight";
const HEAD_BIAS: &str = "Qformer.cls.predictions.bias";

/// Whether these are the tensors of a LAVIS BLIP-2, trained parts included.
pub fn is_lavis(source: &dyn TensorSource) -> bool {
    let mut infos = source.infos().iter();
    infos.any(|info| info.name.starts_with("Qformer.bert."))
}

/// Whether these are the tensors of an encoder file of LAVIS, whose names have no prefix.
pub fn is_bare_encoder(source: &dyn TensorSource) -> bool {
    ["patch_embed.proj.weight", "conv1.weight"]
        .iter()
        .any(|name| source.info(name).is_some())
}

/// A LAVIS file under Hugging Face names. Names without a place stay as they are, for the load report to list.
///
/// Encoder files hold one block more than BLIP-2 runs: the last one is dropped from a file of the encoder alone.
pub fn under_huggingface_names(inner: Box<dyn TensorSource>) -> View {
    let layers = match is_bare_encoder(inner.as_ref()) {
        true => count_blocks(inner.as_ref()).saturating_sub(1),
        false => usize::MAX,
    };
    first_blocks(inner, layers)
}

/// The same with exactly the first `layers` blocks of the encoder, however many the file has.
pub fn first_blocks(inner: Box<dyn TensorSource>, layers: usize) -> View {
    let bare = is_bare_encoder(inner.as_ref());
    let mut view = View::new(inner);
    for info in view.inner().infos().to_vec() {
        let lavis = match bare {
            true => format!("visual_encoder.{}", info.name),
            false => info.name.clone(),
        };
        let behind_the_blocks = lavis
            .strip_prefix("visual_encoder.")
            .is_some_and(|rest| UNUSED_HEADS.iter().any(|head| rest.starts_with(head)));
        if behind_the_blocks || REDUNDANT.contains(&lavis.as_str()) {
            continue;
        }
        let is_bias = |bias: &str| lavis.ends_with(&format!(".attn.{bias}"));
        if is_bias("v_bias") || is_bias("k_bias") {
            continue;
        }
        let (name, shape, origin) = if is_bias("q_bias") {
            let Some(joined) = qkv_bias(view.inner(), &info, &lavis) else {
                continue;
            };
            joined
        } else {
            let name = to_huggingface(&lavis).unwrap_or_else(|| info.name.clone());
            let shape = with_unit_axes(&name, &info.shape);
            (name, shape, Origin::Tensor(info.name.clone()))
        };
        if block(&name).is_some_and(|index| index >= layers) {
            continue;
        }
        let (shape, origin) = match lavis == HEAD_BIAS {
            true => padded(view.inner(), &info, shape, origin),
            false => (shape, origin),
        };
        view.add(TensorInfo { name, shape, ..info }, origin);
    }
    view
}

/// `[q_bias, 0, v_bias]`. A file written by [`under_lavis_names`] may have a key bias.
fn qkv_bias(source: &dyn TensorSource, q: &TensorInfo, lavis: &str) -> Option<(String, Vec<usize>, Origin)> {
    let name = to_huggingface(&lavis.replace("q_bias", "qkv.bias"))?;
    let sibling = |bias| q.name.replace("q_bias", bias);
    let width = q.num_elements();
    let (k, v) = (sibling("k_bias"), sibling("v_bias"));
    source.info(&v)?;
    let k = match source.info(&k) {
        Some(_) => Piece::Tensor(k),
        None => Piece::Zeros(width),
    };
    let pieces = vec![Piece::Tensor(q.name.clone()), k, Piece::Tensor(v)];
    Some((name, vec![3 * width], Origin::Concat(pieces)))
}

/// The bias of the word head may be older than `[DEC]` and lack its row.
fn padded(
    source: &dyn TensorSource,
    bias: &TensorInfo,
    shape: Vec<usize>,
    origin: Origin,
) -> (Vec<usize>, Origin) {
    let words = source.info(WORD_TABLE).and_then(|table| table.shape.first());
    match (words, bias.shape.first()) {
        (Some(&words), Some(&rows)) if rows < words => (
            vec![words],
            Origin::Concat(vec![Piece::Tensor(bias.name.clone()), Piece::Zeros(words - rows)]),
        ),
        _ => (shape, origin),
    }
}

/// Hugging Face's shape of a tensor: CLIP files of LAVIS leave unit axes out, and burn has no scalars.
fn with_unit_axes(name: &str, shape: &[usize]) -> Vec<usize> {
    let leading = match name {
        "vision_model.embeddings.class_embedding" | "vision_model.embeddings.position_embedding" => 3,
        "temp" => 1,
        _ => 0,
    };
    let missing = usize::saturating_sub(leading, shape.len());
    [&vec![1; missing], shape].concat()
}

/// Index of the encoder block that a tensor belongs to.
fn block(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("vision_model.encoder.layers.")?;
    rest.split('.').next()?.parse().ok()
}

fn count_blocks(encoder: &dyn TensorSource) -> usize {
    let names = encoder.infos().iter();
    let blocks = names.filter_map(|info| block(&to_huggingface(&format!("visual_encoder.{}", info.name))?));
    blocks.max().map_or(0, |last| last + 1)
}

/// A checkpoint with Hugging Face names under those of LAVIS. Without `frozen`, only what BLIP-2 trains, as in the
/// files that LAVIS publishes.
///
/// LAVIS has no key bias. Attention does not depend on it (it moves all scores of a query by the same amount), and
/// checkpoints that LAVIS trained have zeros there; where it is not zero it is kept as `k_bias`, which LAVIS skips.
///
/// # Errors
/// [`LavisError::NoPlace`] for tensors that LAVIS does not have.
pub fn under_lavis_names(
    inner: Box<dyn TensorSource>,
    family: Family,
    frozen: bool,
) -> Result<View, LavisError> {
    let mut view = View::new(inner);
    let mut homeless = Vec::new();
    for info in view.inner().infos().to_vec() {
        let is_trained = info.name.starts_with("vision_model.post_layernorm.");
        let is_frozen = ["vision_model.", "language_model."]
            .iter()
            .any(|part| info.name.starts_with(part));
        if is_frozen && !is_trained && !frozen {
            continue;
        }
        let Some(lavis) = family.to_lavis(&info.name) else {
            homeless.push(info.name.clone());
            continue;
        };
        if let Some(attention) = lavis.strip_suffix(".attn.qkv.bias") {
            let rows = info.num_elements() / 3;
            for (index, bias) in ["q_bias", "k_bias", "v_bias"].iter().enumerate() {
                let start = index * rows;
                if *bias == "k_bias" && is_zero(view.inner(), &info, start..start + rows)? {
                    continue;
                }
                let part = TensorInfo {
                    name: format!("{attention}.attn.{bias}"),
                    shape: vec![rows],
                    ..info.clone()
                };
                let name = info.name.clone();
                view.add(part, Origin::Rows { name, start, rows });
            }
            continue;
        }
        let shape = match lavis.as_str() {
            "temp" => Vec::new(),
            "visual_encoder.class_embedding" | "visual_encoder.positional_embedding" if family.is_clip => {
                let unit = info.shape.iter().take_while(|&&size| size == 1).count();
                info.shape[unit..].to_vec()
            }
            _ => info.shape.clone(),
        };
        let origin = Origin::Tensor(info.name.clone());
        view.add(
            TensorInfo {
                name: lavis,
                shape,
                ..info
            },
            origin,
        );
    }
    match homeless.is_empty() {
        true => Ok(view),
        false => Err(LavisError::NoPlace { names: homeless }),
    }
}

fn is_zero(
    source: &dyn TensorSource,
    info: &TensorInfo,
    rows: std::ops::Range<usize>,
) -> Result<bool, LavisError> {
    let tensor = source.get(&info.name)?;
    let size = info.dtype.size();
    Ok(tensor.bytes()[rows.start * size..rows.end * size]
        .iter()
        .all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::view::tests::Memory;
    use crate::config::Blip2Config;

    fn names(source: &dyn TensorSource) -> Vec<&str> {
        source.infos().iter().map(|info| info.name.as_str()).collect()
    }

    #[test]
    fn an_encoder_file_loses_its_last_block_and_its_heads() {
        let file = Memory::boxed(&[
            ("cls_token", &[1, 1, 2], &[1.0, 2.0]),
            ("patch_embed.proj.weight", &[1], &[0.0]),
            ("blocks.0.attn.q_bias", &[2], &[1.0, 2.0]),
            ("blocks.0.attn.v_bias", &[2], &[3.0, 4.0]),
            ("blocks.0.norm1.weight", &[2], &[1.0, 1.0]),
            ("blocks.1.norm1.weight", &[2], &[1.0, 1.0]),
            ("blocks.1.attn.q_bias", &[2], &[5.0, 6.0]),
            ("blocks.1.attn.v_bias", &[2], &[7.0, 8.0]),
            ("norm.weight", &[2], &[1.0, 1.0]),
            ("head.weight", &[2], &[1.0, 1.0]),
        ]);
        let view = under_huggingface_names(file);
        let bias = "vision_model.encoder.layers.0.self_attn.qkv.bias";
        assert_eq!(
            names(&view),
            [
                "vision_model.embeddings.class_embedding",
                "vision_model.embeddings.patch_embedding.weight",
                bias,
                "vision_model.encoder.layers.0.layer_norm1.weight"
            ]
        );
        let values = view.get(bias).unwrap().to_f32_vec().unwrap();
        assert_eq!(values, [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    fn a_head_from_before_dec_gets_its_row() {
        let file = Memory::boxed(&[
            (WORD_TABLE, &[3, 1], &[0.0; 3]),
            (HEAD_BIAS, &[2], &[4.0, 5.0]),
            ("Qformer.cls.predictions.decoder.bias", &[2], &[4.0, 5.0]),
            ("temp", &[], &[0.07]),
            ("something.new", &[1], &[0.0]),
        ]);
        let view = under_huggingface_names(file);
        let bias = view.get("qformer_lm_head.bias").unwrap();
        assert_eq!(bias.to_f32_vec().unwrap(), [4.0, 5.0, 0.0]);
        assert_eq!(view.info("temp").unwrap().shape, [1]);
        assert!(
            names(&view).contains(&"something.new"),
            "unknown names must reach the report"
        );
        assert_eq!(names(&view).len(), 4);
    }

    #[test]
    fn a_key_bias_survives_and_unknown_names_are_refused() {
        let family = Family::of(&Blip2Config::from_json("{}").unwrap()).unwrap();
        let bias = "vision_model.encoder.layers.0.self_attn.qkv.bias";
        for (key, count) in [(0.0, 2), (9.0, 3)] {
            let file = Memory::boxed(&[(bias, &[3], &[1.0, key, 2.0])]);
            let lavis = under_lavis_names(file, family, true).unwrap();
            assert_eq!(lavis.infos().len(), count);
            let back = under_huggingface_names(Box::new(lavis));
            assert_eq!(back.get(bias).unwrap().to_f32_vec().unwrap(), [1.0, key, 2.0]);
        }
        let file = Memory::boxed(&[("classifier.weight", &[1], &[0.0])]);
        let refused = under_lavis_names(file, family, true).err().unwrap().to_string();
        assert!(refused.contains("classifier.weight"), "{refused}");
    }

    #[test]
    fn trained_parts_alone_are_what_lavis_publishes() {
        let family = Family::of(&Blip2Config::from_json("{}").unwrap()).unwrap();
        let file = Memory::boxed(&[
            ("query_tokens", &[1, 1, 1], &[0.0]),
            ("vision_model.post_layernorm.weight", &[1], &[0.0]),
            ("vision_model.embeddings.class_embedding", &[1, 1, 1], &[0.0]),
        ]);
        let lavis = under_lavis_names(file, family, false).unwrap();
        assert_eq!(names(&lavis), ["query_tokens", "ln_vision.weight"]);
    }
}
