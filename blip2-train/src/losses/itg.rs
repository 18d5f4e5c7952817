//! Image-grounded text generation: the Q-Former predicts the caption from its own queries (paper
//! section 3.1; LAVIS `blip2_qformer.py`).

use blip2_model::nn::Kernels;
use burn::tensor::Tensor;

use super::{IGNORE, cross_entropy, valid_targets};

/// Input of the decoder: the first token becomes `[DEC]`. Ids `[B, T]`.
pub fn decoder_ids(ids: &[Vec<i64>], dec_token: i64) -> Vec<Vec<i64>> {
    let mut ids = ids.to_vec();
    for row in &mut ids {
        row[0] = dec_token;
    }
    ids
}

/// What position `t` must predict: `ids[t + 1]`, or [`IGNORE`] where that is padding or the row ends. `[B, T]`.
pub fn next_token_labels(ids: &[Vec<i64>], pad: i64) -> Vec<Vec<i64>> {
    ids.iter()
        .map(|row| {
            let next = row[1..].iter().copied().chain([pad]);
            next.map(|id| if id == pad { IGNORE } else { id }).collect()
        })
        .collect()
}

/// `sum over targets of [-(1 - e) log p_y - e mean_c log p_c] / normaliser`. Returns `[1]`.
///
/// `hidden [B, T, D]` of the multimodal causal pass, `labels [B, T]` already shifted (see
/// [`next_token_labels`]), `head` maps the rows that are targets, `[n, D] -> [n, V]`, so that padding
/// never reaches the output layer.
pub fn itg<B: Kernels>(
    hidden: Tensor<B, 3>,
    labels: &[Vec<i64>],
    smoothing: f64,
    normaliser: f64,
    head: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 1> {
    let (rows, targets) = valid_targets(labels);
    if rows.is_empty() {
        return hidden.sum() * 0.0;
    }
    let logits = head(super::select_rows(hidden, &rows));
    cross_entropy(logits, &targets, smoothing).sum() / normaliser
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_shifted_and_padding_is_no_target() {
        let ids = vec![vec![101, 7, 8, 102, 0, 0], vec![101, 9, 102, 0, 0, 0]];
        assert_eq!(decoder_ids(&ids, 30522)[0], [30522, 7, 8, 102, 0, 0]);
        assert_eq!(
            next_token_labels(&ids, 0),
            [
                vec![7, 8, 102, IGNORE, IGNORE, IGNORE],
                vec![9, 102, IGNORE, IGNORE, IGNORE, IGNORE]
            ]
        );
    }
}
