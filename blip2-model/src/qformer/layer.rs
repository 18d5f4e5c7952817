//! One Q-Former layer (post-norm, BERT style; spec of `Qformer.py` `BertLayer`).

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::QFormerConfig;
use crate::nn::{
    Activation, Context, Kernels, LayerNorm, Linear, LinearConfig, in_heads, merge_heads, split_heads,
};

/// Multi-head attention followed by output projection, residual and norm.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `[D, D]`
    pub query: Linear<B>,
    /// `[D, width of the attended sequence]`
    pub key: Linear<B>,
    /// `[D, width of the attended sequence]`
    pub value: Linear<B>,
    /// `[D, D]`
    pub dense: Linear<B>,
    /// After the residual.
    pub layer_norm: LayerNorm<B>,
    heads: usize,
    attention_dropout: f64,
    hidden_dropout: f64,
}

/// BERT's feed-forward with residual and norm.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// `[intermediate, D]`
    pub intermediate: Linear<B>,
    /// `[D, intermediate]`
    pub output: Linear<B>,
    /// After the residual.
    pub layer_norm: LayerNorm<B>,
    #[module(skip)]
    act: Activation,
    dropout: f64,
}

/// Self-attention shared by queries and text, cross-attention for queries, two feed-forwards.
#[derive(Module, Debug)]
pub struct QFormerLayer<B: Backend> {
    /// Shared by queries and text.
    pub attention: Attention<B>,
    /// Queries to image; only in every `cross_attention_frequency`-th layer.
    pub crossattention: Option<Attention<B>>,
    /// For query rows.
    pub ffn_query: FeedForward<B>,
    /// For text rows; absent in checkpoints without a text branch.
    pub ffn_text: Option<FeedForward<B>>,
}

impl<B: Backend> Attention<B> {
    /// `N(0, initializer_range)` weights, zero biases.
    pub fn new(config: &QFormerConfig, attended_width: usize, device: &B::Device) -> Self {
        let linear = |d_in: usize| {
            LinearConfig::new(d_in, config.hidden_size).init_normal(config.initializer_range, device)
        };
        Self {
            query: linear(config.hidden_size),
            key: linear(attended_width),
            value: linear(attended_width),
            dense: linear(config.hidden_size),
            layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            heads: config.num_attention_heads,
            attention_dropout: config.attention_probs_dropout_prob,
            hidden_dropout: config.hidden_dropout_prob,
        }
    }
}

impl<B: Kernels> Attention<B> {
    /// Keys and values of a sequence `[B, S, width]` -> `[B, S, H, d]` each: attention sees them with two axes exchanged,
    /// but several passes use them, and their gradients add up in the order in which they lie.
    pub fn keys_values(&self, x: Tensor<B, 3>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        (
            in_heads(self.key.forward(x.clone()), self.heads),
            in_heads(self.value.forward(x), self.heads),
        )
    }

    /// `LN(dense(attend(x, keys, values)) + x)`: `[B, T, D] -> [B, T, D]`; keys and values are those of
    /// [`keys_values`](Self::keys_values).
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
        mask: Option<Tensor<B, 4>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let query = split_heads(self.query.forward(x.clone()), self.heads);
        let scale = (query.dims()[3] as f64).powf(-0.5);
        let [keys, values] = [keys, values].map(|x| x.swap_dims(1, 2));
        let context = B::attend(query, keys, values, mask, scale, ctx, self.attention_dropout);
        let out = ctx.dropout(self.dense.forward(merge_heads(context)), self.hidden_dropout);
        self.layer_norm.forward_residual(out, x)
    }
}

impl<B: Backend> FeedForward<B> {
    /// `N(0, initializer_range)` weights, zero biases.
    pub fn new(config: &QFormerConfig, device: &B::Device) -> Self {
        let (width, hidden, std) = (
            config.hidden_size,
            config.intermediate_size,
            config.initializer_range,
        );
        Self {
            intermediate: LinearConfig::new(width, hidden).init_normal(std, device),
            output: LinearConfig::new(hidden, width).init_normal(std, device),
            layer_norm: LayerNorm::new(width, config.layer_norm_eps, device),
            act: config.hidden_act,
            dropout: config.hidden_dropout_prob,
        }
    }
}

impl<B: Kernels> FeedForward<B> {
    /// `[B, T, D] -> [B, T, D]`
    pub fn forward(&self, x: Tensor<B, 3>, ctx: &Context) -> Tensor<B, 3> {
        let hidden = self.intermediate.forward_act(x.clone(), self.act);
        let out = ctx.dropout(self.output.forward(hidden), self.dropout);
        self.layer_norm.forward_residual(out, x)
    }
}

impl<B: Backend> QFormerLayer<B> {
    /// Layer `index` of the configuration.
    pub fn new(config: &QFormerConfig, index: usize, device: &B::Device) -> Self {
        Self {
            attention: Attention::new(config, config.hidden_size, device),
            crossattention: config
                .has_cross_attention(index)
                .then(|| Attention::new(config, config.encoder_hidden_size, device)),
            ffn_query: FeedForward::new(config, device),
            ffn_text: config
                .use_qformer_text_input
                .then(|| FeedForward::new(config, device)),
        }
    }
}
