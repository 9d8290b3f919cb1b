//! The value that was probably meant by one that is wrong: addresses, paths and words.
//!
//! A guess is given only where it would be accepted in place of the wrong value, and never holds what may be
//! a credential.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::address::{SUN_PATH, host_and_port};
use super::hint::nearest;
use super::loopback::is_certainly_loopback;

/// Returns `HOST:PORT` of an address that may have a scheme, a path or blanks around it, or an IPv6 address
/// without brackets.
pub(super) fn authority(text: &str) -> Option<String> {
    let text = text.trim();
    if text.contains('@') {
        return None;
    }
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest.trim_start_matches('/'));
    let rest = rest.split('/').next()?;
    let without_brackets = || {
        let (host, port) = rest.rsplit_once(':')?;
        host.parse::<Ipv6Addr>().ok()?;
        Some((host.to_owned(), port.parse().ok().filter(|port| *port > 0)?))
    };
    let (host, port) = host_and_port(rest).ok().or_else(without_brackets)?;
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// Returns a URL of a collector.
pub(super) fn url(text: &str) -> Option<String> {
    let secure = matches!(scheme(text), Some("https" | "grpcs" | "tls" | "ssl"));
    Some(format!("http{}://{}", if secure { "s" } else { "" }, authority(text)?))
}

/// Returns what an endpoint could be, in words that complete "write …".
pub(super) fn endpoint(text: &str) -> Option<String> {
    let text = text.trim();
    if text.contains('@') {
        return None;
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text.strip_prefix("unix:") {
            Some(path) => socket(path),
            None if text.starts_with('/') => socket(text),
            None => {
                let is_path =
                    text.contains('/') || Path::new(text).extension().is_some_and(|end| end == "sock");
                endpoint_at(text, None).or_else(|| is_path.then(|| socket(text)).flatten())
            }
        };
    };
    match scheme.to_lowercase().as_str() {
        "npipe" | "vsock" => None,
        "grpcs" | "tls" | "ssl" => endpoint_at(text, Some("https")),
        other => match nearest(other, ["unix", "https", "http"]) {
            Some("unix") => socket(rest),
            Some(near) => endpoint_at(text, Some(near)),
            None => endpoint_at(text, None).or_else(|| rest.starts_with('/').then(|| socket(rest)).flatten()),
        },
    }
}

/// Returns the endpoint of a socket at this path, which may lack its slash.
fn socket(path: &str) -> Option<String> {
    let path = format!("/{}", path.trim_start_matches('/'));
    let is_socket = path.len() <= SUN_PATH && !path.ends_with('/') && !path.contains('\0');
    is_socket.then(|| format!("unix://{path}"))
}

/// Returns the endpoint at the address in this text; without a scheme, the ones that may be meant.
fn endpoint_at(text: &str, scheme: Option<&str>) -> Option<String> {
    let authority = authority(text)?;
    let is_loopback = || host_and_port(&authority).is_ok_and(|(host, _)| is_certainly_loopback(&host));
    Some(match scheme {
        Some(scheme) => format!("{scheme}://{authority}"),
        None if is_loopback() => format!("http://{authority}"),
        None => format!("https://{authority} with tls, or http://{authority} with insecure: true"),
    })
}

/// Returns an address to listen on.
pub(super) fn address(text: &str) -> Option<String> {
    const PORT: u16 = 19440;
    let rest = text.trim();
    let rest = rest.strip_prefix("http://").unwrap_or(rest).trim_end_matches('/');
    if matches!(rest, "on" | "true" | "yes") {
        return Some(format!("127.0.0.1:{PORT}"));
    }
    // The last group of an IPv6 address without brackets is more likely to be the port.
    let has_port = rest.rsplit_once(':').is_some_and(|(host, _)| host.parse::<Ipv6Addr>().is_ok());
    if let Ok(ip) = IpAddr::from_str(rest)
        && !has_port
    {
        return Some(SocketAddr::new(ip, PORT).to_string());
    }
    let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
    let port: u16 = port.parse().ok()?;
    let host = match host {
        "" | "localhost" => "127.0.0.1",
        "*" => "0.0.0.0",
        host => host.trim_matches(['[', ']']),
    };
    Some(SocketAddr::new(host.parse().ok()?, port).to_string())
}

/// Returns a duration as the configuration writes it: of a number without a unit, and of other spellings.
pub(super) fn duration(text: &str) -> Option<String> {
    let text = text.trim().trim_matches(['\'', '"']);
    let seconds = text.parse::<u32>().ok().filter(|seconds| *seconds > 0);
    let duration = match seconds {
        Some(seconds) => Duration::from_secs(seconds.into()),
        None => humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero())?,
    };
    let whole = |unit: u128, word: &str| {
        let millis = duration.as_millis();
        (millis > 0 && millis.is_multiple_of(unit)).then(|| format!("{}{word}", millis / unit))
    };
    let unit = |unit, word| whole(unit, word).filter(|_| seconds.is_none());
    unit(3_600_000, "h").or_else(|| unit(60_000, "m")).or_else(|| whole(1000, "s")).or_else(|| whole(1, "ms"))
}

/// Returns the one of `words` that differs in nothing but capitals.
pub(super) fn word<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    words.into_iter().find(|word| word.eq_ignore_ascii_case(text.trim()))
}

