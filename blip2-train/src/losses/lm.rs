//! Language-model loss of stage 2 and fine-tuning: OPT's LM loss and FlanT5's prefix LM alike, since
//! the shift is [`LanguageModel::teacher_forced`](blip2_model::language::LanguageModel::teacher_forced)'s
//! business (paper section 3.2).

use blip2_model::nn::Kernels;
use burn::tensor::Tensor;

use super::{IGNORE, cross_entropy, select_rows, valid_targets};

/// `sum over targets of -log p(labels[b, t]) / normaliser`, no smoothing. Returns `[1]`.
///
/// `logits [B, T, V]` in f32 where position `t` predicts `labels[t]`; `labels [B, T]`, [`IGNORE`] masks.
pub fn lm<B: Kernels>(logits: Tensor<B, 3>, labels: &[Vec<i64>], normaliser: f64) -> Tensor<B, 1> {
    let (rows, targets) = valid_targets(labels);
    if rows.is_empty() {
        return logits.sum() * 0.0;
    }
    cross_entropy(select_rows(logits, &rows), &targets, 0.0).sum() / normaliser
}

/// Number of targets in `labels`.
pub fn target_count(labels: &[Vec<i64>]) -> usize {
    let targets = labels.iter().flatten();
    targets.filter(|&&label| label != IGNORE).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::backend::Flex;

    #[test]
    fn masked_positions_do_not_count() {
        let device = Default::default();
        let logits = Tensor::<Flex, 3>::from_data([[[0.0, 1.0], [5.0, -5.0]]], &device);
        let loss: f32 = lm(logits, &[vec![1, IGNORE]], 1.0).into_scalar();
        let want = (1.0 + (-1f64).exp()).ln();
        // one f32 log-sum-exp of two terms
        assert!((f64::from(loss) - want).abs() < 1e-6);
        assert_eq!(target_count(&[vec![1, IGNORE]]), 1);
    }

    #[test]
    fn nothing_to_predict_costs_nothing() {
        let logits = Tensor::<Flex, 3>::ones([1, 2, 3], &Default::default());
        let loss: f32 = lm(logits, &[vec![IGNORE, IGNORE]], 1.0).into_scalar();
        assert_eq!(loss, 0.0);
    }
}
