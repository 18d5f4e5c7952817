//! One LLaMA layer (`LlamaDecoderLayer`): pre-norm, grouped queries, SwiGLU.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{LlamaConfig, Rotation};
use crate::nn::{
    Activation, Context, Kernels, KvCache, Linear, LinearConfig, RmsNorm, merge_heads, split_heads,
};

/// Causal self-attention with rotary positions.
#[derive(Module, Debug)]
pub struct LlamaAttention<B: Backend> {
    /// `[H * d, D]`
    pub q_proj: Linear<B>,
    /// `[G * d, D]`, `G` heads of keys and values
    pub k_proj: Linear<B>,
    /// `[G * d, D]`
    pub v_proj: Linear<B>,
    /// `[D, H * d]`
    pub o_proj: Linear<B>,
    heads: usize,
    key_value_heads: usize,
    dropout: f64,
}

/// `down(act(gate x) * up x)`
#[derive(Module, Debug)]
pub struct LlamaMlp<B: Backend> {
    /// `[ffn, D]`
    pub gate_proj: Linear<B>,
    /// `[ffn, D]`
    pub up_proj: Linear<B>,
    /// `[D, ffn]`
    pub down_proj: Linear<B>,
    #[module(skip)]
    act: Activation,
}

/// Self-attention and feed-forward, each with norm and residual.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend> {
    /// Norm of the attention.
    pub input_layernorm: RmsNorm<B>,
    /// Causal self-attention.
    pub self_attn: LlamaAttention<B>,
    /// Norm of the feed-forward.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Feed-forward.
    pub mlp: LlamaMlp<B>,
}

impl<B: Backend> LlamaLayer<B> {
    /// `N(0, initializer_range)` weights, zero biases.
    pub fn new(config: &LlamaConfig, device: &B::Device) -> Self {
        let linear = |d_in, d_out, bias| {
            LinearConfig { d_in, d_out, bias }.init_normal(config.initializer_range, device)
        };
        let (width, ffn, bias) = (
            config.hidden_size,
            config.intermediate_size,
            config.attention_bias,
        );
        let heads = config.num_attention_heads * config.head_dim();
        let groups = config.key_value_heads() * config.head_dim();
        let norm = || RmsNorm::new(width, config.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: LlamaAttention {
                q_proj: linear(width, heads, bias),
                k_proj: linear(width, groups, bias),
                v_proj: linear(width, groups, bias),
                o_proj: linear(heads, width, bias),
                heads: config.num_attention_heads,
                key_value_heads: config.key_value_heads(),
                dropout: config.attention_dropout,
            },
            post_attention_layernorm: norm(),
            mlp: LlamaMlp {
                gate_proj: linear(width, ffn, config.mlp_bias),
                up_proj: linear(width, ffn, config.mlp_bias),
                down_proj: linear(ffn, width, config.mlp_bias),
                act: config.hidden_act,
            },
        }
    }
}

impl<B: Kernels> LlamaAttention<B> {
    /// `x [B, T, D]` attends to itself and to what `cache` holds. `mask` has the rows of
    /// `grouped_mask`.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        rotation: &Rotation<B>,
        mask: Option<Tensor<B, 4>>,
        cache: Option<&mut KvCache<B>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let q = rotation.apply(split_heads(self.q_proj.forward(x.clone()), self.heads));
        let k = rotation.apply(split_heads(self.k_proj.forward(x.clone()), self.key_value_heads));
        let v = split_heads(self.v_proj.forward(x), self.key_value_heads);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        // The heads of a group become rows of one head: [B, H, T, d] -> [B, G, H/G * T, d]. So keys and
        // values are never repeated.
        let [batch, heads, len, width] = q.dims();
        let rows = heads / self.key_value_heads * len;
        let q = q.reshape([batch, self.key_value_heads, rows, width]);
        let scale = (width as f64).powf(-0.5);
        let out = B::attend(q, k, v, mask, scale, ctx, self.dropout);
        self.o_proj
            .forward(merge_heads(out.reshape([batch, heads, len, width])))
    }
}

/// A causal mask `[B or 1, 1, T, S]` for queries whose `heads` per group are rows: `[B or 1, 1, heads * T, S]`.
/// One row serves all.
pub(super) fn grouped_mask<B: Backend>(mask: Tensor<B, 4>, heads: usize) -> Tensor<B, 4> {
    match mask.dims()[2] == 1 || heads == 1 {
        true => mask,
        false => mask.repeat_dim(2, heads),
    }
}

impl<B: Kernels> LlamaLayer<B> {
    /// `[B, T, D] -> [B, T, D]`
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        rotation: &Rotation<B>,
        mask: Option<Tensor<B, 4>>,
        cache: Option<&mut KvCache<B>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let normed = self.input_layernorm.forward(x.clone());
        let x = x + self.self_attn.forward(normed, rotation, mask, cache, ctx);
        let normed = self.post_attention_layernorm.forward(x.clone());
        let mlp = &self.mlp;
        let gate = mlp.gate_proj.forward_act(normed.clone(), mlp.act);
        x + mlp.down_proj.forward(gate * mlp.up_proj.forward(normed))
    }
}
