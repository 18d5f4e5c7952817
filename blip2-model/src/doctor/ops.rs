//! Single operations, at the sizes where devices were seen to fail.
//!
//! Bounds: sums of `n` f32 products of order one are good to about `n * 6e-8` of their size at worst and far less
//! in practice; a wrong epsilon, mask, head or a product in TF32 is off by 1e-3 or more. 1e-5 lies between for
//! what is normalised, 1e-4 for long sums.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use half::{bf16, f16};

use super::host::{self, noise};
use super::{Check, LARGE_TABLE, guarded};
use crate::nn::kernels::as_dtype;
use crate::nn::mask::{MASKED, ids_tensor, index_tensor};
use crate::nn::{Activation, Context, Kernels, KvCache, PadMask};

/// Rows of the output layer of OPT in today's files.
const VOCABULARY: usize = 50304;
const VOCABULARY_CHECK: &str = "output layer of 50,304 rows";
/// Width whose table just fits 128 MiB, the least that WebGPU and Vulkan promise for one binding, and one that
/// exceeds it.
const TABLE_WIDTHS: [usize; 2] = [640, 704];

fn tensor<B: Kernels, const D: usize>(values: &[f32], shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32))
}

fn to_host<B: Kernels, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    let data = x.into_data().convert::<f32>();
    data.to_vec().unwrap_or_default()
}

