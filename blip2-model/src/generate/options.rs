//! Generation options under the names of `transformers/generation/configuration_utils.py`, so that a
//! `generation_config.json`, a command line and a request body all read the same.
//!
//! Lengths are counted in *new* tokens only. `max_length`, which means four different things across
//! LAVIS, transformers versions and architectures, exists solely in the importers of
//! [`super::presets`].

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::language::Architecture;

/// When a beam search stops looking for better hypotheses (`early_stopping` of transformers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: once no running beam, scored at its current length, beats the worst kept hypothesis.
    #[default]
    Heuristic,
    /// `true`: as soon as `num_beams` hypotheses are complete.
    WhenFull,
    /// `"never"`: once no running beam can beat the worst kept hypothesis even at the best length.
    Never,
}

impl FromStr for EarlyStopping {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "false" => Ok(Self::Heuristic),
            "true" => Ok(Self::WhenFull),
            "never" => Ok(Self::Never),
            other => Err(OptionsError::EarlyStopping {
                found: other.to_string(),
            }),
        }
    }
}

impl Serialize for EarlyStopping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Heuristic => serializer.serialize_bool(false),
            Self::WhenFull => serializer.serialize_bool(true),
            Self::Never => serializer.serialize_str("never"),
        }
    }
}

impl<'de> Deserialize<'de> for EarlyStopping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Flag(bool),
            Word(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Flag(true) => Ok(Self::WhenFull),
            Raw::Flag(false) => Ok(Self::Heuristic),
            Raw::Word(word) => word.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// How to continue one prompt. [`Default`] is transformers' default: greedy, 20 new tokens, no end token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// Most tokens to generate, the end token included.
    pub max_new_tokens: usize,
    /// Tokens before which no end token may come.
    pub min_new_tokens: usize,
    /// Beams; 1 means greedy, or plain sampling with `do_sample`.
    pub num_beams: usize,
    /// Exponent `a` of the final score `sum of log-probabilities / length^a`; above 0 favours long answers.
    pub length_penalty: f64,
    /// When a beam search may stop.
    pub early_stopping: EarlyStopping,
    /// Scores of tokens already in the sequence are divided by this (multiplied where negative).
    pub repetition_penalty: f64,
    /// Every sequence of this many tokens may occur once; 0 switches the rule off.
    pub no_repeat_ngram_size: usize,
    /// Sequences of tokens that may not occur; `[[7], [3, 4]]` bans token 7, and 4 after 3.
    #[serde(deserialize_with = "list")]
    pub bad_words_ids: Vec<Vec<i64>>,
    /// Tokens that may not occur.
    #[serde(deserialize_with = "list")]
    pub suppress_tokens: Vec<i64>,
    /// Tokens with which the new text may not begin.
    #[serde(deserialize_with = "list")]
    pub begin_suppress_tokens: Vec<i64>,
    /// Draw from the distribution instead of taking its maximum.
    pub do_sample: bool,
    /// Divides the scores before sampling.
    pub temperature: f64,
    /// Keeps this many best tokens when sampling; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of best tokens that has this probability when sampling; 1 keeps all.
    pub top_p: f64,
    /// Sequences to return: the best of a beam search, or independent samples.
    pub num_return_sequences: usize,
    /// Seed of this prompt's own random stream: the same prompt, options and seed give the same sample,
    /// whatever else is in the batch.
    pub seed: u64,
    /// Tokens that end a sequence; a file may hold one id or a list.
    #[serde(rename = "eos_token_id", deserialize_with = "one_or_many")]
    pub eos_token_ids: Vec<i64>,
    /// Fills rectangular batches of ids; never part of a result.
    pub pad_token_id: Option<i64>,
    /// First decoder token of an encoder-decoder model. It counts as generated text for the
    /// repetition rules, as in transformers, and is not returned.
    pub decoder_start_token_id: Option<i64>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 20,
            min_new_tokens: 0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            num_return_sequences: 1,
            seed: 0,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            decoder_start_token_id: None,
        }
    }
}

