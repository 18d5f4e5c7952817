//! Named defaults and importers: LAVIS's `generate` / `predict_answers` arguments
//! (`lavis/models/blip2_models/blip2_{opt,t5}.py`) and transformers' `generation_config.json`.
//!
//! LAVIS pins transformers 4.33, whose beam search differs in two corners from the later one that
//! [`super::beam`] follows: its stop test counts one token more, and a hypothesis cut off at the maximum
//! length is divided by one token more. The numbers below are LAVIS's; the algorithm is the later one.

use serde_json::{Map, Value};

use super::options::{GenerateOptions, OptionsError};
use crate::language::Architecture;

/// Default `max_length` of transformers; as long as nobody changed it, it means 20 new tokens.
const HF_DEFAULT_MAX_LENGTH: u64 = 20;

/// Keys of a generation config that change nothing about which tokens come out here.
const HARMLESS: [&str; 13] = [
    "transformers_version",
    "bos_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_legacy_cache",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "disable_compile",
    "trust_remote_code",
];

/// Features that are not built, with the value that switches each off.
const NEUTRAL: [(&str, f64); 12] = [
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("typical_p", 1.0),
    ("min_p", 0.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("guidance_scale", 1.0),
    ("renormalize_logits", 0.0),
    ("remove_invalid_values", 0.0),
    ("token_healing", 0.0),
];

impl GenerateOptions {
    /// transformers' defaults (greedy, 20 new tokens) with the special tokens of the published BLIP-2
    /// checkpoints: OPT ends at the newline 50118, not at `</s>`; T5 ends at 1 and starts from 0.
    pub fn for_architecture(architecture: Architecture) -> Self {
        match architecture {
            Architecture::DecoderOnly => Self {
                eos_token_ids: vec![50118],
                pad_token_id: Some(1),
                ..Self::default()
            },
            Architecture::EncoderDecoder => Self {
                eos_token_ids: vec![1],
                pad_token_id: Some(0),
                decoder_start_token_id: Some(0),
                ..Self::default()
            },
        }
    }

    /// LAVIS's `generate` defaults: 5 beams, `max_length=30`, `min_length=1`, `top_p=0.9`.
    pub fn lavis_caption(architecture: Architecture) -> Self {
        Self {
            num_beams: 5,
            top_p: 0.9,
            ..Self::for_architecture(architecture)
        }
        .with_lavis_lengths(architecture, 30, 1)
    }

    /// LAVIS's `predict_answers` defaults: 5 beams, 10 new tokens, length penalty 0 (OPT) or -1 (T5).
    pub fn lavis_vqa(architecture: Architecture) -> Self {
        Self {
            num_beams: 5,
            max_new_tokens: 10,
            length_penalty: match architecture {
                Architecture::DecoderOnly => 0.0,
                Architecture::EncoderDecoder => -1.0,
            },
            ..Self::for_architecture(architecture)
        }
    }

    /// Translates the `max_length` and `min_length` that LAVIS's `generate` takes.
    ///
    /// Both count one token that is not new: OPT's dummy start of sequence, T5's decoder start. T5's
    /// `max_length` is the exception, LAVIS passes it on as `max_new_tokens`. So OPT's 30 means 29 new
    /// tokens, T5's 30 means 30, and a `min_length` of 8 forbids the end before 7 tokens exist.
    pub fn with_lavis_lengths(
        mut self,
        architecture: Architecture,
        max_length: usize,
        min_length: usize,
    ) -> Self {
        self.max_new_tokens = match architecture {
            Architecture::DecoderOnly => max_length.saturating_sub(1),
            Architecture::EncoderDecoder => max_length,
        };
        self.min_new_tokens = min_length.saturating_sub(1);
        self
    }

    /// Reads a `generation_config.json` on top of [`GenerateOptions::for_architecture`].
    ///
    /// Metadata and output switches are skipped. A feature that this engine lacks, or a key that it
    /// does not know, is an error unless its value means "off". `max_length` and `min_length` count the prompt
    /// on a decoder-only model and cannot be translated there; `max_new_tokens` overrides them.
    pub fn hf(json: &str, architecture: Architecture) -> Result<Self, ImportError> {
        let file: Map<String, Value> = serde_json::from_str(json)?;
        let base = serde_json::to_value(Self::for_architecture(architecture))?;
        let Value::Object(mut merged) = base else {
            unreachable!("a struct serialises to an object")
        };
        for (key, value) in &file {
            let known = merged.contains_key(key);
            match key.as_str() {
                // the one option for which transformers gives null a meaning of its own
                "top_k" if value.is_null() => {
                    merged.insert(key.clone(), 0.into());
                }
                _ if value.is_null() || key.starts_with('_') => {}
                "max_length" => {
                    if let Some(count) = new_tokens_from_max(value, &file, architecture)? {
                        merged.insert("max_new_tokens".into(), count.into());
                    }
                }
                "min_length" => {
                    if let Some(count) = new_tokens_from_min(value, &file, architecture)? {
                        merged.insert("min_new_tokens".into(), count.into());
                    }
                }
                // not a key of transformers; a file that sets it was not written by it
                "seed" => return Err(unsupported(key, value)),
                _ if known => {
                    merged.insert(key.clone(), value.clone());
                }
                key if HARMLESS.contains(&key) || is_neutral(key, value) => {}
                _ => return Err(unsupported(key, value)),
            }
        }
        let options: Self = serde_json::from_value(Value::Object(merged))?;
        options.validate(architecture)?;
        Ok(options)
    }
}

fn is_neutral(key: &str, value: &Value) -> bool {
    let number = value
        .as_f64()
        .or_else(|| value.as_bool().map(|on| f64::from(u8::from(on))));
    NEUTRAL
        .iter()
        .any(|(name, neutral)| *name == key && number == Some(*neutral))
}

fn unsupported(key: &str, value: &Value) -> ImportError {
    ImportError::Unsupported {
        key: key.to_string(),
        value: value.clone(),
    }
}

fn is_set(file: &Map<String, Value>, key: &str) -> bool {
    file.get(key).is_some_and(|value| !value.is_null())
}

fn new_tokens_from_max(
    value: &Value,
    file: &Map<String, Value>,
    architecture: Architecture,
) -> Result<Option<u64>, ImportError> {
    let total = value.as_u64().ok_or_else(|| unsupported("max_length", value))?;
    if is_set(file, "max_new_tokens") {
        return Ok(None);
    }
    match architecture {
        _ if total == HF_DEFAULT_MAX_LENGTH => Ok(Some(total)),
        Architecture::EncoderDecoder => Ok(Some(total.saturating_sub(1))),
        Architecture::DecoderOnly => Err(ImportError::TotalLength {
            key: "max_length",
            instead: "max_new_tokens",
            total,
        }),
    }
}

fn new_tokens_from_min(
    value: &Value,
    file: &Map<String, Value>,
    architecture: Architecture,
) -> Result<Option<u64>, ImportError> {
    let total = value.as_u64().ok_or_else(|| unsupported("min_length", value))?;
    // a prompt is never shorter than one token, so a minimum of one is always met
    if total <= 1 || is_set(file, "min_new_tokens") {
        return Ok(None);
    }
    match architecture {
        Architecture::EncoderDecoder => Ok(Some(total - 1)),
        Architecture::DecoderOnly => Err(ImportError::TotalLength {
            key: "min_length",
            instead: "min_new_tokens",
            total,
        }),
    }
}

/// Why a generation config cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Not JSON, or a value of the wrong type.
    #[error("generation config is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A feature that this engine does not have.
    #[error("generation config asks for `{key}: {value}`, which is not supported; remove the key")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: Value,
    },
    /// A limit that includes a prompt of unknown length.
    #[error("`{key}: {total}` counts the prompt on a decoder-only model; use `{instead}`")]
    TotalLength {
        /// The key.
        key: &'static str,
        /// The key to use.
        instead: &'static str,
        /// Its value.
        total: u64,
    },
    /// The values contradict each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use Architecture::{DecoderOnly, EncoderDecoder};

    /// https://github.com/salesforce/LAVIS/issues/707: 30 must not become -6, nor 30 on OPT.
    #[test]
    fn lavis_lengths_become_new_tokens() {
        let opt = GenerateOptions::lavis_caption(DecoderOnly);
        assert_eq!((opt.max_new_tokens, opt.min_new_tokens), (29, 0));
        assert_eq!(opt.eos_token_ids, [50118]);
        let t5 = GenerateOptions::lavis_caption(EncoderDecoder);
        assert_eq!((t5.max_new_tokens, t5.min_new_tokens), (30, 0));
        let long = t5.with_lavis_lengths(DecoderOnly, 50, 8);
        assert_eq!((long.max_new_tokens, long.min_new_tokens), (49, 7));
    }

    #[test]
    fn lavis_answers_prefer_short_ones() {
        let opt = GenerateOptions::lavis_vqa(DecoderOnly);
        let t5 = GenerateOptions::lavis_vqa(EncoderDecoder);
        assert_eq!((opt.length_penalty, opt.max_new_tokens), (0.0, 10));
        assert_eq!((t5.length_penalty, t5.max_new_tokens), (-1.0, 10));
        for (options, architecture) in [(opt, DecoderOnly), (t5, EncoderDecoder)] {
            options.validate(architecture).unwrap();
        }
    }

    #[test]
    fn reads_a_published_generation_config() {
        let json = r#"{"_from_model_config": true, "bos_token_id": 2, "eos_token_id": 50118,
            "pad_token_id": 1, "top_k": null, "typical_p": 1.0, "transformers_version": "4.47.0"}"#;
        let options = GenerateOptions::hf(json, DecoderOnly).unwrap();
        let expected = GenerateOptions {
            top_k: 0,
            ..GenerateOptions::for_architecture(DecoderOnly)
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn refuses_what_it_cannot_honour() {
        let hf = |json| GenerateOptions::hf(json, DecoderOnly).unwrap_err();
        assert!(matches!(
            hf(r#"{"num_beam_groups": 2}"#),
            ImportError::Unsupported { key, .. } if key == "num_beam_groups"
        ));
        assert!(matches!(
            hf(r#"{"max_length": 50}"#),
            ImportError::TotalLength { total: 50, .. }
        ));
        assert!(matches!(hf(r#"{"top_p": 2}"#), ImportError::Options(_)));
        assert!(matches!(hf("[]"), ImportError::Json(_)));
    }

    #[test]
    fn lengths_of_encoder_decoder_configs_lose_the_start_token() {
        let hf = |json| GenerateOptions::hf(json, EncoderDecoder).unwrap();
        let options = hf(r#"{"max_length": 31, "min_length": 4}"#);
        assert_eq!((options.max_new_tokens, options.min_new_tokens), (30, 3));
        assert_eq!(hf(r#"{"max_length": 20}"#).max_new_tokens, 20);
        assert_eq!(hf(r#"{"max_length": 31, "max_new_tokens": 5}"#).max_new_tokens, 5);
    }
}