/// Every check of this file.
pub(super) fn run<B: Kernels>(device: &B::Device) -> Vec<Check> {
    type Run<'a> = Box<dyn Fn() -> Check + 'a>;
    let non_linear = |act, name| -> Run<'_> { Box::new(move || non_linear::<B>(act, name, device)) };
    let half = |dtype, name| -> Run<'_> { Box::new(move || half_product::<B>(dtype, name, device)) };
    let checks: Vec<(&str, Run<'_>)> = vec![
        ("layer norm", Box::new(|| layer_norm::<B>(device))),
        ("RMS norm", Box::new(|| rms_norm::<B>(device))),
        ("softmax under masks", Box::new(|| masked_softmax::<B>(device))),
        ("attention, all heads", Box::new(|| attention::<B>(device))),
        ("GELU (erf)", non_linear(Activation::Gelu, "GELU (erf)")),
        ("GELU (tanh)", non_linear(Activation::GeluTanh, "GELU (tanh)")),
        ("quick GELU", non_linear(Activation::QuickGelu, "quick GELU")),
        ("matrix product f32", Box::new(|| product::<B>(device))),
        ("matrix product f16", half(DType::F16, "matrix product f16")),
        ("matrix product bf16", half(DType::BF16, "matrix product bf16")),
        (
            VOCABULARY_CHECK,
            Box::new(|| vocabulary::<B>(VOCABULARY_CHECK, TABLE_WIDTHS[0], device)),
        ),
        (
            LARGE_TABLE,
            Box::new(|| vocabulary::<B>(LARGE_TABLE, TABLE_WIDTHS[1], device)),
        ),
        ("cache and beam reordering", Box::new(|| cache::<B>(device))),
    ];
    let run = |(name, check): (&str, Run<'_>)| guarded(check).unwrap_or_else(|| Check::panicked(name, 0.0));
    checks.into_iter().map(run).collect()
}

/// A mean that dwarfs the deviation, so that a one-pass variance fails.
fn layer_norm<B: Kernels>(device: &B::Device) -> Check {
    let (rows, width, eps) = (257, 1408, 1e-6);
    let x: Vec<f32> = noise(1, rows * width).iter().map(|v| 20.0 + v).collect();
    let (weight, bias) = (noise(2, width), noise(3, width));
    let got = B::layer_norm_f32(
        tensor::<B, 3>(&x, [1, rows, width], device),
        tensor(&weight, [width], device),
        tensor(&bias, [width], device),
        eps,
    );
    // the rounding of inputs of size 20 is 1e-6 of their deviation
    Check::compare(
        "layer norm",
        &to_host(got),
        &host::layer_norm(&x, &weight, &bias, eps),
        2e-5,
    )
}

fn rms_norm<B: Kernels>(device: &B::Device) -> Check {
    let (rows, width, eps) = (33, 2048, 1e-6);
    let (x, weight) = (noise(4, rows * width), noise(5, width));
    let got = B::rms_norm_f32(
        tensor::<B, 3>(&x, [1, rows, width], device),
        tensor(&weight, [width], device),
        eps,
    );
    Check::compare("RMS norm", &to_host(got), &host::rms_norm(&x, &weight, eps), 1e-5)
}

/// Rows with few, many and no visible positions; where all is hidden the result is uniform, not NaN.
fn masked_softmax<B: Kernels>(device: &B::Device) -> Check {
    let (rows, width) = (66, 65);
    let scores: Vec<f32> = noise(6, rows * width).iter().map(|v| 8.0 * v).collect();
    let mask: Vec<f32> = (0..rows * width)
        .map(|i| if i % width < i / width { 0.0 } else { MASKED })
        .collect();
    let shape = [1, 1, rows, width];
    let masked = tensor::<B, 4>(&scores, shape, device) + tensor(&mask, shape, device);
    let got = activation::softmax(masked, 3);
    let mut want = Vec::new();
    for (t, row) in scores.chunks_exact(width).enumerate() {
        let visible = if t == 0 { 0 } else { t.min(width) };
        let mut row: Vec<f64> = row.iter().map(|&v| v.into()).collect();
        row.iter_mut().skip(visible).for_each(|v| *v = f64::NEG_INFINITY);
        if visible == 0 {
            row.fill(0.0);
        }
        want.extend(host::softmax(&row));
    }
    Check::compare("softmax under masks", &to_host(got), &want, 1e-6)
}

/// Padding on the left and a causal mask over a prefix, as decoding has them; 16 heads of width 88 as in ViT-g.
fn attention<B: Kernels>(device: &B::Device) -> Check {
    let (batch, heads, queries, keys, width) = (2, 16, 20, 150, 88);
    let count = |len: usize| batch * heads * len * width;
    let (q, k, v) = (
        noise(7, count(queries)),
        noise(8, count(keys)),
        noise(9, count(keys)),
    );
    let padding = [0, 11];
    let mask = PadMask::new(
        padding
            .iter()
            .map(|&pad| (0..keys).map(|s| s >= pad).collect())
            .collect(),
    );
    // scores of order ten: some probabilities near one, most near zero
    let scale = 1.0;
    let at = |len: usize| [batch, heads, len, width];
    let got = B::attend(
        tensor(&q, at(queries), device),
        tensor(&k, at(keys), device),
        tensor(&v, at(keys), device),
        Some(mask.additive_causal(queries, device)),
        scale,
        &Context::eval(),
        0.0,
    );
    let mut want = Vec::new();
    for (head, q) in q.chunks_exact(queries * width).enumerate() {
        let at = head * keys * width..(head + 1) * keys * width;
        let pad = padding[head / heads];
        want.extend(host::attention(
            q,
            &k[at.clone()],
            &v[at],
            width,
            scale,
            |t, s| s >= pad && s <= keys - queries + t,
        ));
    }
    Check::compare("attention, all heads", &to_host(got), &want, 2e-5)
}

fn non_linear<B: Kernels>(act: Activation, name: &str, device: &B::Device) -> Check {
    let x: Vec<f32> = (-4000..4000).map(|i| i as f32 / 500.0).collect();
    let got = act.apply(tensor::<B, 1>(&x, [x.len()], device));
    let want: Vec<f64> = x.iter().map(|&x| host::activation(act, x.into())).collect();
    Check::compare(name, &to_host(got), &want, 1e-5)
}

/// Odd sizes, with bias; TF32 would show.
fn product<B: Kernels>(device: &B::Device) -> Check {
    let (m, k, n) = (129, 1407, 67);
    let (x, w, bias) = (noise(10, m * k), noise(11, n * k), noise(12, n));
    let got = B::linear_act(
        tensor(&x, [m, k], device),
        tensor(&w, [n, k], device),
        Some(tensor(&bias, [n], device)),
        Activation::Identity,
    );
    let want = host::linear(&x, &w, Some(&bias), k);
    Check::compare("matrix product f32", &to_host(got), &want, 1e-4)
}

/// A weight kept in half precision, with activations in the dtype that the backend chooses for it.
fn half_product<B: Kernels>(stored: DType, name: &str, device: &B::Device) -> Check {
    let (m, k, n) = (40, 512, 65);
    let compute = B::compute_dtype(stored);
    // outputs are rounded to 11 or 8 bits where activations are half, and sums may be, too
    let bound = match compute {
        DType::F16 => 4e-3,
        DType::BF16 => 3e-2,
        _ => 1e-4,
    };
    let round = |dtype: DType, v: f32| match dtype {
        DType::F16 => f16::from_f32(v).to_f32(),
        DType::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    };
    if !B::supports_dtype(device, stored) {
        return Check::unsupported(
            name,
            bound,
            "the device does not have it; weights are widened to f32",
        );
    }
    // both factors fit the stored dtype, so that only sums and outputs are rounded
    let x: Vec<f32> = noise(13, m * k).into_iter().map(|v| round(stored, v)).collect();
    let w: Vec<f32> = noise(14, n * k).into_iter().map(|v| round(stored, v)).collect();
    let got = guarded(|| {
        let x = as_dtype(tensor::<B, 2>(&x, [m, k], device), compute);
        let w = as_dtype(tensor::<B, 2>(&w, [n, k], device), stored);
        to_host(B::linear_act(x, w, None, Activation::Identity))
    });
    match got {
        Some(got) => Check::compare(name, &got, &host::linear(&x, &w, None, k), bound),
        None => Check::unsupported(name, bound, "the device gave up on it; use --dtype f32"),
    }
}

/// The largest matrix of the models as output layer and as look-up, at rows of either end.
fn vocabulary<B: Kernels>(name: &str, k: usize, device: &B::Device) -> Check {
    let rows = 3;
    let (x, w) = (noise(15, rows * k), noise(16, VOCABULARY * k));
    let table = tensor::<B, 2>(&w, [VOCABULARY, k], device);
    let got = B::linear_act(
        tensor(&x, [rows, k], device),
        table.clone(),
        None,
        Activation::Identity,
    );
    let check = Check::compare(name, &to_host(got), &host::linear(&x, &w, None, k), 1e-4);
    let ids = [0, 1, 25_151, VOCABULARY - 2, VOCABULARY - 1];
    let looked_up: Tensor<B, 2, Int> = ids_tensor(&[ids.map(|id| id as i64).to_vec()], device);
    let got = to_host(burn::tensor::module::embedding(table, looked_up));
    let want: Vec<f64> = ids
        .iter()
        .flat_map(|&id| w[id * k..(id + 1) * k].iter().map(|&v| v.into()))
        .collect();
    let found = Check::compare(name, &got, &want, 0.0);
    Check {
        outcome: if found.error > 0.0 {
            found.outcome
        } else {
            check.outcome
        },
        error: check.error.max(found.error),
        ..check
    }
}

/// Prompt, two steps, and rows reordered between them: copies, so they must be exact.
fn cache<B: Kernels>(device: &B::Device) -> Check {
    let (batch, heads, width) = (3, 2, 5);
    let mut cache = KvCache::<B>::new(9);
    let mut want: Vec<Vec<f32>> = vec![Vec::new(); batch * heads];
    let mut last = None;
    for (step, len) in [4, 1, 1].into_iter().enumerate() {
        let shape = [batch, heads, len, width];
        let new = noise(17 + step as u64, batch * heads * len * width);
        for (head, new) in want.iter_mut().zip(new.chunks_exact(len * width)) {
            head.extend(new);
        }
        let (keys, _) = cache.append(tensor(&new, shape, device), tensor(&new, shape, device));
        last = Some(keys);
        if step < 2 {
            let order = [2, 0, 0];
            cache.select(&index_tensor(&order, device));
            want = order
                .iter()
                .flat_map(|&row| want[row * heads..(row + 1) * heads].to_vec())
                .collect();
        }
    }
    let got = last.map(to_host).unwrap_or_default();
    let want: Vec<f64> = want.concat().into_iter().map(f64::from).collect();
    Check::compare("cache and beam reordering", &got, &want, 0.0)
}
