//! Container events: one stream from each backend, shared by all clients.
//!
//! A [`Subscription`] is one backend's stream, shared by its clients: runtimes of old hand each event to one
//! of their subscribers only (containerd 1.7, `container_events.go`), so crimux must not subscribe twice. It
//! exists while a client wants it. A [`Client`] has a bounded queue; one that does not read loses its stream,
//! never an event out of the middle of it, and nobody waits for it. Nothing here knows how events are got or
//! what is in them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::codec::{End, Frames};
use crate::error::Error;
use crate::mutex::lock;
use crate::state::InstanceId;

/// One client's stream.
#[derive(Debug)]
pub struct Client {
    queue: Mutex<Option<mpsc::Sender<Bytes>>>,
    end: End,
    ended: Notify,
    buffer: usize,
}

/// One backend's stream and the clients that read it.
#[derive(Debug)]
pub struct Subscription {
    streaming: AtomicBool,
    clients: Mutex<Vec<Arc<Client>>>,
    idle: Notify,
}

/// The streams that have clients, by backend.
#[derive(Debug, Default)]
pub struct Subscriptions {
    by_backend: Mutex<BTreeMap<InstanceId, Arc<Subscription>>>,
}

impl Client {
    /// Returns a client whose queue holds `buffer` events, and what it reads.
    pub fn new(buffer: usize) -> (Arc<Self>, Frames) {
        let (queue, end, frames) = Frames::channel(buffer);
        let client = Self { queue: Mutex::new(Some(queue)), end, ended: Notify::new(), buffer };
        (Arc::new(client), frames)
    }

    /// Ends the stream with `error`, after what is queued.
    pub fn end(&self, error: Error) {
        // The first error is the one the client gets.
        self.end.set(error).ok();
        self.queue().take();
        self.ended.notify_one();
    }

    /// Waits until the client has disconnected or its stream was ended. Only one task may wait.
    pub async fn closed(&self) {
        let queue = self.queue().clone();
        let Some(queue) = queue else { return };
        tokio::select! {
            () = queue.closed() => {}
            () = self.ended.notified() => {}
        }
    }

    /// Queues an event. Returns false, and ends the stream, if the queue is full.
    fn offer(&self, event: Bytes) -> bool {
        let offered = self.queue().as_ref().map(|queue| queue.try_send(event));
        let slow = matches!(offered, Some(Err(TrySendError::Full(_))));
        if slow {
            self.end(Error::SlowClient(self.buffer));
        }
        !slow
    }

    fn queue(&self) -> MutexGuard<'_, Option<mpsc::Sender<Bytes>>> {
        lock(&self.queue)
    }
}

impl Subscription {
    fn new() -> Arc<Self> {
        Arc::new(Self { streaming: AtomicBool::new(false), clients: Mutex::default(), idle: Notify::new() })
    }

    /// Queues an event, as framed, for every client. Returns how many streams ended because their queue was
    /// full.
    pub fn publish(&self, event: &Bytes) -> usize {
        let mut clients = self.clients();
        let before = clients.len();
        clients.retain(|client| client.offer(event.clone()));
        before - clients.len()
    }

    /// Records whether the backend streams now; returns whether it did.
    pub fn set_streaming(&self, streaming: bool) -> bool {
        self.streaming.swap(streaming, Ordering::Relaxed)
    }

    /// Tells whether the backend streams now.
    pub fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
    }

    /// Waits until the last client has left.
    pub async fn idle(&self) {
        self.idle.notified().await;
    }

    fn clients(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        lock(&self.clients)
    }
}

impl Subscriptions {
    /// Lets a client read a backend's stream. The second value tells whether the stream is new, so that the
    /// caller must subscription it.
    pub fn attach(&self, backend: InstanceId, client: &Arc<Client>) -> (Arc<Subscription>, bool) {
        let mut subscriptions = self.subscriptions();
        let new = !subscriptions.contains_key(&backend);
        let subscription = Arc::clone(subscriptions.entry(backend).or_insert_with(Subscription::new));
        subscription.clients().push(Arc::clone(client));
        (subscription, new)
    }

    /// Takes a client away from a backend's stream; a stream without clients is idle.
    pub fn detach(&self, backend: InstanceId, client: &Arc<Client>) {
        let mut subscriptions = self.subscriptions();
        let Some(subscription) = subscriptions.get(&backend) else { return };
        let mut clients = subscription.clients();
        clients.retain(|other| !Arc::ptr_eq(other, client));
        let idle = clients.is_empty();
        drop(clients);
        if idle && let Some(subscription) = subscriptions.remove(&backend) {
            subscription.idle.notify_one();
        }
    }

    /// Tells whether a backend streams now; `None` while nobody wants its events.
    pub fn is_streaming(&self, backend: InstanceId) -> Option<bool> {
        self.subscriptions().get(&backend).map(|subscription| subscription.is_streaming())
    }

    /// Ends all clients' streams with `error`.
    pub fn end_all(&self, error: &Error) {
        let subscriptions: Vec<_> = self.subscriptions().values().cloned().collect();
        for client in
            subscriptions.iter().flat_map(|subscription| std::mem::take(&mut *subscription.clients()))
        {
            client.end(error.clone());
        }
    }

    fn subscriptions(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Subscription>>> {
        lock(&self.by_backend)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    async fn read(frames: &mut Frames) -> Result<Bytes, Option<Code>> {
        let (frame, code) = std::future::poll_fn(|cx| frames.poll(cx)).await.expect("not over");
        frame.into_data().map_err(|_| code)
    }

    const A: InstanceId = InstanceId(1);

    #[tokio::test]
    async fn a_slow_client_keeps_what_it_has_and_loses_the_rest_alone() {
        let subscriptions = Subscriptions::default();
        let (slow, mut slow_frames) = Client::new(2);
        let (fast, mut fast_frames) = Client::new(3);
        let (subscription, new) = subscriptions.attach(A, &slow);
        assert!(new);
        assert!(!subscriptions.attach(A, &fast).1, "the stream is shared");
        let events = ["1", "2", "3"].map(Bytes::from);
        let dropped: Vec<_> = events.iter().map(|event| subscription.publish(event)).collect();
        assert_eq!(dropped, [0, 0, 1]);
        assert_eq!(read(&mut slow_frames).await, Ok(events[0].clone()));
        assert_eq!(read(&mut slow_frames).await, Ok(events[1].clone()));
        slow.closed().await;
        assert_eq!(read(&mut slow_frames).await, Err(Some(Code::ResourceExhausted)));
        for event in events {
            assert_eq!(read(&mut fast_frames).await, Ok(event));
        }
    }

    #[tokio::test]
    async fn a_stream_is_idle_when_its_last_client_has_left() {
        let subscriptions = Subscriptions::default();
        let (one, frames) = Client::new(1);
        let (other, _other_frames) = Client::new(1);
        let (subscription, _) = subscriptions.attach(A, &one);
        subscriptions.attach(A, &other);
        drop(frames);
        one.closed().await;
        subscriptions.detach(A, &one);
        assert!(!subscriptions.attach(A, &one).1, "the other still reads");
        subscriptions.detach(A, &one);
        subscriptions.detach(A, &other);
        subscription.idle().await;
        assert!(subscriptions.attach(A, &one).1, "a new one is needed");
    }
}
