//! crimux in front of simulated runtimes: one binary, one file for each topic.

#[path = "sim/support.rs"]
mod support;

#[path = "sim/forward.rs"]
mod forward;

#[path = "sim/outage.rs"]
mod outage;

#[path = "sim/faults.rs"]
mod faults;

#[path = "sim/restart.rs"]
mod restart;
