//! The operations of the models in f64, written for certainty and not for speed.

use crate::nn::Activation;

/// Numbers in [-1, 1) that are the same everywhere (SplitMix64).
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    // 24 bits fit an f32 exactly
    (0..count)
        .map(|_| (next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
        .collect()
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over rows of `weight.len()`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let width = weight.len() as f64;
    let rows = x.chunks_exact(weight.len()).map(|row| {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / width;
        let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width;
        let scale = 1.0 / (var + eps).sqrt();
        let values = row.iter().zip(weight).zip(bias);
        values
            .map(|((&v, &w), &b)| (f64::from(v) - mean) * scale * f64::from(w) + f64::from(b))
            .collect::<Vec<_>>()
    });
    rows.flatten().collect()
}

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let width = weight.len() as f64;
    let rows = x.chunks_exact(weight.len()).map(|row| {
        let square = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width;
        let scale = 1.0 / (square + eps).sqrt();
        row.iter()
            .zip(weight)
            .map(|(&v, &w)| f64::from(v) * scale * f64::from(w))
            .collect::<Vec<_>>()
    });
    rows.flatten().collect()
}

/// Softmax of one row.
pub fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = row.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|v| v / sum).collect()
}

/// Attention of one head: `q [T, d]`, `k` and `v [S, d]`, `visible(t, s)` -> `[T, d]`.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    width: usize,
    scale: f64,
    visible: impl Fn(usize, usize) -> bool,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(q.len());
    for (t, q) in q.chunks_exact(width).enumerate() {
        let keys = k.chunks_exact(width).enumerate();
        let scores: Vec<f64> = keys
            .map(|(s, k)| match visible(t, s) {
                true => scale * dot(q, k),
                false => f64::NEG_INFINITY,
            })
            .collect();
        let mut sum = vec![0.0; width];
        for (p, v) in softmax(&scores).iter().zip(v.chunks_exact(width)) {
            sum.iter_mut()
                .zip(v)
                .for_each(|(sum, &v)| *sum += p * f64::from(v));
        }
        out.extend(sum);
    }
    out
}

/// `x [m, k]`, `w [n, k]`, `bias [n]` -> `x w^T + bias [m, n]`.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize) -> Vec<f64> {
    use rayon::prelude::*;
    let rows = x.chunks_exact(k).map(|x| {
        w.par_chunks_exact(k)
            .enumerate()
            .map(|(j, w)| dot(x, w) + bias.map_or(0.0, |bias| f64::from(bias[j])))
            .collect::<Vec<_>>()
    });
    rows.flatten().collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// One value of a non-linearity.
pub fn activation(act: Activation, x: f64) -> f64 {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::Identity => x,
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x * logistic(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * logistic(x),
    }
}

/// Error function: its Taylor series near zero, the continued fraction of `erfc` beyond.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a > 3.0 {
        let fraction = (1..=60).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (a + f));
        let erfc = (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + fraction));
        return (1.0 - erfc).copysign(x);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the error function from tables.
    #[test]
    fn the_reference_itself_is_right() {
        for (x, want) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (-2.0, -0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - want).abs() < 1e-12, "{x}: {}", erf(x));
        }
        let uniform = softmax(&[3.0; 4]);
        assert_eq!(uniform, [0.25; 4]);
        let norm = layer_norm(&[1.0, 3.0], &[1.0, 1.0], &[0.0, 0.5], 0.0);
        assert_eq!(norm, [-1.0, 1.5]);
        let values = noise(1, 10_000);
        let mean = values.iter().sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.02 && values.iter().all(|v| (-1.0..1.0).contains(v)));
    }
}
