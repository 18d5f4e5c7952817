//! Layer norm and RMS norm over rows, forward and backward, in parallel.

use crate::copy::{changed, rows_per_task};
use crate::level::per_level;

/// Gradients of [`layer_norm`].
#[derive(Debug)]
pub struct LayerNormGrads {
    /// Of the input, `[rows, width]`.
    pub x: Vec<f32>,
    /// Of the weight, `[width]`.
    pub weight: Vec<f32>,
    /// Of the bias, `[width]`.
    pub bias: Vec<f32>,
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` for every row of `x [rows, width]`.
///
/// # Panics
/// If `weight` or `bias` has another width than the rows.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    assert_eq!(weight.len(), bias.len(), "weight and bias of a layer norm");
    for_rows(x, weight.len(), |row| layer_norm_row(row, weight, bias, eps))
}

/// `x / sqrt(mean(x^2) + eps) * weight` for every row of `x [rows, width]`.
///
/// # Panics
/// If `weight` has another width than the rows.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    for_rows(x, weight.len(), |row| rms_norm_row(row, weight, eps))
}

fn for_rows(x: &[f32], width: usize, f: impl Fn(&mut [f32]) + Sync) -> Vec<f32> {
    if x.is_empty() {
        return Vec::new();
    }
    assert_eq!(x.len() % width, 0, "rows of a norm");
    let piece = |_, rows: &mut [f32]| rows.chunks_exact_mut(width).for_each(&f);
    changed(x, width * rows_per_task(width), piece).0
}

/// Gradients of [`layer_norm`] from `x` and the gradient of the result, both `[rows, width]`.
///
/// # Panics
/// If sizes do not match.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32) -> LayerNormGrads {
    let width = weight.len();
    assert_eq!(x.len(), grad.len(), "a layer norm and its gradient");
    let zero = || (vec![0f32; width], vec![0f32; width]);
    if x.is_empty() {
        let (weight, bias) = zero();
        return LayerNormGrads {
            x: Vec::new(),
            weight,
            bias,
        };
    }
    assert_eq!(x.len() % width, 0, "rows of a norm");
    let chunk = width * rows_per_task(width);
    let piece = |i: usize, dx: &mut [f32]| {
        let (mut dw, mut db) = zero();
        let x = x[i * chunk..].chunks_exact(width);
        for (dx, x) in dx.chunks_exact_mut(width).zip(x) {
            layer_norm_row_backward(x, weight, dx, &mut dw, &mut db, eps);
        }
        (dw, db)
    };
    // in order, so that the sum does not depend on which thread was faster
    let (dx, sums) = changed(grad, chunk, piece);
    let (mut dw, mut db) = zero();
    for (w, b) in &sums {
        add(&mut dw, w);
        add(&mut db, b);
    }
    LayerNormGrads {
        x: dx,
        weight: dw,
        bias: db,
    }
}

/// Gradients of [`rms_norm`]: of `x` and of the weight.
///
/// # Panics
/// If sizes do not match.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    assert_eq!(x.len(), grad.len(), "a norm and its gradient");
    let mut dw = vec![0f32; width];
    if x.is_empty() {
        return (Vec::new(), dw);
    }
    let chunk = width * rows_per_task(width);
    let piece = |i: usize, dx: &mut [f32]| {
        let mut dw = vec![0f32; width];
        let x = x[i * chunk..].chunks_exact(width);
        for (dx, x) in dx.chunks_exact_mut(width).zip(x) {
            rms_norm_row_backward(x, weight, dx, &mut dw, eps);
        }
        dw
    };
    let (dx, sums) = changed(grad, chunk, piece);
    for w in &sums {
        add(&mut dw, w);
    }
    (dx, dw)
}

fn add(sum: &mut [f32], x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
}

per_level! {
    fn layer_norm_row(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_norm_body;
}
per_level! {
    fn rms_norm_row(row: &mut [f32], weight: &[f32], eps: f32) = rms_norm_body;
}
per_level! {
    fn layer_norm_row_backward(x: &[f32], weight: &[f32], grad: &mut [f32], dw: &mut [f32], db: &mut [f32], eps: f32) =
        layer_norm_backward_body;
}
per_level! {
    fn rms_norm_row_backward(x: &[f32], weight: &[f32], grad: &mut [f32], dw: &mut [f32], eps: f32) =
        rms_norm_backward_body;
}

/// Independent partial sums: four 16-lane registers hide the latency of the additions.
const LANES: usize = 64;

/// Sum of `f(i)` for `i < n`, in lanes (shorter chains of additions are also more exact).
#[inline(always)]
fn lane_sum(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let mut tail = 0f32;
    for (&x, &y) in xs.remainder().iter().zip(ys.remainder()) {
        tail += f(x, y);
    }
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            sums[i] += f(x[i], y[i]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0] + tail
}

/// Mean and `1 / sqrt(var + eps)`, in two passes: the one-pass formula cancels.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = lane_sum(row, row, |x, _| x) / n;
    let var = lane_sum(row, row, |x, _| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let (mean, inverse) = moments(row, eps);
    for ((x, &w), &b) in row.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * inverse * w + b;
    }
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(row: &mut [f32], weight: &[f32], eps: f32) {
    let mean_square = lane_sum(row, row, |x, _| x * x) / row.len() as f32;
    let inverse = 1.0 / (mean_square + eps).sqrt();
    for (x, &w) in row.iter_mut().zip(weight) {
        *x = *x * inverse * w;
    }
}

#[inline(always)]
fn layer_norm_backward_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    grad: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
    eps: f32,
) {
    let (mean, inverse) = moments(x, eps);
    for (((g, &x), &w), (dw, db)) in grad
        .iter_mut()
        .zip(x)
        .zip(weight)
        .zip(dw.iter_mut().zip(db.iter_mut()))
    {
        *dw += *g * (x - mean) * inverse;
        *db += *g;
        *g *= w;
    }
    let n = x.len() as f32;
    let mean_grad = lane_sum(grad, grad, |g, _| g) / n;
    let projection = lane_sum(grad, x, |g, x| g * (x - mean) * inverse) / n;
    for (g, &x) in grad.iter_mut().zip(x) {
        *g = inverse * (*g - mean_grad - (x - mean) * inverse * projection);
    }
}

#[inline(always)]
fn rms_norm_backward_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    grad: &mut [f32],
    dw: &mut [f32],
    eps: f32,
) {
    let n = x.len() as f32;
    let inverse = 1.0 / (lane_sum(x, x, |x, _| x * x) / n + eps).sqrt();
    for (((g, &x), &w), dw) in grad.iter_mut().zip(x).zip(weight).zip(dw.iter_mut()) {
        *dw += *g * x * inverse;
        *g *= w;
    }
    let projection = lane_sum(grad, x, |g, x| g * x * inverse) / n;
    for (g, &x) in grad.iter_mut().zip(x) {
        *g = inverse * (*g - x * inverse * projection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i + seed) * 2_654_435_761 % 10_007) as f32 / 5_003.5 - 1.0)
            .collect()
    }

    fn layer_norm_f64(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
        let n = weight.len();
        x.chunks(n)
            .flat_map(|row| {
                let mean = row.iter().sum::<f64>() / n as f64;
                let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                row.iter()
                    .zip(weight.iter().zip(bias))
                    .map(move |(x, (w, b))| (x - mean) / (var + eps).sqrt() * w + b)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn rms_norm_f64(x: &[f64], weight: &[f64], _bias: &[f64], eps: f64) -> Vec<f64> {
        let n = weight.len();
        x.chunks(n)
            .flat_map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
                row.iter()
                    .zip(weight)
                    .map(move |(x, w)| x / (mean + eps).sqrt() * w)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() < tolerance, "{what} {i}: {g} {w}");
        }
    }

    /// Central differences of `sum(grad * f(args))` with respect to argument `at`.
    fn numeric(
        f: fn(&[f64], &[f64], &[f64], f64) -> Vec<f64>,
        args: [Vec<f64>; 3],
        at: usize,
        grad: &[f64],
        eps: f64,
    ) -> Vec<f64> {
        let h = 1e-5;
        (0..args[at].len())
            .map(|i| {
                let value = |delta: f64| {
                    let mut args = args.clone();
                    args[at][i] += delta;
                    let y = f(&args[0], &args[1], &args[2], eps);
                    y.iter().zip(grad).map(|(y, g)| y * g).sum::<f64>()
                };
                (value(h) - value(-h)) / (2.0 * h)
            })
            .collect()
    }

    #[test]
    fn both_norms_and_their_gradients_follow_f64() {
        for (rows, width) in [(1, 1), (1, 7), (3, 64), (5, 131), (2, 1408)] {
            let (x, w, b, g) = (
                values(rows * width, 1),
                values(width, 2),
                values(width, 3),
                values(rows * width, 4),
            );
            let args = [wide(&x), wide(&w), wide(&b)];
            let eps = 1e-5f64;
            let y = layer_norm(&x, &w, &b, eps as f32);
            let want = layer_norm_f64(&args[0], &args[1], &args[2], eps);
            // a dozen f32 roundings of values up to a few units
            close(&y, &want, 2e-6, "layer norm");
            let y = rms_norm(&x, &w, eps as f32);
            close(&y, &rms_norm_f64(&args[0], &args[1], &[], eps), 2e-6, "rms norm");
            if rows * width > 1000 {
                continue; // the difference quotients are quadratic
            }
            let grads = layer_norm_backward(&x, &w, &g, eps as f32);
            let numeric = |f, at| numeric(f, args.clone(), at, &wide(&g), eps);
            // f32 against difference quotients; a row of one value has a steep 1 / sqrt(eps)
            let tolerance = if width == 1 { 1e-3 } else { 5e-6 };
            close(&grads.x, &numeric(layer_norm_f64, 0), tolerance, "dx");
            close(&grads.weight, &numeric(layer_norm_f64, 1), tolerance, "dw");
            close(&grads.bias, &numeric(layer_norm_f64, 2), tolerance, "db");
            let (dx, dw) = rms_norm_backward(&x, &w, &g, eps as f32);
            close(&dx, &numeric(rms_norm_f64, 0), tolerance, "rms dx");
            close(&dw, &numeric(rms_norm_f64, 1), tolerance, "rms dw");
        }
    }

    #[test]
    fn a_large_mean_does_not_cancel() {
        let x: Vec<f32> = (0..512).map(|i| 1000.0 + (i % 7) as f32 * 0.25).collect();
        let (w, b) = (vec![1f32; 512], vec![0f32; 512]);
        let want = layer_norm_f64(&wide(&x), &wide(&w), &wide(&b), 1e-5);
        // inputs are exact; the mean of thousands is rounded to 6e-5
        close(&layer_norm(&x, &w, &b, 1e-5), &want, 3e-4, "large mean");
    }

    #[test]
    fn nothing_in_nothing_out() {
        let w = [1f32; 8];
        assert!(layer_norm(&[], &w, &w, 1e-5).is_empty());
        assert!(rms_norm(&[], &w, 1e-5).is_empty());
        let grads = layer_norm_backward(&[], &w, &[], 1e-5);
        assert_eq!(
            (grads.x.len(), grads.weight, grads.bias),
            (0, vec![0.0; 8], vec![0.0; 8])
        );
    }
}
