//! Relative position bias: distance -> bucket -> one learned number per head
//! (`T5Attention._relative_position_bucket`).

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::nn::kernels::as_dtype;
use crate::nn::mask::ids_tensor;
use crate::nn::{Embedding, Kernels};

/// How distances share buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeBuckets {
    /// Buckets in all.
    pub count: usize,
    /// Distance from which on everything falls into the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query have buckets of their own (encoder) or share bucket 0 (decoder).
    pub bidirectional: bool,
}

impl RelativeBuckets {
    /// Bucket of `distance = key position - query position`.
    ///
    /// Half of the buckets of a direction are exact, the rest grow logarithmically. The logarithms are
    /// taken in f32 because the reference does, and a bucket border decides on it.
    pub fn bucket(&self, distance: i64) -> i64 {
        let count = match self.bidirectional {
            true => self.count as i64 / 2,
            false => self.count as i64,
        };
        let base = match self.bidirectional && distance > 0 {
            true => count,
            false => 0,
        };
        let n = match self.bidirectional {
            true => distance.abs(),
            false => (-distance).max(0),
        };
        let exact = count / 2;
        if n < exact {
            return base + n;
        }
        let span = (self.max_distance as f64 / exact as f64).ln() as f32;
        let log = (n as f32 / exact as f32).ln() / span * (count - exact) as f32;
        base + (exact + log as i64).min(count - 1)
    }

    /// Bias of `queries` positions from `first` on over keys `0..keys`, from `table [count, H]`:
    /// `[1, H, queries, keys]` in f32.
    pub fn bias<B: Backend + Kernels>(
        &self,
        table: &Embedding<B>,
        first: usize,
        queries: usize,
        keys: usize,
    ) -> Tensor<B, 4> {
        let buckets: Vec<Vec<i64>> = (first..first + queries)
            .map(|query| {
                let distances = (0..keys).map(|key| key as i64 - query as i64);
                distances.map(|distance| self.bucket(distance)).collect()
            })
            .collect();
        let ids = ids_tensor(&buckets, &table.weight.lazy_device());
        let bias = table.forward(ids).permute([2, 0, 1]); // [Q, K, H] -> [H, Q, K]
        as_dtype(bias.unsqueeze(), DType::F32)
    }
}
