//! Kernels of the backends that burn compiles through CubeCL (CUDA, ROCm, WebGPU): what a chain of burn's operations
//! would start many times, and read and write memory for as often, is one launch here.

#[cfg(feature = "cuda")]
mod across;
mod attention;
mod launch;
mod linear;
mod rows;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

#[cfg(feature = "cuda")]
pub(super) use across::sum_across;

use super::{unwrap, wrap};
use crate::nn::kernels::{Scores, as_dtype, attend_by_tensor_ops, linear_by_matmul};
use crate::nn::{Activation, Kernels};

/// Nothing to launch a kernel for.
fn is_empty<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    x.dims().contains(&0)
}

impl<R, F, I, BT> Kernels for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn matmul<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Tensor<Self, D> {
        let alike = a.dtype() == b.dtype() && a.dims()[..D - 2] == b.dims()[..D - 2];
        if !alike || is_empty(&a) || is_empty(&b) {
            return a.matmul(b);
        }
        wrap(linear::matmul(unwrap(a), unwrap(b)))
    }

    fn activate<const D: usize>(x: Tensor<Self, D>, act: Activation) -> Tensor<Self, D> {
        if is_empty(&x) {
            return x;
        }
        wrap(linear::add_bias(unwrap(x), None, act))
    }

    fn linear_act(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        act: Activation,
    ) -> Tensor<Self, 2> {
        if matches!(weight.dtype(), DType::QFloat(_)) || is_empty(&x) || is_empty(&weight) {
            return linear_by_matmul(x, weight, bias, act);
        }
        let [x, weight] = [unwrap(x), unwrap(weight)];
        let bias = bias.map(unwrap);
        if let Some(y) = linear::try_few_rows(&x, &weight, bias.as_ref(), act) {
            return wrap(y);
        }
        let weight = as_dtype(wrap::<Self, 2>(weight), x.dtype);
        let y = linear::matmul(x, unwrap(weight.transpose()));
        wrap(linear::add_bias(y, bias, act))
    }

    fn layer_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        if is_empty(&x) {
            return x;
        }
        let bias = as_dtype(bias, weight.dtype());
        wrap(rows::norm(unwrap(x), unwrap(weight), Some(unwrap(bias)), eps))
    }

    fn rms_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        if is_empty(&x) {
            return x;
        }
        wrap(rows::norm(unwrap(x), unwrap(weight), None, eps))
    }

    fn attend_scores(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        scores: Scores<Self>,
    ) -> Tensor<Self, 4> {
        if is_empty(&q) || is_empty(&k) {
            return attend_by_tensor_ops(q, k, v, scores);
        }
        let ([batch, heads, queries, _], keys) = (q.dims(), k.dims()[2]);
        let whole = [batch, heads, queries, keys];
        let inputs = attention::Inputs {
            q: unwrap(q),
            k: unwrap(k),
            v: unwrap(v),
            mask: scores.mask.map(|mask| unwrap(mask.expand(whole))),
            factors: scores.factors.map(|factors| unwrap(factors.expand(whole))),
            scale: scores.scale as f32,
        };
        let x = match attention::attend(inputs) {
            Ok(y) => return wrap::<Self, 4>(y).swap_dims(1, 2),
            Err(inputs) => *inputs,
        };
        let [q, k, v] = [x.q, x.k, x.v].map(wrap::<Self, 4>);
        let products = unwrap(Self::matmul(q, k.swap_dims(2, 3)));
        let probabilities = rows::softmax(products, scores.scale, x.mask, x.factors);
        Self::matmul(wrap(probabilities), v)
    }

    fn cache_view(cache: Tensor<Self, 4>, len: usize) -> Tensor<Self, 4> {
        // burn copies a slice unless both its ends fall on the allocator's boundaries
        let mut cache = unwrap(cache);
        cache.meta.shape[2] = len;
        wrap(cache)
    }
}
