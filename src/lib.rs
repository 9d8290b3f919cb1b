//! crimux: one CRI socket for kubelet, many container runtimes behind it.
//!
//! Read [`proxy`] first: it is the life of a call. ARCHITECTURE.md has the plan of the house.

pub mod accept;
pub mod admin;
pub mod app;
pub mod backend;
pub mod cli;
pub mod codec;
pub mod config;
pub mod cri;
pub mod drain;
pub mod error;
pub mod events;
pub mod history;
pub mod merge;
pub mod method;
pub mod metrics;
pub mod proxy;
pub mod relay;
pub mod router;
pub mod server;
pub mod snapshot;
pub mod telemetry;
pub mod utf8;
pub mod wire;
