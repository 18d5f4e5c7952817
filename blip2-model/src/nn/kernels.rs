//! The backend extension: operations a backend may do better than a chain of plain tensor
//! operations. Every method has a default in plain operations, so `impl Kernels for X {}` is enough
//! for a new backend and the autodiff path works through the same calls.

use std::sync::{Mutex, PoisonError};

use burn::tensor::quantization::{QuantLevel, QuantScheme, QuantValue};
use burn::tensor::{
    DType, Distribution, IndexingUpdateOp, Int, Tensor, TensorData, activation, backend::Backend,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::gradients::{self, NormGradients};
use super::{Activation, Context};

/// Width of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightBits {
    /// 8 bits.
    Eight,
    /// 4 bits.
    Four,
}

/// Weights along the contraction that share a scale.
pub const PACK_GROUP: usize = 32;

impl WeightBits {
    /// Bytes of so many weights, scales included.
    pub fn bytes(self, count: usize) -> usize {
        let width = match self {
            Self::Eight => 8,
            Self::Four => 4,
        };
        count * width / 8 + count / PACK_GROUP * size_of::<f32>()
    }

    /// Symmetric, one f32 scale per [`PACK_GROUP`] weights.
    pub fn scheme(self) -> QuantScheme {
        QuantScheme::default()
            .with_level(QuantLevel::block([PACK_GROUP as u8]))
            .with_value(match self {
                Self::Eight => QuantValue::Q8S,
                Self::Four => QuantValue::Q4S,
            })
    }
}

/// What attention scores go through on their way to the values.
#[derive(Clone, Debug)]
pub struct Scores<B: Backend> {
    /// Factor of the scores.
    pub scale: f64,
    /// Additive f32, broadcastable to `[B, H, T, S]`.
    pub mask: Option<Tensor<B, 4>>,
    /// Dropout: what the probabilities are multiplied by, `[B, H, T, S]`.
    pub factors: Option<Tensor<B, 4>>,
}

/// [`Kernels::random_mask`] drawn on the host, for backends whose memory that is.
pub fn host_mask<B: Backend, const D: usize>(
    dims: [usize; D],
    keep: f64,
    seed: u64,
    device: &B::Device,
) -> Tensor<B, D> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let keep = keep as f32;
    let values = (0..dims.iter().product()).map(|_| f32::from(u8::from(rng.random::<f32>() < keep)));
    Tensor::from_data(TensorData::new(values.collect(), dims), (device, DType::F32))
}

/// Backend with the project's fused operations. See [`crate::backend`] for the implementations.
pub trait Kernels: Backend {
    /// Dtype of the activations that a matrix kept in `stored` works on. GPUs compute in the dtype of the
    /// weights; CPU backends keep f32 activations and widen weights on the way, which is both exact and faster.
    fn compute_dtype(stored: DType) -> DType {
        stored
    }

    /// `a b` over the last two axes, the others alike, in the arithmetic of their dtype: a backend whose tensor cores
    /// cut f32 short multiplies some other way.
    fn matmul<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Tensor<Self, D> {
        a.matmul(b)
    }

    /// Ones with probability `keep`, else zeros; the same for the same `seed`.
    ///
    /// A backend's generator is global, so seeding and drawing may not be torn apart by another training thread.
    fn random_mask<const D: usize>(
        dims: [usize; D],
        keep: f64,
        seed: u64,
        device: &Self::Device,
    ) -> Tensor<Self, D> {
        static GENERATOR: Mutex<()> = Mutex::new(());
        let _mine = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        Self::seed(device, seed);
        Tensor::random(dims, Distribution::Bernoulli(keep), device)
    }

    /// The same values, without gaps where the backend works on such tensors faster: for views that several operations
    /// use, or whose gradient would be one. Its gradient has no gaps either.
    fn contiguous<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, D> {
        x
    }

    /// A non-linearity; same shape and dtype out.
    fn activate<const D: usize>(x: Tensor<Self, D>, act: Activation) -> Tensor<Self, D> {
        act.by_tensor_ops(x)
    }

    /// Gradient of [`activate`](Self::activate) at `x`.
    fn activate_backward<const D: usize>(
        x: Tensor<Self, D>,
        grad: Tensor<Self, D>,
        act: Activation,
    ) -> Tensor<Self, D> {
        gradients::activation(x, grad, act)
    }

