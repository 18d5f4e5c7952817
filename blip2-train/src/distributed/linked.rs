//! Several devices of one process whose maker has a library for sums over them (NCCL): vectors stay in their memory.
//!
//! Ranks meet on the host before every sum, so that a rank which failed stops the others there; a sum that is under way
//! cannot be given up.

use blip2_model::backend::SelectDevice;
use burn::tensor::Tensor;

use super::local::Local;
use super::{Collective, CollectiveError, host};

/// One rank of a group of threads, and the devices of all of them.
pub struct Linked<'a, B: SelectDevice> {
    threads: &'a Local,
    devices: Vec<B::Device>,
}

impl<'a, B: SelectDevice> Linked<'a, B> {
    /// Links device `numbers[rank]` of every rank, and tries it out with a sum that is known.
    ///
    /// # Errors
    /// No such library for this backend, one device for two ranks, or a sum that is not right.
    pub fn new(threads: &'a Local, numbers: &[usize]) -> Result<Self, CollectiveError> {
        for (i, number) in numbers.iter().enumerate() {
            if numbers[..i].contains(number) {
                return Err(CollectiveError::DeviceTwice { number: *number });
            }
        }
        let devices = numbers.iter().map(|&number| B::select_device(number)).collect();
        let linked = Self { threads, devices };
        let (rank, world) = (linked.rank(), linked.world_size());
        let mine = Tensor::from_data([rank as f32 + 1.0], &linked.devices[rank]);
        let got = host(linked.all_reduce_sum(mine)?)[0];
        let want = (world * (world + 1) / 2) as f32;
        if got != want {
            return Err(CollectiveError::WrongSum { got, want });
        }
        Ok(linked)
    }
}

impl<B: SelectDevice> Collective<B> for Linked<'_, B> {
    fn rank(&self) -> usize {
        Collective::<B>::rank(self.threads)
    }

    fn world_size(&self) -> usize {
        Collective::<B>::world_size(self.threads)
    }

    fn all_reduce_sum(&self, values: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        self.threads.meet()?;
        B::sum_across(values, &self.devices).ok_or(CollectiveError::NoLibrary)
    }
}

#[cfg(test)]
mod tests {
    use super::super::local;
    use super::*;
    use blip2_model::backend::Flex;

    #[test]
    fn a_backend_without_a_library_and_a_device_named_twice_are_refused() {
        let linked = |numbers: &'static [usize]| {
            local::try_run(2, |me| Linked::<Flex>::new(me, numbers).map(|_| ())).unwrap_err()
        };
        assert!(matches!(linked(&[0, 1]), CollectiveError::NoLibrary));
        assert!(matches!(
            linked(&[1, 1]),
            CollectiveError::DeviceTwice { number: 1 }
        ));
    }
}
