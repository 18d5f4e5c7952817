//! The few vector operations that the matrix kernels need, for each instruction set.
//!
//! Kernels are generic over [`Simd`], always inlined, and called from functions that switch the instructions on;
//! whoever calls such a function has checked [`Level::detect`](crate::level::Level::detect).

/// Vectors of `LANES` f32 values.
///
/// # Safety
/// Every function may only run where the processor has the instructions of the implementing type; pointers
/// must be valid for the lanes read or written (no alignment needed).
pub(crate) trait Simd {
    /// f32 values per vector.
    const LANES: usize;
    /// A vector register.
    type V: Copy;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(x: *const f32) -> Self::V;
    /// The first `n` lanes; the rest zero.
    unsafe fn load_part(x: *const f32, n: usize) -> Self::V;
    unsafe fn store(x: *mut f32, v: Self::V);
    /// The first `n` lanes.
    unsafe fn store_part(x: *mut f32, n: usize, v: Self::V);
    /// bf16 values, widened.
    unsafe fn load_bf16(x: *const u16) -> Self::V;
    /// f16 values, widened.
    unsafe fn load_f16(x: *const u16) -> Self::V;
    /// Signed bytes, widened.
    unsafe fn load_i8(x: *const i8) -> Self::V;
    /// Products of 32 signed bytes with 32 numbers of 16 bits, summed over the lanes that the result is spread over.
    unsafe fn dot_i8(w: *const i8, x: *const i16) -> Self::V;
    /// The same for the low and then the high halves of 16 bytes, numbers 0 to 15; `less` is taken off the sum.
    unsafe fn dot_u4(w: *const u8, x: *const i16, less: i32) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    /// `c + a.0 * b.0 + a.1 * b.1` where each lane holds two bf16 numbers; only where the processor has such products.
    unsafe fn dot_pairs(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

/// Eight lanes of plain Rust.
#[cfg_attr(target_arch = "aarch64", allow(dead_code))]
pub(crate) struct Portable;

#[allow(clippy::needless_range_loop)]
impl Simd for Portable {
    const LANES: usize = 8;
    type V = [f32; 8];

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(x: *const f32) -> Self::V {
        // SAFETY: the caller's
        unsafe { x.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(x: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 8];
        for i in 0..n {
            // SAFETY: the caller's
            v[i] = unsafe { *x.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store(x: *mut f32, v: Self::V) {
        // SAFETY: the caller's
        unsafe { x.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_part(x: *mut f32, n: usize, v: Self::V) {
        for i in 0..n {
            // SAFETY: the caller's
            unsafe { *x.add(i) = v[i] };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(x: *const u16) -> Self::V {
        // SAFETY: the caller's
        let x = unsafe { x.cast::<[u16; 8]>().read_unaligned() };
        x.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(x: *const u16) -> Self::V {
        // SAFETY: the caller's
        let x = unsafe { x.cast::<[u16; 8]>().read_unaligned() };
        x.map(|x| half::f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(x: *const i8) -> Self::V {
        // SAFETY: the caller's
        unsafe { x.cast::<[i8; 8]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn dot_i8(w: *const i8, x: *const i16) -> Self::V {
        // SAFETY: the caller's
        let (w, x) = unsafe {
            (
                w.cast::<[i8; 32]>().read(),
                x.cast::<[i16; 32]>().read_unaligned(),
            )
        };
        let mut sums = [0i32; 8];
        for i in 0..32 {
            sums[i % 8] += i32::from(w[i]) * i32::from(x[i]);
        }
        sums.map(|sum| sum as f32)
    }
    #[inline(always)]
    unsafe fn dot_u4(w: *const u8, x: *const i16, less: i32) -> Self::V {
        // SAFETY: the caller's
        let (w, x) = unsafe {
            (
                w.cast::<[u8; 16]>().read(),
                x.cast::<[i16; 32]>().read_unaligned(),
            )
        };
        let mut sums = [-less, 0, 0, 0, 0, 0, 0, 0];
        for i in 0..16 {
            sums[i % 8] += i32::from(w[i] & 15) * i32::from(x[i]);
            sums[i % 8] += i32::from(w[i] >> 4) * i32::from(x[i + 16]);
        }
        sums.map(|sum| sum as f32)
    }
    #[inline(always)]
    unsafe fn mul(mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..8 {
            a[i] *= b[i];
        }
        a
    }
    #[inline(always)]
    unsafe fn add(mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..8 {
            a[i] += b[i];
        }
        a
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        const FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
        for i in 0..8 {
            c[i] = crate::math::fma::<FMA>(a[i], b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let h = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (h[0] + h[2]) + (h[1] + h[3])
    }
    unsafe fn dot_pairs(_: Self::V, _: Self::V, _: Self::V) -> Self::V {
        unreachable!("bf16 products are chosen only where the processor has them")
    }
}

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

/// What every processor of this architecture has.
#[cfg(target_arch = "aarch64")]
pub(crate) type Base = Neon;
/// What every processor of this architecture has.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type Base = Portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, transpose8};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// AVX2, FMA and F16C.
    pub(crate) struct Avx2;

    #[inline(always)]
    unsafe fn mask256(n: usize) -> __m256i {
        const LANES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        debug_assert!(n <= 8);
        // SAFETY: eight lanes from `8 - n` lie inside the array
        unsafe { _mm256_loadu_si256(LANES.as_ptr().add(8 - n).cast()) }
    }

    // SAFETY of all bodies: the caller has the instructions and valid pointers, as the trait demands
    impl Simd for Avx2 {
        const LANES: usize = 8;
        type V = __m256;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(x: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(x) }
        }
        #[inline(always)]
        unsafe fn load_part(x: *const f32, n: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(x, mask256(n)) }
        }
        #[inline(always)]
        unsafe fn store(x: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(x, v) }
        }
        #[inline(always)]
        unsafe fn store_part(x: *mut f32, n: usize, v: __m256) {
            unsafe { _mm256_maskstore_ps(x, mask256(n), v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(x: *const u16) -> __m256 {
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(x: *const u16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.cast())) }
        }
        #[inline(always)]
        unsafe fn load_i8(x: *const i8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.cast()))) }
        }
        #[inline(always)]
        unsafe fn dot_i8(w: *const i8, x: *const i16) -> __m256 {
            unsafe {
                let half = |i: usize| {
                    let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(i).cast()));
                    _mm256_madd_epi16(w, _mm256_loadu_si256(x.add(i).cast()))
                };
                _mm256_cvtepi32_ps(_mm256_add_epi32(half(0), half(16)))
            }
        }
        #[inline(always)]
        unsafe fn dot_u4(w: *const u8, x: *const i16, less: i32) -> __m256 {
            unsafe {
                let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(w.cast()));
                let low = _mm256_and_si256(bytes, _mm256_set1_epi16(15));
                let high = _mm256_srli_epi16::<4>(bytes);
                let low = _mm256_madd_epi16(low, _mm256_loadu_si256(x.cast()));
                let high = _mm256_madd_epi16(high, _mm256_loadu_si256(x.add(16).cast()));
                let less = _mm256_zextsi128_si256(_mm_cvtsi32_si128(less));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_add_epi32(low, high), less))
            }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            unsafe {
                let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
                _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
            }
        }
        unsafe fn dot_pairs(_: __m256, _: __m256, _: __m256) -> __m256 {
            unreachable!("bf16 products are chosen only where the processor has them")
        }
    }

    /// Rows and columns exchanged.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    pub(crate) unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
        unsafe {
            let low = |a, b| _mm256_unpacklo_ps(a, b);
            let high = |a, b| _mm256_unpackhi_ps(a, b);
            let t = [
                low(r[0], r[1]),
                high(r[0], r[1]),
                low(r[2], r[3]),
                high(r[2], r[3]),
                low(r[4], r[5]),
                high(r[4], r[5]),
                low(r[6], r[7]),
                high(r[6], r[7]),
            ];
            let first = |a, b| _mm256_shuffle_ps::<0x44>(a, b);
            let second = |a, b| _mm256_shuffle_ps::<0xee>(a, b);
            let q = [
                first(t[0], t[2]),
                second(t[0], t[2]),
                first(t[1], t[3]),
                second(t[1], t[3]),
                first(t[4], t[6]),
                second(t[4], t[6]),
                first(t[5], t[7]),
                second(t[5], t[7]),
            ];
            let left = |i: usize| _mm256_permute2f128_ps::<0x20>(q[i], q[i + 4]);
            let right = |i: usize| _mm256_permute2f128_ps::<0x31>(q[i], q[i + 4]);
            [
                left(0),
                left(1),
                left(2),
                left(3),
                right(0),
                right(1),
                right(2),
                right(3),
            ]
        }
    }

    /// AVX-512; `dot_pairs` needs its bf16 extension.
    pub(crate) struct Avx512;

    #[inline(always)]
    fn mask512(n: usize) -> __mmask16 {
        debug_assert!(n <= 16);
        ((1u32 << n) - 1) as __mmask16
    }

    impl Simd for Avx512 {
        const LANES: usize = 16;
        type V = __m512;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(x: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(x) }
        }
        #[inline(always)]
        unsafe fn load_part(x: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(mask512(n), x) }
        }
        #[inline(always)]
        unsafe fn store(x: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(x, v) }
        }
        #[inline(always)]
        unsafe fn store_part(x: *mut f32, n: usize, v: __m512) {
            unsafe { _mm512_mask_storeu_ps(x, mask512(n), v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(x: *const u16) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(x: *const u16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.cast())) }
        }
        #[inline(always)]
        unsafe fn load_i8(x: *const i8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.cast()))) }
        }
        #[inline(always)]
        unsafe fn dot_i8(w: *const i8, x: *const i16) -> __m512 {
            unsafe {
                let w = _mm512_cvtepi8_epi16(_mm256_loadu_si256(w.cast()));
                _mm512_cvtepi32_ps(_mm512_madd_epi16(w, _mm512_loadu_si512(x.cast())))
            }
        }
        #[inline(always)]
        unsafe fn dot_u4(w: *const u8, x: *const i16, less: i32) -> __m512 {
            unsafe {
                // the same bytes in both halves, of which the second keeps what is above bit 4
                let bytes = _mm_loadu_si128(w.cast());
                let bytes = _mm512_cvtepu8_epi16(_mm256_broadcastsi128_si256(bytes));
                let shift = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(4));
                let w = _mm512_and_si512(_mm512_srlv_epi16(bytes, shift), _mm512_set1_epi16(15));
                let sum = _mm512_madd_epi16(w, _mm512_loadu_si512(x.cast()));
                let less = _mm512_zextsi128_si512(_mm_cvtsi32_si128(less));
                _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, less))
            }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        unsafe fn dot_pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
            // the bit pattern is what counts: a lane of f32 carries two bf16
            unsafe {
                let pairs = |v: __m512| std::mem::transmute::<__m512, __m512bh>(v);
                _mm512_dpbf16_ps(c, pairs(a), pairs(b))
            }
        }
    }
}