/// A list; files may write null for an empty one.
fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        None(()),
        One(i64),
        Many(Vec<i64>),
    }
    let mut ids = match Raw::deserialize(deserializer)? {
        Raw::None(()) => Vec::new(),
        Raw::One(id) => vec![id],
        Raw::Many(ids) => ids,
    };
    // a set: the number of end tokens sizes the candidate list of a beam search
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

impl GenerateOptions {
    /// Whether `token` ends a sequence.
    pub fn is_eos(&self, token: i64) -> bool {
        self.eos_token_ids.contains(&token)
    }

    /// Whether the rules that look at earlier tokens are active.
    pub(super) fn reads_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.no_repeat_ngram_size > 0
            || self.bad_words_ids.iter().any(|word| word.len() > 1)
    }

    /// Refuses values that no search could honour.
    pub fn validate(&self, architecture: Architecture) -> Result<(), OptionsError> {
        let positive = |option, value: f64| in_range(option, value, value > 0.0, "above 0");
        let at_least_one = |option, value: usize| in_range(option, value as f64, value >= 1, ">= 1");
        at_least_one("max_new_tokens", self.max_new_tokens)?;
        at_least_one("num_beams", self.num_beams)?;
        at_least_one("num_return_sequences", self.num_return_sequences)?;
        positive("repetition_penalty", self.repetition_penalty)?;
        positive("temperature", self.temperature)?;
        in_range("length_penalty", self.length_penalty, true, "any number")?;
        let share = (0.0..=1.0).contains(&self.top_p);
        in_range("top_p", self.top_p, share, "between 0 and 1")?;
        if let Some(index) = self.bad_words_ids.iter().position(Vec::is_empty) {
            return Err(OptionsError::EmptyBadWord { index });
        }
        if self.min_new_tokens > self.max_new_tokens {
            return Err(OptionsError::MinAboveMax {
                min_new_tokens: self.min_new_tokens,
                max_new_tokens: self.max_new_tokens,
            });
        }
        let independent_samples = self.num_beams == 1 && self.do_sample;
        if !independent_samples && self.num_return_sequences > self.num_beams {
            return Err(OptionsError::TooManySequences {
                num_return_sequences: self.num_return_sequences,
                num_beams: self.num_beams,
            });
        }
        let needs_start = architecture == Architecture::EncoderDecoder && self.reads_history();
        if needs_start && self.decoder_start_token_id.is_none() {
            return Err(OptionsError::NoDecoderStart);
        }
        Ok(())
    }

    /// Names of options that differ from their default and yet change nothing in this combination,
    /// for a caller that wants to warn.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let default = Self::default();
        let mut names = Vec::new();
        if !self.do_sample {
            let sampling = [
                ("temperature", self.temperature != default.temperature),
                ("top_k", self.top_k != default.top_k),
                ("top_p", self.top_p != default.top_p),
            ];
            names.extend(sampling.iter().filter(|(_, set)| *set).map(|(name, _)| *name));
        }
        if self.num_beams == 1 && self.early_stopping != default.early_stopping {
            names.push("early_stopping");
        }
        names
    }
}

fn in_range(
    option: &'static str,
    value: f64,
    inside: bool,
    allowed: &'static str,
) -> Result<(), OptionsError> {
    if inside && value.is_finite() {
        return Ok(());
    }
    Err(OptionsError::OutOfRange {
        option,
        value,
        allowed,
    })
}

