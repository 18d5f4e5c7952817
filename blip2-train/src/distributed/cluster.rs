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
use burn_communication::data_service::TensorDataService;
use burn_communication::websocket::{WebSocket, WsClient, WsServer};
use burn_communication::{Address, ProtocolClient};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::world::World;
use super::{Collective, CollectiveError};

mod meeting;
#[cfg(test)]
mod tests;

use meeting::{Hello, Roll, gather, keep_notifying, own_address, serve};

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
    /// Silence after which a process is asked whether it is alive. One that is may take as long as it likes.
    pub silence: Duration,
    /// For the answer to that.
    pub answer: Duration,
    /// How long a process that misses another stays reachable, so that the others too miss the right one.
    pub linger: Duration,
}

impl Default for Patience {
    /// A process whose machine is gone is missed after 25 s at most, one that ended at once; with the time to
    /// linger, all have stopped within 40 s.
    fn default() -> Self {
        Self {
            gather: Duration::from_secs(600),
            silence: Duration::from_secs(20),
            answer: Duration::from_secs(5),
            linger: Duration::from_secs(15),
        }
    }
}

type Service<B> = Arc<TensorDataService<B, WebSocket>>;

/// This process in a group of processes.
pub struct Cluster<B: Backend> {
    rank: usize,
    patience: Patience,
    service: Service<B>,
    peers: Vec<Address>,
    operation: AtomicU64,
    runtime: Runtime,
    backend: PhantomData<B>,
}

impl<B: Backend> Cluster<B> {
    /// Starts this process's server and waits until all others have appeared.
    pub fn connect(world: &World, patience: Patience) -> Result<Self, CollectiveError> {
        quiet_threads();
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
        runtime.spawn(serve(WsServer::new(port), service.clone(), roll.clone()));
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
            .collect::<Result<Vec<Address>, String>>();
        Ok(Self {
            rank,
            patience,
            service,
            peers: peers.map_err(|error| failed("reading the others' addresses", error.into()))?,
            operation: AtomicU64::new(0),
            runtime,
            backend: PhantomData,
        })
    }

    /// Sum of `values` over all processes, in rank order.
    fn sum_host(&self, values: &[f32]) -> Result<Vec<f32>, CollectiveError> {
        let mut sum = Vec::with_capacity(values.len());
        for piece in values.chunks(PIECE * self.peers.len()) {
            let start = Instant::now();
            let result = self.runtime.block_on(self.sum_piece(piece));
            match result {
                Ok(part) => sum.extend(part),
                Err(lost) => {
                    // whoever still waits for this process must not take it for the one that is gone
                    std::thread::sleep(self.patience.linger);
                    return Err(CollectiveError::PeerLost {
                        rank: lost,
                        seconds: start.elapsed().saturating_sub(self.patience.linger).as_secs(),
                    });
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
    ///
    /// All others are watched at once: one that is waited for may itself have stopped because of a third that is gone,
    /// and the one to name is the third.
    async fn fetch_all(&self, id: u64, own: &[f32]) -> Result<Vec<Vec<f32>>, usize> {
        let mut waiting = JoinSet::new();
        for rank in (0..self.peers.len()).filter(|&rank| rank != self.rank) {
            let (service, address, patience) =
                (self.service.clone(), self.peers[rank].clone(), self.patience);
            waiting.spawn(async move {
                let sender = address.clone();
                // a task of its own: the transport panics at a lost connection
                let download = tokio::spawn(async move { service.download_tensor(sender, id.into()).await });
                (rank, patiently(patience, address, download).await)
            });
        }
        let mut all = vec![Vec::new(); self.peers.len()];
        all[self.rank] = own.to_vec();
        while let Some(ended) = waiting.join_next().await {
            // nobody aborts these tasks
            let (rank, values) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            all[rank] = values.ok_or(rank)?;
        }
        Ok(all)
    }
}

/// Waits for a download as long as its sender is alive.
async fn patiently(
    patience: Patience,
    sender: Address,
    mut download: JoinHandle<Option<TensorData>>,
) -> Option<Vec<f32>> {
    loop {
        match timeout(patience.silence, &mut download).await {
            Ok(Ok(Some(data))) => return data.convert::<f32>().to_vec().ok(),
            // closed, or the transport's panic at a lost connection
            Ok(_) => return None,
            Err(_) => {
                let question = WsClient::connect(sender.clone(), "alive");
                let answer = timeout(patience.answer, question).await;
                if !matches!(answer, Ok(Some(_))) {
                    download.abort();
                    return None;
                }
            }
        }
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
        let (service, answer) = (self.service.clone(), self.patience.answer);
        self.runtime.block_on(async move {
            let deadline = Instant::now() + answer;
            while Instant::now() < deadline && !service.exposed_tensors.lock().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // a tensor leaves the list when it is asked for; it is still on its way then
            tokio::time::sleep(Duration::from_millis(200)).await;
            // a task of its own: the transport panics if the other is gone already
            let _ = timeout(answer, tokio::spawn(async move { service.close().await })).await;
        });
    }
}

/// A lost connection is a panic inside the transport; it is reported as [`CollectiveError::PeerLost`], so its
/// message would only confuse.
fn quiet_threads() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(THREAD) {
                before(info);
            }
        }));
    });
}
