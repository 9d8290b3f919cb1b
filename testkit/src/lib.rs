//! What crimux is tested with: a simulated CRI runtime with faults on demand, a small CRI client and the
//! driver of the real testbed.
//!
//! Nothing here depends on crimux: the API is generated a second time, frames are read by other code, so that
//! no mistake can hide by being made on both sides.

/// The CRI API as generated from `proto/cri.proto`: messages and clients.
/// The CRI API as generated from `proto/cri.proto`: messages, clients and servers.
pub mod bed;
pub mod client;
pub mod runtime;
#[allow(missing_docs, clippy::pedantic)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

pub use client::{Client, eventually};
