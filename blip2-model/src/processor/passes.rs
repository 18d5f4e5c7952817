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
pub(super) fn horizontal_pass(view: &View<'_>, rows: Range<usize>, taps: &Taps) -> Vec<u8> {
    let width = taps.starts.len() * 3;
    let mut out = vec![0u8; rows.len() * width];
    let strips = out.par_chunks_mut(width * STRIP).enumerate();
    strips.for_each_init(Vec::new, |scratch, (i, strip)| {
        let src = &view.data[(rows.start + i * STRIP) * view.stride..];
        horizontal(src, view.stride, strip, taps, scratch);
    });
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

/// Rows that go through the horizontal pass together.
const STRIP: usize = 16;

/// Bytes that the inner loop adds side by side: a piece of a row, or a pixel of every row of a strip.
const LANES: usize = 3 * STRIP;

/// The horizontal pass of up to [`STRIP`] rows. On its side a strip is a narrow image in which pixels lie below each
/// other, so this is the vertical pass between two transpositions: sums along a row have nothing to add side by side.
fn horizontal(src: &[u8], stride: usize, dst: &mut [u8], taps: &Taps, scratch: &mut Vec<u8>) {
    let (span, width) = (taps.span(), taps.starts.len() * 3);
    let rows = dst.len() / width;
    scratch.resize((span.len() + taps.starts.len()) * LANES, 0);
    let (strip, resampled) = scratch.split_at_mut(span.len() * LANES);
    transpose(&src[span.start * 3..], stride, strip, STRIP, rows, span.len() * 3);
    for (i, pixel) in resampled.chunks_exact_mut(LANES).enumerate() {
        let (start, weights) = taps.at(i);
        vertical_row(&strip[(start - span.start) * LANES..], LANES, pixel, weights);
    }
    transpose(resampled, STRIP, dst, width, width, rows);
}

/// `dst[c][r] = src[r][c]` of `rows` x `columns` bytes.
fn transpose(src: &[u8], src_stride: usize, dst: &mut [u8], dst_stride: usize, rows: usize, columns: usize) {
    let (tall, wide) = (rows - rows % 8, columns - columns % (8 * BLOCKS));
    for r in (0..tall).step_by(8) {
        for c in (0..wide).step_by(8 * BLOCKS) {
            let blocks = std::array::from_fn(|k| {
                let bytes = &src[(r + k) * src_stride + c..][..8 * BLOCKS];
                std::array::from_fn(|b| u64::from_le_bytes(std::array::from_fn(|i| bytes[8 * b + i])))
            });
            for (k, words) in transpose8(blocks).iter().enumerate() {
                for (b, word) in words.iter().enumerate() {
                    dst[(c + 8 * b + k) * dst_stride + r..][..8].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
    for r in 0..rows {
        for c in (if r < tall { wide } else { 0 })..columns {
            dst[c * dst_stride + r] = src[r * src_stride + c];
        }
    }
}

/// Blocks of 8 x 8 bytes that are transposed together; a row of both fills a vector of 16 bytes.
const BLOCKS: usize = 2;

/// Blocks of 8 x 8 bytes, a row per word: halves, quarters and eighths change places across the diagonal.
#[inline(always)]
fn transpose8(mut rows: [[u64; BLOCKS]; 8]) -> [[u64; BLOCKS]; 8] {
    for (step, mask) in [
        (4, 0x0000_0000_ffff_ffff),
        (2, 0x0000_ffff_0000_ffff),
        (1, 0x00ff_00ff_00ff_00ff),
    ] {
        for i in (0..8).filter(|i| i & step == 0) {
            let (upper, lower) = rows.split_at_mut(i + step);
            for (a, b) in upper[i].iter_mut().zip(&mut lower[0]) {
                let swap = ((*a >> (8 * step)) ^ *b) & mask;
                *a ^= swap << (8 * step);
                *b ^= swap;
            }
        }
    }
    rows
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
        let rows = Taps::new(37, 0..37, 5, Filter::Bicubic);
        let (start, weights) = rows.at(2);
        let (mut a, mut b) = (vec![0; 633], vec![0; 633]);
        vertical_row(&image.as_raw()[start * 633..], 633, &mut a, weights);
        vertical_portable(&image.as_raw()[start * 633..], 633, &mut b, weights);
        assert_eq!(a, b);
    }

    /// Strips that are not full, rows that are no multiple of eight bytes, and parts of a row.
    #[test]
    fn rows_are_the_sums_of_their_definition() {
        let image = synthetic(211, 37);
        let view = View::packed(image.as_raw(), 211);
        for (out, range) in [(5, 0..211), (40, 17..150), (300, 3..200)] {
            let taps = Taps::new(211, range, out, Filter::Lanczos);
            let found = horizontal_pass(&view, 2..37, &taps);
            for (y, row) in found.chunks_exact(out * 3).enumerate() {
                for (i, pixel) in row.chunks_exact(3).enumerate() {
                    let (start, weights) = taps.at(i);
                    for (c, value) in pixel.iter().enumerate() {
                        let source = view.row(y + 2)[start * 3 + c..].iter().step_by(3);
                        let sum = source.zip(weights).map(|(p, w)| i32::from(*p) * w).sum::<i32>();
                        assert_eq!(*value, clip(sum + HALF), "row {y}, pixel {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn transposing_twice_gives_the_bytes_back() {
        let image = synthetic(19, 13);
        let (mut side, mut back) = (vec![0; 57 * 13], vec![0; 57 * 13]);
        transpose(image.as_raw(), 57, &mut side, 13, 13, 57);
        assert_eq!(side[5 * 13 + 12], image.as_raw()[12 * 57 + 5]);
        transpose(&side, 13, &mut back, 57, 57, 13);
        assert_eq!(&back, image.as_raw());
    }
}
