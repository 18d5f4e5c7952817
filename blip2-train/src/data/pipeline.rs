//! Work on samples in parallel, results in order.
//!
//! One thread reads the mixture and, for each sample, puts a ticket into a bounded queue and the work into another;
//! the consumer takes tickets in order and waits for each one's result. The bound on tickets is the back-pressure:
//! when nobody takes batches, reading stops.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::mixture::{Cursor, Drawn, Mixture};
use super::sample::{DataError, Problem, Sample, Skipped};

/// What is done with a sample: (source, pass, sample) to a result.
pub type Work<T> = Arc<dyn Fn(u32, u64, Sample) -> Result<T, Problem> + Send + Sync>;

/// A finished sample with its place in the stream.
#[derive(Debug)]
pub struct Item<T> {
    /// Number in the stream, from the start given to [`Pipeline::new`].
    pub number: u64,
    /// Index of the source.
    pub source: u32,
    /// Position before this sample.
    pub before: Arc<Cursor>,
    /// Position after it.
    pub after: Arc<Cursor>,
    /// The result, or why there is none.
    pub outcome: Result<T, Skipped>,
}

struct Ticket<T> {
    number: u64,
    source: u32,
    before: Arc<Cursor>,
    after: Arc<Cursor>,
    outcome: Receiver<Result<T, Skipped>>,
}

enum Message<T> {
    Ticket(Ticket<T>),
    Failed(Box<DataError>),
    End,
}

struct Job<T> {
    source: u32,
    pass: u64,
    sample: Sample,
    reply: Sender<Result<T, Skipped>>,
}

/// Threads to use and samples to hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Threads that do the work, at least 1.
    pub threads: usize,
    /// Most samples read but not yet taken, at least 1.
    pub in_flight: usize,
}

/// An iterator over results in stream order. Dropping it stops and joins its threads.
pub struct Pipeline<T> {
    queue: Option<Receiver<Message<T>>>,
    threads: Vec<JoinHandle<()>>,
    join: bool,
    ended: bool,
}

impl<T: Send + 'static> Pipeline<T> {
    /// Starts reading `mixture`. Samples whose number is in `passed_over` (ascending) are read but left out.
    pub fn new(mixture: Mixture, passed_over: Vec<u64>, capacity: Capacity, work: Work<T>) -> Self {
        let threads = capacity.threads.max(1);
        let (to_queue, queue) = bounded(capacity.in_flight.max(1));
        let (to_work, jobs) = bounded::<Job<T>>(2 * threads);
        // a read of standard input cannot be interrupted; its thread ends with the process
        let join = !mixture.reads_stdin();
        let mut handles: Vec<JoinHandle<()>> = (0..threads)
            .map(|_| {
                let (jobs, work) = (jobs.clone(), work.clone());
                std::thread::spawn(move || {
                    // Samples are spread over threads already: parallel loops inside one run on its own thread.
                    let _one = rayon::ThreadPoolBuilder::new()
                        .num_threads(1)
                        .use_current_thread()
                        .build();
                    for job in jobs {
                        run(job, &work);
                    }
                })
            })
            .collect();
        handles.push(std::thread::spawn(move || {
            read(mixture, passed_over, &to_queue, &to_work)
        }));
        Self {
            queue: Some(queue),
            threads: handles,
            join,
            ended: false,
        }
    }
}

fn run<T>(job: Job<T>, work: &Work<T>) {
    let Job {
        source,
        pass,
        sample,
        reply,
    } = job;
    let (shard, key) = (sample.shard.clone(), sample.key.clone());
    let outcome = catch_unwind(AssertUnwindSafe(|| work(source, pass, sample)))
        .unwrap_or(Err(Problem::DecoderPanic))
        .map_err(|problem| Skipped { shard, key, problem });
    // no receiver: the pipeline is being dropped
    let _ = reply.send(outcome);
}

