//! crimux in front of simulated runtimes: one binary, one file for each topic.

#[path = "sim/support.rs"]
mod support;

#[path = "sim/forward.rs"]
mod forward;

#[path = "support/kubelet.rs"]
mod kubelet;

#[path = "sim/images.rs"]
mod images;
