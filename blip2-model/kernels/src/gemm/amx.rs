//! The product of two bf16 panels on the tile registers of Intel AMX (`amx-tile`, `amx-bf16`): one instruction
//! adds 32 products to each of 16 x 16 sums, and is issued every 16 cycles. Four tiles of sums stay in registers
//! while two tiles of each factor are loaded per 32 values along the contraction: every loaded tile is used twice,
//! so that loading takes no longer than multiplying.
//!
//! After the chapter on AMX in Intel's "Architecture Instruction Set Extensions Programming Reference" (319433).
//! The instructions are written as assembly because their intrinsics are not stable in Rust. Products and sums are
//! in f32, rounded to nearest even and with denormals as zero whatever the control register says; so are those of
//! `vdpbf16ps`, but this file adds them in another order, so that the last bits may differ.

use std::arch::asm;

use super::tile::Args;

/// Rows of a tile, columns of a tile of sums, and pairs along the contraction per row of a tile.
pub(super) const SIDE: usize = 16;

/// Largest result of one call: two tiles by two.
pub(crate) const SPAN: usize = 2 * SIDE;

/// Bytes per row of a full tile.
const ROW: usize = 64;

/// Operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes per row of each tile; only eight tiles exist.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread while it works on one block. Only their sizes live on from call to call; they
/// are given back on drop, because the system has to save tiles in use with every switch of threads.
pub(super) struct Registers {
    /// Rows and columns of the result that the tiles are configured for.
    shape: [usize; 2],
}

impl Registers {
    /// Nothing configured yet.
    pub const fn new() -> Self {
        Self { shape: [0, 0] }
    }

