//! Clipping by the norm of all gradients together (`torch.nn.utils.clip_grad_norm_`).

use burn::tensor::{Tensor, backend::Backend};

use crate::params::{Named, to_host};

/// Euclidean norm over all gradients, one read from the device. Not finite iff a gradient is not (or its
/// square overflows, which the caller treats alike).
pub fn global_norm<B: Backend>(gradients: &Named<B>) -> f64 {
    let squares: Vec<Tensor<B, 1>> = gradients
        .values()
        .map(|g| (g.clone() * g.clone()).sum())
        .collect();
    if squares.is_empty() {
        return 0.0;
    }
    let sums = to_host(&Tensor::cat(squares, 0));
    sums.into_iter().map(f64::from).sum::<f64>().sqrt()
}

/// Multiplies every gradient by `factor`.
pub fn scale<B: Backend>(gradients: Named<B>, factor: f64) -> Named<B> {
    if factor == 1.0 {
        return gradients;
    }
    let scaled = gradients.into_iter().map(|(name, g)| (name, g * factor));
    scaled.collect()
}

/// Shrinks the gradients, whose norm is `norm`, to `max_norm`; smaller ones stay as they are.
pub fn clip_to_norm<B: Backend>(gradients: Named<B>, norm: f64, max_norm: f64) -> Named<B> {
    // PyTorch's guard against a norm of zero
    scale(gradients, (max_norm / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::backend::Flex;

    fn gradients() -> Named<Flex> {
        let device = Default::default();
        Named::from([
            ("a".into(), Tensor::from_data([3.0, 0.0], &device)),
            ("b".into(), Tensor::from_data([4.0], &device)),
        ])
    }

    #[test]
    fn the_norm_is_over_all_tensors_together() {
        assert_eq!(global_norm(&gradients()), 5.0);
        let clipped = clip_to_norm(gradients(), 5.0, 1.0);
        // 1 / (5 + 1e-6) in f32
        assert!((global_norm(&clipped) - 1.0).abs() < 1e-6);
        assert_eq!(to_host(&clip_to_norm(gradients(), 5.0, 6.0)["b"]), [4.0]);
    }

    #[test]
    fn one_bad_element_shows_in_the_norm() {
        let mut bad = gradients();
        let device = Default::default();
        bad.insert("c".into(), Tensor::from_data([f32::NAN, 1.0], &device));
        assert!(global_norm(&bad).is_nan());
        bad.insert("c".into(), Tensor::from_data([f32::INFINITY, 1.0], &device));
        assert!(!global_norm(&bad).is_finite());
    }
}
