//! What a hostile backend makes crimux hold, and whom its faults reach.

use std::path::PathBuf;

use testkit::runtime::SimRuntime;
use testkit::{Client, cri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tonic::Code;

use super::hostile::{LIST, frame};
use super::{PEAK, status};
use crate::support::{Crimux, config};

const STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";

/// Accepts connections and answers every request that it sees with these frames, `stream` put in their place.
async fn answer_all(path: PathBuf, answer: impl Fn(u32) -> Vec<u8>) {
    let listener = UnixListener::bind(path).unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        let mut seen = Vec::new();
        let mut next = 1_u32;
        while stream.read_buf(&mut seen).await.is_ok_and(|len| len > 0) {
            // Requests come one at a time here: each has one HEADERS frame for the next stream.
            let head = [&[1, 4][..], &next.to_be_bytes()].concat();
            if seen.windows(head.len()).any(|part| part == head) {
                if stream.write_all(&answer(next)).await.is_err() {
                    break;
                }
                seen.clear();
                next += 2;
            }
        }
    }
}

/// A crimux in front of a good backend `a`, the default one, and of a hostile one, `b`.
async fn beside(answer: impl Fn(u32) -> Vec<u8>) -> (Crimux, SimRuntime, impl Future<Output = ()>) {
    let a = SimRuntime::builder("a").containers(10, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.sock");
    let yaml = config(&dir, &[("a", &a)], "  b: { backend: b }\n")
        .replace("handlers:", &format!("  b: {{ endpoint: \"unix://{}\" }}\nhandlers:", path.display()));
    let crimux = Crimux::start_in(dir, &yaml);
    (crimux, a, answer_all(path, answer))
}

async fn list(client: &Client) -> Result<usize, Code> {
    let reply = client.raw(LIST, &[], Vec::new()).await.unwrap();
    if reply.code() != Code::Ok {
        return Err(reply.code());
    }
    Ok(reply.decode::<cri::ListContainersResponse>().containers.len())
}

/// Replies of 256 MiB, header bombs, and interim responses without end.
#[tokio::test]
async fn a_hostile_backend_is_held_to_its_limits_and_the_others_are_served() {
    let ok = |stream| frame(1, 4, stream, &[0x88]);
    let body = |stream: u32| {
        let claim = frame(0, 0, stream, &[0, 0x10, 0, 0, 0]);
        [ok(stream), claim, frame(0, 0, stream, &[0; 16 << 10]).repeat(3000)].concat()
    };
    let long = [&b"\x88\x40\x03x-a\x7f\xa1\x1e"[..], &[b'v'; 4000], &[0xbe; 8000]].concat();
    let bomb = move |stream: u32| frame(1, 4, stream, &long).repeat(50);
    let interim = |stream: u32| frame(1, 4, stream, b"\x08\x03103").repeat(5000);
    let answers: [Box<dyn Fn(u32) -> Vec<u8>>; 3] = [Box::new(body), Box::new(bomb), Box::new(interim)];
    for answer in answers {
        let (crimux, _a, hostile) = beside(answer).await;
        let watched = async {
            testkit::eventually(crate::support::SOON, async || crimux.get("/healthz").await.is_some()).await;
            let idle = status(crimux.pid(), "VmRSS");
            let id = "0".repeat(64);
            let about = prost::Message::encode_to_vec(&cri::ContainerStatusRequest {
                container_id: id,
                verbose: false,
            });
            for _ in 0..20 {
                // `b` was never listed, so a list may fail; it must be answered.
                let _ = list(&crimux.client()).await;
                crimux.client().raw(STATUS, &[], about.clone()).await.unwrap();
            }
            let peak = status(crimux.pid(), "VmHWM").saturating_sub(idle);
            assert!(peak < PEAK, "{peak} KiB above {idle} KiB");
        };
        tokio::select! {
            () = watched => {}
            () = hostile => {}
        }
    }
}

#[tokio::test]
async fn an_error_text_of_a_megabyte_arrives() {
    let a = SimRuntime::builder("a").containers(1, 1).start().await;
    let dir = tempfile::tempdir().unwrap();
    // A debug build on a busy machine takes its time for a megabyte.
    let yaml = config(&dir, &[("a", &a)], "").replace("\" }\n", "\", timeouts: { read: 1m } }\n");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let id = a.state().containers().next().unwrap().id.clone();
    let text = "x".repeat(1 << 20);
    a.fault("ContainerStatus", testkit::runtime::Fault::error(Code::Unknown, text.clone()));
    let about =
        prost::Message::encode_to_vec(&cri::ContainerStatusRequest { container_id: id, verbose: false });
    let reply = crimux.client().raw(STATUS, &[], about).await.unwrap();
    assert_eq!((reply.code(), reply.message().len()), (Code::Unknown, text.len()));
    assert_eq!(list(&crimux.client()).await, Ok(1), "the connection goes on");
}
