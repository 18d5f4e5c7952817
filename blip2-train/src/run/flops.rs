//! Floating-point operations of a training step, counted from the configurations: two per multiplication
//! in a matrix product, everything else neglected.
//!
//! A trained part costs three times its forward pass (values, gradients of inputs, gradients of weights); a
//! frozen part that gradients pass through twice; a frozen part in front of everything once.

use blip2_model::qformer::QFormerConfig;
use blip2_model::vision::VisionConfig;

/// Text length, batch and queries of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSize {
    /// Pictures.
    pub batch: usize,
    /// Query tokens.
    pub queries: usize,
    /// Text tokens, on average.
    pub text: usize,
}

/// One picture through the encoder.
pub fn encoder_forward(config: &VisionConfig) -> f64 {
    let (width, mlp) = (config.hidden_size(), config.intermediate_size());
    let tokens = config.num_tokens() as f64;
    let patches = tokens - 1.0;
    let (width, mlp) = (width as f64, mlp as f64);
    let block = tokens * (8.0 * width * width + 4.0 * width * mlp) + 4.0 * tokens * tokens * width;
    let patch = config.patch_size().pow(2) as f64 * 3.0;
    2.0 * patches * patch * width + config.num_hidden_layers() as f64 * block
}

/// One row of `rows` tokens through the Q-Former, of which `queries` also attend to `image` tokens; keys and
/// values of the image are not counted. `seen` is what self-attention sees.
fn qformer_pass(config: &QFormerConfig, rows: f64, queries: f64, seen: f64, image: f64) -> f64 {
    let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
    let layers = config.num_hidden_layers;
    let cross = (0..layers).filter(|&i| config.has_cross_attention(i)).count() as f64;
    let own = rows * (8.0 * d * d + 4.0 * d * f) + 4.0 * rows * seen * d;
    let attended = queries * 4.0 * d * d + 4.0 * queries * image * d;
    layers as f64 * own + cross * attended
}

/// Keys and values of one picture in all cross-attention layers.
fn image_keys(config: &QFormerConfig, image: f64) -> f64 {
    let cross = (0..config.num_hidden_layers)
        .filter(|&i| config.has_cross_attention(i))
        .count();
    let (d, c) = (config.hidden_size as f64, config.encoder_hidden_size as f64);
    cross as f64 * 4.0 * image * c * d
}

/// A step of stage 1 on one process. `encode` is false when features come from a store.
pub fn stage1_step(vision: &VisionConfig, qformer: &QFormerConfig, size: StepSize, encode: bool) -> f64 {
    let (q, t, n) = (size.queries as f64, size.text as f64, vision.num_tokens() as f64);
    let pass = |rows, queries, seen| qformer_pass(qformer, rows, queries, seen, n);
    let d = qformer.hidden_size as f64;
    let head = t * 2.0 * d * (d + qformer.vocab_size as f64);
    let trained = image_keys(qformer, n)
        + pass(q, q, q)
        + pass(t, 0.0, t)
        + 3.0 * pass(q + t, q, q + t)
        + pass(t, 0.0, q + t)
        + head;
    let encoder = if encode { encoder_forward(vision) } else { 0.0 };
    size.batch as f64 * (encoder + 3.0 * trained)
}

/// A step of stage 2 on one process; `llm` is the number of parameters of the language model that a token
/// passes (the embedding table is none of them, the output layer is).
pub fn stage2_step(
    vision: &VisionConfig,
    qformer: &QFormerConfig,
    llm: f64,
    size: StepSize,
    encode: bool,
) -> f64 {
    let (q, t, n) = (size.queries as f64, size.text as f64, vision.num_tokens() as f64);
    let trained = image_keys(qformer, n) + qformer_pass(qformer, q, q, q, n);
    let encoder = if encode { encoder_forward(vision) } else { 0.0 };
    size.batch as f64 * (encoder + 3.0 * trained + 2.0 * 2.0 * llm * (q + t))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::vision::EvaVitConfig;

    #[test]
    fn the_encoder_costs_what_its_parameters_say() {
        let vision = VisionConfig::Eva(EvaVitConfig::default());
        let flops = encoder_forward(&vision);
        // every matrix parameter meets every token once; attention adds 4 N^2 D per block
        let blocks = 39.0 * (4.0 * 1408.0f64.powi(2) + 2.0 * 1408.0 * 6144.0);
        let expected = 2.0 * 257.0 * blocks + 39.0 * 4.0 * 257.0f64.powi(2) * 1408.0;
        let patch = 2.0 * 256.0 * 588.0 * 1408.0;
        assert!((flops / (expected + patch) - 1.0).abs() < 1e-12);
        assert!(flops > 0.5e12 && flops < 0.6e12);
    }

    #[test]
    fn a_store_saves_exactly_the_encoder() {
        let vision = VisionConfig::Eva(EvaVitConfig::default());
        let size = StepSize {
            batch: 3,
            queries: 32,
            text: 12,
        };
        let qformer = QFormerConfig::default();
        let saved = stage1_step(&vision, &qformer, size, true) - stage1_step(&vision, &qformer, size, false);
        assert!((saved / (3.0 * encoder_forward(&vision)) - 1.0).abs() < 1e-12);
    }
}
