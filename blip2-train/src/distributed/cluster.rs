//! Several processes, on one machine or many, over burn's own transport (`burn-communication`: tensors fetched from
//! each other's websocket servers).
//!
//! The sum itself is ours: `burn-collective` 0.21 cannot be used across processes. Its barrier
//! (`global/node/sync.rs`) clears a copy of the list of arrived nodes instead of the list, so the second all-reduce
//! of a run waits for ever; it also adds up in order of arrival, so that no two runs agree to the bit.
//!
//! A long vector is cut into `W` pieces; process `c` fetches piece `c` from everybody, adds them in rank order, and
//! everybody fetches the sums: `2 (W - 1) / W` of the vector is sent by each, as in a ring, in two rounds instead of
//! `2 (W - 1)`. Every process gets the same bits, and the same ones in every run.

use std::marker::PhantomData;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_communication::Address;
use burn_communication::data_service::TensorDataService;
use burn_communication::websocket::{WebSocket, WsServer};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing_core::dispatcher::{Dispatch, set_global_default};

use super::world::World;
use super::{Collective, CollectiveError};

mod meeting;
#[cfg(test)]
mod tests;
mod watch;

use meeting::{Hello, Roll, gather, keep_notifying, own_address, serve};
use watch::Watch;

/// Name of the threads that talk to the others.
const THREAD: &str = "cluster";
/// Longest piece of a vector, values: 64 MB, well below the transport's limit of 512 MB for one message.
const PIECE: usize = 16 << 20;
/// Vectors up to this length are fetched whole by everybody: one round instead of two.
const SHORT: usize = 4096;

/// Time limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For all processes to appear at the start.
    pub gather: Duration,
    /// Silence after which a process counts as gone. However slow its steps are, one that goes on is not silent.
    pub silence: Duration,
    /// For the watch to say who is to blame when an exchange breaks, and for the others to fetch what is theirs.
    pub answer: Duration,
    /// How long a process that stops because of another stays reachable, to tell the others which one.
    pub linger: Duration,
}

impl Default for Patience {
    /// A process that ends is missed at once, one whose machine is gone after 20 s.
    fn default() -> Self {
        Self {
            gather: Duration::from_secs(600),
            silence: Duration::from_secs(20),
            answer: Duration::from_secs(5),
            linger: Duration::from_secs(1),
        }
    }
}

type Service<B> = Arc<TensorDataService<B, WebSocket>>;

/// This process in a group of processes.
pub struct Cluster<B: Backend> {
    rank: usize,
    patience: Patience,
    service: Service<B>,
    watch: Arc<Watch>,
    peers: Vec<Address>,
    operation: AtomicU64,
    runtime: Runtime,
    backend: PhantomData<B>,
}

impl<B: Backend> Cluster<B> {
    /// Starts this process's server and waits until all others have appeared.
    pub fn connect(world: &World, patience: Patience) -> Result<Self, CollectiveError> {
        quiet();
        let rank = world.rank;
        let failed =
            |operation, source: Box<dyn std::error::Error + Send + Sync>| CollectiveError::Transport {
                rank,
                operation,
                source,
            };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(THREAD)
            .enable_all()
            .build()
            .map_err(|error| failed("starting the network threads", error.into()))?;
        let (address, port) =
            own_address(world).map_err(|e| failed("finding an address of its own", e.into()))?;
        let service: Service<B> = Arc::new(TensorDataService::new(Default::default()));
        let roll = Arc::new(Roll::of(world.size));
        // so that a port that is taken is an error here and not in the background
        TcpListener::bind(("0.0.0.0", port)).map_err(|error| failed("opening its port", error.into()))?;
        let watch = Watch::new(patience);
        runtime.spawn(serve(
            WsServer::new(port),
            service.clone(),
            roll.clone(),
            watch.clone(),
        ));
        runtime.spawn(keep_notifying(service.clone()));
        let hello = Hello {
            rank,
            size: world.size,
            address,
        };
        let peers = runtime.block_on(gather(world, hello, roll, patience))?;
        let peers = peers
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Address>, String>>()
            .map_err(|error| failed("reading the others' addresses", error.into()))?;
        for (other, address) in peers.iter().enumerate().filter(|(other, _)| *other != rank) {
            runtime
                .block_on(watch.listen(other, address.clone()))
                .map_err(|rank| CollectiveError::PeerLost { rank })?;
        }
        Ok(Self {
            rank,
            patience,
            service,
            watch,
            peers,
            operation: AtomicU64::new(0),
            runtime,
            backend: PhantomData,
        })
    }

