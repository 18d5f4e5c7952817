//! Register tiles: up to 8 rows by 3 vectors of the product are kept in registers while the packed panels of
//! both factors stream past once.

#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::level::Level;
use crate::simd::{Base, Simd};

/// What one call computes: `rows x (vectors * lanes)` values of `c (+)= a b`.
#[derive(Clone, Copy)]
pub(super) struct Args {
    /// Steps along the contraction: values, or pairs of bf16.
    pub steps: usize,
    /// `[steps][rows]`, or `[steps / group][rows][group]`
    pub a: *const u32,
    /// `[steps][vectors * lanes]`
    pub b: *const u32,
    /// Row-major.
    pub c: *mut f32,
    /// Distance of rows of `c`.
    pub stride: usize,
    /// Valid lanes of the last vector of a row.
    pub last: usize,
    /// Whether to add to what `c` holds.
    pub accumulate: bool,
}

/// Sizes and code of the tiles of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Values per vector.
    pub lanes: usize,
    /// Largest number of vectors per row.
    pub vectors: usize,
    /// Largest number of rows.
    pub rows: usize,
    /// Whether panels hold pairs of bf16.
    pub pairs: bool,
    /// Steps that are taken at once; panels are padded to a multiple of it.
    pub group: usize,
    /// Steps along the contraction per block, a multiple of `group`.
    pub depth: usize,
    /// Most panels of columns per task.
    pub panels: usize,
    /// The code, ready to run on the thread that asks.
    pub code: fn() -> Code,
}

/// [`Tiles`] at work on one thread.
pub(super) enum Code {
    /// In vector registers.
    Vectors(unsafe fn(usize, usize, Args)),
    /// In tile registers, which are given back when this is dropped.
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Registers),
}

impl Tiles {
    /// For f32 panels, or for bf16 panels where the processor multiplies them.
    pub fn choose(level: Level, want_pairs: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if want_pairs && level >= Level::Amx {
                return Self {
                    lanes: amx::SIDE,
                    vectors: amx::SPAN / amx::SIDE,
                    rows: amx::SPAN,
                    pairs: true,
                    group: amx::SIDE,
                    depth: 512,
                    panels: 8,
                    code: || Code::Amx(amx::Registers::new()),
                };
            }
            let wide = |pairs, code| Self {
                lanes: 16,
                vectors: 3,
                rows: 8,
                pairs,
                group: 1,
                depth: 512,
                panels: 4,
                code,
            };
            if want_pairs && level >= Level::Avx512Bf16 {
                return wide(true, || Code::Vectors(run_avx512_bf16));
            }
            if level >= Level::Avx512 {
                return wide(false, || Code::Vectors(run_avx512));
            }
            if level >= Level::Avx2 {
                return Self {
                    lanes: 8,
                    vectors: 2,
                    rows: 6,
                    pairs: false,
                    group: 1,
                    depth: 512,
                    panels: 4,
                    code: || Code::Vectors(run_avx2),
                };
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let tiles = |pairs, code| Self {
                lanes: 8,
                vectors: 2,
                rows: 6,
                pairs,
                group: 1,
                depth: 512,
                panels: 4,
                code,
            };
            if want_pairs && level >= Level::NeonBf16 {
                tiles(true, || Code::Vectors(run_neon_bf16))
            } else {
                tiles(false, || Code::Vectors(run_base))
            }
        }
        #[cfg(not(target_arch = "aarch64"))]
        let _ = (level, want_pairs);
        #[cfg(not(target_arch = "aarch64"))]
        Self {
            lanes: 8,
            vectors: 1,
            rows: 4,
            pairs: false,
            group: 1,
            depth: 512,
            panels: 4,
            code: || Code::Vectors(run_base),
        }
    }

    /// Columns of a full panel of `b`.
    pub fn columns(&self) -> usize {
        self.lanes * self.vectors
    }

    /// Steps in the panels of `depth` values along the contraction.
    pub fn steps(&self, depth: usize) -> usize {
        depth.div_ceil(self.per_step()).next_multiple_of(self.group)
    }

    /// Values along the contraction per step.
    pub fn per_step(&self) -> usize {
        if self.pairs { 2 } else { 1 }
    }
}

