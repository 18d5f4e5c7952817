//! Results that are a copy of an input, or start as one. Every task copies its own part: one thread would do nothing but
//! that, and touch every fresh page, while the others wait.

use rayon::prelude::*;

/// Values per task: about ten microseconds of work.
pub(crate) const CHUNK: usize = 1 << 14;

/// Rows per task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// A copy of `x` of which `f` changed every piece of `chunk` values, given its number, and what `f` returned in order.
///
/// # Panics
/// If `chunk` is zero.
pub(crate) fn changed<R: Send>(
    x: &[f32],
    chunk: usize,
    f: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> (Vec<f32>, Vec<R>) {
    let mut out = Vec::with_capacity(x.len());
    let fresh = &mut out.spare_capacity_mut()[..x.len()];
    let pieces = fresh.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate();
    let returned = pieces
        .map(|(i, (fresh, x))| {
            debug_assert_eq!(fresh.len(), x.len());
            let start = fresh.as_mut_ptr().cast::<f32>();
            // SAFETY: equally long, apart from each other, and written before anybody reads
            let fresh = unsafe {
                start.copy_from_nonoverlapping(x.as_ptr(), x.len());
                std::slice::from_raw_parts_mut(start, x.len())
            };
            f(i, fresh)
        })
        .collect();
    // SAFETY: the pieces cover all of it
    unsafe { out.set_len(x.len()) };
    (out, returned)
}

/// The values of a view in row-major order, or `None` where they do not lie in runs: the last axis must be contiguous.
///
/// # Panics
/// If the view leaves `x`.
pub fn gather(x: &[f32], shape: &[usize], strides: &[usize]) -> Option<Vec<f32>> {
    let total: usize = shape.iter().product();
    if total == 0 {
        return Some(Vec::new());
    }
    let reach: usize = shape
        .iter()
        .zip(strides)
        .map(|(&n, &stride)| (n - 1) * stride)
        .sum();
    assert!(
        shape.len() == strides.len() && reach < x.len(),
        "a view that leaves its values"
    );
    // axes that follow each other without gaps are one run
    let (mut run, mut outer) = (1, shape.len());
    while outer > 0 && (strides[outer - 1] == run || shape[outer - 1] == 1) {
        outer -= 1;
        run *= shape[outer];
    }
    if outer > 0 && run == 1 {
        return None;
    }
    let (shape, strides) = (&shape[..outer], &strides[..outer]);
    let mut out = Vec::with_capacity(total);
    let fresh = &mut out.spare_capacity_mut()[..total];
    let runs = rows_per_task(run);
    fresh
        .par_chunks_mut(runs * run)
        .enumerate()
        .for_each(|(task, fresh)| {
            for (i, fresh) in fresh.chunks_exact_mut(run).enumerate() {
                let mut rest = task * runs + i;
                let mut start = 0;
                for (&n, &stride) in shape.iter().zip(strides).rev() {
                    start += rest % n * stride;
                    rest /= n;
                }
                let from = x[start..start + run].as_ptr();
                // SAFETY: as long as the run, and apart from it
                unsafe {
                    fresh
                        .as_mut_ptr()
                        .cast::<f32>()
                        .copy_from_nonoverlapping(from, run)
                };
            }
        });
    // SAFETY: the runs cover all of it
    unsafe { out.set_len(total) };
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition, for a few views of one array: parts, exchanged axes, repeated ones.
    #[test]
    fn views_become_rows() {
        let x: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
        let views: [(&[usize], &[usize]); 7] = [
            (&[7, 33, 4, 8], &[2000, 8, 300, 1]),
            (&[3, 5000], &[8000, 1]),
            (&[5, 6, 7], &[42, 7, 1]),
            (&[4, 9, 1, 16], &[0, 16, 5, 1]),
            (&[1, 20_000], &[9, 1]),
            (&[3, 1], &[7, 3]),
            (&[6], &[1]),
        ];
        for (shape, strides) in views {
            let mut want = vec![0];
            for (&n, &stride) in shape.iter().zip(strides) {
                want = want
                    .iter()
                    .flat_map(|at| (0..n).map(move |i| at + i * stride))
                    .collect();
            }
            let want: Vec<f32> = want.into_iter().map(|at| x[at]).collect();
            match gather(&x, shape, strides) {
                Some(got) => assert_eq!(got, want, "{shape:?} {strides:?}"),
                None => assert_eq!(shape, [3, 1], "only single values are refused"),
            }
        }
        assert_eq!(gather(&x, &[4, 6], &[1, 4]), None, "the last axis has gaps");
        assert_eq!(gather(&x, &[4, 0], &[1, 4]), Some(Vec::new()));
    }

    #[test]
    fn pieces_are_changed_in_a_copy_and_answer_in_order() {
        let x: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let (y, sums) = changed(&x, 4, |i, piece| {
            piece.iter_mut().for_each(|v| *v += 10.0 * i as f32);
            piece.iter().sum::<f32>()
        });
        assert_eq!(y, [0., 1., 2., 3., 14., 15., 16., 17., 28., 29.]);
        assert_eq!(sums, [6.0, 62.0, 57.0]);
        let (nothing, none) = changed(&[], 4, |_, _| ());
        assert!(nothing.is_empty() && none.is_empty());
    }
}
