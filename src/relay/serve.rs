//! Serves one connection of the relay: head, token, dial, copy.
//!
//! A client without a redeemed token is not trusted: its head is limited in bytes and in time. After that its
//! bytes are copied. crimux's own answers are short, name at most the backend, and are sent only if the
//! backend was not reached; the backend's answer, 101 or not, passes as it is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::copy::{Counters, copy_both_ways};
use super::head::{Head, HeadError, MAX_HEAD};
use super::tokens::Grant;
use super::url::StreamKind;
use super::{Relay, RelayMetrics};
use crate::admission::Admitted;
use crate::backend::connect::{Stream, host_and_port};

/// How long a request head may take to arrive, and to be taken by the backend.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a client may take to close its side after ours, before its connection is dropped.
const LINGER: Duration = Duration::from_secs(2);

/// An open stream in `crimux_relay_streams`.
struct OpenStreamGuard<'a> {
    relay: &'a Relay,
    backend: &'a str,
}

impl<'a> OpenStreamGuard<'a> {
    fn new(relay: &'a Relay, backend: &'a str) -> Self {
        relay.open.fetch_add(1, Ordering::Relaxed);
        relay.metrics.streams.with_label_values(&[backend]).inc();
        Self { relay, backend }
    }
}

impl Drop for OpenStreamGuard<'_> {
    fn drop(&mut self) {
        self.relay.open.fetch_sub(1, Ordering::Relaxed);
        self.relay.metrics.streams.with_label_values(&[self.backend]).dec();
    }
}

/// Serves one connection until it closes. Until its head is complete, a newer client may evict it.
pub(super) async fn serve(relay: &Relay, mut client: TcpStream, admitted: Admitted) {
    // A head that has arrived is read, though its client was evicted meanwhile.
    let head = tokio::select! {
        biased;
        head = timeout(HEAD_TIME, read_head(&mut client)) => head,
        () = admitted.evicted() => return,
    };
    drop(admitted);
    let outcome = match head {
        Ok(Ok(Some((head, received)))) => relay_request(relay, &mut client, &head, received).await,
        Ok(Ok(None)) => return,
        Ok(Err(HeadError::TooLarge)) => Err(answer("431 Request Header Fields Too Large", "")),
        Ok(Err(_)) => Err(answer("400 Bad Request", "")),
        Err(_) => Err(answer("408 Request Timeout", "")),
    };
    // The connection ends either way, so a client that is gone changes nothing.
    let _ = timeout(LINGER, async {
        if let Err(answer) = outcome {
            client.write_all(answer.as_bytes()).await?;
        }
        linger(&mut client).await
    })
    .await;
}

/// Reads until the head is complete; `None` if the client disconnects first.
async fn read_head(client: &mut TcpStream) -> Result<Option<(Head, Vec<u8>)>, HeadError> {
    let mut received = Vec::with_capacity(2048);
    loop {
        let before = received.len();
        let room = (MAX_HEAD - before) as u64;
        match (&mut *client).take(room).read_buf(&mut received).await {
            Ok(0) | Err(_) => return Ok(None),
            // Only the end of a line can complete a head or make it invalid.
            Ok(_) if received.len() < MAX_HEAD && !received[before..].contains(&b'\n') => {}
            Ok(_) => {
                if let Some(head) = Head::parse(&received)? {
                    return Ok(Some((head, received)));
                }
            }
        }
    }
}

/// Redeems the token and relays; the error is our own answer to the client.
async fn relay_request(
    relay: &Relay,
    client: &mut TcpStream,
    head: &Head,
    received: Vec<u8>,
) -> Result<(), String> {
    let Some(grant) =
        kind_and_token(head.path(&received)).and_then(|(kind, token)| relay.redeem(kind, token))
    else {
        relay.metrics.refused_tokens.inc();
        tracing::warn!("stream refused: its token was used, expired, guessed or not ours");
        return Err(answer("404 Not Found", ""));
    };
    let backend = Box::pin(dial(&grant, head, received, &relay.metrics)).await?;
    let _open = OpenStreamGuard::new(relay, &grant.backend);
    // Without it every keystroke would wait for the acknowledgement of the one before.
    let _ = client.set_nodelay(true);
    copy_both_ways(client, backend, counters(&relay.metrics, &grant.backend)).await;
    Ok(())
}

/// Connects to the streaming server and sends the rewritten head and the bytes received after it.
async fn dial(
    grant: &Grant,
    head: &Head,
    mut received: Vec<u8>,
    metrics: &RelayMetrics,
) -> Result<Stream, String> {
    let unreachable = |error: &dyn std::fmt::Display| {
        tracing::warn!(backend = grant.backend, %error, "the streaming server cannot be reached");
        let text = format!("crimux cannot reach the streaming server of backend {}\n", grant.backend);
        answer("502 Bad Gateway", &text)
    };
    let target = &grant.stream.server;
    let mut backend = grant
        .connector
        .connect_to(&target.host, target.port, target.tls)
        .await
        .map_err(|error| unreachable(&error))?;
    let mut request = head.rewrite(&received, &grant.stream.path, &host_and_port(&target.host, target.port));
    request.extend(received.drain(head.len()..));
    let sent = async {
        backend.write_all(&request).await?;
        backend.flush().await
    };
    match timeout(HEAD_TIME, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"the streaming server does not read the request")),
    }
    counters(metrics, &grant.backend).to_backend.inc_by(request.len() as u64);
    Ok(backend)
}

fn counters(metrics: &RelayMetrics, backend: &str) -> Counters {
    Counters {
        to_backend: metrics.bytes.with_label_values(&[backend, "to_backend"]),
        to_client: metrics.bytes.with_label_values(&[backend, "to_client"]),
    }
}

/// Parses `/exec/TOKEN`; `None` if the path has another form.
fn kind_and_token(path: &[u8]) -> Option<(StreamKind, &str)> {
    let (kind, token) = std::str::from_utf8(path).ok()?.strip_prefix('/')?.split_once('/')?;
    Some((StreamKind::parse(kind)?, token))
}

fn answer(status: &str, text: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    )
}

/// Closes our side and reads until the client closes its own: closing a socket with unread bytes sends RST,
/// which would discard the bytes written last.
async fn linger(client: &mut TcpStream) -> std::io::Result<()> {
    client.shutdown().await?;
    tokio::io::copy(client, &mut tokio::io::sink()).await.map(drop)
}