impl Code {
    /// # Safety
    /// The panels hold `steps * rows` and `steps * vectors * lanes` values, `c` has room for `rows` rows at
    /// `stride` with `(vectors - 1) * lanes + last` columns each, and no other thread touches those.
    #[inline]
    pub unsafe fn run(&mut self, rows: usize, vectors: usize, args: Args) {
        // SAFETY: `choose` checked the instructions; the rest is the caller's
        unsafe {
            match self {
                Self::Vectors(run) => run(rows, vectors, args),
                #[cfg(target_arch = "x86_64")]
                Self::Amx(registers) => registers.run(rows, vectors, args),
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const PAIRS: bool, const ROWS: usize, const VECTORS: usize>(args: Args) {
    // SAFETY: the caller of `Code::run` guarantees the sizes
    unsafe {
        let mut sums = [[S::zero(); VECTORS]; ROWS];
        let (mut a, mut b) = (args.a.cast::<f32>(), args.b.cast::<f32>());
        for _ in 0..args.steps {
            let mut columns = [S::zero(); VECTORS];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = S::load(b.add(j * S::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let row = S::splat(*a.add(i));
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = if PAIRS {
                        S::dot_pairs(row, column, *sum)
                    } else {
                        S::fma(row, column, *sum)
                    };
                }
            }
            a = a.add(ROWS);
            b = b.add(VECTORS * S::LANES);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let c = args.c.add(i * args.stride + j * S::LANES);
                if j + 1 < VECTORS || args.last == S::LANES {
                    let old = if args.accumulate { S::load(c) } else { S::zero() };
                    S::store(c, S::add(sum, old));
                } else {
                    let old = if args.accumulate {
                        S::load_part(c, args.last)
                    } else {
                        S::zero()
                    };
                    S::store_part(c, args.last, S::add(sum, old));
                }
            }
        }
    }
}

/// `$run(rows, vectors, args)`: the tile of that size, compiled with the features.
macro_rules! runner {
    ($run:ident, $simd:ty, $pairs:literal, [$($feature:literal)?], $($rows:literal)*, $vectors:tt) => {
        unsafe fn $run(rows: usize, vectors: usize, args: Args) {
            $(#[target_feature(enable = $feature)])?
            unsafe fn with<const ROWS: usize, const VECTORS: usize>(args: Args) {
                // SAFETY: the caller's
                unsafe { tile::<$simd, $pairs, ROWS, VECTORS>(args) }
            }
            runner!(@rows rows, vectors, args, $($rows)*, $vectors)
        }
    };
    (@rows $r:ident, $v:ident, $args:ident, $($rows:literal)*, $vectors:tt) => {
        match $r {
            $($rows => runner!(@vectors $rows, $v, $args, $vectors),)*
            _ => unreachable!("a tile of {} rows", $r),
        }
    };
    (@vectors $rows:literal, $v:ident, $args:ident, [$($vectors:literal)*]) => {
        match $v {
            // SAFETY: the caller of `Code::run` guarantees the sizes, `choose` the instructions
            $($vectors => unsafe { with::<$rows, $vectors>($args) },)*
            _ => unreachable!("a tile of {} vectors", $v),
        }
    };
}

#[cfg(not(target_arch = "aarch64"))]
runner!(run_base, Base, false, [], 1 2 3 4, [1]);
#[cfg(target_arch = "aarch64")]
runner!(run_base, Base, false, [], 1 2 3 4 5 6, [1 2]);
#[cfg(target_arch = "aarch64")]
runner!(run_neon_bf16, Base, true, [], 1 2 3 4 5 6, [1 2]);
#[cfg(target_arch = "x86_64")]
runner!(run_avx2, crate::simd::Avx2, false, ["avx2,fma"], 1 2 3 4 5 6, [1 2]);
#[cfg(target_arch = "x86_64")]
runner!(run_avx512, crate::simd::Avx512, false, ["avx512f,avx512bw,avx512dq,avx512vl"], 1 2 3 4 5 6 7 8, [1 2 3]);
#[cfg(target_arch = "x86_64")]
runner!(run_avx512_bf16, crate::simd::Avx512, true, ["avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"], 1 2 3 4 5 6 7 8, [1 2 3]);
