//! What a backend puts in the place of chains of plain operations (`Kernels`), on every backend of the build, against
//! the same sums in f64 on the host.
//!
//! Bounds are relative to `1 + |value|`. f32: a hundred products of size 0.1 to 1 in any order and a device's own `exp`
//! and `erf` (WebGPU allows 3 units in the last place and more), 1e-5; tensor cores that cut f32 to 11 bits would be off
//! by 1e-3. Half precision: inputs are the rounded ones on both sides, so what is left is the result's own rounding and,
//! where activations are f32 and weights are not, that of the inputs, u each: 2 u.

#[cfg(feature = "flex")]
use blip2_kernels::level::rounds_inputs;
use blip2_model::nn::kernels::Scores;
use blip2_model::nn::{Activation, Kernels};
use burn::tensor::{DType, Tensor, TensorData};

/// Power series; the terms stay below 1e6 up to 4, where the function is 1 within 2e-8.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn apply(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::Identity => x,
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
    }
}

/// Repeatable values, roughly uniform in (-1.7, 1.7), of variance 1.
fn random<B: Kernels, const D: usize>(seed: u64, dims: [usize; D], device: &B::Device) -> Tensor<B, D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values = (0..dims.iter().product()).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u32 << 24) as f32 - 0.5) * 12f32.sqrt()
    });
    Tensor::from_data(TensorData::new(values.collect(), dims), (device, DType::F32))
}

fn host<B: Kernels, const D: usize>(x: &Tensor<B, D>) -> Vec<f64> {
    x.clone().into_data().convert::<f64>().to_vec().expect("f64")
}

fn close<B: Kernels, const D: usize>(got: Tensor<B, D>, want: &[f64], bound: f64, what: &str) {
    let got = host(&got);
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!(
            (a - b).abs() <= bound * (1.0 + b.abs()),
            "{what}, {i}: {a} for {b}"
        );
    }
}

/// `x [rows, n]`, `w [outputs, n]`
fn products(x: &[f64], w: &[f64], n: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    let rows = x.chunks(n);
    rows.flat_map(|row| w.chunks(n).map(move |w| dot(row, w)))
        .collect()
}

/// The device's formats with their unit roundoff, and the bound that follows.
fn dtypes<B: Kernels>(device: &B::Device) -> Vec<(DType, f64)> {
    let halves = [(DType::BF16, 2f64.powi(-7)), (DType::F16, 2f64.powi(-10))];
    let halves = halves
        .into_iter()
        .filter(|(dtype, _)| B::supports_dtype(device, *dtype));
    std::iter::once((DType::F32, 1e-5)).chain(halves).collect()
}

/// What is added where f32 inputs are rounded to the format of the weights, which of the backends only flex does: `width` errors of up to u / 2 each, in
/// products of size 0.1. Their sum is normal with a deviation of `0.03 sqrt(width) u`; these are 3.5 of them, beyond the
/// bound that there is anyway.
fn of_inputs<B: Kernels>(dtype: DType, width: usize) -> f64 {
    #[cfg(feature = "flex")]
    if B::compute_dtype(dtype) == DType::F32 && dtype == DType::BF16 && rounds_inputs() {
        return 0.1 * (width as f64).sqrt() * 2f64.powi(-8);
    }
    let _ = (dtype, width);
    0.0
}

fn linear_maps<B: Kernels>(device: &B::Device) {
    for (dtype, format) in dtypes::<B>(device) {
        for (rows, width, outputs) in [
            (1, 70, 51),
            (3, 64, 130),
            (5, 96, 7),
            (8, 128, 33),
            (9, 64, 64),
            (40, 70, 51),
            (130, 256, 200),
        ] {
            let what = format!("{dtype:?} {rows}x{width}x{outputs}");
            let bound = format + of_inputs::<B>(dtype, width);
            let w = (random::<B, 2>(1, [outputs, width], device) * 0.1).cast(dtype);
            let bias = random::<B, 1>(2, [outputs], device);
            let wide = random::<B, 2>(3, [rows, width + 9], device).cast(B::compute_dtype(dtype));
            let turned = random::<B, 2>(4, [width, rows], device).cast(B::compute_dtype(dtype));
            for x in [wide.narrow(1, 4, width), turned.transpose()] {
                let sums = products(&host(&x), &host(&w), width);
                let plain = B::linear_act(x.clone(), w.clone(), None, Activation::Identity);
                close(plain, &sums, bound, &what);
                let shifts = host(&bias);
                for act in Activation::ALL {
                    let want: Vec<f64> = sums
                        .iter()
                        .enumerate()
                        .map(|(i, sum)| apply(act, sum + shifts[i % outputs]))
                        .collect();
                    let got = B::linear_act(x.clone(), w.clone(), Some(bias.clone()), act);
                    assert_eq!((got.dims(), got.dtype()), ([rows, outputs], x.dtype()), "{what}");
                    close(got, &want, bound, &format!("{what} {act:?}"));
                }
            }
        }
    }
}

