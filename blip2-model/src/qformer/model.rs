//! The Q-Former's passes: queries only, text only, both (bidirectional), and text after cached queries
//! (multimodal causal). The attention-mask regimes of the paper's figure 2 follow from which pass runs.

use burn::module::Module;
use burn::tensor::{Int, Tensor, backend::Backend};

use super::{QFormerConfig, QFormerLayer};
use crate::nn::mask::index_tensor;
use crate::nn::{Context, Embedding, Kernels, LayerNorm, PadMask, pick};

/// Word and position tables of the text branch.
#[derive(Module, Debug)]
pub struct TextEmbeddings<B: Backend> {
    /// `[V, D]`
    pub word_embeddings: Embedding<B>,
    /// `[max positions, D]`
    pub position_embeddings: Embedding<B>,
}

/// The Q-Former without its heads.
#[derive(Module, Debug)]
pub struct QFormer<B: Backend> {
    /// Text branch; absent in stage-2 checkpoints.
    pub embeddings: Option<TextEmbeddings<B>>,
    /// Norm over queries and text alike.
    pub layernorm: LayerNorm<B>,
    /// The layers.
    pub layers: Vec<QFormerLayer<B>>,
    dropout: f64,
}

/// Keys and values of the image in every cross-attention layer, `[B, N, H, d]` each.
///
/// Computed once per image: stage 1 needs them for the contrastive pass and again for matching, where
/// pictures repeat as negatives, and [`ImageKeys::select`] is far cheaper than projecting again.
#[derive(Clone, Debug)]
pub struct ImageKeys<B: Backend> {
    layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
}

impl<B: Kernels> ImageKeys<B> {
    /// Images `index` of the batch, in that order, repeats allowed.
    pub fn select(&self, index: &[usize]) -> Self {
        let Some(device) = self.layers.iter().flatten().next().map(|(k, _)| k.device()) else {
            return self.clone();
        };
        let index = index_tensor(index, &device);
        let of = |t: &Tensor<B, 4>| pick(t.clone(), index.clone());
        let layers = self
            .layers
            .iter()
            .map(|kv| kv.as_ref().map(|(k, v)| (of(k), of(v))));
        Self {
            layers: layers.collect(),
        }
    }

    /// The pictures of several sets, one after the other.
    pub fn concat(sets: &[Self]) -> Self {
        let layers = (0..sets[0].layers.len())
            .map(|i| {
                let (k, v): (Vec<_>, Vec<_>) = sets.iter().filter_map(|s| s.layers[i].clone()).unzip();
                (!k.is_empty()).then(|| (Tensor::cat(k, 0), Tensor::cat(v, 0)))
            })
            .collect();
        Self { layers }
    }
}

/// Result of the query-only pass.
#[derive(Clone, Debug)]
pub struct QueryPass<B: Backend> {
    /// `[B, Q, D]`
    pub hidden: Tensor<B, 3>,
    /// Self-attention keys and values of the queries per layer, `[B, Q, H, d]`: the prefix of grounded generation.
    pub cache: Vec<(Tensor<B, 4>, Tensor<B, 4>)>,
}

impl<B: Backend> QFormer<B> {
    /// Lazily initialised.
    pub fn new(config: &QFormerConfig, device: &B::Device) -> Self {
        let (width, std) = (config.hidden_size, config.initializer_range);
        Self {
            embeddings: config.use_qformer_text_input.then(|| TextEmbeddings {
                word_embeddings: Embedding::new(config.vocab_size, width, std, device),
                position_embeddings: Embedding::new(config.max_position_embeddings, width, std, device),
            }),
            layernorm: LayerNorm::new(width, config.layer_norm_eps, device),
            layers: (0..config.num_hidden_layers)
                .map(|i| QFormerLayer::new(config, i, device))
                .collect(),
            dropout: config.hidden_dropout_prob,
        }
    }

    /// Whether text can be given.
    pub fn has_text_branch(&self) -> bool {
        self.embeddings.is_some()
    }
}

impl<B: Kernels> QFormer<B> {
    /// Image tokens `[B, N, C]` (after `ln_vision`) -> their keys and values in the cross-attention layers.
    pub fn image_keys(&self, image: Tensor<B, 3>) -> ImageKeys<B> {
        let layers = self
            .layers
            .iter()
            .map(|layer| {
                let cross = layer.crossattention.as_ref()?;
                Some(cross.keys_values(image.clone()))
            })
            .collect();
        ImageKeys { layers }
    }

    /// Uni-modal query pass: `queries [B, Q, D]` attend to each other and to the image.
    pub fn queries(&self, queries: Tensor<B, 3>, image: &ImageKeys<B>, ctx: &Context) -> QueryPass<B> {
        let count = queries.dims()[1];
        let x = self.embed(queries, ctx);
        let (hidden, cache) = self.run(x, count, Some(image), None, None, ctx);
        QueryPass { hidden, cache }
    }

