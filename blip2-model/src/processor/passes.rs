//! The two passes of resampling over rows of RGB bytes: in parallel over output rows, in integers, with inner loops
//! shaped for vector units.

use std::ops::Range;

use rayon::prelude::*;

use super::filter::{PRECISION_BITS, Taps};

/// Rows of RGB bytes inside a larger buffer.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [u8],
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl<'a> View<'a> {
    pub(super) fn packed(data: &'a [u8], width: u32) -> Self {
        let stride = width as usize * 3;
        Self {
            data,
            stride,
            width,
            height: (data.len() / stride) as u32,
        }
    }

    pub(super) fn row(&self, y: usize) -> &'a [u8] {
        &self.data[y * self.stride..][..self.width as usize * 3]
    }
}

/// Resamples the given rows; the result has as many rows as that, of `taps` many pixels.
pub(super) fn horizontal_pass(view: &View<'_>, rows: Range<usize>, taps: &WideTaps) -> Vec<u8> {
    let width = taps.starts.len() * 3;
    let mut out = vec![0u8; rows.len() * width];
    let rows_out = out.par_chunks_exact_mut(width).with_min_len(MIN_ROWS);
    rows_out
        .enumerate()
        .for_each(|(y, row)| horizontal(view.row(rows.start + y), row, taps));
    out
}

/// Resamples all columns; row 0 of `view` is row `first` of the image that `taps` speaks of.
pub(super) fn vertical_pass(view: &View<'_>, first: usize, taps: &Taps) -> Vec<u8> {
    let width = view.width as usize * 3;
    let mut out = vec![0u8; taps.starts.len() * width];
    let rows_out = out.par_chunks_exact_mut(width).with_min_len(MIN_ROWS);
    rows_out.enumerate().for_each(|(y, row)| {
        let (start, weights) = taps.at(y);
        vertical_row(
            &view.data[(start - first) * view.stride..],
            view.stride,
            row,
            weights,
        );
    });
    out
}

/// Fewest rows worth a task of their own.
const MIN_ROWS: usize = 8;

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Pixels per step of the horizontal pass; 8 pixels of 3 channels fill three vectors of 8 lanes.
const STEP: usize = 8;

/// Horizontal weights laid out as the bytes lie: each one three times, padded with zeros to whole steps.
pub(super) struct WideTaps {
    /// Byte at which each window starts.
    starts: Vec<usize>,
    weights: Vec<i32>,
    /// Bytes of one window.
    len: usize,
}

impl WideTaps {
    pub(super) fn new(taps: &Taps, view: &View<'_>) -> Self {
        let width = view.width as usize;
        let longest = taps.counts.iter().copied().max().unwrap_or(0);
        // a window must not be longer than the row it reads
        let pixels = longest.next_multiple_of(STEP);
        let pixels = if pixels <= width { pixels } else { longest };
        let len = pixels * 3;
        let mut wide = WideTaps {
            starts: Vec::new(),
            weights: vec![0; taps.starts.len() * len],
            len,
        };
        for (i, out) in wide.weights.chunks_exact_mut(len).enumerate() {
            let (start, weights) = taps.at(i);
            let moved = start.min(width - pixels);
            for (x, w) in weights.iter().enumerate() {
                out[(start - moved + x) * 3..][..3].fill(*w);
            }
            wide.starts.push(moved * 3);
        }
        wide
    }
}

/// One output row of the horizontal pass, on the widest vectors that the machine has.
fn horizontal(src: &[u8], dst: &mut [u8], taps: &WideTaps) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(src: &[u8], dst: &mut [u8], taps: &WideTaps) {
            horizontal_portable(src, dst, taps)
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected just above
            return unsafe { avx2(src, dst, taps) };
        }
    }
    horizontal_portable(src, dst, taps)
}

#[inline(always)]
fn horizontal_portable(src: &[u8], dst: &mut [u8], taps: &WideTaps) {
    const LANES: usize = STEP * 3;
    let windows = taps.weights.chunks_exact(taps.len).zip(&taps.starts);
    for (out, (weights, &start)) in dst.chunks_exact_mut(3).zip(windows) {
        let window = &src[start..start + taps.len];
        let mut lanes = [0i32; LANES];
        let (mut pixels, mut factors) = (window.chunks_exact(LANES), weights.chunks_exact(LANES));
        for (p, w) in (&mut pixels).zip(&mut factors) {
            for l in 0..LANES {
                lanes[l] = lanes[l].wrapping_add(i32::from(p[l]).wrapping_mul(w[l]));
            }
        }
        for (l, (p, w)) in pixels.remainder().iter().zip(factors.remainder()).enumerate() {
            lanes[l] = lanes[l].wrapping_add(i32::from(*p).wrapping_mul(*w));
        }
        for (c, o) in out.iter_mut().enumerate() {
            *o = clip((0..STEP).fold(HALF, |sum, s| sum.wrapping_add(lanes[s * 3 + c])));
        }
    }
}

/// One output row of the vertical pass; `src` starts at the first row that has a weight.
fn vertical_row(src: &[u8], stride: usize, dst: &mut [u8], weights: &[i32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(src: &[u8], stride: usize, dst: &mut [u8], weights: &[i32]) {
            vertical_portable(src, stride, dst, weights)
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected just above
            return unsafe { avx2(src, stride, dst, weights) };
        }
    }
    vertical_portable(src, stride, dst, weights)
}

#[inline(always)]
fn vertical_portable(src: &[u8], stride: usize, dst: &mut [u8], weights: &[i32]) {
    const LANES: usize = 48;
    let mut at = 0;
    let mut blocks = dst.chunks_exact_mut(LANES);
    for block in &mut blocks {
        let mut sums = [HALF; LANES];
        for (y, w) in weights.iter().enumerate() {
            let row = &src[y * stride + at..][..LANES];
            for l in 0..LANES {
                sums[l] = sums[l].wrapping_add(i32::from(row[l]).wrapping_mul(*w));
            }
        }
        for l in 0..LANES {
            block[l] = clip(sums[l]);
        }
        at += LANES;
    }
    for (l, o) in blocks.into_remainder().iter_mut().enumerate() {
        let column = weights
            .iter()
            .enumerate()
            .map(|(y, w)| i32::from(src[y * stride + at + l]).wrapping_mul(*w));
        *o = clip(column.fold(HALF, i32::wrapping_add));
    }
}

#[cfg(test)]
mod tests {
    use super::super::filter::Filter;
    use super::super::fixtures::synthetic;
    use super::*;

    #[test]
    fn portable_and_detected_kernels_agree() {
        let image = synthetic(211, 37);
        let view = View::packed(image.as_raw(), 211);
        for out in [5, 40, 300] {
            let taps = WideTaps::new(&Taps::new(211, 0..211, out, Filter::Lanczos), &view);
            let (mut a, mut b) = (vec![0; out * 3], vec![0; out * 3]);
            horizontal(&image.as_raw()[..633], &mut a, &taps);
            horizontal_portable(&image.as_raw()[..633], &mut b, &taps);
            assert_eq!(a, b);
            let rows = Taps::new(37, 0..37, 5, Filter::Bicubic);
            let (start, weights) = rows.at(2);
            let (mut a, mut b) = (vec![0; 633], vec![0; 633]);
            vertical_row(&image.as_raw()[start * 633..], 633, &mut a, weights);
            vertical_portable(&image.as_raw()[start * 633..], 633, &mut b, weights);
            assert_eq!(a, b);
        }
    }
}