    /// `act(x W^T + b)` for `x [M, in]`, `weight [out, in]`, `bias [out]` -> `[M, out]`.
    ///
    /// The result has the dtype of `x`; a weight kept in another dtype is converted on the way.
    fn linear_act(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        act: Activation,
    ) -> Tensor<Self, 2> {
        linear_by_matmul(x, weight, bias, act)
    }

    /// Whether the backend can hold what [`pack_weight`](Self::pack_weight) gives.
    const PACKS: bool = true;

    /// Packs a weight `[out, in]` of any float dtype for [`linear_act`](Self::linear_act); `in` is a multiple of
    /// [`PACK_GROUP`].
    fn pack_weight(weight: Tensor<Self, 2>, bits: WeightBits) -> Tensor<Self, 2> {
        as_dtype(weight, DType::F32).quantize_dynamic(&bits.scheme())
    }

    /// Gradient of `x W^T` with respect to `x`: `grad [M, out]`, `weight [out, in]` -> `[M, in]`, in the dtype of `grad`.
    fn linear_input_grad(grad: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let dtype = grad.dtype();
        Self::matmul(grad, as_dtype(weight, dtype))
    }

    /// Gradient of `x W^T` with respect to `W`: `grad [M, out]`, `x [M, in]` -> `[out, in]`.
    fn linear_weight_grad(grad: Tensor<Self, 2>, x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        Self::matmul(grad.transpose(), x)
    }

    /// Sum over the rows: `[N, C] -> [C]`.
    fn sum_rows(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        x.sum_dim(0).squeeze_dim(0)
    }

    /// `log sum_c exp(x_c)` per row: `[N, C] -> [N]`, in f32.
    fn log_sum_exp(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        let largest = x.clone().detach().max_dim(1);
        let sum = (x - largest.clone()).exp().sum_dim(1);
        (sum.log() + largest).squeeze_dim(1)
    }

    /// Gradient of [`log_sum_exp`](Self::log_sum_exp), `grad exp(x - y)` for its result `y [N]` -> `[N, C]`.
    fn log_sum_exp_backward(
        x: Tensor<Self, 2>,
        y: Tensor<Self, 1>,
        grad: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        (x - y.unsqueeze_dim(1)).exp() * grad.unsqueeze_dim(1)
    }

    /// Rows `ids [B, T]` of `table [V, D]` -> `[B, T, D]`.
    fn embed(table: Tensor<Self, 2>, ids: Tensor<Self, 2, Int>) -> Tensor<Self, 3> {
        burn::tensor::module::embedding(table, ids)
    }

    /// Gradient of [`embed`](Self::embed) with respect to the table of `rows` rows: the rows of `grad [N, D]`
    /// added where `ids [N]` say -> `[rows, D]`.
    fn embed_grad(grad: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>, rows: usize) -> Tensor<Self, 2> {
        embed_grad_by_tensor_ops(grad, ids, rows)
    }

    /// Layer norm over the last axis in f32; output in the dtype of `x`.
    fn layer_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        layer_norm_by_tensor_ops(x, weight, bias, eps)
    }

    /// Gradients of [`layer_norm_f32`](Self::layer_norm_f32), each in the dtype of its argument
    /// (the bias has that of the weight).
    fn layer_norm_backward<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, D>,
        eps: f64,
    ) -> NormGradients<Self, D> {
        gradients::layer_norm(x, weight, grad, eps)
    }

    /// RMS norm over the last axis in f32; output in the dtype of `x`.
    fn rms_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        rms_norm_by_tensor_ops(x, weight, eps)
    }

    /// Gradients of [`rms_norm_f32`](Self::rms_norm_f32): of `x` and of the weight.
    fn rms_norm_backward<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, D>,
        eps: f64,
    ) -> (Tensor<Self, D>, Tensor<Self, 1>) {
        gradients::rms_norm(x, weight, grad, eps)
    }

    /// `softmax(scale * q k^T + mask) v` for `q [B, H, T, d]`, `k, v [B, H, S, d]` -> `[B, H, T, d]`.
    ///
    /// `mask` is additive f32, broadcastable to `[B, H, T, S]`. While `ctx` trains, `dropout` is
    /// applied to the probabilities (after the softmax, as PyTorch does). Softmax runs in f32.
    fn attend(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Option<Tensor<Self, 4>>,
        scale: f64,
        ctx: &Context,
        dropout: f64,
    ) -> Tensor<Self, 4> {
        let ([batch, heads, queries, _], keys) = (q.dims(), k.dims()[2]);
        let factors = ctx.dropout_factors([batch, heads, queries, keys], dropout, &q.device());
        Self::attend_scores(q, k, v, Scores { scale, mask, factors })
    }

    /// The body of [`attend`](Self::attend), with dropout already drawn.
    fn attend_scores(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        scores: Scores<Self>,
    ) -> Tensor<Self, 4> {
        attend_by_tensor_ops(q, k, v, scores)
    }

    /// Gradients of [`attend_scores`](Self::attend_scores) with respect to queries, keys and values.
    fn attend_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        scores: Scores<Self>,
        grad: Tensor<Self, 4>,
    ) -> [Tensor<Self, 4>; 3] {
        gradients::attend(q, k, v, scores, grad)
    }

    /// The first `len` positions of `cache [B, H, capacity, d]`, for reading.
    fn cache_view(cache: Tensor<Self, 4>, len: usize) -> Tensor<Self, 4> {
        cache.narrow(2, 0, len)
    }

    /// Writes `new [B, H, T, d]` into `cache [B, H, capacity, d]` at position `at`.
    fn cache_write(cache: Tensor<Self, 4>, new: Tensor<Self, 4>, at: usize) -> Tensor<Self, 4> {
        cache_write_by_tensor_ops(cache, new, at)
    }
}

