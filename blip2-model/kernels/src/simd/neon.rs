//! NEON, which every aarch64 processor has, and the bf16 dot products of Armv8.6 (Apple M2, Neoverse V1 and later).

use std::arch::{aarch64::*, asm};

use super::Simd;

/// Two registers of four lanes.
pub(crate) struct Neon;

/// Eight signed bytes times eight numbers of 16 bits, added to four sums each.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn add_products(sums: [int32x4_t; 2], w: int8x8_t, x: *const i16) -> [int32x4_t; 2] {
    // SAFETY: the caller's
    unsafe {
        let (w, x) = (vmovl_s8(w), vld1q_s16(x));
        [
            vmlal_s16(sums[0], vget_low_s16(w), vget_low_s16(x)),
            vmlal_high_s16(sums[1], w, x),
        ]
    }
}

// SAFETY of all bodies: the caller has valid pointers, as the trait demands, and the instructions
impl Simd for Neon {
    const LANES: usize = 8;
    type V = [float32x4_t; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        unsafe { [vdupq_n_f32(0.0); 2] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(x: *const f32) -> Self::V {
        unsafe { [vld1q_f32(x), vld1q_f32(x.add(4))] }
    }
    #[inline(always)]
    unsafe fn load_part(x: *const f32, n: usize) -> Self::V {
        let mut lanes = [0f32; 8];
        unsafe {
            lanes.as_mut_ptr().copy_from_nonoverlapping(x, n);
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(x: *mut f32, v: Self::V) {
        unsafe {
            vst1q_f32(x, v[0]);
            vst1q_f32(x.add(4), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_part(x: *mut f32, n: usize, v: Self::V) {
        let mut lanes = [0f32; 8];
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            x.copy_from_nonoverlapping(lanes.as_ptr(), n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(x: *const u16) -> Self::V {
        unsafe {
            let x = vld1q_u16(x);
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(x))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(x)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(x: *const u16) -> Self::V {
        unsafe {
            let wide = x
                .cast::<[u16; 8]>()
                .read_unaligned()
                .map(|x| half::f16::from_bits(x).to_f32());
            Self::load(wide.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_i8(x: *const i8) -> Self::V {
        unsafe {
            let x = vmovl_s8(vld1_s8(x));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))),
                vcvtq_f32_s32(vmovl_high_s16(x)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_i8(w: *const i8, x: *const i16) -> Self::V {
        unsafe {
            let mut sums = [vdupq_n_s32(0); 2];
            for i in (0..32).step_by(8) {
                sums = add_products(sums, vld1_s8(w.add(i)), x.add(i));
            }
            sums.map(|sums| vcvtq_f32_s32(sums))
        }
    }
    #[inline(always)]
    unsafe fn dot_u4(w: *const u8, x: *const i16, less: i32) -> Self::V {
        unsafe {
            let bytes = vld1q_u8(w);
            let halves = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
            let mut sums = [vsetq_lane_s32::<0>(-less, vdupq_n_s32(0)), vdupq_n_s32(0)];
            for (i, half) in halves.into_iter().enumerate() {
                let half = vreinterpretq_s8_u8(half);
                sums = add_products(sums, vget_low_s8(half), x.add(16 * i));
                sums = add_products(sums, vget_high_s8(half), x.add(16 * i + 8));
            }
            sums.map(|sums| vcvtq_f32_s32(sums))
        }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..2 {
            // the intrinsic is not stable in Rust
            unsafe {
                asm!(
                    ".arch_extension bf16",
                    "bfdot {c:v}.4s, {a:v}.8h, {b:v}.8h",
                    c = inout(vreg) c[i],
                    a = in(vreg) a[i],
                    b = in(vreg) b[i],
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
        c
    }
}
