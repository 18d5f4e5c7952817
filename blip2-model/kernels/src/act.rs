//! Activation functions over slices, forward and derivative, in parallel.

use crate::copy::{CHUNK, changed};
use crate::level::per_level;
use crate::math::{erf, exp_nonpositive, sigmoid, sigmoid_and_slope};

/// Point-wise functions (names as in Hugging Face configs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x`
    Identity,
    /// `x Phi(x)`, exact.
    Gelu,
    /// Its tanh approximation (`gelu_new`).
    GeluTanh,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `x sigmoid(x)`
    Silu,
}

/// `act(x)`
pub fn forward(act: Act, x: &[f32]) -> Vec<f32> {
    changed(x, CHUNK, |_, y| apply(act, y)).0
}

/// `act'(x) * grad`
///
/// # Panics
/// If the lengths differ.
pub fn backward(act: Act, x: &[f32], grad: &[f32]) -> Vec<f32> {
    assert_eq!(
        x.len(),
        grad.len(),
        "an activation and its gradient differ in length"
    );
    let piece = |i: usize, grad: &mut [f32]| {
        let x = &x[i * CHUNK..][..grad.len()];
        scale_by_derivative(act, x, grad);
    };
    changed(grad, CHUNK, piece).0
}

per_level! {
    /// `act` in place, on this thread.
    pub fn apply(act: Act, x: &mut [f32]) = apply_body;
}

per_level! {
    fn scale_by_derivative(act: Act, x: &[f32], grad: &mut [f32]) = derivative_body;
}

const SQRT_8_OVER_PI: f32 = 1.595_769;
const INV_SQRT_2PI: f32 = 0.398_942_3;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn apply_body<const FMA: bool>(act: Act, x: &mut [f32]) {
    #[inline(always)]
    fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
        for v in x {
            *v = f(*v);
        }
    }
    match act {
        Act::Identity => {}
        Act::Gelu => map(x, |v| {
            0.5 * v * (1.0 + erf::<FMA>(v * std::f32::consts::FRAC_1_SQRT_2))
        }),
        // (1 + tanh u) / 2 = sigmoid(2 u), which does not cancel
        Act::GeluTanh => map(x, |v| {
            v * sigmoid::<FMA>(SQRT_8_OVER_PI * (v + CUBIC * v * v * v))
        }),
        Act::QuickGelu => map(x, |v| v * sigmoid::<FMA>(1.702 * v)),
        // keeps NaN, as torch does
        Act::Relu => map(x, |v| if v < 0.0 { 0.0 } else { v }),
        Act::Silu => map(x, |v| v * sigmoid::<FMA>(v)),
    }
}

#[inline(always)]
fn derivative_body<const FMA: bool>(act: Act, x: &[f32], grad: &mut [f32]) {
    #[inline(always)]
    fn map(x: &[f32], grad: &mut [f32], f: impl Fn(f32) -> f32) {
        for (g, &x) in grad.iter_mut().zip(x) {
            *g *= f(x);
        }
    }
    /// Derivative of `x sigmoid(a x)`.
    #[inline(always)]
    fn swish<const FMA: bool>(x: f32, a: f32) -> f32 {
        let (s, slope) = sigmoid_and_slope::<FMA>(a * x);
        s + a * x * slope
    }
    match act {
        Act::Identity => {}
        Act::Gelu => map(x, grad, |v| {
            let cdf = 0.5 * (1.0 + erf::<FMA>(v * std::f32::consts::FRAC_1_SQRT_2));
            cdf + v * INV_SQRT_2PI * exp_nonpositive::<FMA>(-0.5 * v * v)
        }),
        Act::GeluTanh => map(x, grad, |v| {
            let (s, slope) = sigmoid_and_slope::<FMA>(SQRT_8_OVER_PI * (v + CUBIC * v * v * v));
            let inner = SQRT_8_OVER_PI * (1.0 + 3.0 * CUBIC * v * v);
            s + v * slope * inner
        }),
        Act::QuickGelu => map(x, grad, |v| swish::<FMA>(v, 1.702)),
        Act::Relu => map(x, grad, |v| if v > 0.0 { 1.0 } else { 0.0 }),
        Act::Silu => map(x, grad, |v| swish::<FMA>(v, 1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Act; 6] = [
        Act::Identity,
        Act::Gelu,
        Act::GeluTanh,
        Act::QuickGelu,
        Act::Relu,
        Act::Silu,
    ];

    fn reference(act: Act, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match act {
            Act::Identity => x,
            Act::Gelu => {
                // Simpson's rule on the density from 0 to x
                let n = 2000;
                let h = x / f64::from(n);
                let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let sum: f64 = (0..=n)
                    .map(|i| {
                        let weight = if i == 0 || i == n {
                            1.0
                        } else if i % 2 == 1 {
                            4.0
                        } else {
                            2.0
                        };
                        weight * density(h * f64::from(i))
                    })
                    .sum();
                x * (0.5 + sum * h / 3.0)
            }
            Act::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Act::QuickGelu => x * sigmoid(1.702 * x),
            Act::Relu => x.max(0.0),
            Act::Silu => x * sigmoid(x),
        }
    }

    #[test]
    fn forward_and_derivative_follow_the_formula_in_f64() {
        // an odd length leaves a tail after the vector loop
        let x: Vec<f32> = (0..1013).map(|i| (i as f32 - 506.3) / 70.0).collect();
        let ones = vec![1f32; x.len()];
        for act in ALL {
            let y = forward(act, &x);
            let slope = backward(act, &x, &ones);
            for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
                let wide = f64::from(x);
                // f32 rounding of a product that reaches 7.3
                assert!((f64::from(y) - reference(act, wide)).abs() < 8e-7, "{act:?} {x}");
                let h = 1e-5;
                let want = (reference(act, wide + h) - reference(act, wide - h)) / (2.0 * h);
                // 1e-9 of the difference quotient, the rest is f32
                assert!((f64::from(slope) - want).abs() < 1e-6, "{act:?}' {x}");
            }
        }
    }

    #[test]
    fn every_level_agrees_and_empty_is_fine() {
        for act in ALL {
            assert!(forward(act, &[]).is_empty());
            let x: Vec<f32> = (0..97).map(|i| i as f32 / 10.0 - 4.8).collect();
            let fast = forward(act, &x);
            let mut plain = x.clone();
            apply_body::<false>(act, &mut plain);
            for (a, b) in fast.iter().zip(&plain) {
                assert!((a - b).abs() <= 4e-7, "{act:?}");
            }
        }
    }

    #[test]
    fn extreme_values_do_not_turn_into_nan() {
        for act in ALL {
            let y = forward(act, &[-1e30, 1e30, 0.0, f32::MAX]);
            assert!(y.iter().all(|v| !v.is_nan()), "{act:?} {y:?}");
            assert_eq!(y[1], 1e30);
        }
        assert!(forward(Act::Relu, &[f32::NAN])[0].is_nan());
    }
}
