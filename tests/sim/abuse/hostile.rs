//! A client that sends frames as they are given, whatever crimux answers.

use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::support::Crimux;

pub(super) const LIST: &str = "/runtime.v1.RuntimeService/ListContainers";

/// A connection that has sent preface and SETTINGS.
pub(super) struct Hostile(UnixStream);

/// A client that sends one flood after the other, until this is dropped.
pub(super) struct Flooding {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<std::os::unix::net::UnixStream>,
}

impl Flooding {
    /// Lets the last flood end, and returns the client.
    pub(super) fn end(self) -> Hostile {
        drop(self.stop);
        Hostile(UnixStream::from_std(self.thread.join().unwrap()).unwrap())
    }
}

/// A frame as it stands on the wire.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS and CONTINUATION of one block.
pub(super) fn headers(stream: u32, ends: bool, block: &[u8]) -> Vec<u8> {
    let count = block.chunks(16 << 10).count();
    let frames = block.chunks(16 << 10).enumerate().map(|(number, part)| {
        let end_headers = if number + 1 == count { 4 } else { 0 };
        match number {
            0 => frame(1, end_headers | u8::from(ends), stream, part),
            _ => frame(9, end_headers, stream, part),
        }
    });
    frames.collect::<Vec<_>>().concat()
}

/// The header block of a gRPC request: POST, http, this path, the content type.
pub(super) fn request(path: &str) -> Vec<u8> {
    let len = u8::try_from(path.len()).unwrap();
    [b"\x83\x86\x04", &[len][..], path.as_bytes(), b"\x0f\x10\x10application/grpc"].concat()
}

impl Hostile {
    pub(super) async fn connect(crimux: &Crimux) -> Self {
        let mut stream = UnixStream::connect(crimux.socket()).await.unwrap();
        let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
        // It may be refused at once.
        stream.write_all(&preface).await.ok();
        Self(stream)
    }

    /// Sends bytes; crimux may have closed the connection.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.ok();
    }

    /// Sends bytes; `false` if crimux reads no more, which shows after a while.
    pub(super) async fn send_unless_blocked(&mut self, bytes: &[u8]) -> bool {
        tokio::time::timeout(Duration::from_secs(2), self.0.write_all(bytes)).await.is_ok()
    }

    /// Sends one flood after the other, in a thread of its own: another client waits for crimux alone.
    pub(super) fn flood(self, mut flood: impl FnMut() -> Vec<u8> + Send + 'static) -> Flooding {
        let stream = self.0.into_std().unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let mut client = Self(UnixStream::from_std(stream).unwrap());
                while stopped.try_recv() == Err(TryRecvError::Empty) {
                    client.send_and_read(&flood()).await;
                }
                client.0.into_std().unwrap()
            })
        });
        Flooding { stop, thread }
    }

    /// Sends bytes while it reads whatever crimux answers.
    async fn send_and_read(&mut self, bytes: &[u8]) {
        let (mut reading, mut writing) = self.0.split();
        let read = async {
            let mut buffer = vec![0; 1 << 16];
            while reading.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
        };
        tokio::select! {
            _ = writing.write_all(bytes) => {}
            () = read => {}
        }
    }
}
