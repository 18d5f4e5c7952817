//! How processes find each other: everybody calls rank 0, which answers with all addresses once it has them.

use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn_communication::data_service::TensorDataServer;
use burn_communication::websocket::{WsClient, WsServer};
use burn_communication::{Address, CommunicationChannel, Message, ProtocolClient, ProtocolServer};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::watch::{self, Watch};
use super::{Patience, Service};
use crate::distributed::CollectiveError;
use crate::distributed::world::World;
use crate::say::say;

/// What a process says when it appears.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) address: String,
}

/// Addresses in rank order, once all are known.
#[derive(Debug, Default)]
pub(super) struct Roll {
    addresses: Mutex<Vec<Option<String>>>,
}

impl Roll {
    pub(super) fn of(size: usize) -> Self {
        Self {
            addresses: Mutex::new(vec![None; size]),
        }
    }

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

pub(super) async fn serve<B: Backend>(
    server: WsServer,
    service: Service<B>,
    roll: Arc<Roll>,
    watch: Arc<Watch>,
) {
    let server = server
        .route_tensor_data_service(service)
        .route(
            watch::ROUTE,
            async move |channel: <WsServer as ProtocolServer>::Channel| watch.speak(channel).await,
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
        say(format_args!(
            "cluster: the server of this process stopped: {error:?}"
        ));
    }
}

/// The data service may miss a tensor that is exposed between its look and its wait, and would then sleep until the
/// next one: it is woken every few milliseconds instead.
pub(super) async fn keep_notifying<B: Backend>(service: Service<B>) {
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        service.new_tensor_notify.notify_waiters();
    }
}

/// Addresses of all processes in rank order, from rank 0.
pub(super) async fn gather(
    world: &World,
    hello: Hello,
    roll: Arc<Roll>,
    patience: Patience,
) -> Result<Vec<String>, CollectiveError> {
    let deadline = Instant::now() + patience.gather;
    let lost = |rank| CollectiveError::PeerAbsent {
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
pub(super) fn own_address(world: &World) -> std::io::Result<(String, u16)> {
    if world.rank == 0 {
        return Ok((format!("ws://{}:{}", world.master, world.port), world.port));
    }
    // no packet is sent: connecting a datagram socket chooses the interface that leads to rank 0
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((world.master.as_str(), world.port))?;
    let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
    Ok((format!("ws://{}:{port}", socket.local_addr()?.ip()), port))
}
