//! One OPT layer (`OPTDecoderLayer`), in pre-norm and post-norm form.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{LAYER_NORM_EPS, OptConfig};
use crate::nn::{
    Activation, Context, Kernels, KvCache, LayerNorm, Linear, LinearConfig, merge_heads, split_heads,
};

/// Causal self-attention.
#[derive(Module, Debug)]
pub struct OptAttention<B: Backend> {
    /// `[D, D]`
    pub q_proj: Linear<B>,
    /// `[D, D]`
    pub k_proj: Linear<B>,
    /// `[D, D]`
    pub v_proj: Linear<B>,
    /// `[D, D]`
    pub out_proj: Linear<B>,
    heads: usize,
    dropout: f64,
}

/// Self-attention and feed-forward, each with norm, dropout and residual.
#[derive(Module, Debug)]
pub struct OptLayer<B: Backend> {
    /// Causal self-attention.
    pub self_attn: OptAttention<B>,
    /// Norm of the attention.
    pub self_attn_layer_norm: LayerNorm<B>,
    /// `[ffn, D]`
    pub fc1: Linear<B>,
    /// `[D, ffn]`
    pub fc2: Linear<B>,
    /// Norm of the feed-forward.
    pub final_layer_norm: LayerNorm<B>,
    norm_first: bool,
    #[module(skip)]
    act: Activation,
    dropout: f64,
}

impl<B: Backend> OptLayer<B> {
    /// `N(0, init_std)` weights, zero biases.
    pub fn new(config: &OptConfig, device: &B::Device) -> Self {
        let linear = |d_in, d_out| {
            let bias = config.enable_bias;
            LinearConfig { d_in, d_out, bias }.init_normal(config.init_std, device)
        };
        let (width, ffn) = (config.hidden_size, config.ffn_dim);
        Self {
            self_attn: OptAttention {
                q_proj: linear(width, width),
                k_proj: linear(width, width),
                v_proj: linear(width, width),
                out_proj: linear(width, width),
                heads: config.num_attention_heads,
                dropout: config.attention_dropout,
            },
            self_attn_layer_norm: LayerNorm::new(width, LAYER_NORM_EPS, device),
            fc1: linear(width, ffn),
            fc2: linear(ffn, width),
            final_layer_norm: LayerNorm::new(width, LAYER_NORM_EPS, device),
            norm_first: config.do_layer_norm_before,
            act: config.activation_function,
            dropout: config.dropout,
        }
    }
}

impl<B: Kernels> OptAttention<B> {
    /// `x [B, T, D]` attends to itself and to what `cache` holds, under `mask` (see [`Kernels::attend`]).
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        mask: Option<Tensor<B, 4>>,
        cache: Option<&mut KvCache<B>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let q = split_heads(self.q_proj.forward(x.clone()), self.heads);
        let k = split_heads(self.k_proj.forward(x.clone()), self.heads);
        let v = split_heads(self.v_proj.forward(x), self.heads);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        let scale = (q.dims()[3] as f64).powf(-0.5);
        let out = B::attend(q, k, v, mask, scale, ctx, self.dropout);
        self.out_proj.forward(merge_heads(out))
    }
}

impl<B: Kernels> OptLayer<B> {
    /// `[B, T, D] -> [B, T, D]`
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        mask: Option<Tensor<B, 4>>,
        cache: Option<&mut KvCache<B>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let x = self.sublayer(x, &self.self_attn_layer_norm, |x| {
            ctx.dropout(self.self_attn.forward(x, mask, cache, ctx), self.dropout)
        });
        self.sublayer(x, &self.final_layer_norm, |x| {
            let hidden = self.fc1.forward_act(x, self.act);
            ctx.dropout(self.fc2.forward(hidden), self.dropout)
        })
    }

    fn sublayer(
        &self,
        x: Tensor<B, 3>,
        norm: &LayerNorm<B>,
        f: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        if self.norm_first {
            x.clone() + f(norm.forward(x))
        } else {
            norm.forward_residual(f(x.clone()), x)
        }
    }
}