/// The plain form of [`Kernels::layer_norm_f32`].
pub fn layer_norm_by_tensor_ops<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let dtype = x.dtype();
    let x = as_dtype(x, DType::F32);
    let mean = x.clone().mean_dim(D - 1);
    let centred = x - mean;
    let var = (centred.clone() * centred.clone()).mean_dim(D - 1);
    let y = centred / (var + eps).sqrt();
    let y = y * as_dtype(weight, DType::F32).unsqueeze() + as_dtype(bias, DType::F32).unsqueeze();
    as_dtype(y, dtype)
}

/// The plain form of [`Kernels::rms_norm_f32`].
pub fn rms_norm_by_tensor_ops<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let dtype = x.dtype();
    let x = as_dtype(x, DType::F32);
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
    let y = x / (mean_square + eps).sqrt();
    as_dtype(y * as_dtype(weight, DType::F32).unsqueeze(), dtype)
}

/// The plain form of [`Kernels::attend_scores`].
pub fn attend_by_tensor_ops<B: Kernels>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scores: Scores<B>,
) -> Tensor<B, 4> {
    let dtype = q.dtype();
    let products = as_dtype(B::matmul(q * scores.scale, k.swap_dims(2, 3)), DType::F32);
    let products = match scores.mask {
        Some(mask) => products + mask,
        None => products,
    };
    let probabilities = activation::softmax(products, 3);
    let probabilities = match scores.factors {
        Some(factors) => probabilities * factors,
        None => probabilities,
    };
    B::matmul(as_dtype(probabilities, dtype), v)
}

/// The plain form of [`Kernels::cache_write`].
pub fn cache_write_by_tensor_ops<B: Backend>(
    cache: Tensor<B, 4>,
    new: Tensor<B, 4>,
    at: usize,
) -> Tensor<B, 4> {
    let [batch, heads, len, width] = new.dims();
    cache.slice_assign([0..batch, 0..heads, at..at + len, 0..width], new)
}

/// The plain form of [`Kernels::embed_grad`].
pub fn embed_grad_by_tensor_ops<B: Backend>(
    grad: Tensor<B, 2>,
    ids: Tensor<B, 1, Int>,
    rows: usize,
) -> Tensor<B, 2> {
    let table = Tensor::zeros([rows, grad.dims()[1]], (&grad.device(), grad.dtype()));
    table.select_assign(0, ids, grad, IndexingUpdateOp::Add)
}

/// The plain form of [`Kernels::linear_act`].
pub fn linear_by_matmul<B: Kernels>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    act: Activation,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let y = B::matmul(x, as_dtype(weight.dequantize(), dtype).transpose());
    act.apply(match bias {
        Some(bias) => y + as_dtype(bias, dtype).unsqueeze(),
        None => y,
    })
}

/// Casts unless the dtype is already right (a cast is a copy on some backends).
pub fn as_dtype<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype {
        return x;
    }
    x.cast(dtype)
}
