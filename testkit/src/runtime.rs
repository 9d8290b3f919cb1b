//! A simulated CRI runtime: a real server on a real socket, with its pods in memory and faults on demand.
//!
//! Tests of a proxy need backends that fail in exact ways at exact moments, that say afterwards which bytes
//! reached them, and of which there can be many. No real runtime offers that. This one works on raw gRPC
//! bytes, so that unknown fields, unknown RPCs and metadata can be compared byte for byte, and only decodes
//! what it answers. It must never share code with what it tests.
//!
//! ```no_run
//! # async fn example() {
//! use testkit::runtime::{Fault, SimRuntime};
//!
//! let builder = SimRuntime::builder("containerd").handlers(["runc", "runsc"]);
//! let runtime = builder.containers(500, 1).start().await;
//! runtime.fault("ListContainers", Fault::Hang);
//! // … point the proxy at runtime.endpoint() …
//! let calls = runtime.wait_for_call("ListContainers", 1).await;
//! assert_eq!(calls[0].header("traceparent"), Some("00-…"));
//! runtime.clear_faults();
//! # }
//! ```

mod abilities;
mod answer;
mod builder;
mod call;
mod checkpoint;
mod containers;
mod events;
mod fault;
mod frame;
mod gate;
mod ids;
mod images;
mod line;
mod metrics;
mod node;
mod overrides;
mod record;
mod reply;
mod sandboxes;
mod server;
mod state;
mod stats;
mod streaming;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use abilities::{Abilities, ApiVersions, Events, ImageIds, MetricLabels, UnknownIds};
pub use builder::Builder;
pub use fault::Fault;
pub use images::Pull;
pub use record::{Call, End};
pub use reply::Reply;
pub use state::{Container, Sandbox, State, StateGuard};
pub use streaming::StreamRequest;

pub(crate) use frame::{join, take};

use call::Shared;
use overrides::Handler;
use server::Listener;

/// How long [`SimRuntime::wait_for_call`] waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running simulated runtime; dropping it ends it and its connections.
#[derive(Debug)]
pub struct SimRuntime {
    shared: Arc<Shared>,
    address: Address,
    breaking: watch::Sender<()>,
    server: Mutex<Option<JoinHandle<()>>>,
    streaming: JoinHandle<()>,
    /// Keeps the socket's directory, if it is our own.
    _directory: Option<tempfile::TempDir>,
}

