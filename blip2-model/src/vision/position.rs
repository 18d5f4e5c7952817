//! Resizing of learned position tables (LAVIS `eva_vit.py` and `clip_vit.py`, Hugging Face
//! `interpolate_pos_encoding`): bicubic with a = -0.75, no antialiasing, the class row untouched.

/// Keys' cubic kernel constant that PyTorch uses.
const A: f64 = -0.75;

/// Resizes a table `[1 + side * side, width]` (class row first) to `[1 + rows * cols, width]`.
///
/// `align_corners` selects the source coordinate: `i (in - 1) / (out - 1)` when set (CLIP in LAVIS),
/// `(i + 0.5) in / out - 0.5` otherwise (EVA, Hugging Face).
pub fn resize_table(
    table: &[f32],
    width: usize,
    side: usize,
    (rows, cols): (usize, usize),
    align_corners: bool,
) -> Vec<f32> {
    let (class, grid) = table.split_at(width);
    let along_cols = taps(side, cols, align_corners);
    let along_rows = taps(side, rows, align_corners);
    // Horizontal pass [side, side, width] -> [side, cols, width], then vertical.
    let mut wide = vec![0f32; side * cols * width];
    for y in 0..side {
        for (x, tap) in along_cols.iter().enumerate() {
            let out = &mut wide[(y * cols + x) * width..][..width];
            accumulate(out, tap, |source| &grid[(y * side + source) * width..][..width]);
        }
    }
    let mut out = vec![0f32; (1 + rows * cols) * width];
    out[..width].copy_from_slice(class);
    for (y, tap) in along_rows.iter().enumerate() {
        for x in 0..cols {
            let target = &mut out[(1 + y * cols + x) * width..][..width];
            accumulate(target, tap, |source| {
                &wide[(source * cols + x) * width..][..width]
            });
        }
    }
    out
}

/// Four clamped source indices with their weights.
type Tap = [(usize, f32); 4];

fn taps(from: usize, to: usize, align_corners: bool) -> Vec<Tap> {
    (0..to)
        .map(|i| {
            let source = if align_corners {
                if to > 1 {
                    i as f64 * (from - 1) as f64 / (to - 1) as f64
                } else {
                    0.0
                }
            } else {
                (i as f64 + 0.5) * from as f64 / to as f64 - 0.5
            };
            let base = source.floor();
            let t = source - base;
            let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
            let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            std::array::from_fn(|k| {
                let index = (base as i64 + k as i64 - 1).clamp(0, from as i64 - 1);
                (index as usize, weights[k] as f32)
            })
        })
        .collect()
}

fn accumulate<'a>(out: &mut [f32], tap: &Tap, row: impl Fn(usize) -> &'a [f32]) {
    for &(source, weight) in tap {
        for (o, v) in out.iter_mut().zip(row(source)) {
            *o += weight * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_size_is_the_identity_and_constants_stay() {
        let table: Vec<f32> = (0..(1 + 16) * 3).map(|i| i as f32).collect();
        assert_eq!(resize_table(&table, 3, 4, (4, 4), false), table);
        assert_eq!(resize_table(&table, 3, 4, (4, 4), true), table);
        let flat = vec![2.5f32; (1 + 16) * 3];
        for value in resize_table(&flat, 3, 4, (7, 5), false) {
            // four weights sum to one up to f32 rounding
            assert!((value - 2.5).abs() < 1e-6);
        }
    }
}
