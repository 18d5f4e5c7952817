//! Results that start as a copy of an input. Every task copies its own part: one thread would do nothing but that, and
//! touch every fresh page, while the others wait.

use rayon::prelude::*;

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

#[cfg(test)]
mod tests {
    use super::*;

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
