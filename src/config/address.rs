//! What makes the text of an address right: hosts, ports and the paths of sockets.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The bytes that fit in `sockaddr_un.sun_path`, without the closing zero (`unix(7)`).
pub(super) const SUN_PATH: usize = 107;

/// Reads a number that is written in digits alone.
pub(super) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.chars().all(|c| c.is_ascii_digit()))
}

/// Reads `HOST:PORT`; the error completes "the text …".
pub(super) fn host_and_port(text: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inside) => match inside.split_once("]:") {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => (host, port),
            _ => return Err("is not [IPV6]:PORT"),
        },
        None => match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) => (host, port),
            Some(_) => return Err("has no valid host"),
            None => return Err("has no port"),
        },
    };
    match number(port) {
        Some(port @ 1..) => Ok((host.to_owned(), port)),
        _ => Err("has no valid port"),
    }
}

/// Whether `host` is a DNS name or an IPv4 address.
pub(super) fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len())
            && label.chars().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    host.len() <= 253 && host.split('.').all(label) && (!numeric || host.parse::<Ipv4Addr>().is_ok())
}
