//! Whether a host is this node's loopback: two answers, because the two callers err on opposite sides.
//!
//! The configuration allows an unencrypted endpoint only if its host is loopback without doubt. The relay
//! refuses to dial a host that a remote backend names if it could be loopback. They differ for names that a
//! resolver decides.

use std::net::IpAddr;

/// Tells whether `host` is loopback without doubt: `localhost`, or an address of 127.0.0.0/8 or `::1`.
pub(super) fn is_certainly_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Tells whether `host` could be loopback: also `*.localhost` (RFC 6761), a trailing dot, `::ffff:127.0.0.1`.
pub fn may_be_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_certainly_or_perhaps_or_never_loopback() {
        for (host, certainly, perhaps) in [
            ("localhost", true, true),
            ("LOCALHOST", true, true),
            ("127.0.0.1", true, true),
            ("127.1.2.3", true, true),
            ("::1", true, true),
            ("localhost.", false, true),
            ("a.localhost", false, true),
            ("A.LocalHost.", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("localhost.example", false, false),
            ("notlocalhost", false, false),
            ("10.0.0.1", false, false),
            ("::ffff:10.0.0.1", false, false),
            ("0.0.0.0", false, false),
        ] {
            assert_eq!((is_certainly_loopback(host), may_be_loopback(host)), (certainly, perhaps), "{host}");
        }
    }
}