/// Large enough for the way that a backend takes to its matrix units.
fn large_products<B: Kernels>(device: &B::Device) {
    let (rows, width, outputs) = (1100, 64, 72);
    for (dtype, bound) in dtypes::<B>(device) {
        let w = (random::<B, 2>(1, [outputs, width], device) * 0.1).cast(dtype);
        let x = random::<B, 2>(2, [rows, width], device).cast(B::compute_dtype(dtype));
        let want = products(&host(&x), &host(&w), width);
        let got = B::linear_act(x, w, None, Activation::Identity);
        close(got, &want, bound, &format!("large {dtype:?}"));
    }
}

fn gradients_of_linear_maps<B: Kernels>(device: &B::Device) {
    let (rows, width, outputs) = (37, 70, 51);
    let x = random::<B, 2>(1, [rows, width], device);
    let w = random::<B, 2>(2, [outputs, width], device) * 0.1;
    let grad = random::<B, 2>(3, [rows, outputs], device);
    let want = products(&host(&grad), &host(&w.clone().transpose()), outputs);
    close(B::linear_input_grad(grad.clone(), w), &want, 1e-5, "inputs");
    let want = products(
        &host(&grad.clone().transpose()),
        &host(&x.clone().transpose()),
        rows,
    );
    close(B::linear_weight_grad(grad, x), &want, 1e-5, "weights");
    let (rows, width, outputs) = (37, 72, 1104);
    for (dtype, bound) in dtypes::<B>(device) {
        let dtype = B::compute_dtype(dtype);
        let x = random::<B, 2>(1, [rows, width], device).cast(dtype) * 0.1;
        let grad = random::<B, 2>(3, [rows, outputs], device).cast(dtype);
        let want = products(
            &host(&grad.clone().transpose()),
            &host(&x.clone().transpose()),
            rows,
        );
        close(
            B::linear_weight_grad(grad, x),
            &want,
            bound,
            &format!("large weights {dtype:?}"),
        );
    }
}

fn activations<B: Kernels>(device: &B::Device) {
    // a view whose rows have gaps
    let x = (random::<B, 3>(1, [2, 7, 40], device) * 3.0).narrow(2, 3, 33);
    for act in Activation::ALL {
        let want: Vec<f64> = host(&x).iter().map(|&x| apply(act, x)).collect();
        close(B::activate(x.clone(), act), &want, 1e-5, &format!("{act:?}"));
    }
}

fn norms<B: Kernels>(device: &B::Device) {
    for (dtype, bound) in dtypes::<B>(device) {
        let dtype = B::compute_dtype(dtype);
        for width in [5, 33, 768, 1408] {
            let x = (random::<B, 3>(1, [2, 3, width + 4], device) + 7.0).cast(dtype);
            let x = x.narrow(2, 2, width);
            let (w, b) = (
                random::<B, 1>(2, [width], device),
                random::<B, 1>(3, [width], device),
            );
            let (scale, shift) = (host(&w), host(&b));
            let (mut layer, mut rms) = (Vec::new(), Vec::new());
            for row in host(&x).chunks(width) {
                let n = width as f64;
                let mean = row.iter().sum::<f64>() / n;
                let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let square = row.iter().map(|x| x * x).sum::<f64>() / n;
                for (i, x) in row.iter().enumerate() {
                    layer.push((x - mean) / (var + 1e-5).sqrt() * scale[i] + shift[i]);
                    rms.push(x / (square + 1e-6).sqrt() * scale[i]);
                }
            }
            let what = format!("norm of {width} in {dtype:?}");
            let got = B::layer_norm_f32(x.clone(), w.clone(), b, 1e-5);
            assert_eq!(got.dtype(), dtype, "{what}");
            close(got, &layer, bound, &format!("layer {what}"));
            close(B::rms_norm_f32(x, w, 1e-6), &rms, bound, &format!("rms {what}"));
        }
    }
}

