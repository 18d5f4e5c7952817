//! Who is still there: every process hears every other one several times per [`Patience::silence`], on a connection
//! of its own that the network threads serve however busy the process is with its step.
//!
//! Exchanges of data cannot tell who is gone: a process that waits for a second one may do so because the second has
//! lost a third. Here a process that ends is noticed by all at once, by its broken connection, and whoever notices
//! tells the others before it stops itself, so that all name the same one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn_communication::websocket::{WsClient, WsServer};
use burn_communication::{Address, CommunicationChannel, Message, ProtocolClient, ProtocolServer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch::Sender;
use tokio::time::{sleep, timeout};

use super::Patience;

/// Path of the connections.
pub(super) const ROUTE: &str = "watch";
/// Words in the time after which silence means an end.
const WORDS: u32 = 8;

/// What a process says to those that listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    /// It goes on.
    Alive,
    /// It stops because the process of this rank is gone.
    Lost(usize),
    /// It has done its work and leaves.
    Done,
}

/// What this process knows of the group and says to the others.
#[derive(Debug)]
pub(super) struct Watch {
    word: Sender<Word>,
    patience: Patience,
}

impl Watch {
    pub(super) fn new(patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            word: Sender::new(Word::Alive),
            patience,
        })
    }

    /// The process that is gone, once one is.
    pub(super) async fn lost(&self) -> usize {
        let mut word = self.word.subscribe();
        loop {
            if let Word::Lost(rank) = *word.borrow_and_update() {
                return rank;
            }
            if word.changed().await.is_err() {
                std::future::pending::<()>().await; // the sender lives as long as `self`
            }
        }
    }

    /// Who is to blame for a broken exchange with `rank`: the one that the watch names, or `rank` itself.
    pub(super) async fn verdict(&self, rank: usize) -> usize {
        let named = timeout(self.patience.answer, self.lost()).await;
        named.unwrap_or_else(|_| {
            self.declare(rank);
            rank
        })
    }

    pub(super) fn has_lost(&self) -> bool {
        matches!(*self.word.borrow(), Word::Lost(_))
    }

    /// The first one counts.
    fn declare(&self, rank: usize) {
        self.say(Word::Lost(rank));
    }

    /// From now on an end of this process is no loss.
    pub(super) fn leave(&self) {
        self.say(Word::Done);
    }

    fn say(&self, last: Word) {
        self.word.send_if_modified(|word| {
            let first = *word == Word::Alive;
            if first {
                *word = last;
            }
            first
        });
    }

    /// This process's words to one that listens, until it has said its last.
    pub(super) async fn speak(self: Arc<Self>, mut channel: <WsServer as ProtocolServer>::Channel) {
        let mut changes = self.word.subscribe();
        loop {
            let word = *changes.borrow_and_update();
            let bytes = serde_json::to_vec(&word).unwrap_or_default();
            let sent = channel.send(Message::new(bytes.into())).await;
            if sent.is_err() || word != Word::Alive {
                return;
            }
            let _ = timeout(self.patience.silence / WORDS, changes.changed()).await;
        }
    }

    /// Listens to the process of `rank` as long as it goes on. Returns when they are connected; `Err` is `rank`, which
    /// could not be reached.
    pub(super) async fn listen(self: &Arc<Self>, rank: usize, address: Address) -> Result<(), usize> {
        let deadline = Instant::now() + self.patience.silence;
        let channel = loop {
            match WsClient::connect(address.clone(), ROUTE).await {
                Some(channel) => break channel,
                None if Instant::now() > deadline => return Err(rank),
                None => sleep(Duration::from_millis(50)).await,
            }
        };
        let (watch, silence) = (self.clone(), self.patience.silence);
        tokio::spawn(async move {
            // a task of its own: the transport panics where a connection ends without a farewell
            let last = tokio::spawn(last_word(channel, silence)).await;
            match last {
                Ok(Some(Word::Done)) => {}
                Ok(Some(Word::Lost(other))) => watch.declare(other),
                _ => watch.declare(rank),
            }
        });
        Ok(())
    }
}

/// The last word on a connection; none if it ended, or was silent for too long, before one.
async fn last_word(mut channel: <WsClient as ProtocolClient>::Channel, silence: Duration) -> Option<Word> {
    loop {
        let message = timeout(silence, channel.recv()).await.ok()?.ok()??;
        match serde_json::from_slice(&message.data).ok()? {
            Word::Alive => {}
            last => return Some(last),
        }
    }
}
