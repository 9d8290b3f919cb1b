//! What crimux is tested with: a simulated CRI runtime with faults on demand, a small CRI client and the
//! driver of the real testbed.

pub mod bed;

/// The CRI API as generated from `proto/cri.proto`: messages, clients and servers.
#[allow(missing_docs, clippy::pedantic)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
