//! Makes the IDs of a simulated runtime: 64 lower-case hex digits, as containerd and CRI-O have them.
//!
//! A seed makes a run repeatable; image IDs depend on the reference alone, because two real runtimes that
//! pull the same image agree on its digest. Nothing here is fit for cryptography.

use std::hash::{BuildHasher, RandomState};

/// A small deterministic generator (splitmix64).
#[derive(Debug)]
pub(crate) struct Ids {
    state: u64,
}

impl Ids {
    /// Starts from `seed`, or from an arbitrary one.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self { state: seed.unwrap_or_else(|| RandomState::new().hash_one(0)) }
    }

    /// Returns the next ID: 64 hex digits.
    pub(crate) fn next_id(&mut self) -> String {
        let [a, b, c, d] = std::array::from_fn(|_| self.next_number());
        format!("{a:016x}{b:016x}{c:016x}{d:016x}")
    }

    /// Returns a short token as streaming servers use them.
    pub(crate) fn next_token(&mut self) -> String {
        format!("{:08x}", self.next_number() >> 32)
    }

    fn next_number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Returns 64 hex digits that depend on `text` alone.
pub(crate) fn digest_of(text: &str) -> String {
    let seed = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ids::new(Some(seed)).next_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_hex_digits_and_repeat_with_the_seed() {
        let mut first = Ids::new(Some(7));
        let id = first.next_id();
        assert_eq!(id.len(), 64);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
        assert_eq!(id, Ids::new(Some(7)).next_id());
        assert_ne!(id, first.next_id());
    }

    #[test]
    fn digests_depend_on_the_text_alone() {
        assert_eq!(digest_of("busybox"), digest_of("busybox"));
        assert_ne!(digest_of("busybox"), digest_of("busybox:1"));
    }
}
