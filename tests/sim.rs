//! crimux in front of simulated runtimes: one binary, one file for each topic.
#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

#[path = "support/kubelet.rs"]
mod kubelet;
#[allow(dead_code, reason = "shared with the tests of connections, which use the rest of it")]
#[path = "support/pki.rs"]
mod pki;
#[path = "sim/support.rs"]
mod support;

#[path = "sim/admin.rs"]
mod admin;
#[path = "sim/answer.rs"]
mod answer;
#[path = "sim/api.rs"]
mod api;
#[path = "sim/cli.rs"]
mod cli;
#[path = "sim/doctor.rs"]
mod doctor;
#[path = "sim/events.rs"]
mod events;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/forward.rs"]
mod forward;
#[path = "sim/images.rs"]
mod images;
#[path = "sim/lists.rs"]
mod lists;
#[path = "sim/malformed.rs"]
mod malformed;
#[path = "sim/outage.rs"]
mod outage;
#[path = "sim/page.rs"]
mod page;
#[path = "sim/prometheus.rs"]
mod prometheus;
#[path = "sim/reload.rs"]
mod reload;
#[path = "sim/remote.rs"]
mod remote;
#[path = "sim/restart.rs"]
mod restart;
#[path = "sim/routing.rs"]
mod routing;
#[path = "sim/server.rs"]
mod server;
#[path = "sim/stream_lists.rs"]
mod stream_lists;
#[path = "sim/systemd.rs"]
mod systemd;
#[path = "sim/terminal.rs"]
mod terminal;
#[path = "sim/tracing.rs"]
mod tracing;
