//! crimux: one CRI socket for kubelet, many container runtimes behind it.

pub mod backend;
pub mod config;
pub mod relay;
pub mod wire;

/// The messages of the CRI API, generated from `proto/cri.proto`, and their descriptor.
#[allow(missing_docs, clippy::pedantic)]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    /// The encoded `FileDescriptorSet` of `proto/cri.proto`.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.descriptor.bin"));
}
