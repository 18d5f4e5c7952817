//! Processes played by threads of one process: sums in rank order, so results repeat to the bit. Used
//! to test everything that depends on the world size.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use burn::tensor::{Tensor, backend::Backend};

use super::{Collective, CollectiveError, host};

/// One rank of a group of threads.
#[derive(Clone, Debug)]
pub struct Local {
    rank: usize,
    world: usize,
    slots: Arc<Mutex<Vec<Vec<f32>>>>,
    barrier: Arc<Barrier>,
}

/// Runs `f` on `world` threads, one per rank, and returns the results in rank order.
///
/// # Panics
/// If one of the threads panics.
pub fn run<R: Send>(world: usize, f: impl Fn(&Local) -> R + Sync) -> Vec<R> {
    let slots = Arc::new(Mutex::new(vec![Vec::new(); world]));
    let barrier = Arc::new(Barrier::new(world));
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world)
            .map(|rank| {
                let local = Local {
                    rank,
                    world,
                    slots: slots.clone(),
                    barrier: barrier.clone(),
                };
                let f = &f;
                scope.spawn(move || f(&local))
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    })
}

impl<B: Backend> Collective<B> for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world
    }

    fn all_reduce_sum(&self, values: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        let device = values.device();
        let slots = || self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = host(values);
        slots()[self.rank] = mine;
        self.barrier.wait();
        let sum = {
            let slots = slots();
            let mut sum = vec![0f32; slots[self.rank].len()];
            for slot in slots.iter() {
                sum.iter_mut().zip(slot).for_each(|(s, v)| *s += v);
            }
            sum
        };
        self.barrier.wait(); // nobody overwrites a slot before all have read
        Ok(Tensor::from_data(sum.as_slice(), &device))
    }
}
