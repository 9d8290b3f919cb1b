//! crimux: one CRI socket for kubelet, many container runtimes behind it.
//!
//! The modules in the order of a call:
//!
//! | module | what it does with a call |
//! |---|---|
//! | [`server`] | accepts the client's connection and reads the request |
//! | [`method`] | finds the row of the RPC: its route, its deadline, what is done with its reply |
//! | [`proxy`] | runs the call along its route; read this one first |
//! | [`router`] | chooses the backend: by handler, by owner, by image |
//! | [`backend`] | sends the call to one runtime, and knows the health of its connection |
//! | [`merge`] | makes one reply of the replies of several backends |
//! | [`state`] | keeps the last-known state of each backend, in memory and on disk |
//!
//! Streams have two modules: [`events`] shares one stream of container events, [`relay`] carries exec, attach
//! and port-forward. [`app`] starts and stops everything, and applies to the running backends what [`plan`]
//! says of a changed file; [`admin`] and [`cli`] are the operator's side. Encodings are in [`wire`],
//! [`codec`], [`cri`] and [`utf8`]; what clients may make crimux hold is in [`limits`] and [`admission`];
//! what every layer may use in [`config`], [`error`], [`shutdown`], [`handover`], [`accept`], [`backoff`],
//! [`mutex`], [`log_limit`], [`history`], [`process`], [`side`], [`metrics`] and [`telemetry`].
//!
//! ARCHITECTURE.md draws this, defines the words, and gives the reasons. `tests/layering.rs` checks that
//! imports point only down.

pub mod accept;
pub mod admin;
pub mod admission;
pub mod app;
pub mod backend;
pub mod backoff;
pub mod cli;
pub mod codec;
pub mod config;
pub mod cri;
pub mod error;
pub mod events;
pub mod handover;
pub mod history;
pub mod limits;
pub mod log_limit;
pub mod merge;
pub mod method;
pub mod metrics;
pub mod mutex;
pub mod plan;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod router;
pub mod server;
pub mod shutdown;
pub mod side;
pub mod state;
pub mod telemetry;
pub mod utf8;
pub mod wire;