fn attention<B: Kernels>(device: &B::Device) {
    let (b, h) = (2, 3);
    for (dtype, bound) in dtypes::<B>(device) {
        let dtype = B::compute_dtype(dtype);
        let shapes = [
            (1, 9, 8),
            (4, 300, 80),
            (2, 33, 5),
            (7, 70, 64),
            (40, 65, 88),
            (1, 2100, 16),
            (2900, 20, 8),
        ];
        for (t, s, d) in shapes {
            // as projections leave heads, and as a cache shows its filled part
            let q = random::<B, 4>(1, [b, t, h, d], device)
                .cast(dtype)
                .swap_dims(1, 2);
            let k = random::<B, 4>(2, [b, h, s + 4, d], device)
                .cast(dtype)
                .narrow(2, 0, s);
            let v = random::<B, 4>(3, [b, h, s + 4, d], device)
                .cast(dtype)
                .narrow(2, 0, s);
            let masks = [
                None,
                Some([b, 1, 1, s]),
                Some([1, 1, t, s]),
                Some([b, h, t, s]),
                Some([1, h, 1, s]),
            ];
            for (i, mask) in masks.into_iter().enumerate() {
                let mask = mask.map(|dims| random::<B, 4>(4, dims, device));
                let factors = (i == 3).then(|| random::<B, 4>(5, [b, h, t, s], device));
                let ones = Tensor::<B, 4>::ones([b, h, t, s], (device, DType::F32));
                let shift = mask
                    .clone()
                    .map_or_else(|| vec![0.0; b * h * t * s], |m| host(&m.expand([b, h, t, s])));
                let kept = host(factors.as_ref().unwrap_or(&ones));
                let (qs, ks, vs) = (host(&q), host(&k), host(&v));
                let mut want = Vec::new();
                for (row, q) in qs.chunks(d).enumerate() {
                    let (head, at) = (row / t, row * s);
                    let scores = ks[head * s * d..][..s * d].chunks(d).enumerate();
                    let scores = scores.map(|(j, k)| {
                        let dot: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum();
                        (dot * 0.3 + shift[at + j]).exp()
                    });
                    let scores: Vec<f64> = scores.collect();
                    let total: f64 = scores.iter().sum();
                    for i in 0..d {
                        let value = |j: usize| scores[j] / total * kept[at + j] * vs[(head * s + j) * d + i];
                        want.push((0..s).map(value).sum());
                    }
                }
                let scores = Scores {
                    scale: 0.3,
                    mask,
                    factors,
                };
                let got = B::attend_scores(q.clone(), k.clone(), v.clone(), scores);
                assert_eq!(got.dims(), [b, h, t, d]);
                // scores and probabilities are rounded on the way as well
                close(
                    got,
                    &want,
                    bound * 2.0,
                    &format!("attention {dtype:?} {t}x{s}x{d}, mask {i}"),
                );
            }
        }
    }
}

fn all<B: Kernels>(device: &B::Device) {
    linear_maps::<B>(device);
    large_products::<B>(device);
    gradients_of_linear_maps::<B>(device);
    activations::<B>(device);
    norms::<B>(device);
    attention::<B>(device);
}

#[cfg(feature = "flex")]
#[test]
fn flex() {
    all::<blip2_model::backend::Flex>(&Default::default());
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray() {
    all::<blip2_model::backend::NdArray>(&Default::default());
}

#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
#[test]
fn wgpu() {
    if crate::support::wgpu_adapter() {
        all::<blip2_model::backend::Wgpu>(&Default::default());
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda() {
    all::<blip2_model::backend::Cuda>(&Default::default());
}

#[cfg(feature = "rocm")]
#[test]
fn rocm() {
    all::<blip2_model::backend::Rocm>(&Default::default());
}
