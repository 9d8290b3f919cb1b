//! crimux in front of simulated runtimes: one binary, one file for each topic.
#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

#[path = "../support/kubelet.rs"]
mod kubelet;
#[allow(dead_code, reason = "shared with the tests of connections, which use the rest of it")]
#[path = "../support/pki.rs"]
mod pki;
mod support;

mod abuse;
mod admin;
mod answer;
mod api;
mod bounds;
mod browser;
mod canary;
mod cli;
mod doctor;
mod events;
mod faults;
mod forward;
mod handover;
mod identity;
mod images;
mod images_property;
mod journal;
mod left_out;
mod lists;
mod malformed;
mod node_problem;
mod operator;
mod outage;
mod page;
mod prometheus;
mod reload;
mod remote;
mod restart;
mod routing;
mod scrape;
mod server;
mod stats;
mod stream_lists;
mod systemd;
mod terminal;
mod tracing;
mod truth;
mod verdict;
mod which_file;
