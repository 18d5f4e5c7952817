//! Names in Hugging Face files <-> module paths, one table per family, read in both directions.
//!
//! Names on both sides are relative to the language model: a BLIP-2 file prefixes them with
//! `language_model.`.

use super::LanguageConfig;

/// Name pattern in the file, path pattern in the module. `{i}` stands for an index, a final `*` for the
/// rest of the name. The first matching row counts, so a special row stands before a general one.
pub type KeyRow = (&'static str, &'static str);

/// The table of one language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTable {
    rows: Vec<KeyRow>,
    aliases: Vec<(&'static str, &'static str)>,
    ignored: &'static [&'static str],
}

/// `OPTForCausalLM`.
const OPT: &[KeyRow] = &[
    ("lm_head.*", "lm_head.*"),
    ("model.decoder.*", "decoder.*"),
    // opt-125m and opt-350m were saved from the model without its head
    ("decoder.*", "decoder.*"),
];

/// `LlamaForCausalLM`.
const LLAMA: &[KeyRow] = &[("lm_head.*", "lm_head.*"), ("model.*", "*")];

/// Derived from the configuration; saved by transformers before 4.32.
const LLAMA_IGNORED: &[&str] = &["model.layers.{i}.self_attn.rotary_emb.inv_freq"];

/// `T5ForConditionalGeneration`, both forms of the feed-forward.
const T5: &[KeyRow] = &[
    ("shared.*", "shared.*"),
    ("lm_head.*", "lm_head.*"),
    // one table per stack, filed under its first block
    (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.*",
        "encoder.relative_attention_bias.*",
    ),
    (
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.*",
        "decoder.relative_attention_bias.*",
    ),
    // sub-layers are numbered; the feed-forward is 1 in the encoder and 2 in the decoder
    (
        "encoder.block.{i}.layer.0.layer_norm.*",
        "encoder.blocks.{i}.self_attention.norm.*",
    ),
    (
        "encoder.block.{i}.layer.0.SelfAttention.*",
        "encoder.blocks.{i}.self_attention.*",
    ),
    (
        "encoder.block.{i}.layer.1.layer_norm.*",
        "encoder.blocks.{i}.feed_forward.norm.*",
    ),
    (
        "encoder.block.{i}.layer.1.DenseReluDense.wo.*",
        "encoder.blocks.{i}.feed_forward.wo.*",
    ),
    ("encoder.final_layer_norm.*", "encoder.final_norm.*"),
    (
        "decoder.block.{i}.layer.0.layer_norm.*",
        "decoder.blocks.{i}.self_attention.norm.*",
    ),
    (
        "decoder.block.{i}.layer.0.SelfAttention.*",
        "decoder.blocks.{i}.self_attention.*",
    ),
    (
        "decoder.block.{i}.layer.1.layer_norm.*",
        "decoder.blocks.{i}.cross_attention.norm.*",
    ),
    (
        "decoder.block.{i}.layer.1.EncDecAttention.*",
        "decoder.blocks.{i}.cross_attention.*",
    ),
    (
        "decoder.block.{i}.layer.2.layer_norm.*",
        "decoder.blocks.{i}.feed_forward.norm.*",
    ),
    (
        "decoder.block.{i}.layer.2.DenseReluDense.wo.*",
        "decoder.blocks.{i}.feed_forward.wo.*",
    ),
    ("decoder.final_layer_norm.*", "decoder.final_norm.*"),
];

/// T5 v1.1 and Flan-T5: gate and value.
const T5_GATED: &[KeyRow] = &[
    (
        "encoder.block.{i}.layer.1.DenseReluDense.wi_0.*",
        "encoder.blocks.{i}.feed_forward.wi_0.*",
    ),
    (
        "encoder.block.{i}.layer.1.DenseReluDense.wi_1.*",
        "encoder.blocks.{i}.feed_forward.wi_1.*",
    ),
    (
        "decoder.block.{i}.layer.2.DenseReluDense.wi_0.*",
        "decoder.blocks.{i}.feed_forward.wi_0.*",
    ),
    (
        "decoder.block.{i}.layer.2.DenseReluDense.wi_1.*",
        "decoder.blocks.{i}.feed_forward.wi_1.*",
    ),
];

/// T5 v1.0: its single input map has no number.
const T5_PLAIN: &[KeyRow] = &[
    (
        "encoder.block.{i}.layer.1.DenseReluDense.wi.*",
        "encoder.blocks.{i}.feed_forward.wi_0.*",
    ),
    (
        "decoder.block.{i}.layer.2.DenseReluDense.wi.*",
        "decoder.blocks.{i}.feed_forward.wi_0.*",
    ),
];

/// Left over in the first T5 releases; transformers drops it as well.
const T5_IGNORED: &[&str] = &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"];

impl KeyTable {
    /// The table of a model with this configuration.
    pub fn of(config: &LanguageConfig) -> Self {
        match config {
            LanguageConfig::Opt(opt) => Self {
                rows: OPT.to_vec(),
                aliases: tied(opt.tie_word_embeddings, "model.decoder.embed_tokens.weight"),
                ignored: &[],
            },
            LanguageConfig::Llama(llama) => Self {
                rows: LLAMA.to_vec(),
                aliases: tied(llama.tie_word_embeddings, "model.embed_tokens.weight"),
                ignored: LLAMA_IGNORED,
            },
            LanguageConfig::T5(t5) => {
                let dense = if t5.is_gated() { T5_GATED } else { T5_PLAIN };
                let mut aliases = tied(t5.tie_word_embeddings, "shared.weight");
                aliases.push(("encoder.embed_tokens.weight", "shared.weight"));
                aliases.push(("decoder.embed_tokens.weight", "shared.weight"));
                Self {
                    rows: [T5, dense].concat(),
                    aliases,
                    ignored: T5_IGNORED,
                }
            }
        }
    }

