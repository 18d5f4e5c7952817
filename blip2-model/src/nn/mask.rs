//! Attention masks. Padding is known on the host (it comes from the tokenizer), so masks are built
//! there and uploaded once per pass as additive f32 offsets.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// Offset of a hidden position. Far below any score, yet finite: a row that hides everything
/// then softmaxes to a uniform, not to NaN, exactly as with `torch.finfo.min` in transformers.
pub const MASKED: f32 = f32::MIN / 2.0;

/// Which positions of a batch `[B, T]` are real (`true`) and which are padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PadMask {
    rows: Vec<Vec<bool>>,
}

impl PadMask {
    /// From rows of equal length; `true` marks a real position.
    ///
    /// # Panics
    /// If rows differ in length (a batch is rectangular by construction).
    pub fn new(rows: Vec<Vec<bool>>) -> Self {
        assert!(
            rows.windows(2).all(|w| w[0].len() == w[1].len()),
            "a padding mask must be rectangular"
        );
        Self { rows }
    }

    /// Everything real.
    pub fn ones(batch: usize, len: usize) -> Self {
        Self {
            rows: vec![vec![true; len]; batch],
        }
    }

    /// `B`
    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    /// `T`
    pub fn len(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// Whether there is no position at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, `true` = real.
    pub fn rows(&self) -> &[Vec<bool>] {
        &self.rows
    }

    /// Whether no position is padding.
    pub fn is_full(&self) -> bool {
        self.rows.iter().flatten().all(|&real| real)
    }

    /// `[self ; other]` along the sequence.
    pub fn concat(&self, other: &Self) -> Self {
        assert_eq!(self.batch(), other.batch(), "masks of different batches");
        let rows = self
            .rows
            .iter()
            .zip(&other.rows)
            .map(|(a, b)| [a.as_slice(), b].concat())
            .collect();
        Self { rows }
    }

    /// Rows `index[i]` of the batch, in that order.
    pub fn select(&self, index: &[usize]) -> Self {
        Self {
            rows: index.iter().map(|&i| self.rows[i].clone()).collect(),
        }
    }

    /// Appends one real position to every row (a generated token).
    pub fn push_real(&mut self) {
        for row in &mut self.rows {
            row.push(true);
        }
    }

    /// `cumsum(mask) * mask - 1` as OPT counts positions: padding gets -1.
    pub fn positions(&self) -> Vec<Vec<i64>> {
        self.rows
            .iter()
            .map(|row| {
                let mut seen = 0i64;
                row.iter()
                    .map(|&real| {
                        seen += i64::from(real);
                        if real { seen - 1 } else { -1 }
                    })
                    .collect()
            })
            .collect()
    }

    /// Additive mask over keys, every query sees every real key: `[B, 1, 1, S]`.
    pub fn additive<B: Backend>(&self, device: &B::Device) -> Tensor<B, 4> {
        let data: Vec<f32> = self
            .rows
            .iter()
            .flatten()
            .map(|&real| if real { 0.0 } else { MASKED })
            .collect();
        additive_from(data, [self.batch(), 1, 1, self.len()], device)
    }

    /// Additive causal mask: row `t` of `queries` trailing rows sees real keys `0..=S - queries + t`: `[B, 1, T, S]`.
    pub fn additive_causal<B: Backend>(&self, queries: usize, device: &B::Device) -> Tensor<B, 4> {
        let keys = self.len();
        let offset = keys - queries;
        let mut data = Vec::with_capacity(self.batch() * queries * keys);
        for row in &self.rows {
            for t in 0..queries {
                data.extend(row.iter().enumerate().map(
                    |(s, &real)| {
                        if real && s <= offset + t { 0.0 } else { MASKED }
                    },
                ));
            }
        }
        additive_from(data, [self.batch(), 1, queries, keys], device)
    }

    /// Prefix mask of the Q-Former's grounded generation (UniLM): keys are `[prefix ; text]`, a text row
    /// sees all of the prefix and the real text up to itself: `[B, 1, T, prefix + T]`.
    pub fn additive_prefix_causal<B: Backend>(&self, prefix: usize, device: &B::Device) -> Tensor<B, 4> {
        PadMask::ones(self.batch(), prefix)
            .concat(self)
            .additive_causal(self.len(), device)
    }
}

fn additive_from<B: Backend>(data: Vec<f32>, shape: [usize; 4], device: &B::Device) -> Tensor<B, 4> {
    Tensor::from_data(TensorData::new(data, shape), (device, burn::tensor::DType::F32))
}

/// Ids on the host -> `[B, T]` on the device.
pub fn ids_tensor<B: Backend>(rows: &[Vec<i64>], device: &B::Device) -> Tensor<B, 2, Int> {
    let width = rows.first().map_or(0, Vec::len);
    let flat: Vec<i64> = rows.iter().flatten().copied().collect();
    Tensor::from_data(TensorData::new(flat, [rows.len(), width]), device)
}

/// Positions along an axis, for `Tensor::select`: `[n]` on the device.
pub fn index_tensor<B: Backend>(index: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let index: Vec<i64> = index.iter().map(|&i| i as i64).collect();
    Tensor::from_data(index.as_slice(), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_skip_padding_wherever_it_stands() {
        let mask = PadMask::new(vec![
            vec![true, true, false, false, true],
            vec![false, true, true, true, true],
        ]);
        assert_eq!(
            mask.positions(),
            vec![vec![0, 1, -1, -1, 2], vec![-1, 0, 1, 2, 3]]
        );
    }
}
