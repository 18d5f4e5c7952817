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
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_communication::data_service::{TensorDataServer, TensorDataService};
use burn_communication::websocket::{WebSocket, WsClient, WsServer};
use burn_communication::{Address, CommunicationChannel, Message, ProtocolClient, ProtocolServer};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::world::World;
use super::{Collective, CollectiveError};

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

/// What a process says when it appears.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    rank: usize,
    size: usize,
    address: String,
}

/// Addresses in rank order, once all are known.
#[derive(Debug, Default)]
struct Roll {
    addresses: Mutex<Vec<Option<String>>>,
}

impl Roll {
    fn enter(&self, hello: Hello) {
        let mut list = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = list.get_mut(hello.rank) {
            *place = Some(hello.address);
        }
    }

    fn complete(&self) -> Option<Vec<String>> {
        let list = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().cloned().collect()
    }

    fn absent(&self) -> usize {
        let list = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().position(Option::is_none).unwrap_or(0)
    }
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
        let roll = Arc::new(Roll {
            addresses: Mutex::new(vec![None; world.size]),
        });
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
    async fn fetch_all(&self, id: u64, own: &[f32]) -> Result<Vec<Vec<f32>>, usize> {
        let fetch = |rank: usize| {
            let (service, address) = (self.service.clone(), self.peers[rank].clone());
            let task = async move { service.download_tensor(address, id.into()).await };
            self.runtime.spawn(task)
        };
        let tasks: Vec<_> = (0..self.peers.len())
            .map(|rank| (rank != self.rank).then(|| fetch(rank)))
            .collect();
        let mut all = Vec::with_capacity(tasks.len());
        for (rank, task) in tasks.into_iter().enumerate() {
            all.push(match task {
                None => own.to_vec(),
                Some(task) => self.patiently(rank, task).await?,
            });
        }
        Ok(all)
    }

