//! The wire reader: whatever prost reads, it reads the same; nothing makes it panic; what it writes is
//! readable.
#![no_main]

use bytes::Bytes;
use crimux::cri;
use crimux::merge::stats;
use crimux::method::List;
use crimux::wire;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let fields: Vec<_> = wire::fields(data).collect();
    if fields.iter().all(Result::is_ok) {
        let len: usize = fields.iter().flatten().map(|field| field.raw.len()).sum();
        assert_eq!(len, data.len(), "every byte belongs to a field");
    }
    peek_as_prost_does(data);
    split_and_joined(data);
    let _ = wire::without(data, &[1, 4, 2]);
    let _ = wire::append_str(data, &[2, 1], "handler");
    let _ = stats::without_filesystems(List::SandboxStats, &Bytes::copy_from_slice(data));
    for item in wire::items(data, 1).flatten() {
        let _ = wire::map_entry(item);
    }
});

fn peek_as_prost_does(data: &[u8]) {
    let Ok(request) = cri::RunPodSandboxRequest::decode(data) else { return };
    assert_eq!(wire::peek_str(data, &[2]), Ok(request.runtime_handler.as_str()));
    let metadata = request.config.and_then(|config| config.metadata).unwrap_or_default();
    assert_eq!(wire::peek_str(data, &[1, 1, 2]), Ok(metadata.uid.as_str()));
    let handled = wire::append_str(data, &[2], "other");
    let handled = cri::RunPodSandboxRequest::decode(handled).expect("readable before and after");
    assert_eq!(handled.runtime_handler, "other");
}

fn split_and_joined(data: &[u8]) {
    let list = Bytes::copy_from_slice(data);
    if let Ok(pieces) = wire::split(&list, 16) {
        assert_eq!(pieces.concat(), data);
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
    }
}
