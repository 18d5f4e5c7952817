//! Parameter paths of the trainable modules -> names in Hugging Face and LAVIS files.

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// `transformers` BLIP-2 classes; parts they lack (`temp`, the language-model head) keep LAVIS's names.
    HuggingFace,
    /// LAVIS checkpoints.
    Lavis,
}

/// Name of parameter `path` of a [`Bridge`](blip2_model::qformer::Bridge).
pub fn bridge_name(path: &str, convention: Convention) -> String {
    use Convention::{HuggingFace, Lavis};
    let hf = convention == HuggingFace;
    let parts: Vec<&str> = path.split('.').collect();
    let tail = parts[parts.len() - 1];
    match parts.as_slice() {
        ["qformer", "layers", index, rest @ ..] => {
            let root = match convention {
                HuggingFace => "qformer.encoder.layer",
                Lavis => "Qformer.bert.encoder.layer",
            };
            format!("{root}.{index}.{}", layer_name(rest, convention))
        }
        ["qformer", "embeddings", table, ..] => match convention {
            HuggingFace => format!("embeddings.{table}.weight"),
            Lavis => format!("Qformer.bert.embeddings.{table}.weight"),
        },
        ["qformer", "layernorm", _] if hf => format!("qformer.layernorm.{tail}"),
        ["qformer", "layernorm", _] => format!("Qformer.bert.embeddings.LayerNorm.{tail}"),
        ["ln_vision", _] if hf => format!("vision_model.post_layernorm.{tail}"),
        ["vision_projection", ..] if hf => format!("vision_projection.{tail}"),
        ["vision_projection", ..] => format!("vision_proj.{tail}"),
        ["text_projection", ..] if hf => format!("text_projection.{tail}"),
        ["text_projection", ..] => format!("text_proj.{tail}"),
        ["lm_head", "bias"] => "Qformer.cls.predictions.bias".into(),
        ["lm_head", "dense", _] => format!("Qformer.cls.predictions.transform.dense.{tail}"),
        ["lm_head", "layer_norm", _] => {
            format!("Qformer.cls.predictions.transform.LayerNorm.{tail}")
        }
        ["language_projection", _] if !hf => format!("llm_proj.{tail}"),
        _ => path.to_string(),
    }
}

fn layer_name(rest: &[&str], convention: Convention) -> String {
    let inner = match convention {
        Convention::HuggingFace => "attention",
        Convention::Lavis => "self",
    };
    let suffix = |ffn: &str| if ffn == "ffn_query" { "_query" } else { "" };
    match rest {
        [block @ ("attention" | "crossattention"), part, tail] => match *part {
            "dense" => format!("{block}.output.dense.{tail}"),
            "layer_norm" => format!("{block}.output.LayerNorm.{tail}"),
            _ => format!("{block}.{inner}.{part}.{tail}"),
        },
        [ffn, "intermediate", tail] => format!("intermediate{}.dense.{tail}", suffix(ffn)),
        [ffn, "output", tail] => format!("output{}.dense.{tail}", suffix(ffn)),
        [ffn, "layer_norm", tail] => format!("output{}.LayerNorm.{tail}", suffix(ffn)),
        other => other.join("."),
    }
}
