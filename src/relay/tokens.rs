//! The tokens that open a stream: each is valid for one use within one minute.
//!
//! The relay's port has no other authentication, so a token is 128 random bits, is removed by its first use,
//! and is never written anywhere. containerd's own streaming server sets the pattern (one minute, one use,
//! 1000 outstanding). Time is passed in, so that nothing here waits.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::url::{RelayedStream, StreamKind};
use crate::backend::connect::Connector;

/// How long a token may wait for its use.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);

/// How many unused tokens one backend may have; a further one drops the oldest.
pub(super) const OUTSTANDING: usize = 1000;

/// The stream that a token opens.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) backend: String,
    pub(super) connector: Arc<Connector>,
    pub(super) stream: RelayedStream,
}

/// All unused tokens.
#[derive(Default)]
pub(super) struct Tokens {
    entries: HashMap<String, Entry>,
    /// Per backend, tokens in the order in which they expire.
    ages: HashMap<String, BTreeMap<u64, String>>,
    minted: u64,
}

struct Entry {
    grant: Grant,
    number: u64,
    expires: Instant,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("outstanding", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Adds a token. If its backend has [`OUTSTANDING`] already, the oldest of them is dropped.
    pub(super) fn insert(&mut self, token: String, grant: Grant, now: Instant) {
        self.purge(now);
        let ages = self.ages.entry(grant.backend.clone()).or_default();
        if ages.len() >= OUTSTANDING
            && let Some((_, oldest)) = ages.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.minted += 1;
        ages.insert(self.minted, token.clone());
        self.entries.insert(token, Entry { grant, number: self.minted, expires: now + LIFETIME });
    }

    /// Removes `token` and returns its grant, if it is for this kind of stream and not expired.
    pub(super) fn redeem(&mut self, kind: StreamKind, token: &str, now: Instant) -> Option<Grant> {
        self.purge(now);
        if self.entries.get(token)?.grant.stream.kind != kind {
            return None;
        }
        let entry = self.entries.remove(token)?;
        if let Some(ages) = self.ages.get_mut(&entry.grant.backend) {
            ages.remove(&entry.number);
        }
        Some(entry.grant)
    }

    /// Returns how many there are, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Drops every expired token.
    pub(super) fn purge(&mut self, now: Instant) {
        let entries = &mut self.entries;
        self.ages.retain(|_, ages| {
            while let Some(oldest) = ages.first_entry() {
                if entries.get(oldest.get()).is_some_and(|entry| entry.expires > now) {
                    break;
                }
                entries.remove(&oldest.remove());
            }
            !ages.is_empty()
        });
    }
}

/// Makes a token: 128 random bits of the kernel as 32 hex digits.
pub(super) fn mint() -> Result<String, getrandom::Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let mut token = String::with_capacity(32);
    for byte in random {
        // Writing to a String cannot fail.
        let _ = write!(token, "{byte:02x}");
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendConfig, Endpoint, ImageHandler, RelayMode, Streaming, Timeouts};
    use crate::relay::url::StreamServer;

    fn grant(backend: &str) -> Grant {
        let config = BackendConfig {
            endpoint: Endpoint::Unix("/run/cri.sock".into()),
            socket: None,
            required: false,
            optional: false,
            local: true,
            timeouts: Timeouts::default(),
            tls: None,
            streaming: Streaming { relay: RelayMode::Auto, address: None, tls: false },
            max_in_flight: 1000,
            max_list: 32 << 20,
            image_handler: ImageHandler::Auto,
        };
        let server = StreamServer { host: "127.0.0.1".to_owned(), port: 1, tls: false };
        let (path, query) = ("/exec/abc".to_owned(), String::new());
        Grant {
            backend: backend.to_owned(),
            connector: Arc::new(Connector::new(&config).unwrap()),
            stream: RelayedStream { kind: StreamKind::Exec, server, path, query },
        }
    }

    #[test]
    fn a_token_is_good_for_one_use_of_its_kind() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        tokens.insert("one".to_owned(), grant("a"), now);
        assert!(tokens.redeem(StreamKind::Attach, "one", now).is_none());
        assert!(tokens.redeem(StreamKind::Exec, "two", now).is_none());
        assert_eq!(tokens.redeem(StreamKind::Exec, "one", now).unwrap().backend, "a");
        assert!(tokens.redeem(StreamKind::Exec, "one", now).is_none());
        assert!(tokens.entries.is_empty() && tokens.ages.is_empty());
    }

    #[test]
    fn a_token_is_good_for_one_minute_and_then_forgotten() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        tokens.insert("first".to_owned(), grant("a"), now);
        tokens.insert("second".to_owned(), grant("b"), now + Duration::from_secs(30));
        let last_moment = now + LIFETIME - Duration::from_millis(1);
        tokens.purge(last_moment);
        assert_eq!(tokens.entries.len(), 2);
        assert!(tokens.redeem(StreamKind::Exec, "first", now + LIFETIME).is_none());
        assert_eq!(tokens.entries.len(), 1);
        tokens.purge(now + LIFETIME + Duration::from_secs(30));
        assert!(tokens.entries.is_empty() && tokens.ages.is_empty());
    }

    #[test]
    fn the_oldest_unused_token_of_the_same_backend_makes_room() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        tokens.insert("other".to_owned(), grant("b"), now);
        for number in 0..=OUTSTANDING {
            tokens.insert(format!("used {number}"), grant("a"), now);
            assert!(tokens.redeem(StreamKind::Exec, &format!("used {number}"), now).is_some());
        }
        for number in 0..=OUTSTANDING {
            tokens.insert(number.to_string(), grant("a"), now);
        }
        assert_eq!(tokens.entries.len(), OUTSTANDING + 1);
        assert!(tokens.redeem(StreamKind::Exec, "0", now).is_none());
        assert!(tokens.redeem(StreamKind::Exec, "1", now).is_some());
        assert!(tokens.redeem(StreamKind::Exec, "other", now).is_some());
    }

    #[test]
    fn tokens_are_128_bits_and_differ() {
        let (one, two) = (mint().unwrap(), mint().unwrap());
        assert!(one.len() == 32 && one.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_ne!(one, two);
    }
}
