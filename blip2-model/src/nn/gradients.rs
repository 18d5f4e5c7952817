//! Gradients of the fused operations in plain tensor operations: what [`Kernels`](super::Kernels) falls
//! back on where a backend has no kernel of its own. Statistics are recomputed from the input, so that the
//! forward pass keeps nothing but that.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::kernels::{Scores, as_dtype};
use super::{Activation, Kernels};

/// Gradients of a layer norm.
#[derive(Debug)]
pub struct NormGradients<B: Backend, const D: usize> {
    /// Of the input.
    pub x: Tensor<B, D>,
    /// Of the weight, `[width]`.
    pub weight: Tensor<B, 1>,
    /// Of the bias, `[width]`.
    pub bias: Tensor<B, 1>,
}

/// `act'(x) * grad`
pub fn activation<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    grad: Tensor<B, D>,
    act: Activation,
) -> Tensor<B, D> {
    // derivative of `x sigmoid(a x)`
    let swish = |x: Tensor<B, D>, a: f64| {
        let s = sigmoid(x.clone() * a);
        s.clone() + x * a * s.clone() * (s.neg() + 1.0)
    };
    let slope = match act {
        Activation::Identity => return grad,
        Activation::Gelu => {
            let cdf = ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
            let density = (x.clone() * x.clone() * -0.5).exp() * (2.0 * PI).sqrt().recip();
            cdf + x * density
        }
        Activation::GeluTanh => {
            let (root, cubic) = ((8.0 / PI).sqrt(), 0.044715);
            let square = x.clone() * x.clone();
            let s = sigmoid((square.clone() * cubic + 1.0) * x.clone() * root);
            let inner = (square * (3.0 * cubic) + 1.0) * root;
            s.clone() + x * s.clone() * (s.neg() + 1.0) * inner
        }
        Activation::QuickGelu => swish(x, 1.702),
        Activation::Relu => return grad.mask_fill(x.lower_equal_elem(0.0), 0.0),
        Activation::Silu => swish(x, 1.0),
    };
    slope * grad
}

/// Of `(x - mean) / sqrt(var + eps) * weight + bias`.
pub fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, D>,
    eps: f64,
) -> NormGradients<B, D> {
    let (dtype, weight_dtype) = (x.dtype(), weight.dtype());
    let (x, grad) = (as_dtype(x, DType::F32), as_dtype(grad, DType::F32));
    let centred = x.clone() - x.mean_dim(D - 1);
    let var = (centred.clone() * centred.clone()).mean_dim(D - 1);
    let inverse = (var + eps).sqrt().recip();
    let normal = centred * inverse.clone();
    let scaled = grad.clone() * as_dtype(weight, DType::F32).unsqueeze();
    let projection = (scaled.clone() * normal.clone()).mean_dim(D - 1);
    let mean = scaled.clone().mean_dim(D - 1);
    let dx = (scaled - mean - normal.clone() * projection) * inverse;
    NormGradients {
        x: as_dtype(dx, dtype),
        weight: as_dtype(sum_rows(grad.clone() * normal), weight_dtype),
        bias: as_dtype(sum_rows(grad), weight_dtype),
    }
}

/// Of `x / sqrt(mean(x^2) + eps) * weight`.
pub fn rms_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, D>,
    eps: f64,
) -> (Tensor<B, D>, Tensor<B, 1>) {
    let (dtype, weight_dtype) = (x.dtype(), weight.dtype());
    let (x, grad) = (as_dtype(x, DType::F32), as_dtype(grad, DType::F32));
    let inverse = ((x.clone() * x.clone()).mean_dim(D - 1) + eps).sqrt().recip();
    let normal = x * inverse.clone();
    let scaled = grad.clone() * as_dtype(weight, DType::F32).unsqueeze();
    let projection = (scaled.clone() * normal.clone()).mean_dim(D - 1);
    (
        as_dtype((scaled - normal.clone() * projection) * inverse, dtype),
        as_dtype(sum_rows(grad * normal), weight_dtype),
    )
}

/// Of `(softmax(scale q k^T + mask) * factors) v`, with respect to `q`, `k`, `v`.
pub fn attend<B: Kernels>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scores: Scores<B>,
    grad: Tensor<B, 4>,
) -> [Tensor<B, 4>; 3] {
    let dtype = q.dtype();
    let products = as_dtype(
        B::matmul(q.clone() * scores.scale, k.clone().swap_dims(2, 3)),
        DType::F32,
    );
    let products = match scores.mask {
        Some(mask) => products + mask,
        None => products,
    };
    let p = softmax(products, 3);
    let seen = as_dtype(B::matmul(grad.clone(), v.swap_dims(2, 3)), DType::F32);
    let (kept, seen) = match scores.factors {
        Some(factors) => (p.clone() * factors.clone(), seen * factors),
        None => (p.clone(), seen),
    };
    let dv = B::matmul(as_dtype(kept, dtype).swap_dims(2, 3), grad);
    let total = (p.clone() * seen.clone()).sum_dim(3);
    let ds = as_dtype(p * (seen - total) * scores.scale, dtype);
    [B::matmul(ds.clone(), k), B::matmul(ds.swap_dims(2, 3), q), dv]
}

/// `[.., n] -> [n]`
fn sum_rows<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    let width = x.dims()[D - 1];
    let rows = x.dims()[..D - 1].iter().product::<usize>();
    x.reshape([rows, width]).sum_dim(0).reshape([width])
}
