//! What training asks of other ranks, behind one trait: [`Single`] for one process, [`local`] and [`linked`] for several
//! devices of one process, `cluster` for several processes. They need nothing but a sum over equal vectors; everything
//! else is built on it.

use burn::tensor::{Tensor, TensorData, backend::Backend};

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod linked;
pub mod local;
pub mod world;

/// Why a collective operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A process did not appear at the start.
    #[error(
        "rank {rank} did not appear within {seconds} s; start all ranks with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and let its host reach that of rank 0"
    )]
    PeerAbsent {
        /// The process that is missing.
        rank: usize,
        /// The time limit.
        seconds: u64,
    },
    /// A process ended, or its machine does not answer.
    #[error(
        "rank {rank} is gone; its log says why it stopped. Restart all ranks, the run resumes from its last checkpoint"
    )]
    PeerLost {
        /// That process.
        rank: usize,
    },
    /// The devices of this backend have no library for sums over them.
    #[error(
        "the devices of this backend are not linked by a library; leave --nccl out, sums then go through main memory"
    )]
    NoLibrary,
    /// Two ranks would share a device.
    #[error("device {number} is given twice; with --nccl every rank needs a device of its own")]
    DeviceTwice {
        /// Number of that device.
        number: usize,
    },
    /// A sum that is known came out wrong.
    #[error(
        "the library that links the devices gave {got} for a sum of {want}; leave --nccl out, sums then go through main memory"
    )]
    WrongSum {
        /// What came out.
        got: f32,
        /// The sum of all ranks, counted from one.
        want: f32,
    },
    /// The transport reported an error.
    #[error("rank {rank}: {operation} failed")]
    Transport {
        /// This process.
        rank: usize,
        /// What was being done.
        operation: &'static str,
        /// The transport's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Sums over all processes. Every process calls the same operations in the same order with equal shapes.
///
/// No operation carries gradient: what needs one is arranged by the stages (see [`crate::stage::encoded`]).
pub trait Collective<B: Backend> {
    /// Index of this process, `0..world_size`.
    fn rank(&self) -> usize;

    /// Number of processes `W`.
    fn world_size(&self) -> usize;

    /// Element-wise sum over the processes, the same on all of them.
    fn all_reduce_sum(&self, values: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError>;

    /// Element-wise mean over the processes.
    fn all_reduce_mean(&self, values: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        let world = self.world_size() as f64;
        Ok(self.all_reduce_sum(values)? / world)
    }

    /// Rows of all processes in rank order: `[n, D] -> [W * n, D]`.
    ///
    /// Each process writes its rows into a zero buffer and the buffers are summed; `x + 0` is exact.
    fn all_gather_rows(&self, rows: Tensor<B, 2>) -> Result<Tensor<B, 2>, CollectiveError> {
        let (rank, world) = (self.rank(), self.world_size());
        if world == 1 {
            return Ok(rows);
        }
        let [count, width] = rows.dims();
        let buffer = Tensor::zeros([world * count, width], (&rows.device(), rows.dtype()));
        let buffer = buffer.slice_assign([rank * count..(rank + 1) * count, 0..width], rows);
        let sum = self.all_reduce_sum(buffer.reshape([world * count * width]))?;
        Ok(sum.reshape([world * count, width]))
    }

    /// Whole numbers of all processes in rank order, exact for every `i64`.
    fn all_gather_ids(&self, ids: &[i64], device: &B::Device) -> Result<Vec<i64>, CollectiveError> {
        if self.world_size() == 1 {
            return Ok(ids.to_vec());
        }
        // four groups of 16 bits: each fits a float of any dtype down to f32
        let words: Vec<f32> = ids
            .iter()
            .flat_map(|&id| (0..4).map(move |i| ((id as u64 >> (16 * i)) & 0xffff) as f32))
            .collect();
        let rows = Tensor::from_data(TensorData::new(words, [ids.len(), 4]), device);
        let words = host(self.all_gather_rows(rows)?.reshape([-1]));
        Ok(words
            .chunks_exact(4)
            .map(|w| (0..4).fold(0u64, |id, i| id | (w[i] as u64) << (16 * i)) as i64)
            .collect())
    }

    /// Sum of one number per process, exact for counts up to 2^24.
    fn sum(&self, value: f64, device: &B::Device) -> Result<f64, CollectiveError> {
        if self.world_size() == 1 {
            return Ok(value);
        }
        let sum = self.all_reduce_sum(Tensor::from_data([value as f32], device))?;
        Ok(f64::from(host(sum)[0]))
    }
}

/// Floats on the host.
pub(crate) fn host<B: Backend>(values: Tensor<B, 1>) -> Vec<f32> {
    values.into_data().iter::<f32>().collect()
}

/// The only process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl<B: Backend> Collective<B> for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&self, values: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::backend::Flex;

    #[test]
    fn gathers_keep_rank_order_and_every_bit_of_an_id() {
        let device = Default::default();
        let seen = local::run(3, |c| {
            let rank = Collective::<Flex>::rank(c) as i64;
            let ids = [i64::MIN + rank, -1, 1 << 40 | rank];
            let ids = Collective::<Flex>::all_gather_ids(c, &ids, &device).unwrap();
            let rows = Tensor::<Flex, 2>::from_data([[rank as f32, 0.5]], &device);
            let rows = host(c.all_gather_rows(rows).unwrap().reshape([-1]));
            (ids, rows)
        });
        for (ids, rows) in seen {
            let want: Vec<i64> = (0..3).flat_map(|r| [i64::MIN + r, -1, 1 << 40 | r]).collect();
            assert_eq!(ids, want);
            assert_eq!(rows, [0.0, 0.5, 1.0, 0.5, 2.0, 0.5]);
        }
    }
}
