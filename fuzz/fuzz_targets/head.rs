//! The relay's request head: what is refused stays refused, what is rewritten is a head with only path and
//! host changed.
#![no_main]

use crimux::relay::head::{MAX_HEAD, rewrite_head};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match rewrite_head(data, "/exec/token", "node:1") {
        Ok(Some((head, taken))) => {
            assert!(taken <= data.len() && taken <= MAX_HEAD);
            assert!(head.ends_with(b"\n"), "a head ends with an empty line");
            let (again, consumed) =
                rewrite_head(&head, "/exec/token", "node:1").expect("still a head").expect("and whole");
            assert_eq!((again.as_slice(), consumed), (head.as_slice(), head.len()));
            // The bytes after the head are left alone.
            assert_eq!(rewrite_head(&data[..taken], "/exec/token", "node:1").map(|w| w.map(|w| w.0)), Ok(Some(head)));
        }
        Ok(None) => assert!(data.len() < MAX_HEAD),
        Err(_) => {}
    }
});
