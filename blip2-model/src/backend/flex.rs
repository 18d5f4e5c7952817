//! The pure Rust CPU backend with the kernels of `blip2-kernels`. Tensors that are not f32 take the plain
//! path, which widens or rounds where the types say so.

use blip2_kernels::attention::{self, Heads};
use blip2_kernels::gemm::{self, Epilogue, Mat};
use blip2_kernels::level::rounds_inputs;
use blip2_kernels::quant::{self, Bits, Packed};
use blip2_kernels::skinny::{self, Plain};
use blip2_kernels::{Act, act, copy, norm, reduce};
use burn::tensor::quantization::{QTensorPrimitive, QuantScheme, QuantStore, QuantValue};
use burn::tensor::{Bytes, DType, Element, Int, Tensor, TensorData, TensorPrimitive, bf16, f16};
use burn_flex::{FlexQTensor, FlexTensor, Layout};

use super::SelectDevice;
use crate::nn::gradients::{self, NormGradients};
use crate::nn::kernels::{
    Scores, WeightBits, as_dtype, attend_by_tensor_ops, cache_write_by_tensor_ops, embed_grad_by_tensor_ops,
    host_mask, layer_norm_by_tensor_ops, linear_by_matmul, rms_norm_by_tensor_ops,
};
use crate::nn::{Activation, Kernels};

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
    rows_of(x.into_primitive().tensor())
}

/// Values in row-major order: burn-flex copies views value by value.
fn rows_of(x: FlexTensor) -> FlexTensor {
    if x.dtype() != DType::F32 || x.is_contiguous() {
        return x.to_contiguous();
    }
    let layout = x.layout();
    let strides: Option<Vec<usize>> = layout.strides().iter().map(|&s| s.try_into().ok()).collect();
    let data = x.storage::<f32>();
    let data = &data[layout.start_offset().min(data.len())..];
    let values = strides.and_then(|strides| copy::gather(data, layout.shape(), &strides));
    match values {
        Some(values) => FlexTensor::from_data(TensorData::new(values, layout.shape().clone())),
        None => x.to_contiguous(),
    }
}

fn tensor<const D: usize>(values: Vec<f32>, dims: [usize; D]) -> Tensor<Flex, D> {
    let primitive = FlexTensor::from_data(TensorData::new(values, dims));
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn is_plain(weight: &Tensor<Flex, 2>) -> bool {
    matches!(weight.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}

/// Up to this many rows of input a linear map reads the weights as they lie; beyond, packing them pays.
const FEW_ROWS: usize = 16;

fn bits_of(scheme: &QuantScheme) -> Bits {
    match scheme.value {
        QuantValue::Q4S | QuantValue::Q4F => Bits::Four,
        _ => Bits::Eight,
    }
}

/// A matrix as it lies, transposed or not.
fn matrix<E: Element + gemm::Element + bytemuck::Pod>(x: &FlexTensor) -> Mat<'_, E> {
    let layout = x.layout();
    let (dims, strides) = (layout.shape(), layout.strides());
    let size = [dims[0], dims[1]];
    let strides = [strides[0], strides[1]].map(|s| usize::try_from(s).expect("views are never flipped here"));
    let data = x.storage::<E>();
    Mat::strided(&data[layout.start_offset().min(data.len())..], size, strides)
}

/// Heads `[B, H, T, d]` whose last axis is contiguous, copied if it is not.
fn head_rows(x: Tensor<Flex, 4>) -> FlexTensor {
    let x = x.into_primitive().tensor();
    let strides = x.layout().strides();
    if strides[3] == 1 && strides.iter().all(|&s| s >= 0) {
        return x;
    }
    x.to_contiguous()
}

fn view4(x: &FlexTensor) -> (&[f32], [usize; 4], [usize; 3]) {
    let layout = x.layout();
    let (dims, strides) = (layout.shape(), layout.strides());
    let data = x.storage::<f32>();
    (
        &data[layout.start_offset().min(data.len())..],
        [0, 1, 2, 3].map(|i| dims[i]),
        // `head_rows` let no negative stride through
        [0, 1, 2].map(|i| strides[i].unsigned_abs()),
    )
}

fn heads_of(x: &FlexTensor) -> Heads<'_> {
    let (data, dims, strides) = view4(x);
    Heads::new(data, dims, strides)
}

/// Scores whose tensors are laid out for the kernel.
struct HeldScores {
    scale: f32,
    mask: Option<FlexTensor>,
    factors: Option<FlexTensor>,
    keys: usize,
}

impl HeldScores {
    fn new(scores: Scores<Flex>, [batch, heads, queries, keys]: [usize; 4]) -> Self {
        let mask = scores.mask.map(|mask| {
            let mask = as_dtype(mask, DType::F32);
            // rows are read whole; the other axes may repeat
            let [b, h, t, s] = mask.dims();
            let mask = if s == keys {
                mask
            } else {
                mask.expand([b, h, t, keys])
            };
            dense(mask)
        });
        let dims = [batch, heads, queries, keys];
        let factors = scores
            .factors
            .map(|f| dense(as_dtype(f.expand(dims), DType::F32)));
        Self {
            scale: scores.scale as f32,
            mask,
            factors,
            keys,
        }
    }

