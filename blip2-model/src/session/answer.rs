//! Answers as the command prints them with `--json`: field names are a contract with programs that read them.

use serde::Serialize;

/// Milliseconds per part of a request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timing {
    /// Reading the checkpoint.
    pub load: f64,
    /// Decoding and resizing pictures.
    pub preprocess: f64,
    /// Image encoder.
    pub vision: f64,
    /// Q-Former and projection.
    pub qformer: f64,
    /// Prompt through the language model, and decoding: the first token is part of `prefill`.
    pub prefill: f64,
    /// All further tokens.
    pub decode: f64,
}

/// One generated text.
#[derive(Clone, Debug, Serialize)]
pub struct Output {
    /// Text without prompt and special tokens.
    pub text: String,
    /// Newly generated ids, the end token included.
    pub token_ids: Vec<i64>,
    /// Log-probability divided by `length ^ length_penalty`.
    pub score: f32,
    /// `eos`, `eos_first`, `length` or `cancelled`.
    pub stop: &'static str,
}

/// Answer to one caption or question.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Path of the picture.
    pub image: String,
    /// Prompt given to the language model.
    pub prompt: String,
    /// Best first.
    pub outputs: Vec<Output>,
    /// Where the time went.
    pub timing_ms: Timing,
}

/// One candidate answer with its likelihood.
#[derive(Clone, Debug, Serialize)]
pub struct RankedAnswer {
    /// The candidate.
    pub text: String,
    /// Log-probability of its tokens, in nats.
    pub log_likelihood: f32,
    /// Per token.
    pub mean_log_likelihood: f32,
}
