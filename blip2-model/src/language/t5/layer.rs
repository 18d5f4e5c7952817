//! T5's sub-layers: each is `x + dropout(f(norm(x)))`.
//!
//! The residual stream may be wider than the rest: where weights are half precision but `wo` is kept in
//! f32, as Hugging Face loads T5, the output of `wo` stays f32 and so does every sum after it.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::T5Config;
use crate::config::ConfigError;
use crate::nn::kernels::as_dtype;
use crate::nn::{
    Activation, Context, Kernels, KvCache, Linear, LinearConfig, RmsNorm, merge_heads, split_heads,
};

/// Attention without `1/sqrt(d)`: the initialisation absorbs it.
#[derive(Module, Debug)]
pub struct T5Attention<B: Backend> {
    /// Norm of the input.
    pub norm: RmsNorm<B>,
    /// `[H * d, D]`
    pub q: Linear<B>,
    /// `[H * d, D]`
    pub k: Linear<B>,
    /// `[H * d, D]`
    pub v: Linear<B>,
    /// `[D, H * d]`
    pub o: Linear<B>,
    heads: usize,
    dropout: f64,
}

/// Feed-forward, gated (`wo(act(wi_0 x) * wi_1 x)`) or plain (`wo(act(wi_0 x))`).
#[derive(Module, Debug)]
pub struct T5FeedForward<B: Backend> {
    /// Norm of the input.
    pub norm: RmsNorm<B>,
    /// `[ff, D]`
    pub wi_0: Linear<B>,
    /// `[ff, D]`, if gated.
    pub wi_1: Option<Linear<B>>,
    /// `[D, ff]`
    pub wo: Linear<B>,
    #[module(skip)]
    act: Activation,
    dropout: f64,
}

/// Keys and values `[B, H, S, d]`.
pub(super) type KeysValues<B> = (Tensor<B, 4>, Tensor<B, 4>);

fn normal<B: Backend>(d_in: usize, d_out: usize, std: f64, device: &B::Device) -> Linear<B> {
    LinearConfig::no_bias(d_in, d_out).init_normal(std, device)
}

/// `x + y` in the wider of the two dtypes.
fn add<B: Backend>(x: Tensor<B, 3>, y: Tensor<B, 3>) -> Tensor<B, 3> {
    if x.dtype() == y.dtype() {
        return x + y;
    }
    as_dtype(x, DType::F32) + as_dtype(y, DType::F32)
}

impl<B: Backend> T5Attention<B> {
    /// Mesh TensorFlow's initialisation, as `T5PreTrainedModel._init_weights`.
    pub fn new(config: &T5Config, device: &B::Device) -> Self {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let std = |fan: usize| config.initializer_factor * (fan as f64).powf(-0.5);
        Self {
            norm: RmsNorm::new(width, config.layer_norm_epsilon, device),
            q: normal(width, inner, std(width * config.d_kv), device),
            k: normal(width, inner, std(width), device),
            v: normal(width, inner, std(width), device),
            o: normal(inner, width, std(inner), device),
            heads: config.num_heads,
            dropout: config.dropout_rate,
        }
    }
}

impl<B: Kernels> T5Attention<B> {
    /// Keys and values of `x [B, S, D]`.
    pub(super) fn keys_values(&self, x: Tensor<B, 3>) -> KeysValues<B> {
        let split = |linear: &Linear<B>, x| split_heads(linear.forward(x), self.heads);
        (split(&self.k, x.clone()), split(&self.v, x))
    }

    /// Self-attention of `x [B, T, D]` and what `cache` holds; `bias` is position bias plus mask.
    pub(super) fn to_self(
        &self,
        x: Tensor<B, 3>,
        bias: Tensor<B, 4>,
        cache: Option<&mut KvCache<B>>,
        dtype: DType,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let normed = as_dtype(self.norm.forward(x.clone()), dtype);
        let (k, v) = self.keys_values(normed.clone());
        let keys_values = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        self.attend(x, normed, keys_values, Some(bias), ctx)
    }

    /// Attention of `x [B, T, D]` to keys and values of the encoder.
    pub(super) fn to_encoder(
        &self,
        x: Tensor<B, 3>,
        keys_values: KeysValues<B>,
        mask: Option<Tensor<B, 4>>,
        dtype: DType,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let normed = as_dtype(self.norm.forward(x.clone()), dtype);
        self.attend(x, normed, keys_values, mask, ctx)
    }

    fn attend(
        &self,
        residual: Tensor<B, 3>,
        normed: Tensor<B, 3>,
        (k, v): KeysValues<B>,
        bias: Option<Tensor<B, 4>>,
        ctx: &Context,
    ) -> Tensor<B, 3> {
        let q = split_heads(self.q.forward(normed), self.heads);
        let out = B::attend(q, k, v, bias, 1.0, ctx, self.dropout);
        let out = self.o.forward(merge_heads(out));
        add(residual, ctx.dropout(out, self.dropout))
    }
}

impl<B: Backend> T5FeedForward<B> {
    /// Mesh TensorFlow's initialisation, as `T5PreTrainedModel._init_weights`.
    pub fn new(config: &T5Config, device: &B::Device) -> Result<Self, ConfigError> {
        let (width, hidden) = (config.d_model, config.d_ff);
        let std = |fan: usize| config.initializer_factor * (fan as f64).powf(-0.5);
        let wi = || normal(width, hidden, std(width), device);
        Ok(Self {
            norm: RmsNorm::new(width, config.layer_norm_epsilon, device),
            wi_0: wi(),
            wi_1: config.is_gated().then(wi),
            wo: normal(hidden, width, std(hidden), device),
            act: config.activation()?,
            dropout: config.dropout_rate,
        })
    }
}

impl<B: Kernels> T5FeedForward<B> {
    /// `[B, T, D] -> [B, T, D]`
    pub(super) fn forward(&self, x: Tensor<B, 3>, dtype: DType, ctx: &Context) -> Tensor<B, 3> {
        let normed = as_dtype(self.norm.forward(x.clone()), dtype);
        let hidden = self.wi_0.forward_act(normed.clone(), self.act);
        let hidden = match &self.wi_1 {
            Some(wi_1) => hidden * wi_1.forward(normed),
            None => hidden,
        };
        let mut hidden = ctx.dropout(hidden, self.dropout);
        if self.wo.weight.val().dtype() == DType::F32 {
            hidden = as_dtype(hidden, DType::F32);
        }
        add(x, ctx.dropout(self.wo.forward(hidden), self.dropout))
    }
}
