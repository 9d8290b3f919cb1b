//! What stands for [`spans`](self) in a crimux that was built without the feature `otlp`: no span is ever
//! begun.

use std::convert::Infallible;

use http::HeaderMap;
use tonic::Code;

use crate::config::Tracing;

/// The span of a call; without the feature `otlp` no value exists.
#[derive(Debug)]
pub struct CallSpan(Infallible);

/// Refuses to start.
///
/// # Errors
/// Always: the configuration asks for spans that this program cannot send.
pub fn start(_tracing: &Tracing) -> anyhow::Result<()> {
    anyhow::bail!(
        "this crimux was built without the feature otlp; remove tracing.otlp from the configuration"
    )
}

/// Does nothing: there is nothing to send.
pub fn stop() {}

/// Begins no span and leaves `headers` as they are.
pub fn server(_path: &str, _headers: &mut HeaderMap) -> Option<CallSpan> {
    None
}

/// Begins no span and leaves `headers` as they are.
pub fn client(_path: &str, _backend: &str, _headers: &mut HeaderMap) -> Option<CallSpan> {
    None
}

impl CallSpan {
    /// Is never called, because no span exists.
    pub fn backend(&mut self, _backend: &str) {
        match self.0 {}
    }

    /// Is never called, because no span exists.
    pub fn trace_id(&self) -> Option<String> {
        match self.0 {}
    }

    /// Is never called, because no span exists.
    pub fn end(&mut self, _code: Code) {
        match self.0 {}
    }
}