fn read<T>(mut mixture: Mixture, passed_over: Vec<u64>, queue: &Sender<Message<T>>, jobs: &Sender<Job<T>>) {
    let mut passed_over = passed_over.into_iter().peekable();
    let mut before = Arc::new(mixture.cursor());
    for number in 0.. {
        let Drawn { source, pass, sample } = match mixture.next_sample() {
            Ok(Some(drawn)) => drawn,
            Ok(None) => {
                let _ = queue.send(Message::End);
                return;
            }
            Err(error) => {
                let _ = queue.send(Message::Failed(Box::new(error)));
                return;
            }
        };
        let after = Arc::new(mixture.cursor());
        let from = std::mem::replace(&mut before, after.clone());
        if passed_over.next_if_eq(&number).is_some() {
            continue;
        }
        let (reply, outcome) = bounded(1);
        if queue
            .send(Message::Ticket(Ticket {
                number,
                source,
                before: from,
                after,
                outcome,
            }))
            .is_err()
        {
            return;
        }
        let sent = match sample {
            Ok(sample) => jobs
                .send(Job {
                    source,
                    pass,
                    sample,
                    reply,
                })
                .is_ok(),
            Err(skipped) => reply.send(Err(skipped)).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

impl<T> Iterator for Pipeline<T> {
    type Item = Result<Item<T>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let result = match self.queue.as_ref()?.recv() {
            Ok(Message::Ticket(ticket)) => {
                let Ticket {
                    number,
                    source,
                    before,
                    after,
                    outcome,
                } = ticket;
                match outcome.recv() {
                    Ok(outcome) => {
                        return Some(Ok(Item {
                            number,
                            source,
                            before,
                            after,
                            outcome,
                        }));
                    }
                    Err(_) => Some(Err(DataError::ThreadLost)),
                }
            }
            Ok(Message::Failed(error)) => Some(Err(*error)),
            Ok(Message::End) => None,
            Err(_) => Some(Err(DataError::ThreadLost)),
        };
        self.ended = true;
        result
    }
}

impl<T> Drop for Pipeline<T> {
    fn drop(&mut self) {
        self.queue = None; // the reader's next send fails, then the workers' queue closes
        if self.join {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::mixture::{MixtureConfig, Source, Start};
    use super::super::stream::{Data, Order};
    use super::super::testing::rows;
    use super::*;

    fn mixture(n: usize, repeat: bool) -> Mixture {
        let order = Order {
            shuffle: false,
            ..Order::default()
        };
        let source = Source {
            name: "r".into(),
            data: Data::Rows(rows(n)),
            ratio: None,
        };
        Mixture::new(
            &[source],
            MixtureConfig {
                order,
                repeat,
                ..MixtureConfig::default()
            },
            Start::Epoch(0),
        )
        .unwrap()
    }

    fn pipeline<T: Send + 'static>(
        mixture: Mixture,
        threads: usize,
        work: impl Fn(Sample) -> Result<T, Problem> + Send + Sync + 'static,
    ) -> Pipeline<T> {
        let capacity = Capacity {
            threads,
            in_flight: 8,
        };
        Pipeline::new(
            mixture,
            vec![1, 3],
            capacity,
            Arc::new(move |_, _, sample| work(sample)),
        )
    }

    #[test]
    fn results_come_in_order_and_panics_cost_one_sample() {
        let got: Vec<_> = pipeline(mixture(40, false), 4, |s| {
            let n: u64 = s.key.parse().unwrap();
            // later samples finish first
            std::thread::sleep(Duration::from_micros(500 - 10 * n));
            if n == 7 {
                panic!("a decoder bug");
            }
            Ok(n)
        })
        .map(|item| item.unwrap())
        .map(|item| item.outcome.map_err(|s| (s.key.clone(), s.problem.kind())))
        .collect();
        let want: Vec<_> = (0..40)
            .filter(|n| ![1, 3].contains(n))
            .map(|n| {
                if n == 7 {
                    Err(("7".to_owned(), "decoder_panic"))
                } else {
                    Ok(n)
                }
            })
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn reading_stops_when_nobody_takes_and_drop_ends_it() {
        let worked = Arc::new(AtomicUsize::new(0));
        let counter = worked.clone();
        let mut p = pipeline(mixture(10, true), 2, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        p.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        // 1 taken, 8 queued, 1 in the reader's hands
        assert!(worked.load(Ordering::SeqCst) <= 10);
        drop(p); // joins: a thread that does not end would hang the test
        assert_eq!(Arc::strong_count(&worked), 1);
    }
}