/// Returns what a boolean of YAML 1.1 or of another language means.
pub(super) fn boolean(text: &str) -> Option<&'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" => Some("true"),
        "false" | "no" | "n" | "off" | "0" => Some("false"),
        _ => None,
    }
}

/// Returns a piece of a text that looks like a place of a template or of a shell variable which nobody filled
/// in, such as `{{x}}`, `${X}`, `$X` or `<x>`.
pub(super) fn template_piece(text: &str) -> Option<&str> {
    for (open, close) in [("{{", "}}"), ("${", "}"), ("$(", ")"), ("<", ">"), ("{%", "%}")] {
        if let Some(start) = text.find(open)
            && let Some(length) = text[start + open.len()..].find(close)
        {
            return Some(&text[start..start + open.len() + length + close.len()]);
        }
    }
    let start = text
        .match_indices('$')
        .map(|(at, _)| at)
        .find(|at| text[at + 1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))?;
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let length = text[start + 1..].find(|c| !name(c)).unwrap_or(text.len() - start - 1);
    Some(&text[start..=start + length])
}

fn scheme(text: &str) -> Option<&str> {
    text.trim().split_once("://").map(|(scheme, _)| scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_guessed_from_what_is_written() {
        for (text, right) in [
            ("unix://run/a.sock", "unix:///run/a.sock"),
            ("unix:run/a.sock", "unix:///run/a.sock"),
            ("/run/a.sock", "unix:///run/a.sock"),
            ("run/a.sock", "unix:///run/a.sock"),
            ("a.sock", "unix:///a.sock"),
            ("UNIX:///run/a.sock", "unix:///run/a.sock"),
            ("unxi:///run/a.sock", "unix:///run/a.sock"),
            ("file:///run/a.sock", "unix:///run/a.sock"),
            ("tcp://h:1", "https://h:1 with tls, or http://h:1 with insecure: true"),
            ("tcp://127.0.0.1:1", "http://127.0.0.1:1"),
            ("grpc://localhost:1", "http://localhost:1"),
            ("dns:///h:1", "https://h:1 with tls, or http://h:1 with insecure: true"),
            ("h:1", "https://h:1 with tls, or http://h:1 with insecure: true"),
            ("localhost:1", "http://localhost:1"),
            ("::1:1", "http://[::1]:1"),
            ("http://::1:1", "http://[::1]:1"),
            ("https://2001:db8::1:1", "https://[2001:db8::1]:1"),
            ("http://h:1/", "http://h:1"),
            ("htps://h:1", "https://h:1"),
            ("HTTP://h:1", "http://h:1"),
            ("grpcs://h:1/x", "https://h:1"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Some(right), "{text}");
        }
        for text in [
            "",
            "h",
            "node.example",
            "tcp://h",
            "https://h",
            "tcp://me:secret@h:1",
            "npipe:////./pipe/x",
            "https://me:secret@h:1",
            "unix://",
            "vsock://3",
        ] {
            assert_eq!(endpoint(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_of_our_own_and_of_a_collector_is_guessed() {
        for (text, right) in [
            (":19440", Some("127.0.0.1:19440")),
            ("8080", Some("127.0.0.1:8080")),
            ("localhost:1", Some("127.0.0.1:1")),
            ("*:1", Some("0.0.0.0:1")),
            ("::1:1", Some("[::1]:1")),
            ("10.0.0.1", Some("10.0.0.1:19440")),
            ("::1", Some("[::1]:19440")),
            ("http://127.0.0.1:1/", Some("127.0.0.1:1")),
            ("on", Some("127.0.0.1:19440")),
            ("host:1", None),
            ("", None),
        ] {
            assert_eq!(address(text).as_deref(), right, "{text}");
        }
        for (text, right) in [
            ("localhost:4317", Some("http://localhost:4317")),
            ("grpc://h:4317", Some("http://h:4317")),
            ("grpcs://h:4317", Some("https://h:4317")),
            ("http://h:4317/v1/traces", Some("http://h:4317")),
            ("h", None),
            ("http://me:secret@h:1", None),
        ] {
            assert_eq!(url(text).as_deref(), right, "{text}");
        }
    }

    #[test]
    fn a_duration_is_guessed_in_units_of_the_configuration() {
        for (text, right) in [
            ("5", Some("5s")),
            ("90", Some("90s")),
            ("1 s", Some("1s")),
            ("5sec", Some("5s")),
            ("1day", Some("24h")),
            ("2 min", Some("2m")),
            ("200 msec", Some("200ms")),
            ("0", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(duration(text).as_deref(), right, "{text}");
        }
    }

    #[test]
    fn a_template_that_nobody_filled_in_is_found() {
        for (text, piece) in [
            ("/run/{{ .name }}.sock", Some("{{ .name }}")),
            ("/run/${RUNTIME}/a.sock", Some("${RUNTIME}")),
            ("/run/$RUNTIME/a.sock", Some("$RUNTIME")),
            ("/run/$(id -u)/a.sock", Some("$(id -u)")),
            ("/run/<name>.sock", Some("<name>")),
            ("/$x", Some("$x")),
            ("/run/a$.sock", None),
            ("/run/$1", None),
            ("/run/a.sock", None),
            ("/run/{a}.sock", None),
        ] {
            assert_eq!(template_piece(text), piece, "{text}");
        }
    }
}
