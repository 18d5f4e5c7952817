//! Additive masks of the decoders, in the smallest broadcastable form: `None` where everything is
//! visible, one row for the whole batch where nothing is padded.

use burn::tensor::{Tensor, backend::Backend};

use crate::nn::PadMask;

/// Mask of the `queries` last positions over all of `mask`: `[B or 1, 1, queries, S]`.
pub(super) fn causal<B: Backend>(mask: &PadMask, queries: usize, device: &B::Device) -> Option<Tensor<B, 4>> {
    match (queries, mask.is_full()) {
        (1, _) => keys(mask, device),
        (_, true) => Some(PadMask::ones(1, mask.len()).additive_causal(queries, device)),
        (_, false) => Some(mask.additive_causal(queries, device)),
    }
}

/// Mask that hides padded keys from every query: `[B, 1, 1, S]`.
pub(super) fn keys<B: Backend>(mask: &PadMask, device: &B::Device) -> Option<Tensor<B, 4>> {
    (!mask.is_full()).then(|| mask.additive(device))
}

/// Position of the last entry of every row, counted over real entries: `[B, 1]`.
pub(super) fn last_positions(mask: &PadMask) -> Vec<Vec<i64>> {
    mask.rows()
        .iter()
        .map(|row| vec![row.iter().filter(|&&real| real).count() as i64 - 1])
        .collect()
}

/// Rows without their last column.
pub(super) fn without_last(ids: &[Vec<i64>]) -> Vec<Vec<i64>> {
    ids.iter()
        .map(|row| row[..row.len().saturating_sub(1)].to_vec())
        .collect()
}

/// A padding mask without its last column.
pub(super) fn mask_without_last(mask: &PadMask) -> PadMask {
    let rows = mask.rows().iter();
    PadMask::new(
        rows.map(|row| row[..row.len().saturating_sub(1)].to_vec())
            .collect(),
    )
}
