//! Generation options by the names of Hugging Face's generation config, on top of a named set of defaults.

use blip2_model::generate::GenerateOptions;
use blip2_model::generate::overrides::{Overrides, Preset};
use blip2_model::language::Architecture;
use clap::Args;

/// See the module documentation.
#[derive(Clone, Debug, Args)]
pub struct GenerationArgs {
    /// Defaults that the other options change
    #[arg(long, value_enum, default_value = "lavis")]
    pub preset: Preset,
    /// Text for the language model; `{}` stands for the question [default: the preset's]
    #[arg(long)]
    pub prompt: Option<String>,
    /// What replaces the preset's values.
    #[command(flatten)]
    pub overrides: Overrides,
}

impl GenerationArgs {
    /// The options for captions or, with `question`, for answers; `stored` are the checkpoint's.
    pub fn options(
        &self,
        stored: Option<&GenerateOptions>,
        architecture: Architecture,
        question: bool,
    ) -> GenerateOptions {
        let mut o = self.preset.options(stored, architecture, question);
        self.overrides.apply(&mut o);
        o.num_return_sequences = 1;
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