    fn view(&self) -> attention::Scores<'_> {
        attention::Scores {
            scale: self.scale,
            mask: self.mask.as_ref().map(|mask| {
                let (data, dims, strides) = view4(mask);
                let strides = [0, 1, 2].map(|i| if dims[i] == 1 { 0 } else { strides[i] });
                attention::Mask::new(data, strides, self.keys)
            }),
            factors: self.factors.as_ref().map(|factors| factors.storage()),
        }
    }
}

impl Kernels for Flex {
    fn random_mask<const D: usize>(
        dims: [usize; D],
        keep: f64,
        seed: u64,
        device: &Self::Device,
    ) -> Tensor<Self, D> {
        host_mask(dims, keep, seed, device)
    }

    fn compute_dtype(_stored: DType) -> DType {
        DType::F32
    }

    fn contiguous<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, D> {
        match x.into_primitive() {
            TensorPrimitive::Float(x) => Tensor::from_primitive(TensorPrimitive::Float(rows_of(x))),
            packed => Tensor::from_primitive(packed),
        }
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

    fn sum_rows(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        if !is_f32(&x) {
            return x.sum_dim(0).squeeze_dim(0);
        }
        let width = x.dims()[1];
        tensor(reduce::sum_rows(dense(x).storage(), width), [width])
    }

    fn log_sum_exp(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        let x = as_dtype(x, DType::F32);
        let [rows, width] = x.dims();
        tensor(reduce::log_sum_exp(dense(x).storage(), width), [rows])
    }

    fn log_sum_exp_backward(
        x: Tensor<Self, 2>,
        y: Tensor<Self, 1>,
        grad: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        let x = as_dtype(x, DType::F32);
        let dims = x.dims();
        let [y, grad] = [y, grad].map(|v| dense(as_dtype(v, DType::F32)));
        let slope = reduce::log_sum_exp_backward(dense(x).storage(), y.storage(), grad.storage());
        tensor(slope, dims)
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

    fn rms_norm_backward<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, D>,
        eps: f64,
    ) -> (Tensor<Self, D>, Tensor<Self, 1>) {
        if !is_f32(&x) || !is_f32(&weight) || !is_f32(&grad) {
            return gradients::rms_norm(x, weight, grad, eps);
        }
        let dims = x.dims();
        let (x, weight, grad) = (dense(x), dense(weight), dense(grad));
        let (dx, dw) = norm::rms_norm_backward(x.storage(), weight.storage(), grad.storage(), eps as f32);
        let width = dw.len();
        (tensor(dx, dims), tensor(dw, [width]))
    }

    fn linear_act(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        act: Activation,
    ) -> Tensor<Self, 2> {
        let packed = matches!(weight.dtype(), DType::QFloat(_));
        if !is_f32(&x) || !(packed || is_plain(&weight)) {
            return linear_by_matmul(x, weight, bias, act);
        }
        let ([rows, d_in], [d_out, _]) = (x.dims(), weight.dims());
        let bias = bias.map(|bias| dense(as_dtype(bias, DType::F32)));
        let epilogue = Epilogue {
            bias: bias.as_ref().map(|bias| bias.storage()),
            act: act.into(),
        };
        let x = x.into_primitive().tensor();
        let weight = match weight.into_primitive() {
            TensorPrimitive::QFloat(weight) => {
                let w = Packed::new(
                    bits_of(weight.scheme()),
                    bytemuck::cast_slice(weight.tensor().storage::<i8>()),
                    weight.scales(),
                    [d_out, d_in],
                );
                let y = quant::linear(rows_of(x).storage(), rows, w, epilogue);
                return tensor(y, [rows, d_out]);
            }
            weight => Tensor::<Self, 2>::from_primitive(weight),
        };
        let few = rows <= FEW_ROWS;
        let y = if weight.dtype() == DType::BF16 {
            let weight = dense(weight);
            let w: &[bf16] = weight.storage();
            if few {
                let w = Plain::new(w, [d_out, d_in], d_in);
                let product = if rounds_inputs() {
                    skinny::linear_bf16_rounded
                } else {
                    skinny::linear_bf16
                };
                product(rows_of(x).storage(), rows, w, epilogue)
            } else {
                let product = if rounds_inputs() {
                    gemm::matmul_bf16
                } else {
                    gemm::matmul
                };
                product(matrix(&x), Mat::new(w, d_out, d_in).transposed(), epilogue)
            }
        } else if weight.dtype() == DType::F16 {
            let weight = dense(weight);
            let w: &[f16] = weight.storage();
            if few {
                let w = Plain::new(w, [d_out, d_in], d_in);
                skinny::linear_f16(rows_of(x).storage(), rows, w, epilogue)
            } else {
                gemm::matmul(matrix(&x), Mat::new(w, d_out, d_in).transposed(), epilogue)
            }
        } else if few {
            let weight = dense(weight);
            let w = Plain::new(weight.storage(), [d_out, d_in], d_in);
            skinny::linear_f32(rows_of(x).storage(), rows, w, epilogue)
        } else {
            let weight = weight.into_primitive().tensor();
            gemm::matmul(matrix(&x), matrix::<f32>(&weight).transposed(), epilogue)
        };
        tensor(y, [rows, d_out])
    }

    /// The bytes of the result are those of [`quant::pack`]: in 4 bits, half as many as the shape says. Nothing
    /// but [`linear_act`](Kernels::linear_act) can read them; any other operation panics.
    fn pack_weight(weight: Tensor<Self, 2>, bits: WeightBits) -> Tensor<Self, 2> {
        let dims = weight.dims();
        let scheme = bits.scheme().with_store(QuantStore::Native);
        let (bits, stored) = (bits_of(&scheme), weight.dtype());
        let (data, scales) = match stored {
            DType::BF16 => quant::pack::<bf16>(bits, dense(weight).storage(), dims),
            DType::F16 => quant::pack::<f16>(bits, dense(weight).storage(), dims),
            _ => quant::pack::<f32>(bits, dense(as_dtype(weight, DType::F32)).storage(), dims),
        };
        let bytes = Bytes::from_bytes_vec(data);
        let data = FlexTensor::new(bytes, Layout::contiguous(dims.into()), DType::I8);
        let packed = FlexQTensor::new(data, scheme, scales);
        Tensor::from_primitive(TensorPrimitive::QFloat(packed))
    }

    fn linear_input_grad(grad: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !is_f32(&grad) || !is_plain(&weight) {
            let dtype = grad.dtype();
            return grad.matmul(as_dtype(weight, dtype));
        }
        let dims = [grad.dims()[0], weight.dims()[1]];
        let stored = weight.dtype();
        let (grad, weight) = (grad.into_primitive().tensor(), weight.into_primitive().tensor());
        // gradients are not rounded, whatever the weights are kept in
        let grad = matrix(&grad);
        let dx = match stored {
            DType::BF16 => gemm::matmul(grad, matrix::<bf16>(&weight), Epilogue::NONE),
            DType::F16 => gemm::matmul(grad, matrix::<f16>(&weight), Epilogue::NONE),
            _ => gemm::matmul(grad, matrix::<f32>(&weight), Epilogue::NONE),
        };
        tensor(dx, dims)
    }

    fn linear_weight_grad(grad: Tensor<Self, 2>, x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !is_f32(&grad) || !is_f32(&x) {
            return grad.transpose().matmul(x);
        }
        let dims = [grad.dims()[1], x.dims()[1]];
        let (grad, x) = (grad.into_primitive().tensor(), x.into_primitive().tensor());
        let dw = gemm::matmul(matrix(&grad).transposed(), matrix::<f32>(&x), Epilogue::NONE);
        tensor(dw, dims)
    }

    fn embed_grad(grad: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>, rows: usize) -> Tensor<Self, 2> {
        if !is_f32(&grad) {
            return embed_grad_by_tensor_ops(grad, ids, rows);
        }
        let width = grad.dims()[1];
        let grad = dense(grad);
        // zeroed by the allocator, which has untouched pages for nothing
        let mut table = vec![0.0; rows * width];
        for (row, id) in grad
            .storage::<f32>()
            .chunks_exact(width.max(1))
            .zip(ids.into_data().iter::<i64>())
        {
            let at = id as usize * width;
            table[at..at + width]
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += x);
        }
        tensor(table, [rows, width])
    }

