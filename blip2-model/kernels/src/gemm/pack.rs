//! Panels: both factors copied once into the order in which the tiles read them. A panel holds u32 words:
//! the bits of one f32, or of two bf16 that follow each other along the contraction.

#[cfg(target_arch = "x86_64")]
mod vectors;

use super::mat::{Element, Mat};
#[cfg(target_arch = "x86_64")]
use vectors::{copy_rows, pack_lines};

/// Steps handled at a time, so that strided writes stay in L1, and lines far apart in reach.
const BLOCK: usize = 16;

/// Packs columns `first..first + columns` of rows `from..from + depth` of `m` (rows run along the contraction) as panels
/// of `panel` columns one after the other, each as [`pack`] does; the last is as wide as what is left, rounded up to
/// `lanes`.
pub(super) fn pack_panels<T: Element>(
    m: Mat<'_, T>,
    [from, depth]: [usize; 2],
    [first, columns]: [usize; 2],
    [panel, lanes]: [usize; 2],
    pairs: bool,
    out: &mut [u32],
) {
    let steps = out.len() / columns.next_multiple_of(lanes);
    let per_step = if pairs { 2 } else { 1 };
    // where the source runs across the panels, a few of its lines at a time go to all of them: one panel alone would
    // touch a page for every step and leave most of it for later
    let block = if m.row_stride == 1 { steps } else { BLOCK };
    for start in (0..steps).step_by(block) {
        let end = (start + block).min(steps);
        let filled = depth.saturating_sub(start * per_step).min(block * per_step);
        for j in (0..columns).step_by(panel) {
            let here = panel.min(columns - j);
            let width = here.next_multiple_of(lanes);
            let out = &mut out[j * steps + start * width..j * steps + end * width];
            let source = [from + start * per_step, filled];
            pack(m, source, [first + j, here], width, pairs, out);
        }
    }
}

