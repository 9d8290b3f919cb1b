//! testkit tested by its own client: a double that answers wrongly would make every other test worthless.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is meant")]

mod binary;
mod faults;
mod habits;
mod lifecycle;
mod raw;
mod streams;

use testkit::client::Client;
use testkit::runtime::SimRuntime;

/// A client of `runtime`.
fn client_of(runtime: &SimRuntime) -> Client {
    Client::endpoint(&runtime.endpoint())
}

/// The path of a runtime service method.
fn path(method: &str) -> String {
    format!("/runtime.v1.RuntimeService/{method}")
}
