//! Parts of crimux through their public interfaces, without a running crimux: one binary, one file for each
//! topic.
#![allow(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

mod connect;
mod deploy;
mod documents;
mod generated;
mod image_rules;
#[path = "../support/pki.rs"]
mod pki;
mod proto;
mod relay;
mod rpc;
mod snapshot;
