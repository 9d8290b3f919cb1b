//! Answers of `admin.http` that are made at most once a second, however often they are asked for, and
//! compressed for clients that take it.
//!
//! The page and the metrics cost milliseconds of CPU each. The admin socket, which is root's, is never
//! cached.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::admin::metrics::prefers_openmetrics;
use crate::mutex::lock;

/// How long a cached response is served.
const LIFETIME: Duration = Duration::from_secs(1);

/// The last response of one path in each format: without and with OpenMetrics.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<[Option<CachedResponse>; 2]>);

#[derive(Debug, Clone)]
struct CachedResponse {
    made: Instant,
    head: Parts,
    plain: Bytes,
    gzip: Bytes,
}

/// Answers a GET from the cache, or from the handler behind it. Only 200 is cached.
pub(super) async fn serve_cached(State(cache): State<Arc<Cache>>, request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let takes_gzip = takes_gzip(request.headers());
    let format = usize::from(prefers_openmetrics(request.headers()));
    if let Some(response) = cache.fresh(format) {
        return response.into_response(takes_gzip);
    }
    let (head, body) = next.run(request).await.into_parts();
    let Ok(plain) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if head.status != StatusCode::OK {
        return Response::from_parts(head, Body::from(plain));
    }
    let gzip = compress(&plain);
    let response = CachedResponse { made: Instant::now(), head, plain, gzip };
    cache.lock()[format] = Some(response.clone());
    response.into_response(takes_gzip)
}

impl Cache {
    fn fresh(&self, format: usize) -> Option<CachedResponse> {
        self.lock()[format].clone().filter(|response| response.made.elapsed() < LIFETIME)
    }

    fn lock(&self) -> MutexGuard<'_, [Option<CachedResponse>; 2]> {
        lock(&self.0)
    }
}

impl CachedResponse {
    fn into_response(self, takes_gzip: bool) -> Response {
        let Self { mut head, plain, gzip, .. } = self;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
        let body = if takes_gzip && !gzip.is_empty() {
            head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            gzip
        } else {
            plain
        };
        Response::from_parts(head, Body::from(body))
    }
}

/// Returns `plain` compressed; empty if that failed, which a `Vec` rules out.
fn compress(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let compressed = encoder.write_all(plain).and_then(|()| encoder.finish());
    compressed.unwrap_or_default().into()
}

/// Tells whether the client takes gzip: it is named, and not with a weight of zero (RFC 9110, 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let listed = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    listed.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.trim().parse::<f32>().ok());
        matches!(name.trim(), "gzip" | "x-gzip" | "*") && weight.is_none_or(|weight| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(value: &'static str) -> bool {
        takes_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
    }

    #[test]
    fn gzip_is_sent_to_whom_takes_it() {
        assert!(takes("gzip") && takes("deflate, gzip;q=0.5") && takes("*"));
        assert!(!takes("identity") && !takes("gzip;q=0") && !takes("gzip; q=0.0, br"));
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn what_is_compressed_can_be_read_again() {
        let mut plain = String::new();
        let packed = compress(b"crimux_backend_up 1\n");
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain).unwrap();
        assert_eq!(plain, "crimux_backend_up 1\n");
    }
}