    /// Uni-modal text pass: ids `[B, T]` -> `[B, T, D]`, bidirectional over real tokens.
    ///
    /// # Panics
    /// If the checkpoint has no text branch (see [`QFormer::has_text_branch`]).
    pub fn text(&self, ids: Tensor<B, 2, Int>, mask: &PadMask, ctx: &Context) -> Tensor<B, 3> {
        let device = ids.device();
        let x = self.embed(self.embed_text(ids), ctx);
        self.run(x, 0, None, Some(mask.additive(&device)), None, ctx).0
    }

    /// Bidirectional pass over `[queries ; text]` -> `[B, Q + T, D]` (matching, instructed queries).
    pub fn multimodal(
        &self,
        queries: Tensor<B, 3>,
        ids: Tensor<B, 2, Int>,
        mask: &PadMask,
        image: &ImageKeys<B>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let device = ids.device();
        let [batch, count, _] = queries.dims();
        let x = Tensor::cat(vec![queries, self.embed_text(ids)], 1);
        let mask = PadMask::ones(batch, count).concat(mask).additive(&device);
        self.run(self.embed(x, ctx), count, Some(image), Some(mask), None, ctx)
            .0
    }

    /// Multimodal causal pass: text `[B, T]` after the cached queries -> `[B, T, D]`. Numerically the text
    /// rows of one pass with the UniLM mask; gradients flow through the cache.
    pub fn grounded(
        &self,
        ids: Tensor<B, 2, Int>,
        mask: &PadMask,
        cache: &[(Tensor<B, 4>, Tensor<B, 4>)],
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let device = ids.device();
        let prefix = cache.first().map_or(0, |(k, _)| k.dims()[1]);
        let x = self.embed(self.embed_text(ids), ctx);
        let mask = mask.additive_prefix_causal(prefix, &device);
        self.run(x, 0, None, Some(mask), Some(cache), ctx).0
    }

    /// `word[id] + position[t]`, before the norm. Queries never shift text positions.
    fn embed_text(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let tables = self
            .embeddings
            .as_ref()
            .expect("the caller checked that the Q-Former has a text branch");
        let len = ids.dims()[1];
        let positions = tables.position_embeddings.weight.val().narrow(0, 0, len);
        tables.word_embeddings.forward(ids) + positions.unsqueeze()
    }

    fn embed(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        ctx.dropout(self.layernorm.forward(x), self.dropout)
    }

    /// The layers over `[queries ; text]`, of which the first `count` rows are queries. Also returns each
    /// layer's own self-attention keys and values.
    fn run(
        &self,
        mut x: Tensor<B, 3>,
        count: usize,
        image: Option<&ImageKeys<B>>,
        mask: Option<Tensor<B, 4>>,
        past: Option<&[(Tensor<B, 4>, Tensor<B, 4>)]>,
        ctx: &Context,
    ) -> (Tensor<B, 3>, Vec<(Tensor<B, 4>, Tensor<B, 4>)>) {
        let mut cache = Vec::with_capacity(self.layers.len());
        ctx.record("embeddings", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            let (keys, values) = layer.attention.keys_values(x.clone());
            cache.push((keys.clone(), values.clone()));
            let (keys, values) = match past {
                Some(past) => {
                    let join = |past: &Tensor<B, 4>, new| {
                        Tensor::cat([past.clone(), new].map(B::contiguous).to_vec(), 1)
                    };
                    (join(&past[i].0, keys), join(&past[i].1, values))
                }
                None => (keys, values),
            };
            let attended = layer.attention.forward(x, keys, values, mask.clone(), ctx);
            let image = image.and_then(|keys| keys.layers[i].as_ref());
            x = Self::feed_forward(layer, attended, count, image, ctx);
            ctx.record(&format!("layers.{i}"), &x);
        }
        (x, cache)
    }

    fn feed_forward(
        layer: &QFormerLayer<B>,
        x: Tensor<B, 3>,
        count: usize,
        image: Option<&(Tensor<B, 4>, Tensor<B, 4>)>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let total = x.dims()[1];
        let text = |rows: Tensor<B, 3>| {
            let ffn = layer.ffn_text.as_ref();
            ffn.expect("text rows exist only with a text branch")
                .forward(rows, ctx)
        };
        if count == 0 {
            return text(x);
        }
        let part = |from: usize, count: usize| B::contiguous(x.clone().narrow(1, from, count));
        let mut queries = part(0, count);
        if let (Some(cross), Some((keys, values))) = (&layer.crossattention, image) {
            queries = cross.forward(queries, keys.clone(), values.clone(), None, ctx);
        }
        let queries = layer.ffn_query.forward(queries, ctx);
        if count == total {
            return queries;
        }
        // copied, and so are the gradients that come back through this
        let parts = [queries, text(part(count, total - count))];
        Tensor::cat(parts.map(B::contiguous).to_vec(), 1)
    }
}
