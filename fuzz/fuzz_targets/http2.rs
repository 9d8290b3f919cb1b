//! The HTTP/2 client against a peer that says anything: it ends, it does not panic, and what it keeps is bounded.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use crimux::http2::connect;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        // Two calls: one gathered whole, one taken as it comes.
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (sender, connection) = connect(near);
        let mut connection = pin!(connection);
        let headers = HeaderMap::new();
        let mut whole = sender.send("/a/b", &headers, |_| false, Bytes::from_static(b"x")).await.expect("open");
        let mut parts = sender.send("/a/c", &headers, |_| false, Bytes::new()).await.expect("open");
        far.write_all(&data[..data.len().min(LIMIT)]).await.expect("there is room");
        far.shutdown().await.expect("it is open");
        // How it ends is as the peer says: well after a goodbye that ended both calls, else not.
        let _ = connection.as_mut().await;
        if whole.head().await.is_ok()
            && let Ok(body) = whole.whole(LIMIT).await
        {
            assert!(body.len() <= LIMIT);
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut taken = 0;
        loop {
            match parts.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(part))) => taken += part.len(),
                Poll::Ready(_) => break,
                Poll::Pending => panic!("a call outlives its connection"),
            }
        }
        assert!(taken <= LIMIT);
    });
});
