//! crimux in front of simulated runtimes: one binary, one file for each topic.
#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

#[path = "sim/support.rs"]
mod support;

#[path = "sim/answer.rs"]
mod answer;
#[path = "sim/forward.rs"]
mod forward;
#[path = "sim/lists.rs"]
mod lists;
#[path = "sim/reload.rs"]
mod reload;
#[path = "sim/remote.rs"]
mod remote;
#[path = "sim/routing.rs"]
mod routing;
#[path = "sim/server.rs"]
mod server;
