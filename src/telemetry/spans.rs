//! Spans over OTLP/gRPC: one for each client's call and one for each call to a backend.
//!
//! Without `tracing.otlp` nothing of this exists: no thread, no connection, and a client's `traceparent`
//! passes byte for byte. With it, crimux stands between kubelet and the runtime in one trace, because what a
//! backend is sent is the context of the span that waits for it (W3C Trace Context). `tracestate` and
//! `baggage` pass untouched either way. A span names method, backend and code, never anything of a message.
//!
//! There is one exporter for the process, as there is one log, and spans are handed to its own thread: a
//! collector that is slow or gone costs spans, never calls.

use std::sync::OnceLock;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{
    Span, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue, SpanId, TraceId};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tonic::Code;

use crate::config::Tracing;

/// How long the end of the process waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// The header of W3C Trace Context.
const TRACEPARENT: &str = "traceparent";

static SPANS: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// The span of one call, or of one call to a backend; it ends when dropped.
#[derive(Debug)]
pub struct CallSpan {
    /// Boxed, because most calls have none and all of them carry the place for it.
    span: Box<opentelemetry_sdk::trace::Span>,
    code: Code,
}

/// Starts sending spans, for the whole process. Call it within the runtime that will carry the connection.
///
/// # Errors
/// If the collector's address cannot be used.
pub fn start(tracing: &Tracing) -> anyhow::Result<()> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(tracing.otlp.clone()).build()?;
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.name", "crimux"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(tracing.sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("crimux");
    SPANS.set((provider, tracer)).map_err(|_| anyhow::anyhow!("spans were started before"))
}

/// Sends the remaining spans. Blocks for at most a second.
pub fn stop() {
    if let Some((provider, _)) = SPANS.get()
        && let Err(error) = provider.shutdown_with_timeout(LAST_SPANS)
    {
        tracing::warn!(%error, "the last spans were not sent");
    }
}

/// Starts the span of a client's call, and puts it in the place of the client's in `headers`.
pub fn server(path: &str, headers: &mut HeaderMap) -> Option<CallSpan> {
    let (_, tracer) = SPANS.get()?;
    let parent =
        parent(headers).map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
    let span = begin(tracer, path, SpanKind::Server, &parent);
    span.inject(headers);
    Some(span)
}

/// Starts the span of a call to a backend, if it belongs to a client's call, and puts it in the place of that
/// call's in `headers`.
pub fn client(path: &str, backend: &str, headers: &mut HeaderMap) -> Option<CallSpan> {
    let (_, tracer) = SPANS.get()?;
    let parent = Context::new().with_remote_span_context(parent(headers)?);
    let mut span = begin(tracer, path, SpanKind::Client, &parent);
    span.inject(headers);
    span.backend(backend);
    Some(span)
}

impl CallSpan {
    /// Sets `traceparent`, so that the receiver's spans belong to this one.
    fn inject(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(traceparent(self.span.span_context())) {
            headers.insert(TRACEPARENT, value);
        }
    }

    /// Sets the backend that the call went to.
    pub fn backend(&mut self, backend: &str) {
        self.span.set_attribute(KeyValue::new("crimux.backend", backend.to_owned()));
    }

    /// Returns the ID of its trace in hexadecimal digits; `None` if the trace is not sampled.
    pub fn trace_id(&self) -> Option<String> {
        let context = self.span.span_context();
        context.is_sampled().then(|| context.trace_id().to_string())
    }

    /// Sets the code that the call ended with. A span without one was cancelled.
    pub fn end(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(self.code))));
        if self.code != Code::Ok {
            self.span.set_status(Status::error(self.code.description()));
        }
        self.span.end();
    }
}

fn begin(tracer: &SdkTracer, path: &str, kind: SpanKind, parent: &Context) -> CallSpan {
    let name = path.trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or(("", name));
    let attributes = [
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", service.to_owned()),
        KeyValue::new("rpc.method", method.to_owned()),
    ];
    let builder = tracer.span_builder(name.to_owned()).with_kind(kind).with_attributes(attributes);
    let span = tracer.build_with_context(builder, parent);
    CallSpan { span: Box::new(span), code: Code::Cancelled }
}

/// Reads a `traceparent`: version, trace, parent and flags. Versions to come may have more after them.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let value = headers.get(TRACEPARENT)?.to_str().ok()?;
    let mut parts = value.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = hex(version, 2)?;
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let trace = TraceId::from(hex(trace, 32)?);
    let span = SpanId::from(u64::try_from(hex(span, 16)?).ok()?);
    let flags = TraceFlags::new(u8::try_from(hex(flags, 2)?).ok()? & 1);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (text.len() == digits && lower).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn traceparent(context: &SpanContext) -> String {
    let flags = context.trace_flags().to_u8() & 1;
    format!("00-{:032x}-{:016x}-{flags:02x}", context.trace_id(), context.span_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, value.parse().expect("a header value"));
        parent(&headers).map(|context| traceparent(&context))
    }

    #[test]
    fn a_traceparent_is_read_and_written() {
        let value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(read(value).as_deref(), Some(value));
        let of_tomorrow = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more";
        assert_eq!(read(of_tomorrow).as_deref(), Some(value));
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn without_a_collector_there_are_no_spans_and_headers_stay() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("anything"));
        assert!(server("/runtime.v1.RuntimeService/Version", &mut headers).is_none());
        assert!(client("/runtime.v1.RuntimeService/Version", "a", &mut headers).is_none());
        assert_eq!(headers.get(TRACEPARENT).expect("untouched"), "anything");
    }
}
