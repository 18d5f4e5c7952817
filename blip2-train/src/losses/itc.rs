//! Image-text contrastive loss over the global batch (paper section 3.1; LAVIS `blip2_qformer.py`).

use blip2_model::nn::{Activation, Kernels};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::{cross_entropy, soft_cross_entropy};

/// Which of the `K` candidates of a row are positives.
#[derive(Clone, Copy, Debug)]
pub enum ItcTargets<'a> {
    /// Row `b` of process `r` matches candidate `r * B + b` only.
    Diagonal,
    /// Every candidate with the same image id matches (retrieval fine-tuning, where pictures repeat).
    ImageIds {
        /// Ids of this process's rows, `B`.
        local: &'a [i64],
        /// Ids of the global batch, `K`.
        global: &'a [i64],
    },
}

impl ItcTargets<'_> {
    /// Whether candidate `n` is a positive of local row `b`, where the local rows start at `offset`.
    pub fn is_positive(&self, b: usize, n: usize, offset: usize) -> bool {
        match self {
            Self::Diagonal => n == offset + b,
            Self::ImageIds { local, global } => local[b] == global[n],
        }
    }
}

/// Scaled similarities of this process's rows to the global batch.
#[derive(Clone, Debug)]
pub struct Similarities<B: Backend> {
    /// Images to texts, `[B, K]`.
    pub i2t: Tensor<B, 2>,
    /// Texts to images, `[B, K]`.
    pub t2i: Tensor<B, 2>,
}

/// `i2t[b, n] = max_q image[b, q] . all_text[n] / temp` and `t2i[b, n] = max_q text[b] . all_image[n, q] / temp`.
///
/// `image [B, Q, E]` and `text [B, E]` are this process's unit vectors and receive gradient;
/// `all_image [K, Q, E]` and `all_text [K, E]` are the gathered ones, detached by the caller (as
/// LAVIS's gather is): each direction trains one side only. `temp [1]`.
pub fn similarities<B: Kernels>(
    image: Tensor<B, 3>,
    text: Tensor<B, 2>,
    all_image: Tensor<B, 3>,
    all_text: Tensor<B, 2>,
    temp: Tensor<B, 1>,
) -> Similarities<B> {
    let [batch, queries, embed] = image.dims();
    let global = all_text.dims()[0];
    let temp = temp.reshape([1, 1]);

    let products = |rows, columns| B::linear_act(rows, columns, None, Activation::Identity);
    let q2t = products(image.reshape([batch * queries, embed]), all_text).reshape([batch, queries, global]);
    let t2q = products(text, all_image.reshape([global * queries, embed])).reshape([batch, global, queries]);
    Similarities {
        i2t: q2t.max_dim(1).reshape([batch, global]) / temp.clone(),
        t2i: t2q.max_dim(2).reshape([batch, global]) / temp,
    }
}

/// `1/2 (CE(i2t, y) + CE(t2i, y))`, mean over the `B` rows, `y` smoothed over the `K` candidates by `smoothing`.
///
/// With [`ItcTargets::ImageIds`] the target of a row is uniform over its positives. `offset = r * B`.
/// Returns `[1]`.
pub fn itc<B: Kernels>(
    sims: &Similarities<B>,
    targets: ItcTargets<'_>,
    offset: usize,
    smoothing: f64,
) -> Tensor<B, 1> {
    let [batch, global] = sims.i2t.dims();
    let loss = |sim: &Tensor<B, 2>| match targets {
        ItcTargets::Diagonal => {
            let index: Vec<i64> = (0..batch).map(|b| (offset + b) as i64).collect();
            cross_entropy(sim.clone(), &index, smoothing)
        }
        ItcTargets::ImageIds { .. } => {
            let rows: Vec<f32> = (0..batch)
                .flat_map(|b| {
                    let positive = move |n: &usize| targets.is_positive(b, *n, offset);
                    let share = 1.0 / (0..global).filter(positive).count() as f32;
                    (0..global).map(move |n| if positive(&n) { share } else { 0.0 })
                })
                .collect();
            let target = Tensor::from_data(TensorData::new(rows, [batch, global]), &sim.device());
            soft_cross_entropy(sim.clone(), target, smoothing)
        }
    };
    (loss(&sims.i2t).mean() + loss(&sims.t2i).mean()) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::backend::Flex;

    fn scalar(x: Tensor<Flex, 1>) -> f32 {
        x.into_scalar()
    }

    #[test]
    fn one_pair_alone_works_and_costs_nothing() {
        let device = Default::default();
        let image = Tensor::<Flex, 3>::from_data([[[0.6, 0.8], [1.0, 0.0]]], &device);
        let text = Tensor::<Flex, 2>::from_data([[1.0, 0.0]], &device);
        let temp = Tensor::from_data([0.07], &device);
        let sims = similarities(image.clone(), text.clone(), image, text, temp);
        assert_eq!(sims.i2t.dims(), [1, 1]);
        let best: f32 = sims.i2t.clone().into_scalar();
        // the better of 0.6 and 1.0; one f32 division
        assert!((best - 1.0 / 0.07).abs() < 1e-5);
        // one candidate: 0 but for the order of additions in the smoothing, at a logit of 14
        assert!(scalar(itc(&sims, ItcTargets::Diagonal, 0, 0.1)).abs() < 1e-5);
    }

    #[test]
    fn distinct_image_ids_equal_the_diagonal() {
        let device = Default::default();
        let sims = Similarities {
            i2t: Tensor::<Flex, 2>::from_data([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0]], &device),
            t2i: Tensor::<Flex, 2>::from_data([[0.1, 0.2, 0.3], [3.0, 1.0, -2.0]], &device),
        };
        let ids = ItcTargets::ImageIds {
            local: &[8, 9],
            global: &[7, 8, 9],
        };
        let by_id = scalar(itc(&sims, ids, 1, 0.1));
        let diagonal = scalar(itc(&sims, ItcTargets::Diagonal, 1, 0.1));
        // the same sums in another order
        assert!((by_id - diagonal).abs() < 1e-6);
    }

    #[test]
    fn repeated_pictures_share_the_target() {
        let device = Default::default();
        let z = [[2.0f32, 0.0]];
        let sims = Similarities {
            i2t: Tensor::<Flex, 2>::from_data(z, &device),
            t2i: Tensor::<Flex, 2>::from_data(z, &device),
        };
        let ids = ItcTargets::ImageIds {
            local: &[5],
            global: &[5, 5],
        };
        let lse = (2f64.exp() + 1.0).ln();
        // target (1/2, 1/2): lse - 1
        assert!((f64::from(scalar(itc(&sims, ids, 0, 0.0))) - (lse - 1.0)).abs() < 1e-6);
    }
}
