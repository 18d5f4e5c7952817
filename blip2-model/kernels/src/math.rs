//! Branch-free f32 functions that the compiler vectorises: exp, erf and sigmoid.
//!
//! Coefficients are weighted minimax fits made for this file; the tests state the error against f64.
//! `FMA` says whether a fused multiply-add is one instruction; without it, it would be a call into libm.

/// `a * b + c`
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x = p 2^n`
#[inline(always)]
fn exp_parts<const FMA: bool>(x: f32) -> (f32, i32) {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // adding and subtracting 1.5 * 2^23 rounds to an integer, which then stands in the low bits
    const ROUND: f32 = 12_582_912.0;
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LO, fma::<FMA>(n, -LN2_HI, x));
    let mut p = 1.395_171_8e-3;
    p = fma::<FMA>(p, r, 8.369_599e-3);
    p = fma::<FMA>(p, r, 4.166_618_7e-2);
    p = fma::<FMA>(p, r, 1.666_651_3e-1);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r * r, r) + 1.0;
    (p, (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32))
}

/// `e^x`; zero below -87.3 (f32 denormals are not produced), infinite above 88.7.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    let (p, n) = exp_parts::<FMA>(x.clamp(-87.3, 88.8));
    // two factors, because 2^128 alone is not a float
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    let y = p * power(half) * power(n - half);
    if x < -87.3 { 0.0 } else { y }
}

/// `e^x` for `x <= 0`, half the work of [`exp`]; zero below -87.3.
#[inline(always)]
pub fn exp_nonpositive<const FMA: bool>(x: f32) -> f32 {
    // the comparison keeps NaN
    let clamped = if x < -87.3 { -87.3 } else { x };
    let (p, n) = exp_parts::<FMA>(clamped);
    let y = p * f32::from_bits((n.wrapping_add(127) << 23) as u32);
    if x < -87.3 { 0.0 } else { y }
}

/// `erf(x)`
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let mut small = 8.316_773e-5;
    small = fma::<FMA>(small, s, -8.130_012e-4);
    small = fma::<FMA>(small, s, 5.199_907e-3);
    small = fma::<FMA>(small, s, -2.685_894_2e-2);
    small = fma::<FMA>(small, s, 1.128_368_7e-1);
    small = fma::<FMA>(small, s, -3.761_263_3e-1);
    small = fma::<FMA>(small, s, 1.283_791_7e-1);
    let small = fma::<FMA>(small, x, x);
    // ln(erfc t) / t
    let t4 = t.min(4.0);
    let mut large = -1.142_343_4e-5;
    large = fma::<FMA>(large, t4, 3.247_273_6e-4);
    large = fma::<FMA>(large, t4, -3.650_282e-3);
    large = fma::<FMA>(large, t4, 2.377_861_3e-2);
    large = fma::<FMA>(large, t4, -1.062_561e-1);
    large = fma::<FMA>(large, t4, -6.351_397e-1);
    large = fma::<FMA>(large, t4, -1.128_651_4);
    let large = (1.0 - exp_nonpositive::<FMA>(large * t4)).copysign(x);
    if t < 0.9277 { small } else { large }
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `(s, s (1 - s))` with `s = sigmoid(x)`; nothing cancels on either side.
#[inline(always)]
pub fn sigmoid_and_slope<const FMA: bool>(x: f32) -> (f32, f32) {
    let e = exp_nonpositive::<FMA>(-x.abs());
    let r = 1.0 / (1.0 + e);
    (if x < 0.0 { e * r } else { r }, e * r * r)
}

/// Sums that a loop over values keeps apart, so that it vectorises.
pub(crate) const LANES: usize = 32;

/// `f` over all values and `start`, in an order that vectorises.
#[inline(always)]
pub(crate) fn lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut best = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            best[i] = f(best[i], x[i]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            best[i] = f(best[i], best[i + width]);
        }
        width /= 2;
    }
    rest.iter().fold(best[0], |b, &x| f(b, x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(limit: f64) -> impl Iterator<Item = f32> {
        (-200_000..=200_000).map(move |i| (f64::from(i) / 200_000.0 * limit) as f32)
    }

    /// `erf` in f64: Taylor series, and the continued fraction of erfc where that is long.
    pub(crate) fn erf64(x: f64) -> f64 {
        let t = x.abs();
        if t < 3.0 {
            let (mut term, mut sum, mut n) = (t, t, 0.0);
            while term.abs() > 1e-18 {
                n += 1.0;
                term *= -t * t / n;
                sum += term / (2.0 * n + 1.0);
            }
            return (sum * 2.0 / std::f64::consts::PI.sqrt()).copysign(x);
        }
        let fraction = (1..=60).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (t + f));
        let erfc = (-t * t).exp() / std::f64::consts::PI.sqrt() / (t + fraction);
        (1.0 - erfc).copysign(x)
    }

    fn worst_ulp(f: fn(f32) -> f32, reference: fn(f64) -> f64, limit: f64) -> f64 {
        grid(limit)
            .map(|x| {
                let want = reference(f64::from(x));
                let unit = f64::from(f32::EPSILON) * 2f64.powi(want.abs().max(1e-37).log2().floor() as i32);
                (f64::from(f(x)) - want).abs() / unit
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        assert!(worst_ulp(exp::<true>, f64::exp, 87.0) < 1.5);
        assert!(worst_ulp(exp::<false>, f64::exp, 87.0) < 2.0);
        let below = |x: f64| f64::from(exp_nonpositive::<true>(x as f32));
        for x in [-87.2, -40.3, -1.0, -1e-3, 0.0] {
            assert!((below(x) / (f64::from(x as f32)).exp() - 1.0).abs() < 2e-7, "{x}");
        }
        assert_eq!(exp_nonpositive::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp_nonpositive::<true>(f32::NAN).is_nan());
        assert_eq!(exp::<true>(-1e30), 0.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(1e30), f32::INFINITY);
    }

    #[test]
    fn erf_is_within_two_units_in_the_last_place() {
        assert!((erf64(1.0) - 0.842_700_792_949_714_9).abs() < 1e-15);
        assert!((erf64(3.5) - 0.999_999_256_901_627_7).abs() < 1e-15);
        assert!(worst_ulp(erf::<true>, erf64, 5.0) < 1.5);
        assert!(worst_ulp(erf::<false>, erf64, 5.0) < 2.0);
        assert_eq!(erf::<true>(1e30), 1.0);
        assert_eq!(erf::<true>(-1e30), -1.0);
    }

    #[test]
    fn sigmoid_is_exact_to_f32() {
        for x in grid(30.0) {
            let wide = f64::from(x);
            assert!((f64::from(sigmoid::<true>(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 1.2e-7);
        }
    }
}
