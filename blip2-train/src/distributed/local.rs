//! Ranks as threads of one process, each with a device of its own: sums in rank order through host memory, so results
//! repeat to the bit. A rank that leaves makes the others stop instead of waiting for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Tensor, backend::Backend};

use super::{Collective, CollectiveError, host};

/// One rank of a group of threads.
#[derive(Clone, Debug)]
pub struct Local {
    rank: usize,
    world: usize,
    meeting: Arc<Meeting>,
}

/// Where the ranks meet.
#[derive(Debug, Default)]
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    arrived: usize,
    /// Meetings that are over.
    round: u64,
    /// The rank that left first, whether it was done or failed.
    left: Option<usize>,
    slots: Vec<Arc<Vec<f32>>>,
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks its rank as gone, also when the thread panics.
struct Leaving<'a>(&'a Local);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.meeting.state().left.get_or_insert(self.0.rank);
        self.0.meeting.changed.notify_all();
    }
}

/// Runs `f` on `world` threads, one per rank, and returns the results in rank order.
///
/// # Panics
/// If one of the threads panics.
pub fn run<R: Send>(world: usize, f: impl Fn(&Local) -> R + Sync) -> Vec<R> {
    run_all(world, f).0
}

/// As [`run`], with the results of all ranks or the error of the one that failed first.
///
/// # Errors
/// Those of `f`.
///
/// # Panics
/// If one of the threads panics.
pub fn try_run<R: Send, E: Send>(
    world: usize,
    f: impl Fn(&Local) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let (mut results, first) = run_all(world, f);
    // the others fail because that one is gone
    if let Some(first) = first
        && results[first].is_err()
    {
        results.swap(0, first);
    }
    results.into_iter().collect()
}

/// The results in rank order, and the rank that left first.
fn run_all<R: Send>(world: usize, f: impl Fn(&Local) -> R + Sync) -> (Vec<R>, Option<usize>) {
    let meeting = Arc::new(Meeting::default());
    meeting.state().slots = vec![Arc::default(); world];
    let results = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world)
            .map(|rank| {
                let meeting = meeting.clone();
                let local = Local { rank, world, meeting };
                let f = &f;
                scope.spawn(move || {
                    let _leaving = Leaving(&local);
                    f(&local)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    });
    let first = meeting.state().left;
    (results, first)
}

impl Local {
    /// Waits for all ranks.
    ///
    /// # Errors
    /// [`CollectiveError::PeerLost`] when one of them is gone.
    pub fn meet(&self) -> Result<(), CollectiveError> {
        let mut state = self.meeting.state();
        let round = state.round;
        state.arrived += 1;
        if state.arrived == self.world {
            state.arrived = 0;
            state.round += 1;
            self.meeting.changed.notify_all();
        }
        while state.round == round {
            if let Some(rank) = state.left {
                return Err(CollectiveError::PeerLost { rank });
            }
            let waited = self.meeting.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
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
        let mine = Arc::new(host(values));
        self.meeting.state().slots[self.rank] = mine.clone();
        self.meet()?;
        let slots = self.meeting.state().slots.clone();
        self.meet()?; // nobody replaces a slot before all have taken theirs
        let mut sum = vec![0f32; mine.len()];
        for slot in slots {
            sum.iter_mut().zip(slot.iter()).for_each(|(s, v)| *s += v);
        }
        Ok(Tensor::from_data(sum.as_slice(), &device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::backend::Flex;

    #[test]
    fn a_rank_that_fails_ends_the_others_and_is_the_one_that_is_reported() {
        let sum = |me: &Local| {
            let one = Tensor::<Flex, 1>::from_data([1.0], &Default::default());
            me.all_reduce_sum(one).map(|sum| host(sum)[0])
        };
        let result = try_run(3, |me| {
            let first = sum(me).map_err(|e| e.to_string())?;
            assert_eq!(first, 3.0);
            if me.rank == 1 {
                return Err("the disk of rank 1 is full".to_owned());
            }
            sum(me).map_err(|e| {
                assert!(matches!(e, CollectiveError::PeerLost { rank: 1 }), "{e}");
                e.to_string()
            })
        });
        assert_eq!(result, Err("the disk of rank 1 is full".to_owned()));
        // one that is done before the others is no loss
        let result = try_run(3, |me| sum(me).map(|sum| (me.rank, sum)));
        assert_eq!(result.unwrap(), [(0, 3.0), (1, 3.0), (2, 3.0)]);
    }
}