/// Where a runtime listens.
#[derive(Debug, Clone)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl SimRuntime {
    /// Describes a runtime whose `Version` reports `name`.
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
    }

    /// Its endpoint as a configuration names it: `unix:///…` or `http://127.0.0.1:…`.
    pub fn endpoint(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!("unix://{}", path.display()),
            Address::Tcp(address) => format!("http://{address}"),
        }
    }

    /// The path of its socket.
    ///
    /// # Panics
    /// If it listens on TCP.
    pub fn socket(&self) -> &Path {
        match &self.address {
            Address::Unix(path) => path,
            Address::Tcp(address) => panic!("this runtime listens on {address}"),
        }
    }

    /// The port of its streaming server on 127.0.0.1.
    pub fn stream_port(&self) -> u16 {
        self.shared.streams.port()
    }

    /// The requests that reached its streaming server, in order.
    pub fn stream_requests(&self) -> Vec<StreamRequest> {
        self.shared.streams.requests()
    }

    /// Gives access to what it knows. Nothing is answered while the guard lives, so do not await with it.
    ///
    /// # Panics
    /// If a test panicked while it held the state.
    pub fn state(&self) -> StateGuard<'_> {
        StateGuard(self.shared.state.lock().expect("a test panicked while it held the state"))
    }

    // Faults.

    /// Lets a fault strike every call of `method` (the last segment of its path; `*` is every method that has
    /// no fault of its own) from now on, in place of the one before.
    pub fn fault(&self, method: &str, fault: Fault) {
        self.shared.faults.set(method, fault, None);
    }

    /// Lets a fault strike the next `times` calls of `method`.
    pub fn fault_next(&self, method: &str, times: usize, fault: Fault) {
        self.shared.faults.set(method, fault, Some(times));
    }

    /// Clears the fault of one method and releases the calls that hang on it.
    pub fn clear_fault(&self, method: &str) {
        self.shared.faults.clear(method);
    }

    /// Clears all faults and releases the calls that hang on them.
    pub fn clear_faults(&self) {
        self.shared.faults.clear_all();
    }

    /// Stops reading and writing on all connections, as a stopped process does: connecting still works.
    pub fn freeze(&self) {
        self.shared.gate.shut();
    }

    /// Goes on where [`freeze`](Self::freeze) stopped.
    pub fn thaw(&self) {
        self.shared.gate.open();
    }

    /// Breaks all connections and goes on listening.
    pub fn drop_connections(&self) {
        self.breaking.send_replace(());
    }

    /// Says goodbye (GOAWAY) on all connections: calls under way are finished, new ones are taken on new
    /// connections.
    pub fn say_goodbye(&self) {
        self.shared.goodbye.send_replace(());
    }

    /// Stops listening, breaks all connections and removes the socket. What it knows is kept, and its
    /// streaming server goes on.
    pub async fn stop(&self) {
        self.refuse_connections().await;
        if let Address::Unix(path) = &self.address {
            // It may be gone already: this is also called for a runtime that refuses connections.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Stops listening and breaks all connections, but leaves the socket file: connecting is refused.
    pub async fn refuse_connections(&self) {
        let server = self.replace_server(None);
        if let Some(server) = server {
            server.abort();
            // It ends by the abort alone.
            let _ = server.await;
        }
    }

    /// Listens again at the same address, with what it knew.
    ///
    /// # Panics
    /// If the address cannot be bound.
    pub async fn start_again(&self) {
        self.refuse_connections().await;
        let listener = match &self.address {
            Address::Unix(path) => Listener::unix(path),
            Address::Tcp(address) => Listener::tcp(*address).await,
        };
        let listener = listener.expect("the address can be bound again");
        let server = server::serve(listener, Arc::clone(&self.shared), self.breaking.subscribe());
        self.replace_server(Some(tokio::spawn(server)));
    }

    /// Listens on the Unix socket at `path` from now on, with what it knew, and no longer where it did.
    ///
    /// # Panics
    /// If the path cannot be bound.
    pub async fn move_to(&mut self, path: impl Into<PathBuf>) {
        self.stop().await;
        self.address = Address::Unix(path.into());
        self.start_again().await;
    }

    fn replace_server(&self, server: Option<JoinHandle<()>>) -> Option<JoinHandle<()>> {
        std::mem::replace(&mut *self.server.lock().unwrap_or_else(PoisonError::into_inner), server)
    }

    // Overrides.

    /// Answers every call of `method` (a path or its last segment) with this reply.
    ///
    /// # Panics
    /// At the call, if the reply is an open stream; use [`unknown_method`](Self::unknown_method) for those.
    pub fn reply_raw(&self, method: &str, reply: Reply) {
        self.unknown_method(method, move |_| reply.copy());
    }

    /// Answers calls of `method` (a path, whether or not the CRI has it, or its last segment) by a function.
    pub fn unknown_method(&self, method: &str, handler: impl Fn(Call) -> Reply + Send + Sync + 'static) {
        self.shared.overrides.set(method, Handler::Whole(Arc::new(handler)));
    }

    /// Answers calls of `method` by a function that is given the request's messages as they come.
    pub fn unknown_stream(
        &self,
        method: &str,
        handler: impl Fn(Call, mpsc::UnboundedReceiver<Bytes>) -> Reply + Send + Sync + 'static,
    ) {
        self.shared.overrides.set(method, Handler::Open(Arc::new(handler)));
    }

    /// Answers everything by itself again.
    pub fn clear_replies(&self) {
        self.shared.overrides.clear();
    }

    // The record.

    /// The calls of `method` (a path or its last segment; `*` is all) so far, in order.
    pub fn calls(&self, method: &str) -> Vec<Call> {
        self.shared.recorder.calls(method)
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.shared.recorder.clear();
    }

    /// Waits until `method` was called `count` times, and returns those calls.
    ///
    /// # Panics
    /// If that takes more than ten seconds, or calls are not recorded.
    pub async fn wait_for_call(&self, method: &str, count: usize) -> Vec<Call> {
        self.wait_for(method, |calls| calls.len() >= count).await
    }

    /// Waits until a call of `method` was cancelled by its client, and returns the calls of that method.
    ///
    /// # Panics
    /// If that takes more than ten seconds, or calls are not recorded.
    pub async fn wait_for_cancel(&self, method: &str) -> Vec<Call> {
        self.wait_for(method, |calls| calls.iter().any(Call::cancelled)).await
    }

    /// Waits until the calls of `method` are as `wanted`, and returns them.
    ///
    /// # Panics
    /// If that takes more than ten seconds, or calls are not recorded.
    pub async fn wait_for(&self, method: &str, wanted: impl Fn(&[Call]) -> bool) -> Vec<Call> {
        let mut changes = self.shared.recorder.changes();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                let calls = self.calls(method);
                if wanted(&calls) {
                    return calls;
                }
                changes.changed().await.expect("the recorder outlives the wait");
            }
        };
        let Ok(calls) = tokio::time::timeout(PATIENCE, waiting).await else {
            let seen: Vec<_> = self.calls("*").iter().map(|call| (call.path.clone(), call.end)).collect();
            panic!("the awaited call of {method} did not come; there were {seen:?}");
        };
        calls
    }
}

impl Drop for SimRuntime {
    fn drop(&mut self) {
        self.streaming.abort();
        if let Some(server) = self.replace_server(None) {
            server.abort();
        }
        if let Address::Unix(path) = &self.address {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}