    /// Module path of a tensor in a file; `None` if the model has no such tensor.
    pub fn path(&self, name: &str) -> Option<String> {
        if self.is_ignored(name) {
            return None;
        }
        let mut rows = self.rows.iter();
        rows.find_map(|(file, module)| substitute(file, name, module))
    }

    /// Name in a file of the tensor at a module path.
    pub fn name(&self, path: &str) -> Option<String> {
        let mut rows = self.rows.iter();
        rows.find_map(|(file, module)| substitute(module, path, file))
    }

    /// Names that files may hold as copies of another tensor: (copy, original). A file may lack either.
    pub fn aliases(&self) -> &[(&'static str, &'static str)] {
        &self.aliases
    }

    /// Whether files may hold this name although nothing reads it.
    pub fn is_ignored(&self, name: &str) -> bool {
        let mut patterns = self.ignored.iter();
        patterns.any(|pattern| substitute(pattern, name, "").is_some())
    }
}

fn tied(tied: bool, table: &'static str) -> Vec<(&'static str, &'static str)> {
    match tied {
        true => vec![("lm_head.weight", table)],
        false => Vec::new(),
    }
}

/// Writes `name`, which must match `from`, in the form of `to`.
pub(crate) fn substitute(from: &str, name: &str, to: &str) -> Option<String> {
    let (mut rest, mut index) = (name, None);
    for part in from.split('.') {
        if part == "*" {
            break;
        }
        let (head, tail) = rest.split_once('.').unwrap_or((rest, ""));
        match part {
            "{i}" if head.bytes().all(|b| b.is_ascii_digit()) && !head.is_empty() => index = Some(head),
            _ if part == head => {}
            _ => return None,
        }
        rest = tail;
    }
    // an open pattern needs a rest, a closed one must have consumed everything
    if from.ends_with('*') == rest.is_empty() {
        return None;
    }
    let to = match index {
        Some(index) => to.replace("{i}", index),
        None => to.to_string(),
    };
    Some(match to.strip_suffix('*') {
        Some(prefix) => format!("{prefix}{rest}"),
        None => to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::{LlamaConfig, OptConfig, T5Config};

    #[test]
    fn patterns_match_whole_names() {
        let row = |name| substitute("a.{i}.b.*", name, "x.{i}.y.*");
        assert_eq!(row("a.12.b.w"), Some("x.12.y.w".into()));
        assert_eq!(row("a.12.b.c.w"), Some("x.12.y.c.w".into()));
        assert_eq!(row("a.12.b"), None, "nothing for the rest");
        assert_eq!(row("a.q.b.w"), None, "not an index");
        assert_eq!(row("a..b.w"), None, "empty index");
        assert_eq!(row("aa.1.b.w"), None, "segments are not prefixes");
        assert_eq!(substitute("a.b", "a.b.c", "x"), None, "longer than closed");
        assert_eq!(substitute("a.b", "a.b", "x"), Some("x".into()));
    }

    #[test]
    fn names_and_paths_are_inverse() {
        let plain = T5Config::default();
        let gated = T5Config::preset("flan-t5-xl").unwrap();
        let cases = [
            (
                LanguageConfig::Opt(OptConfig::default()),
                "model.decoder.layers.3.self_attn.q_proj.bias",
                "decoder.layers.3.self_attn.q_proj.bias",
            ),
            (
                LanguageConfig::T5(plain),
                "decoder.block.1.layer.2.DenseReluDense.wi.weight",
                "decoder.blocks.1.feed_forward.wi_0.weight",
            ),
            (
                LanguageConfig::T5(gated),
                "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "decoder.relative_attention_bias.weight",
            ),
            (
                LanguageConfig::Llama(LlamaConfig::default()),
                "model.layers.1.mlp.gate_proj.weight",
                "layers.1.mlp.gate_proj.weight",
            ),
        ];
        for (config, name, path) in cases {
            let table = KeyTable::of(&config);
            assert_eq!(table.path(name).as_deref(), Some(path));
            assert_eq!(table.name(path).as_deref(), Some(name));
        }
    }

    #[test]
    fn leftovers_of_old_files_have_no_place() {
        let llama = KeyTable::of(&LanguageConfig::Llama(LlamaConfig::default()));
        let t5 = KeyTable::of(&LanguageConfig::T5(T5Config::default()));
        for (table, name) in [
            (llama, "model.layers.11.self_attn.rotary_emb.inv_freq"),
            (t5, T5_IGNORED[0]),
        ] {
            assert!(table.is_ignored(name));
            assert_eq!(table.path(name), None);
        }
    }

    #[test]
    fn headless_opt_names_load_but_are_never_written() {
        let table = KeyTable::of(&LanguageConfig::Opt(OptConfig::default()));
        let path = table.path("decoder.embed_tokens.weight").unwrap();
        assert_eq!(table.name(&path).unwrap(), "model.decoder.embed_tokens.weight");
    }
}