/// Why options cannot be honoured.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A number outside its domain.
    #[error("`{option}` is {value}; it must be {allowed}")]
    OutOfRange {
        /// Name as in `generation_config.json`.
        option: &'static str,
        /// What was given.
        value: f64,
        /// The domain in words.
        allowed: &'static str,
    },
    /// The two length limits contradict each other.
    #[error(
        "`min_new_tokens` ({min_new_tokens}) is above `max_new_tokens` ({max_new_tokens}); raise the latter"
    )]
    MinAboveMax {
        /// Lower limit.
        min_new_tokens: usize,
        /// Upper limit.
        max_new_tokens: usize,
    },
    /// Greedy search has one result and a beam search at most one per beam.
    #[error(
        "`num_return_sequences` ({num_return_sequences}) is above `num_beams` ({num_beams}); \
         use more beams, or `do_sample` with one beam"
    )]
    TooManySequences {
        /// Results asked for.
        num_return_sequences: usize,
        /// Beams available.
        num_beams: usize,
    },
    /// A repetition rule on an encoder-decoder model whose start token is unknown.
    #[error(
        "`repetition_penalty`, `no_repeat_ngram_size` and `bad_words_ids` of several tokens need \
         `decoder_start_token_id` on an encoder-decoder model; set it (T5: 0)"
    )]
    NoDecoderStart,
    /// A banned sequence without tokens.
    #[error("entry {index} of `bad_words_ids` is empty; leave it out")]
    EmptyBadWord {
        /// Position in the list.
        index: usize,
    },
    /// Not one of the three forms.
    #[error("`early_stopping` is `{found}`; it must be false, true or \"never\"")]
    EarlyStopping {
        /// What was given.
        found: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_that_files_use() {
        let one: GenerateOptions =
            serde_json::from_str(r#"{"eos_token_id": 50118, "early_stopping": "never"}"#).unwrap();
        assert_eq!(one.eos_token_ids, [50118]);
        assert_eq!(one.early_stopping, EarlyStopping::Never);
        let many: GenerateOptions =
            serde_json::from_str(r#"{"eos_token_id": [7, 2, 7], "early_stopping": true}"#).unwrap();
        assert_eq!(many.eos_token_ids, [2, 7]);
        assert_eq!(many.early_stopping, EarlyStopping::WhenFull);
        let text = serde_json::to_string(&many).unwrap();
        assert_eq!(serde_json::from_str::<GenerateOptions>(&text).unwrap(), many);
    }

    #[test]
    fn an_unknown_name_is_an_error_not_a_silent_default() {
        let error = serde_json::from_str::<GenerateOptions>(r#"{"max_length": 30}"#).unwrap_err();
        assert!(error.to_string().contains("max_length"), "{error}");
    }

    #[test]
    fn contradictions_are_typed() {
        let check = |change: fn(&mut GenerateOptions)| {
            let mut options = GenerateOptions::default();
            change(&mut options);
            options.validate(Architecture::EncoderDecoder).unwrap_err()
        };
        assert!(matches!(
            check(|o| o.temperature = 0.0),
            OptionsError::OutOfRange {
                option: "temperature",
                ..
            }
        ));
        assert!(matches!(
            check(|o| o.length_penalty = f64::NAN),
            OptionsError::OutOfRange {
                option: "length_penalty",
                ..
            }
        ));
        assert!(matches!(
            check(|o| o.min_new_tokens = 21),
            OptionsError::MinAboveMax { .. }
        ));
        assert!(matches!(
            check(|o| o.num_return_sequences = 2),
            OptionsError::TooManySequences { .. }
        ));
        assert_eq!(
            check(|o| o.repetition_penalty = 1.2),
            OptionsError::NoDecoderStart
        );
        assert_eq!(
            check(|o| o.bad_words_ids = vec![vec![4, 5]]),
            OptionsError::NoDecoderStart
        );
        assert_eq!(
            check(|o| o.bad_words_ids = vec![vec![4], vec![]]),
            OptionsError::EmptyBadWord { index: 1 }
        );
    }

    #[test]
    fn names_options_that_do_nothing() {
        let options = GenerateOptions {
            top_p: 0.9,
            early_stopping: EarlyStopping::WhenFull,
            ..Default::default()
        };
        assert_eq!(options.without_effect(), ["top_p", "early_stopping"]);
    }
}
