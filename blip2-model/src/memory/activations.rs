//! The largest set of intermediate tensors per phase. Counted are what a layer of the plain implementation holds
//! at its widest point: input, norm, projections, attention scores (in f32, before and after the softmax), or the
//! two sides of the feed-forward's non-linearity. Frees between them are what a reference count gives.

use serde::Serialize;

use super::Workload;
use crate::checkpoint::Part;
use crate::checkpoint::apply::burn_dtype;
use crate::config::Blip2Config;
use crate::language::LanguageConfig;
use crate::nn::Kernels;
use crate::vision::VisionConfig;
use crate::weights::DType;

/// One step of the work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// `vision`, `qformer`, `prefill` or `decode`.
    pub name: &'static str,
    /// Bytes alive at its widest point, besides weights and cache.
    pub bytes: usize,
}

/// Bytes per activation where matrices are kept in `stored`.
pub(super) fn compute_bytes<B: Kernels>(stored: DType) -> usize {
    B::compute_dtype(burn_dtype(stored)).size()
}

/// A stack of equal layers.
struct Layers {
    rows: usize,
    tokens: usize,
    attended: usize,
    width: usize,
    heads: usize,
    inner: usize,
    /// Matrices on the way into the feed-forward: 2 if it is gated.
    gates: usize,
}

impl Layers {
    /// Bytes at the widest point, for activations of `bytes` each.
    fn peak(&self, bytes: usize) -> usize {
        let token = self.rows * self.tokens * bytes;
        let scores = self.rows * self.heads * self.tokens * self.attended;
        // scores and probabilities in f32; a copy of either in the dtype of the activations
        let narrow = if bytes < 4 { scores * bytes } else { 0 };
        // residual, norm, the three projections, and these by head
        let attention = token * 8 * self.width + 2 * scores * 4 + narrow;
        let feed_forward = token * (2 * self.width + (self.gates + 1) * self.inner);
        attention.max(feed_forward)
    }

    /// The largest half-precision matrix of a layer, which a backend with wider activations may widen for a product.
    fn widened(&self, stored: DType, bytes: usize) -> usize {
        if stored.size() >= bytes {
            return 0;
        }
        self.width * self.inner.max(self.width) * bytes
    }
}

/// The phases of one request.
pub(super) fn phases<B: Kernels>(
    config: &Blip2Config,
    work: &Workload,
    kept: impl Fn(Part) -> DType,
) -> Vec<Phase> {
    let mut phases = Vec::new();
    let bytes = |part: Part| compute_bytes::<B>(kept(part));
    let vision = &config.vision_config;
    let side = work.image_size.unwrap_or(vision.image_size()) / vision.patch_size().max(1);
    let patches = side * side + 1;
    let tokens = work.batch * patches * vision.hidden_size();
    if config.has_vision() {
        let heads = match vision {
            VisionConfig::Eva(c) => c.num_attention_heads,
            VisionConfig::Clip(c) => c.num_attention_heads,
            VisionConfig::Dinov2(c) => c.num_attention_heads,
        };
        let layers = Layers {
            rows: work.batch,
            tokens: patches,
            attended: patches,
            width: vision.hidden_size(),
            heads,
            inner: vision.intermediate_size(),
            gates: 1,
        };
        let act = bytes(Part::Vision);
        phases.push(Phase {
            name: "vision",
            bytes: layers.peak(act) + layers.widened(kept(Part::Vision), act),
        });
    }
    // what the Q-Former attends to stays alive for further questions
    let q = &config.qformer_config;
    let crossing = (0..q.num_hidden_layers)
        .filter(|&i| q.has_cross_attention(i))
        .count();
    let features = (tokens + 2 * crossing * work.batch * patches * q.hidden_size) * bytes(Part::QFormer);
    let layers = Layers {
        rows: work.batch,
        tokens: config.num_query_tokens,
        attended: patches,
        width: q.hidden_size,
        heads: q.num_attention_heads,
        inner: q.intermediate_size,
        gates: 1,
    };
    phases.push(Phase {
        name: "qformer",
        bytes: features + layers.peak(bytes(Part::QFormer)),
    });
    let Some(language) = config.language() else {
        return phases;
    };
    let (width, heads, inner, gates, vocab) = match language {
        LanguageConfig::Opt(c) => (c.hidden_size, c.num_attention_heads, c.ffn_dim, 1, c.vocab_size),
        LanguageConfig::T5(c) => {
            let gates = if c.is_gated() { 2 } else { 1 };
            (c.d_model, c.num_heads, c.d_ff, gates, c.vocab_size)
        }
        LanguageConfig::Llama(c) => (
            c.hidden_size,
            c.num_attention_heads,
            c.intermediate_size,
            2,
            c.vocab_size,
        ),
    };
    let prompt = config.num_query_tokens + work.prompt_tokens;
    let act = bytes(Part::Llm);
    for (name, rows, tokens, attended) in [
        ("prefill", work.batch, prompt, prompt),
        (
            "decode",
            work.batch * work.num_beams,
            1,
            prompt + work.max_new_tokens,
        ),
    ] {
        let layers = Layers {
            rows,
            tokens,
            attended,
            width,
            heads,
            inner,
            gates,
        };
        // logits on the device and their copy on the host, in f32
        let logits = 2 * rows * vocab * 4;
        let bytes = features + layers.peak(act) + layers.widened(kept(Part::Llm), act) + logits;
        phases.push(Phase { name, bytes });
    }
    phases
}
