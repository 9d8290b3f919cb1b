//! crimux in front of real runtimes: containerd with runc, crun and gVisor, in a bed of their own per test.
//!
//! What runtimes really do is the last word, so each promise is shown here once on them; everything that a
//! simulated runtime can show is tested against those, in less time. The checks that any runtime must pass
//! also run against a containerd without crimux between, which shows that they test crimux and not
//! themselves.
//!
//! They run where `CRIMUX_REAL=1` says so (`./dev/test real`), and are skipped loudly elsewhere.

// A helper that fails fails the test that called it.
#![allow(clippy::unwrap_used)]

#[path = "../support/kubelet.rs"]
mod kubelet;

mod api;
mod churn;
mod clients;
mod identity;
mod images;
mod lifecycle;
mod lists;
mod memory;
mod migration;
mod node;
mod outage;
mod refusals;
mod reload;
mod remote;
mod restart;
mod streams;
mod vm;
mod world;
