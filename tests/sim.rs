//! crimux in front of simulated runtimes: one binary, one file for each topic.
#![allow(clippy::unwrap_used, reason = "a test ends on the first surprise")]

#[path = "sim/support.rs"]
mod support;

#[path = "sim/admin.rs"]
mod admin;
#[path = "sim/cli.rs"]
mod cli;
#[path = "sim/forward.rs"]
mod forward;
