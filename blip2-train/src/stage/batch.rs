//! Batches on the host, as the data loader makes them. Everything here is plain memory; tensors are
//! created inside a step.

use blip2_model::nn::PadMask;
use burn::tensor::TensorData;

/// What the trainer asks of any batch.
pub trait Batch {
    /// One key per sample, to name them when something goes wrong.
    fn keys(&self) -> &[String];

    /// Number of samples.
    fn len(&self) -> usize {
        self.keys().len()
    }

    /// Whether there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Pictures of a batch.
#[derive(Clone, Debug)]
pub enum Images {
    /// Normalised pixels `[B, 3, H, W]`.
    Pixels(TensorData),
    /// Tokens of a frozen encoder `[B, N, C]`, before `ln_vision`, in any float dtype.
    Features(TensorData),
}

/// Token ids with padding.
#[derive(Clone, Debug)]
pub struct TextBatch {
    /// `[B, T]`
    pub ids: Vec<Vec<i64>>,
    /// `[B, T]`
    pub mask: PadMask,
}

impl TextBatch {
    /// Without trailing columns that are padding in every row: they cost time and change nothing.
    pub fn trimmed(&self) -> Self {
        let rows = self.mask.rows();
        let used = |row: &Vec<bool>| row.iter().rposition(|&real| real).map_or(0, |i| i + 1);
        let len = rows.iter().map(used).max().unwrap_or(0).max(1);
        Self {
            ids: self.ids.iter().map(|row| row[..len].to_vec()).collect(),
            mask: PadMask::new(rows.iter().map(|row| row[..len].to_vec()).collect()),
        }
    }

    /// Rows `index`, repeats allowed.
    pub fn select(&self, index: &[usize]) -> Self {
        Self {
            ids: index.iter().map(|&i| self.ids[i].clone()).collect(),
            mask: self.mask.select(index),
        }
    }
}

/// Image-text pairs of stage 1 and retrieval fine-tuning.
#[derive(Clone, Debug)]
pub struct PairBatch {
    /// One per pair.
    pub keys: Vec<String>,
    /// `B` pictures.
    pub images: Images,
    /// `[CLS] .. [SEP]`, right-padded. With several processes all of them must use the same length.
    pub text: TextBatch,
    /// Identity of the picture, for soft targets.
    pub image_ids: Option<Vec<i64>>,
}

/// Pictures with a text to predict: stage 2, captioning and question answering.
#[derive(Clone, Debug)]
pub struct LmBatch {
    /// One per sample.
    pub keys: Vec<String>,
    /// `B` pictures.
    pub images: Images,
    /// Text between the picture and the predicted part: T5's prefix, or a question. `None` for plain
    /// captioning with a decoder-only model.
    pub prompt: Option<TextBatch>,
    /// What is predicted, right-padded; for a decoder-only model including its beginning token.
    pub target: TextBatch,
    /// `target.ids` with [`crate::losses::IGNORE`] where a position is no target.
    pub labels: Vec<Vec<i64>>,
    /// Text that the Q-Former reads together with the picture (question answering).
    pub qformer_text: Option<TextBatch>,
}

/// Plain text of a language model's own training.
#[derive(Clone, Debug)]
pub struct PlainBatch {
    /// One per row.
    pub keys: Vec<String>,
    /// Rows of at least two tokens, right-padded; the first token of a row is given, the others are predicted.
    pub text: TextBatch,
}

impl Batch for PlainBatch {
    fn keys(&self) -> &[String] {
        &self.keys
    }
}

impl Batch for PairBatch {
    fn keys(&self) -> &[String] {
        &self.keys
    }
}

impl Batch for LmBatch {
    fn keys(&self) -> &[String] {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_drops_only_columns_without_any_token() {
        let text = TextBatch {
            ids: vec![vec![1, 2, 0, 0], vec![3, 4, 5, 0]],
            mask: PadMask::new(vec![
                vec![true, true, false, false],
                vec![true, true, true, false],
            ]),
        };
        let text = text.trimmed();
        assert_eq!(text.ids, [vec![1, 2, 0], vec![3, 4, 5]]);
        assert_eq!(text.mask.len(), 3);
    }
}
