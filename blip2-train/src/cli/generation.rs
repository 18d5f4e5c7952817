//! Generation options by the names of Hugging Face's generation config, on top of a named set of defaults.

use blip2_model::generate::GenerateOptions;
use blip2_model::language::Architecture;
use clap::{Args, ValueEnum};

/// Named sets of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// As LAVIS evaluates: beam 5, its prompts and length penalties
    Lavis,
    /// The checkpoint's generation_config.json: greedy, 20 new tokens
    Hf,
}

/// See the module documentation.
#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct GenerationArgs {
    /// Defaults that the other options change
    #[arg(long, value_enum, default_value = "lavis")]
    pub preset: Preset,
    /// Text for the language model; `{}` stands for the question [default: the preset's]
    #[arg(long)]
    pub prompt: Option<String>,
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    #[arg(long)]
    pub min_new_tokens: Option<usize>,
    #[arg(long)]
    pub num_beams: Option<usize>,
    #[arg(long, allow_negative_numbers = true)]
    pub length_penalty: Option<f64>,
    #[arg(long)]
    pub repetition_penalty: Option<f64>,
    #[arg(long)]
    pub no_repeat_ngram_size: Option<usize>,
    /// Sample; without it temperature, top-k and top-p have no effect
    #[arg(long)]
    pub do_sample: bool,
    #[arg(long)]
    pub temperature: Option<f64>,
    #[arg(long)]
    pub top_k: Option<usize>,
    #[arg(long)]
    pub top_p: Option<f64>,
    #[arg(long)]
    pub seed: Option<u64>,
}

impl GenerationArgs {
    /// The options for captions or, with `question`, for answers; `stored` are the checkpoint's.
    pub fn options(
        &self,
        stored: Option<&GenerateOptions>,
        architecture: Architecture,
        question: bool,
    ) -> GenerateOptions {
        let mut o = match (self.preset, question) {
            (Preset::Hf, _) => stored
                .cloned()
                .unwrap_or_else(|| GenerateOptions::for_architecture(architecture)),
            (Preset::Lavis, false) => GenerateOptions::lavis_caption(architecture),
            (Preset::Lavis, true) => GenerateOptions::lavis_vqa(architecture),
        };
        // which tokens begin, end and fill belongs to the checkpoint, not to a preset
        if let (Preset::Lavis, Some(stored)) = (self.preset, stored) {
            o.eos_token_ids = stored.eos_token_ids.clone();
            o.pad_token_id = stored.pad_token_id;
            o.decoder_start_token_id = stored.decoder_start_token_id;
        }
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
        o.num_return_sequences = 1;
        o.seed = self.seed.unwrap_or(o.seed);
        o
    }

    /// The prompt for captions or, with `question`, the template for questions.
    pub fn prompt(&self, question: bool) -> String {
        let preset = match (self.preset, question) {
            (Preset::Lavis, false) => "a photo of",
            (Preset::Lavis, true) => "Question: {} Short answer:",
            (Preset::Hf, false) => "",
            (Preset::Hf, true) => "Question: {} Answer:",
        };
        self.prompt.clone().unwrap_or_else(|| preset.to_owned())
    }
}
