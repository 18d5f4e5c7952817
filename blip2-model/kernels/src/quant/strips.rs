//! Packed weights for tile registers: strips of 32 rows become bf16 in the second cache, a group of weights one row of a
//! tile. The rounding to bf16 is a quarter of the step of 8 bits.

use std::arch::x86_64::*;

use half::bf16;

use super::{Bits, GROUP, Packed};
use crate::gemm::{Ahead, Lines, SPAN, Strips};

impl Strips for Packed<'_> {
    fn size(&self) -> [usize; 2] {
        [self.rows, self.depth]
    }

    fn lines(&self, first: usize, from: usize, depth: usize, scratch: &mut [bf16]) -> Lines {
        let (groups, size) = (depth / GROUP, self.bits.group_bytes());
        for (r, out) in scratch[..SPAN * depth].chunks_exact_mut(depth).enumerate() {
            if first + r >= self.rows {
                out.fill(bf16::ZERO);
                continue;
            }
            let start = (first + r) * self.row_groups() + from / GROUP;
            let data = &self.data[start * size..(start + groups) * size];
            let scales = &self.scales[start..start + groups];
            // SAFETY: whoever asks for strips has tiles, and a processor with tiles has these instructions
            unsafe { unpack(self.bits, data, scales, out) };
        }
        Lines {
            at: scratch.as_ptr(),
            stride: 2 * depth,
        }
    }

    fn ahead(&self, first: usize, from: usize) -> Ahead {
        let size = self.bits.group_bytes();
        Ahead {
            at: self.data[(first * self.row_groups() + from / GROUP) * size..].as_ptr(),
            rows: SPAN.min(self.rows - first),
            stride: self.row_groups() * size,
            step: size,
        }
    }
}

/// Groups of packed weights to bf16, rounded to nearest even.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn unpack(bits: Bits, data: &[u8], scales: &[f32], out: &mut [bf16]) {
    let groups = data.chunks_exact(bits.group_bytes()).zip(scales);
    for ((data, &scale), out) in groups.zip(out.as_chunks_mut::<GROUP>().0) {
        let step = _mm512_set1_ps(scale);
        // SAFETY: a group of bytes, and a group of bf16, which is a transparent u16
        unsafe {
            let (low, high) = match bits {
                Bits::Eight => {
                    let half = |i| {
                        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(data.as_ptr().add(i).cast())))
                    };
                    (_mm512_mul_ps(half(0), step), _mm512_mul_ps(half(16), step))
                }
                Bits::Four => {
                    let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(data.as_ptr().cast()));
                    // stored 8 too large, of which the product with the scale is exact
                    let less = _mm512_set1_ps(-8.0 * scale);
                    let low = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
                    let high = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes));
                    (
                        _mm512_fmadd_ps(low, step, less),
                        _mm512_fmadd_ps(high, step, less),
                    )
                }
            };
            let pairs = _mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(
                out.as_mut_ptr().cast(),
                std::mem::transmute::<__m512bh, __m512i>(pairs),
            );
        }
    }
}
