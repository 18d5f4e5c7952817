//! The losses of both stages as plain functions (paper section 3; LAVIS `blip2_qformer.py`, `blip2_opt.py`,
//! `blip2_t5.py`), on top of one cross-entropy.
//!
//! Sums are divided by an explicit `normaliser`, not by whatever the local micro-batch holds: with the
//! average target count over all processes and micro-batches given there, accumulated and distributed
//! steps equal one big step exactly.

use blip2_model::nn::mask::index_tensor;
use blip2_model::nn::{Kernels, pick};
use burn::tensor::{Int, Tensor, TensorData};

pub mod itc;
pub mod itg;
pub mod itm;
pub mod lm;

pub use itc::{ItcTargets, Similarities, itc, similarities};
pub use itg::itg;
pub use itm::{HardNegatives, itm, sample_negatives};
pub use lm::{lm, target_count};

/// Label of a position that is no target, as in PyTorch.
pub const IGNORE: i64 = -100;

/// Cross-entropy with label smoothing, one value per row:
/// `lse(z) - (1 - e) z_y - e mean_c z_c`, which is `-(1 - e) log p_y - e mean_c log p_c`.
///
/// `logits [N, C]` in f32, `targets` of length `N`, `smoothing` is `e` in `[0, 1)`. Returns `[N]`.
pub fn cross_entropy<B: Kernels>(logits: Tensor<B, 2>, targets: &[i64], smoothing: f64) -> Tensor<B, 1> {
    let rows = targets.len();
    let index =
        Tensor::<B, 2, Int>::from_data(TensorData::new(targets.to_vec(), [rows, 1]), &logits.device());
    let picked = logits.clone().gather(1, index).squeeze_dim::<1>(1);
    let loss = B::log_sum_exp(logits.clone()) - picked * (1.0 - smoothing);
    if smoothing == 0.0 {
        return loss;
    }
    loss - logits.mean_dim(1).squeeze_dim(1) * smoothing
}

/// Cross-entropy against a distribution, one value per row: `-sum_c q_c log p_c` with
/// `q = (1 - e) target + e / C`.
///
/// `logits [N, C]` in f32, `target [N, C]` whose rows sum to 1. Returns `[N]`.
pub fn soft_cross_entropy<B: Kernels>(
    logits: Tensor<B, 2>,
    target: Tensor<B, 2>,
    smoothing: f64,
) -> Tensor<B, 1> {
    let picked = (logits.clone() * target).sum_dim(1).squeeze_dim::<1>(1);
    let loss = B::log_sum_exp(logits.clone()) - picked * (1.0 - smoothing);
    if smoothing == 0.0 {
        return loss;
    }
    loss - logits.mean_dim(1).squeeze_dim(1) * smoothing
}

/// Rows `index` of `[B, T, D]` seen as `[B * T, D]`: `[n, D]`.
///
/// Positions that are no targets are dropped before the output layer or the softmax sees them.
pub fn select_rows<B: Kernels>(x: Tensor<B, 3>, index: &[usize]) -> Tensor<B, 2> {
    let [batch, len, width] = x.dims();
    let device = x.device();
    let flat = x.reshape([batch * len, width]);
    if index.len() == batch * len {
        return flat;
    }
    pick(flat, index_tensor(index, &device))
}

/// Indices into the flattened `[B * T]` and values of the labels that are targets.
pub fn valid_targets(labels: &[Vec<i64>]) -> (Vec<usize>, Vec<i64>) {
    labels
        .iter()
        .flatten()
        .enumerate()
        .filter(|&(_, &label)| label != IGNORE)
        .map(|(i, &label)| (i, label))
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::backend::Flex;

    fn logits() -> Tensor<Flex, 2> {
        Tensor::from_data(
            [[1.0, -2.0, 0.5, 3.0], [0.1, 0.2, -0.3, 0.0]],
            &Default::default(),
        )
    }

    /// The definition, in f64 on the host.
    fn reference(z: &[f64], q: &[f64]) -> f64 {
        let max = z.iter().cloned().fold(f64::MIN, f64::max);
        let lse = z.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max;
        z.iter().zip(q).map(|(x, q)| q * (lse - x)).sum()
    }

    #[test]
    fn smoothed_cross_entropy_is_the_definition() {
        let z = [[1.0, -2.0, 0.5, 3.0], [0.1, 0.2, -0.3, 0.0]];
        let (targets, e) = ([2i64, 0], 0.1);
        let ours = cross_entropy(logits(), &targets, e).into_data();
        let ours = ours.as_slice::<f32>().unwrap();
        for (row, &target) in targets.iter().enumerate() {
            let q: Vec<f64> = (0..4)
                .map(|c| e / 4.0 + (1.0 - e) * f64::from(c == target))
                .collect();
            let want = reference(&z[row], &q);
            // f32 sums of four terms
            assert!((f64::from(ours[row]) - want).abs() < 1e-6, "row {row}");
        }
    }

    #[test]
    fn soft_targets_with_one_hot_rows_equal_hard_targets() {
        let one_hot = Tensor::from_data([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]], &Default::default());
        let soft = soft_cross_entropy(logits(), one_hot, 0.1).into_data();
        let hard = cross_entropy(logits(), &[2, 0], 0.1).into_data();
        for (a, b) in soft
            .as_slice::<f32>()
            .unwrap()
            .iter()
            .zip(hard.as_slice::<f32>().unwrap())
        {
            // adding exact zeros: same value up to the order of four additions
            assert!((a - b).abs() < 1e-6);
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let z = Tensor::<Flex, 2>::from_data([[1e4, -1e4], [-1e4, 1e4]], &Default::default());
        let loss: Vec<f32> = cross_entropy(z, &[0, 0], 0.0).into_data().to_vec().unwrap();
        assert_eq!(loss, [0.0, 2e4]);
    }
}