    /// Configures the tiles for a result of up to [`SPAN`] by [`SPAN`]: tiles 0 to 3 for its quarters, 4 and 5 for
    /// the upper and lower rows of the left factor, 6 and 7 for the left and right columns of the right one.
    ///
    /// # Safety
    /// [`Level::Amx`](crate::level::Level::Amx) was detected.
    unsafe fn configure(&mut self, [rows, columns]: [usize; 2]) {
        if self.shape == [rows, columns] {
            return;
        }
        debug_assert!((1..=SPAN).contains(&rows) && (1..=SPAN).contains(&columns));
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let halves = |n: usize| [n.min(SIDE), n.saturating_sub(SIDE)];
        let (rows_of, columns_of) = (halves(rows), halves(columns));
        let mut tile = |i: usize, rows: usize, bytes: usize| {
            // a tile without rows or columns must have neither
            if rows > 0 && bytes > 0 {
                configuration.rows[i] = rows as u8;
                configuration.row_bytes[i] = bytes as u16;
            }
        };
        for (i, &rows) in rows_of.iter().enumerate() {
            for (j, &columns) in columns_of.iter().enumerate() {
                tile(2 * i + j, rows, 4 * columns);
            }
            tile(4 + i, rows, ROW);
        }
        for (j, &columns) in columns_of.iter().enumerate() {
            tile(6 + j, SIDE, 4 * columns);
        }
        // SAFETY: the processor has the instruction, the system allows tiles, the configuration is a valid one
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly, preserves_flags),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        self.shape = [rows, columns];
    }

    /// `c (+)= a b` for up to [`SPAN`] rows of `a` as [`pack_rows`](super::pack::pack_rows) leaves them, one or two
    /// vectors of [`SIDE`] columns of `b`, and a multiple of [`SIDE`] steps.
    ///
    /// # Safety
    /// [`Level::Amx`](crate::level::Level::Amx) was detected; the rest as for
    /// [`Code::run`](super::tile::Code::run).
    pub unsafe fn run(&mut self, rows: usize, vectors: usize, args: Args) {
        let columns = (vectors - 1) * SIDE + args.last;
        let b_row = vectors * ROW;
        debug_assert!(args.steps > 0 && args.steps.is_multiple_of(SIDE));
        // which tiles take part: those on the right (1), those below (2), and the sums so far (4)
        let parts = u32::from(columns > SIDE) | u32::from(rows > SIDE) << 1 | u32::from(args.accumulate) << 2;
        // SAFETY: the caller's. The left panel has `steps / 16` times `rows` rows of 64 bytes; a narrow tile reads less of
        // the right one; tiles of sums are as large as the result.
        unsafe {
            self.configure([rows, columns]);
            asm!(
                "test {parts:e}, 4",
                "jz 2f",
                "tileloadd tmm0, [{c} + {c_row}]",
                "test {parts:e}, 1",
                "jz 20f",
                "tileloadd tmm1, [{c} + {c_row} + 64]",
                "20: test {parts:e}, 2",
                "jz 3f",
                "tileloadd tmm2, [{c_lower} + {c_row}]",
                "test {parts:e}, 1",
                "jz 3f",
                "tileloadd tmm3, [{c_lower} + {c_row} + 64]",
                "jmp 3f",
                "2: tilezero tmm0",
                "test {parts:e}, 1",
                "jz 21f",
                "tilezero tmm1",
                "21: test {parts:e}, 2",
                "jz 3f",
                "tilezero tmm2",
                "test {parts:e}, 1",
                "jz 3f",
                "tilezero tmm3",

                "3: tileloadd tmm4, [{a} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "test {parts:e}, 1",
                "jz 4f",
                "tileloadd tmm7, [{b} + {b_row} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "4: test {parts:e}, 2",
                "jz 5f",
                "tileloadd tmm5, [{a_lower} + {a_row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "test {parts:e}, 1",
                "jz 5f",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "5: add {a}, {a_step}",
                "add {a_lower}, {a_step}",
                "add {b}, {b_step}",
                "dec {count}",
                "jnz 3b",

                "tilestored [{c} + {c_row}], tmm0",
                "test {parts:e}, 1",
                "jz 6f",
                "tilestored [{c} + {c_row} + 64], tmm1",
                "6: test {parts:e}, 2",
                "jz 7f",
                "tilestored [{c_lower} + {c_row}], tmm2",
                "test {parts:e}, 1",
                "jz 7f",
                "tilestored [{c_lower} + {c_row} + 64], tmm3",
                "7:",
                a = inout(reg) args.a => _,
                a_lower = inout(reg) args.a.wrapping_byte_add(SIDE * ROW) => _,
                a_row = in(reg) ROW,
                a_step = in(reg) rows * ROW,
                b = inout(reg) args.b => _,
                b_row = in(reg) b_row,
                b_step = in(reg) b_row * SIDE,
                count = inout(reg) args.steps / SIDE => _,
                c = in(reg) args.c,
                c_lower = in(reg) args.c.wrapping_add(SIDE * args.stride),
                c_row = in(reg) 4 * args.stride,
                parts = in(reg) parts,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// `sums (+)= a b` for 32 rows of `a` that lie anywhere and one or two panels of 16 columns of `b`, while the processor
    /// is asked for what comes next.
    ///
    /// # Safety
    /// [`Level::Amx`](crate::level::Level::Amx) was detected, and all that `pass` names is there.
    pub unsafe fn pass(&mut self, pass: &Pass) {
        debug_assert!(pass.groups > 0);
        /// The code with what the right half of the sums adds to it.
        macro_rules! run {
            ($l1:literal, $l3:literal, $l7:literal, $d1:literal, $d3:literal, $s1:literal, $s3:literal) => {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "test {t}, {t}",
                    "jz 2f",
                    "tileloadd tmm0, [{c} + {row}]",
                    "tileloadd tmm2, [{c} + {row} + 2048]",
                    $l1,
                    $l3,
                    "2: lea {t}, [{a} + 8 * {stride}]",
                    "lea {t}, [{t} + 8 * {stride}]",
                    "tileloadd tmm4, [{a} + {stride}]",
                    "tileloadd tmm6, [{left} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    $l7,
                    $d1,
                    "tileloadd tmm5, [{t} + {stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    $d3,
                    "add {a}, 64",
                    "add {left}, 1024",
                    "add {right}, 1024",
                    "mov {n}, {rows}",
                    "mov {t}, {next}",
                    "test {n}, {n}",
                    "jz 4f",
                    "3: prefetcht1 [{t}]",
                    "add {t}, {next_stride}",
                    "dec {n}",
                    "jnz 3b",
                    "4: add {next}, {next_step}",
                    "dec {count}",
                    "jnz 2b",
                    "tilestored [{c} + {row}], tmm0",
                    "tilestored [{c} + {row} + 2048], tmm2",
                    $s1,
                    $s3,
                    a = inout(reg) pass.a => _,
                    stride = in(reg) pass.stride,
                    left = inout(reg) pass.b[0] => _,
                    right = inout(reg) pass.b[1] => _,
                    row = in(reg) ROW,
                    c = in(reg) pass.sums,
                    count = inout(reg) pass.groups => _,
                    next = inout(reg) pass.ahead.at => _,
                    next_stride = in(reg) pass.ahead.stride,
                    next_step = in(reg) pass.ahead.step,
                    rows = in(reg) pass.ahead.rows,
                    t = inout(reg) usize::from(pass.accumulate) => _,
                    n = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        // SAFETY: the caller's; asking for memory ahead of its use is allowed for any address
        unsafe {
            self.configure([SPAN, SPAN]);
            if pass.wide {
                run!(
                    "tileloadd tmm1, [{c} + {row} + 1024]",
                    "tileloadd tmm3, [{c} + {row} + 3072]",
                    "tileloadd tmm7, [{right} + {row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tilestored [{c} + {row} + 1024], tmm1",
                    "tilestored [{c} + {row} + 3072], tmm3"
                );
            } else {
                run!("", "", "", "", "", "", "");
            }
        }
    }
}

/// One run of [`Registers::pass`].
pub(super) struct Pass {
    /// 32 rows of bf16, `stride` bytes apart.
    pub a: *const u8,
    pub stride: usize,
    /// Panels of 16 columns, `[groups][16 pairs][16]` words each; without `wide` only the first.
    pub b: [*const u32; 2],
    pub wide: bool,
    /// Groups of 32 values along the contraction.
    pub groups: usize,
    /// Four tiles one after the other: upper left, upper right, lower left, lower right.
    pub sums: *mut f32,
    /// Whether to add to what `sums` holds.
    pub accumulate: bool,
    pub ahead: Ahead,
}

/// What to bring into the second cache meanwhile: with every group one line in each of some rows.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub at: *const u8,
    /// Number of rows.
    pub rows: usize,
    /// Bytes from row to row.
    pub stride: usize,
    /// Bytes from group to group.
    pub step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Self = Self {
        at: std::ptr::null(),
        rows: 0,
        stride: 0,
        step: 0,
    };

    /// The part of it that falls to one of several passes.
    pub fn part(self, i: usize, of: usize) -> Self {
        let each = self.rows.div_ceil(of);
        let first = (i * each).min(self.rows);
        Self {
            at: self.at.wrapping_byte_add(first * self.stride),
            rows: each.min(self.rows - first),
            ..self
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        if self.shape != [0, 0] {
            // SAFETY: the tiles were configured, hence the instruction exists
            unsafe {
                asm!("tilerelease", options(nostack, nomem, preserves_flags),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
            }
        }
    }
}
