//! One CRI runtime that calls are forwarded to.

pub mod connect;
pub mod tls;