    /// Waits for a download as long as its sender is alive.
    async fn patiently(
        &self,
        rank: usize,
        mut task: JoinHandle<Option<TensorData>>,
    ) -> Result<Vec<f32>, usize> {
        loop {
            match timeout(self.patience.silence, &mut task).await {
                Ok(Ok(Some(data))) => return data.convert::<f32>().to_vec().map_err(|_| rank),
                // closed, or the transport's panic at a lost connection
                Ok(_) => return Err(rank),
                Err(_) => {
                    let question = WsClient::connect(self.peers[rank].clone(), "alive");
                    let answer = timeout(self.patience.answer, question).await;
                    if !matches!(answer, Ok(Some(_))) {
                        task.abort();
                        return Err(rank);
                    }
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
    /// Says goodbye, so that the others' servers see an end and not a failure.
    fn drop(&mut self) {
        let service = self.service.clone();
        let task = self.runtime.spawn(async move { service.close().await });
        let _ = self.runtime.block_on(timeout(self.patience.answer, task));
    }
}

async fn serve<B: Backend>(server: WsServer, service: Service<B>, roll: Arc<Roll>) {
    let server = server
        .route_tensor_data_service(service)
        .route(
            "/alive",
            async move |mut channel: <WsServer as ProtocolServer>::Channel| {
                let _ = channel.close().await;
            },
        )
        .route(
            "/roll",
            async move |mut channel: <WsServer as ProtocolServer>::Channel| {
                let Ok(Some(message)) = channel.recv().await else {
                    return;
                };
                let Ok(hello) = serde_json::from_slice(&message.data) else {
                    return;
                };
                roll.enter(hello);
                loop {
                    if let Some(all) = roll.complete() {
                        let text = serde_json::to_vec(&all).unwrap_or_default();
                        let _ = channel.send(Message::new(text.into())).await;
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
        );
    if let Err(error) = server.serve(std::future::pending()).await {
        eprintln!("cluster: the server of this process stopped: {error:?}");
    }
}

/// The data service may miss a tensor that is exposed between its look and its wait, and would then sleep until the
/// next one: it is woken every few milliseconds instead.
async fn keep_notifying<B: Backend>(service: Service<B>) {
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        service.new_tensor_notify.notify_waiters();
    }
}

/// Addresses of all processes in rank order, from rank 0.
async fn gather(
    world: &World,
    hello: Hello,
    roll: Arc<Roll>,
    patience: Patience,
) -> Result<Vec<String>, CollectiveError> {
    let deadline = Instant::now() + patience.gather;
    let lost = |rank| CollectiveError::PeerLost {
        rank,
        seconds: patience.gather.as_secs(),
    };
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    if world.rank == 0 {
        roll.enter(hello);
        loop {
            if let Some(all) = roll.complete() {
                return Ok(all);
            }
            if Instant::now() > deadline {
                return Err(lost(roll.absent()));
            }
            pause().await;
        }
    }
    let master: Address = match format!("ws://{}:{}", world.master, world.port).parse() {
        Ok(address) => address,
        Err(_) => return Err(lost(0)),
    };
    let text = serde_json::to_vec(&hello).unwrap_or_default();
    while Instant::now() < deadline {
        if let Some(mut channel) = WsClient::connect(master.clone(), "roll").await
            && channel.send(Message::new(text.clone().into())).await.is_ok()
        {
            let left = deadline.saturating_duration_since(Instant::now());
            // a task of its own: the transport panics where a connection ends without a farewell
            let answer = tokio::spawn(async move { channel.recv().await });
            if let Ok(Ok(Ok(Some(message)))) = timeout(left, answer).await
                && let Ok(all) = serde_json::from_slice(&message.data)
            {
                return Ok(all);
            }
        }
        pause().await;
    }
    Err(lost(0))
}

/// Where the others reach this process: rank 0 at the port everybody knows, the others at a free one.
fn own_address(world: &World) -> std::io::Result<(String, u16)> {
    if world.rank == 0 {
        return Ok((format!("ws://{}:{}", world.master, world.port), world.port));
    }
    // no packet is sent: connecting a datagram socket chooses the interface that leads to rank 0
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((world.master.as_str(), world.port))?;
    let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
    Ok((format!("ws://{}:{port}", socket.local_addr()?.ip()), port))
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

#[cfg(test)]
mod tests {
    use blip2_model::backend::Flex;

    use super::*;
    use crate::distributed::host;

    fn worlds(size: usize) -> Vec<World> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let world = |rank| World {
            rank,
            size,
            local_rank: rank,
            master: "127.0.0.1".into(),
            port,
        };
        (0..size).map(world).collect()
    }

    fn quick() -> Patience {
        Patience {
            gather: Duration::from_secs(30),
            silence: Duration::from_secs(2),
            answer: Duration::from_secs(1),
            linger: Duration::from_millis(100),
        }
    }

    /// Runs `f` on every rank, each with its own server, and returns the results in rank order.
    fn on_all<R: Send>(size: usize, f: impl Fn(Cluster<Flex>) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let start = |world: World| {
                let f = &f;
                scope.spawn(move || f(Cluster::connect(&world, quick()).unwrap()))
            };
            let handles: Vec<_> = worlds(size).into_iter().map(start).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        })
    }

    fn numbers(rank: usize, len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 31 + rank * 17) % 101) as f32 * 0.37 - 9.0)
            .collect()
    }

    /// Many sums one after another, short and long, exact to the bit: addition in rank order is defined.
    #[test]
    fn sums_are_those_of_addition_in_rank_order() {
        let lengths = [1, 7, SHORT, SHORT + 1, 3 * SHORT + 5];
        let results = on_all(3, |cluster| {
            let sum = |&len: &usize| {
                let values = TensorData::new(numbers(cluster.rank, len), [len]);
                host(
                    cluster
                        .all_reduce_sum(Tensor::from_data(values, &Default::default()))
                        .unwrap(),
                )
            };
            (0..3).flat_map(|_| lengths.iter().map(sum)).collect::<Vec<_>>()
        });
        for (round, &len) in lengths.iter().cycle().take(15).enumerate() {
            let want = add_up((0..3).map(|rank| numbers(rank, len)).collect());
            for result in &results {
                assert_eq!(result[round], want, "round {round}");
            }
        }
    }

    #[test]
    fn a_rank_that_leaves_is_named_by_all_others() {
        let results = on_all(3, |cluster| {
            let one = || Tensor::<Flex, 1>::from_data([1.0], &Default::default());
            cluster.all_reduce_sum(one()).unwrap();
            if cluster.rank == 1 {
                return None; // ends, as a killed process does: its server is gone with it
            }
            let start = Instant::now();
            let error = cluster.all_reduce_sum(one()).unwrap_err();
            assert!(start.elapsed() < Duration::from_secs(10));
            Some(error.to_string())
        });
        for message in results.into_iter().flatten() {
            assert!(message.starts_with("rank 1 did not answer"), "{message}");
        }
    }

    #[test]
    fn a_slow_rank_is_waited_for() {
        let results = on_all(2, |cluster| {
            if cluster.rank == 1 {
                std::thread::sleep(quick().silence * 2);
            }
            let sum = cluster.all_reduce_sum(Tensor::<Flex, 1>::from_data([1.0], &Default::default()));
            host(sum.unwrap())[0]
        });
        assert_eq!(results, [2.0, 2.0]);
    }
}