    /// Sum of `values` over all processes, in rank order.
    fn sum_host(&self, values: &[f32]) -> Result<Vec<f32>, CollectiveError> {
        let mut sum = Vec::with_capacity(values.len());
        for piece in values.chunks(PIECE * self.peers.len()) {
            let result = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    result = self.sum_piece(piece) => result,
                    rank = self.watch.lost() => Err(rank),
                }
            });
            match result {
                Ok(part) => sum.extend(part),
                Err(rank) => {
                    // the others are told in this time
                    std::thread::sleep(self.patience.linger);
                    return Err(CollectiveError::PeerLost { rank });
                }
            }
        }
        Ok(sum)
    }

    /// `Err` is the rank that is gone.
    async fn sum_piece(&self, values: &[f32]) -> Result<Vec<f32>, usize> {
        let world = self.peers.len();
        let others = world as u32 - 1;
        let operation = self.operation.fetch_add(1, Ordering::Relaxed);
        let id = |kind: usize| operation * (world as u64 + 1) + kind as u64;
        if values.len() <= SHORT {
            self.expose(values, others, id(0)).await;
            return Ok(add_up(self.fetch_all(id(0), values).await?));
        }
        let length = values.len().div_ceil(world);
        let part = |c: usize| &values[(c * length).min(values.len())..((c + 1) * length).min(values.len())];
        for c in (0..world).filter(|&c| c != self.rank) {
            self.expose(part(c), 1, id(c)).await;
        }
        let own = add_up(self.fetch_all(id(self.rank), part(self.rank)).await?);
        self.expose(&own, others, id(world)).await;
        Ok(self.fetch_all(id(world), &own).await?.concat())
    }

    async fn expose(&self, values: &[f32], downloads: u32, id: u64) {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        self.service.expose_data(data, downloads, id.into()).await;
    }

    /// Everybody's vector in rank order, `own` being this process's.
    async fn fetch_all(&self, id: u64, own: &[f32]) -> Result<Vec<Vec<f32>>, usize> {
        let mut waiting = JoinSet::new();
        for rank in (0..self.peers.len()).filter(|&rank| rank != self.rank) {
            let (service, address) = (self.service.clone(), self.peers[rank].clone());
            waiting.spawn(async move {
                // a task of its own: the transport panics at a lost connection
                let download = tokio::spawn(async move { service.download_tensor(address, id.into()).await });
                let data = download.await.ok().flatten();
                (rank, data.and_then(|data| data.convert::<f32>().to_vec().ok()))
            });
        }
        let mut all = vec![Vec::new(); self.peers.len()];
        all[self.rank] = own.to_vec();
        while let Some(ended) = waiting.join_next().await {
            // nobody aborts these tasks
            let (rank, values) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            all[rank] = match values {
                Some(values) => values,
                None => return Err(self.watch.verdict(rank).await),
            };
        }
        Ok(all)
    }
}

/// Element-wise, the first rank first.
fn add_up(all: Vec<Vec<f32>>) -> Vec<f32> {
    let mut all = all.into_iter();
    let mut sum = all.next().unwrap_or_default();
    for values in all {
        sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
    }
    sum
}

impl<B: Backend> Collective<B> for Cluster<B> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn all_reduce_sum(&self, values: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        let (device, dtype) = (values.device(), values.dtype());
        let values: Vec<f32> = values
            .into_data()
            .convert_dtype(DType::F32)
            .iter::<f32>()
            .collect();
        let sum = self.sum_host(&values)?;
        let count = sum.len();
        Ok(Tensor::from_data(TensorData::new(sum, [count]), (&device, dtype)))
    }
}

impl<B: Backend> Drop for Cluster<B> {
    /// Leaves when the others have fetched what is theirs, and says goodbye, so that they see an end and no failure.
    fn drop(&mut self) {
        if self.watch.has_lost() {
            return;
        }
        let (service, watch, answer) = (self.service.clone(), self.watch.clone(), self.patience.answer);
        self.runtime.block_on(async move {
            let deadline = Instant::now() + answer;
            while Instant::now() < deadline && !service.exposed_tensors.lock().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            watch.leave();
            // a tensor leaves the list when it is asked for; it is still on its way then, and so is the farewell
            tokio::time::sleep(Duration::from_millis(200)).await;
            // a task of its own: the transport panics if the other is gone already
            let _ = timeout(answer, tokio::spawn(async move { service.close().await })).await;
        });
    }
}

/// What the transport says of itself would only confuse. A lost connection is a panic inside it, reported as
/// [`CollectiveError::PeerLost`]. Its server, where nobody else listens to `tracing`, prints a line on standard
/// output for every tensor it fetches: an output that belongs to this program, and where nobody reads it the process
/// would stand still as soon as the pipe is full.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // an error means that somebody listens, whom the server leaves in place as well
        let _ = set_global_default(Dispatch::none());
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(THREAD) {
                before(info);
            }
        }));
    });
}
