//! What a person asks for on top of a named set of defaults, by the names of Hugging Face's generation config. With the
//! feature `clap` the commands take these types as arguments; the docs are then their help.

use super::GenerateOptions;
use crate::language::Architecture;

/// Named sets of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Preset {
    /// As LAVIS evaluates: beam 5
    Lavis,
    /// The checkpoint's generation_config.json: greedy, 20 new tokens
    Hf,
}

impl Preset {
    /// The options of the preset; `stored` are the checkpoint's, `question` picks LAVIS's settings for answers.
    pub fn options(
        self,
        stored: Option<&GenerateOptions>,
        architecture: Architecture,
        question: bool,
    ) -> GenerateOptions {
        let mut options = match (self, question) {
            (Self::Hf, _) => stored
                .cloned()
                .unwrap_or_else(|| GenerateOptions::for_architecture(architecture)),
            (Self::Lavis, false) => GenerateOptions::lavis_caption(architecture),
            (Self::Lavis, true) => GenerateOptions::lavis_vqa(architecture),
        };
        // which tokens begin, end, fill and never come belongs to the checkpoint, not to a preset
        if let (Self::Lavis, Some(stored)) = (self, stored) {
            options.eos_token_ids = stored.eos_token_ids.clone();
            options.pad_token_id = stored.pad_token_id;
            options.decoder_start_token_id = stored.decoder_start_token_id;
            options.bad_words_ids = stored.bad_words_ids.clone();
            options.suppress_tokens = stored.suppress_tokens.clone();
            options.begin_suppress_tokens = stored.begin_suppress_tokens.clone();
        }
        options
    }
}

/// Values to put in place of a preset's; what is `None` stays.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    feature = "clap",
    derive(clap::Args),
    command(next_help_heading = "Generation (names as in Hugging Face's GenerationConfig)")
)]
pub struct Overrides {
    /// Most new tokens, the end token included [max_new_tokens; hf: 20, lavis: 29 (OPT) or 30 (T5), answers 10]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub max_new_tokens: Option<usize>,
    /// New tokens before the text may end [min_new_tokens; 0]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub min_new_tokens: Option<usize>,
    /// Beams; 1 is greedy search, or plain sampling [num_beams; hf: 1, lavis: 5]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub num_beams: Option<usize>,
    /// Above 0 favours long texts in a beam search, below 0 short ones [length_penalty; 1; lavis answers: 0 (OPT) or -1 (T5)]
    #[cfg_attr(feature = "clap", arg(long, value_name = "X", allow_negative_numbers = true))]
    pub length_penalty: Option<f64>,
    /// Above 1 makes tokens that are already there less likely [repetition_penalty; 1]
    #[cfg_attr(feature = "clap", arg(long, value_name = "X"))]
    pub repetition_penalty: Option<f64>,
    /// No N tokens in a row may come twice; 0 allows it [no_repeat_ngram_size; 0]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub no_repeat_ngram_size: Option<usize>,
    /// Sample; without it temperature, top-k and top-p have no effect [do_sample; off]
    #[cfg_attr(feature = "clap", arg(long))]
    pub do_sample: bool,
    /// Below 1 sharpens the distribution, above 1 flattens it [temperature; 1]
    #[cfg_attr(feature = "clap", arg(long, value_name = "X"))]
    pub temperature: Option<f64>,
    /// Sample among this many best tokens; 0 takes all [top_k; 50]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub top_k: Option<usize>,
    /// Sample among the best tokens of this total probability [top_p; hf: 1, lavis: 0.9]
    #[cfg_attr(feature = "clap", arg(long, value_name = "P"))]
    pub top_p: Option<f64>,
    /// The same seed gives the same samples [0; no counterpart]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub seed: Option<u64>,
}

impl Overrides {
    /// Puts the given values in place.
    pub fn apply(&self, o: &mut GenerateOptions) {
        o.max_new_tokens = self.max_new_tokens.unwrap_or(o.max_new_tokens);
        o.min_new_tokens = self.min_new_tokens.unwrap_or(o.min_new_tokens);
        o.num_beams = self.num_beams.unwrap_or(o.num_beams);
        o.length_penalty = self.length_penalty.unwrap_or(o.length_penalty);
        o.repetition_penalty = self.repetition_penalty.unwrap_or(o.repetition_penalty);
        o.no_repeat_ngram_size = self.no_repeat_ngram_size.unwrap_or(o.no_repeat_ngram_size);
        o.do_sample |= self.do_sample;
        o.temperature = self.temperature.unwrap_or(o.temperature);
        o.top_k = self.top_k.unwrap_or(o.top_k);
        o.top_p = self.top_p.unwrap_or(o.top_p);
        o.seed = self.seed.unwrap_or(o.seed);
    }
}
