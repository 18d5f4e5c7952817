//! Resampling kernels and their fixed-point weights, as Pillow computes them (`src/libImaging/Resample.c`).

use std::ops::Range;

/// Resampling kernel, with Pillow's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The pixel under the centre.
    Nearest,
    /// Windowed sinc over 3 lobes.
    Lanczos,
    /// Triangle.
    Bilinear,
    /// Cubic convolution with a = -0.5.
    Bicubic,
    /// Mean of the covered pixels.
    Box,
    /// Hamming-windowed sinc over 1 lobe.
    Hamming,
}

impl Filter {
    /// The filter for Pillow's `Resampling` number (the `resample` field of a preprocessor file).
    pub fn from_pillow(code: u64) -> Option<Self> {
        use Filter::*;
        [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming]
            .into_iter()
            .find(|f| f.to_pillow() == code)
    }

    /// Pillow's `Resampling` number.
    pub fn to_pillow(self) -> u64 {
        match self {
            Filter::Nearest => 0,
            Filter::Lanczos => 1,
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
            Filter::Box => 4,
            Filter::Hamming => 5,
        }
    }

    /// Half-width of the kernel at scale 1, source pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                return 1.0;
            }
            let x = x * std::f64::consts::PI;
            x.sin() / x
        };
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    let x = x * std::f64::consts::PI;
                    x.sin() / x * (0.54 + 0.46 * x.cos())
                }
            }
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// Fraction bits of a weight: what 32 bits leave beside the pixel and two bits of headroom.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// For each output position: first source position and fixed-point weights.
pub(super) struct Taps {
    pub(super) starts: Vec<usize>,
    pub(super) counts: Vec<usize>,
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    /// Weights for resampling `range` of a side of `size` pixels to `out` pixels.
    pub(super) fn new(size: u32, range: Range<u32>, out: usize, filter: Filter) -> Self {
        let scale = f64::from(range.end - range.start) / out as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / stretch;
        let mut taps = Taps {
            starts: Vec::new(),
            counts: Vec::new(),
            weights: vec![0; out * stride],
            stride,
        };
        let mut exact = vec![0f64; stride];
        for (i, weights) in taps.weights.chunks_exact_mut(stride).enumerate() {
            let center = f64::from(range.start) + (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(size as usize);
            let count = end.saturating_sub(first).min(stride);
            let mut total = 0.0;
            for (x, w) in exact[..count].iter_mut().enumerate() {
                *w = filter.weight(((x + first) as f64 - center + 0.5) * inverse);
                total += *w;
            }
            for (fixed, w) in weights.iter_mut().zip(&exact[..count]) {
                let w = if total != 0.0 { *w / total } else { *w } * f64::from(1 << PRECISION_BITS);
                // `as` truncates towards zero, like C
                *fixed = if w < 0.0 { w - 0.5 } else { w + 0.5 } as i32;
            }
            taps.starts.push(first);
            taps.counts.push(count);
        }
        taps
    }

    /// First source position and weights of output position `i`.
    pub(super) fn at(&self, i: usize) -> (usize, &[i32]) {
        (self.starts[i], &self.weights[i * self.stride..][..self.counts[i]])
    }

    /// All source positions that any output position reads.
    pub(super) fn span(&self) -> Range<usize> {
        let end = self
            .starts
            .iter()
            .zip(&self.counts)
            .map(|(s, c)| s + c)
            .max()
            .unwrap_or(0);
        self.starts.first().copied().unwrap_or(0)..end
    }
}
