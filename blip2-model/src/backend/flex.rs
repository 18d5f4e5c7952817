//! The pure Rust CPU backend with the kernels of `blip2-kernels`. Tensors that are not f32 take the plain
//! path, which widens or rounds where the types say so.

use blip2_kernels::{Act, act, norm};
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive, bf16};
use burn_flex::FlexTensor;

use super::SelectDevice;
use crate::nn::gradients::{self, NormGradients};
use crate::nn::kernels::{
    as_dtype, cache_write_by_tensor_ops, layer_norm_by_tensor_ops, linear_by_matmul, rms_norm_by_tensor_ops,
};
use crate::nn::{Activation, Kernels, half_linear};

/// The pure Rust CPU backend.
pub type Flex = burn::backend::Flex;

impl SelectDevice for Flex {
    fn select_device(_index: usize) -> Self::Device {
        Default::default()
    }
}

impl From<Activation> for Act {
    fn from(act: Activation) -> Self {
        match act {
            Activation::Identity => Self::Identity,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Relu => Self::Relu,
            Activation::Silu => Self::Silu,
        }
    }
}

/// Values in row-major order, without a copy where they already are.
fn dense<const D: usize>(x: Tensor<Flex, D>) -> FlexTensor {
    x.into_primitive().tensor().to_contiguous()
}

fn tensor<const D: usize>(values: Vec<f32>, dims: [usize; D]) -> Tensor<Flex, D> {
    let primitive = FlexTensor::from_data(TensorData::new(values, dims));
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}

impl Kernels for Flex {
    fn compute_dtype(_stored: DType) -> DType {
        DType::F32
    }

    fn activate<const D: usize>(x: Tensor<Self, D>, act: Activation) -> Tensor<Self, D> {
        if !is_f32(&x) {
            return act.by_tensor_ops(x);
        }
        let dims = x.dims();
        tensor(act::forward(act.into(), dense(x).storage()), dims)
    }

    fn activate_backward<const D: usize>(
        x: Tensor<Self, D>,
        grad: Tensor<Self, D>,
        act: Activation,
    ) -> Tensor<Self, D> {
        if !is_f32(&x) || !is_f32(&grad) {
            return gradients::activation(x, grad, act);
        }
        let dims = x.dims();
        let grad = act::backward(act.into(), dense(x).storage(), dense(grad).storage());
        tensor(grad, dims)
    }

    fn layer_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        if !is_f32(&x) {
            return layer_norm_by_tensor_ops(x, weight, bias, eps);
        }
        let dims = x.dims();
        let (weight, bias) = (as_dtype(weight, DType::F32), as_dtype(bias, DType::F32));
        let (x, weight, bias) = (dense(x), dense(weight), dense(bias));
        let y = norm::layer_norm(x.storage(), weight.storage(), bias.storage(), eps as f32);
        tensor(y, dims)
    }

    fn layer_norm_backward<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, D>,
        eps: f64,
    ) -> NormGradients<Self, D> {
        if !is_f32(&x) || !is_f32(&weight) || !is_f32(&grad) {
            return gradients::layer_norm(x, weight, grad, eps);
        }
        let dims = x.dims();
        let (x, weight, grad) = (dense(x), dense(weight), dense(grad));
        let grads = norm::layer_norm_backward(x.storage(), weight.storage(), grad.storage(), eps as f32);
        let width = grads.weight.len();
        NormGradients {
            x: tensor(grads.x, dims),
            weight: tensor(grads.weight, [width]),
            bias: tensor(grads.bias, [width]),
        }
    }

    fn rms_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        if !is_f32(&x) {
            return rms_norm_by_tensor_ops(x, weight, eps);
        }
        let dims = x.dims();
        let (x, weight) = (dense(x), dense(as_dtype(weight, DType::F32)));
        tensor(norm::rms_norm(x.storage(), weight.storage(), eps as f32), dims)
    }

    fn linear_act(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        act: Activation,
    ) -> Tensor<Self, 2> {
        if weight.dtype() != DType::BF16 || x.dtype() != DType::F32 {
            return linear_by_matmul(x, weight, bias, act);
        }
        let device = Default::default();
        let ([rows, d_in], [d_out, _]) = (x.dims(), weight.dims());
        let stored = weight.into_primitive().tensor().to_contiguous();
        let stored: &[bf16] = stored.storage();
        if rows > half_linear::MAX_ROWS {
            let wide = TensorData::new(half_linear::widen(stored), [d_out, d_in]);
            return linear_by_matmul(x, Tensor::from_data(wide, &device), bias, act);
        }
        let x = x.into_primitive().tensor().to_contiguous();
        let y = half_linear::linear(x.storage(), stored, [rows, d_in, d_out]);
        let y = Tensor::from_data(TensorData::new(y, [rows, d_out]), &device);
        act.apply(match bias {
            Some(bias) => y + as_dtype(bias, DType::F32).unsqueeze(),
            None => y,
        })
    }

    fn cache_write(cache: Tensor<Self, 4>, new: Tensor<Self, 4>, at: usize) -> Tensor<Self, 4> {
        if !is_f32(&cache) || !is_f32(&new) {
            return cache_write_by_tensor_ops(cache, new, at);
        }
        let ([batch, heads, len, width], capacity) = (new.dims(), cache.dims()[2]);
        let new = dense(new);
        let mut cache = dense(cache);
        // copies the cache only if somebody else still looks at it
        let stored: &mut [f32] = cache.storage_mut();
        let rows = new.storage::<f32>().chunks_exact((len * width).max(1));
        for (i, row) in rows.enumerate().take(batch * heads) {
            let start = (i * capacity + at) * width;
            stored[start..start + len * width].copy_from_slice(row);
        }
        Tensor::from_primitive(TensorPrimitive::Float(cache))
    }
}