    fn attend_scores(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        scores: Scores<Self>,
    ) -> Tensor<Self, 4> {
        if ![&q, &k, &v].into_iter().all(is_f32) {
            return attend_by_tensor_ops(q, k, v, scores);
        }
        let ([batch, heads, queries, width], keys) = (q.dims(), k.dims()[2]);
        let [q, k, v] = [q, k, v].map(head_rows);
        let held = HeldScores::new(scores, [batch, heads, queries, keys]);
        let y = attention::attend(heads_of(&q), heads_of(&k), heads_of(&v), held.view());
        tensor(y, [batch, queries, heads, width]).swap_dims(1, 2)
    }

    fn attend_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        scores: Scores<Self>,
        grad: Tensor<Self, 4>,
    ) -> [Tensor<Self, 4>; 3] {
        if ![&q, &k, &v, &grad].into_iter().all(is_f32) {
            return gradients::attend(q, k, v, scores, grad);
        }
        let ([batch, heads, queries, width], keys) = (q.dims(), k.dims()[2]);
        let [q, k, v, grad] = [q, k, v, grad].map(head_rows);
        let held = HeldScores::new(scores, [batch, heads, queries, keys]);
        let found = attention::attend_backward(
            heads_of(&q),
            heads_of(&k),
            heads_of(&v),
            held.view(),
            heads_of(&grad),
        );
        let back = |x, len| tensor(x, [batch, len, heads, width]).swap_dims(1, 2);
        [back(found.q, queries), back(found.k, keys), back(found.v, keys)]
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