/// Packs columns `first..first + columns` of rows `from..from + depth` of `m` (rows run along the
/// contraction) as `[steps][width]`, zero where `width` exceeds the columns and where `out` has more steps than
/// `depth` fills.
///
/// The left factor of vector code is packed through its transpose.
pub(super) fn pack<T: Element>(
    m: Mat<'_, T>,
    [from, depth]: [usize; 2],
    [first, columns]: [usize; 2],
    width: usize,
    pairs: bool,
    out: &mut [u32],
) {
    let steps = if pairs { depth.div_ceil(2) } else { depth };
    let (out, padding) = out.split_at_mut(steps * width);
    padding.fill(0);
    if columns < width {
        out.fill(0);
    }
    if m.row_stride == 1 {
        // the source runs along the contraction
        let line = |j: usize| {
            let start = (first + j) * m.column_stride + from;
            &m.data[start..start + depth]
        };
        #[cfg(target_arch = "x86_64")]
        let done = {
            let size = [steps - usize::from(pairs && depth % 2 == 1), columns];
            let start = first * m.column_stride + from;
            pack_lines(&m.data[start..], m.column_stride, size, width, pairs, out)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let done = 0;
        for start in (done..steps).step_by(BLOCK) {
            let end = (start + BLOCK).min(steps);
            for j in 0..columns {
                let line = line(j);
                let out = out[start * width + j..].iter_mut().step_by(width);
                if pairs {
                    let line = &line[2 * start..(2 * end).min(depth)];
                    for (out, pair) in out.zip(line.chunks(2)) {
                        *out = word(pair[0], pair.get(1).copied());
                    }
                } else {
                    for (out, &x) in out.zip(&line[start..end]) {
                        *out = x.wide().to_bits();
                    }
                }
            }
        }
        return;
    }
    let at = |i: usize, j: usize| m.data[(from + i) * m.row_stride + (first + j) * m.column_stride];
    #[cfg(target_arch = "x86_64")]
    let done = if m.column_stride == 1 && !pairs && steps > 0 {
        let start = from * m.row_stride + first;
        copy_rows(&m.data[start..], m.row_stride, [steps, columns], width, out)
    } else {
        0
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    for (p, out) in out.chunks_exact_mut(width).enumerate().skip(done) {
        if m.column_stride == 1 && !pairs {
            let start = (from + p) * m.row_stride + first;
            for (out, &x) in out.iter_mut().zip(&m.data[start..start + columns]) {
                *out = x.wide().to_bits();
            }
        } else if m.column_stride == 1 && 2 * p + 1 < depth {
            let start = (from + 2 * p) * m.row_stride + first;
            let low = &m.data[start..start + columns];
            let high = &m.data[start + m.row_stride..start + m.row_stride + columns];
            words(low, high, out);
        } else if pairs {
            for (j, out) in out.iter_mut().enumerate().take(columns) {
                let high = (2 * p + 1 < depth).then(|| at(2 * p + 1, j));
                *out = word(at(2 * p, j), high);
            }
        } else {
            for (j, out) in out.iter_mut().enumerate().take(columns) {
                *out = at(p, j).wide().to_bits();
            }
        }
    }
}

/// Two values that follow each other along the contraction.
#[inline(always)]
fn word<T: Element>(low: T, high: Option<T>) -> u32 {
    u32::from(low.narrow()) | u32::from(high.map_or(0, Element::narrow)) << 16
}

/// Pairs of two rows.
fn words<T: Element>(low: &[T], high: &[T], out: &mut [u32]) {
    #[inline(always)]
    fn body<T: Element>(low: &[T], high: &[T], out: &mut [u32]) {
        for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
            *out = word(low, Some(high));
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<T: Element>(low: &[T], high: &[T], out: &mut [u32]) {
            body(low, high, out);
        }
        if crate::level::Level::detect() >= crate::level::Level::Avx2 {
            // SAFETY: detected
            return unsafe { avx2(low, high, out) };
        }
    }
    body(low, high, out);
}

/// Packs `rows` rows from `first` of `m` (columns run along the contraction, `from..from + depth` of them) as panels of
/// `panel` rows, each `[steps / group][rows][group]` pairs, zero where `out` has more steps than `depth` fills: the left
/// factor of tile registers.
pub(super) fn pack_rows<T: Element>(
    m: Mat<'_, T>,
    [from, depth]: [usize; 2],
    [first, rows]: [usize; 2],
    [panel, group]: [usize; 2],
    out: &mut [u32],
) {
    let steps = out.len() / rows;
    for (i, out) in out.chunks_mut(panel * steps).enumerate() {
        let rows = [first + i * panel, panel.min(rows - i * panel)];
        pack_row_panel(m, [from, depth], rows, group, out);
    }
}

fn pack_row_panel<T: Element>(
    m: Mat<'_, T>,
    [from, depth]: [usize; 2],
    [first, rows]: [usize; 2],
    group: usize,
    out: &mut [u32],
) {
    for (g, out) in out.chunks_exact_mut(rows * group).enumerate() {
        let start = 2 * g * group;
        let size = (2 * group).min(depth - start);
        for (i, out) in out.chunks_exact_mut(group).enumerate() {
            let line = &m.data[(first + i) * m.row_stride + (from + start) * m.column_stride..];
            if m.column_stride == 1 && size == 2 * group {
                for (out, pair) in out.iter_mut().zip(line.as_chunks().0) {
                    let &[low, high] = pair;
                    *out = word(low, Some(high));
                }
            } else {
                let at = |p: usize| line[p * m.column_stride];
                for (p, out) in out.iter_mut().enumerate() {
                    *out = match size.saturating_sub(2 * p) {
                        0 => 0,
                        1 => word(at(2 * p), None),
                        _ => word(at(2 * p), Some(at(2 * p + 1))),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// The word that belongs at a step of a column, from the definition.
    fn expected<T: Element>(
        m: Mat<'_, T>,
        [from, depth]: [usize; 2],
        step: usize,
        j: usize,
        pairs: bool,
    ) -> u32 {
        let at = |p: usize| m.data[(from + p) * m.row_stride + j * m.column_stride];
        match (pairs, step) {
            (false, p) if p < depth => at(p).wide().to_bits(),
            (true, p) if 2 * p < depth => word(at(2 * p), (2 * p + 1 < depth).then(|| at(2 * p + 1))),
            _ => 0,
        }
    }

    fn every_panel<T: Element>(of: impl Fn(usize) -> T) {
        let (rows, total) = (70, 61);
        let data: Vec<T> = (0..2 * rows * total).map(of).collect();
        let strides = [[total, 1], [1, rows], [2 * total, 2], [2, 2 * rows]];
        for m in strides.map(|strides| Mat::strided(&data, [rows, total], strides)) {
            for [from, depth] in [[0usize, 1usize], [3, 15], [1, 33], [6, 64]] {
                // panels of the left factor are as wide as they are, those of the right one whole vectors
                for [panel, lanes] in [[6, 1], [8, 1], [4, 1], [8, 8], [16, 8], [48, 16]] {
                    for [first, columns] in [[0, 61usize], [5, 2], [1, 13], [10, 32]] {
                        for (pairs, group) in [(false, 1), (true, 1), (true, 16)] {
                            let steps = depth.div_ceil(if pairs { 2 } else { 1 }).next_multiple_of(group);
                            let mut out = vec![7; steps * columns.next_multiple_of(lanes)];
                            pack_panels(
                                m,
                                [from, depth],
                                [first, columns],
                                [panel, lanes],
                                pairs,
                                &mut out,
                            );
                            let mut words = out.iter();
                            for j in (0..columns).step_by(panel) {
                                let here = panel.min(columns - j);
                                for step in 0..steps {
                                    for c in 0..here.next_multiple_of(lanes) {
                                        let want = match c < here {
                                            true => expected(m, [from, depth], step, first + j + c, pairs),
                                            false => 0,
                                        };
                                        assert_eq!(
                                            words.next(),
                                            Some(&want),
                                            "{panel} {lanes} {step} {j} {c}"
                                        );
                                    }
                                }
                            }
                            assert_eq!(words.next(), None);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn panels_of_tile_rows_hold_what_their_definition_says() {
        let (rows, total, panel, group) = (37, 70, 32, 16);
        let data: Vec<bf16> = (0..rows * total).map(|i| bf16::from_f32(i as f32)).collect();
        for (first, rows) in [(0, 37), (4, 33), (9, 2)] {
            for [from, depth] in [[0usize, 70usize], [3, 33], [6, 64]] {
                let steps = depth.div_ceil(2).next_multiple_of(group);
                let m = Mat::new(&data, 37, total);
                let mut out = vec![7; steps * rows];
                pack_rows(m, [from, depth], [first, rows], [panel, group], &mut out);
                let mut words = out.iter();
                for i in (0..rows).step_by(panel) {
                    for start in (0..steps).step_by(group) {
                        for row in first + i..first + (i + panel).min(rows) {
                            for step in start..start + group {
                                let want = expected(m.transposed(), [from, depth], step, row, true);
                                assert_eq!(words.next(), Some(&want), "{first} {from} {row} {step}");
                            }
                        }
                    }
                }
                assert_eq!(words.next(), None);
            }
        }
    }

    #[test]
    fn panels_hold_what_their_definition_says() {
        every_panel(|i| i as f32 + 0.3);
        every_panel(|i| bf16::from_f32(i as f32));
        every_panel(|i| f16::from_f32(i as f32 / 7.0));
    }
}
