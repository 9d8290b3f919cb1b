//! crimux in front of simulated runtimes: one binary, one file for each topic.

#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

#[path = "sim/support.rs"]
mod support;

#[path = "sim/api.rs"]
mod api;
#[path = "sim/events.rs"]
mod events;
#[path = "sim/forward.rs"]
mod forward;
#[path = "sim/malformed.rs"]
mod malformed;
#[path = "sim/stream_lists.rs"]
mod stream_lists;
#[path = "sim/tracing.rs"]
mod tracing;
