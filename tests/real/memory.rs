//! What crimux occupies with three runtimes behind it.

use super::world::{self, HANDLERS};

/// A node's daemon must stay small. A build for debugging is several times the code of a released one.
const LIMIT: u64 = if cfg!(debug_assertions) { 32 << 20 } else { 16 << 20 };

#[tokio::test]
async fn crimux_stays_small_with_three_backends() {
    let Some(bed) = world::bed() else { return };
    let crimux = world::crimux(&bed, &HANDLERS).await;
    let mut pods = world::dial(&bed, &crimux.socket).await;
    world::one_pod_per_handler(&mut pods).await;
    for _ in 0..200 {
        assert_eq!(pods.list().await.unwrap().len(), HANDLERS.len());
    }
    let resident = crimux.process.resident_bytes().unwrap();
    assert!(resident < LIMIT, "{} KiB, at most {} KiB", resident >> 10, LIMIT >> 10);
}
