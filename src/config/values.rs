//! Parsers of single values: durations, endpoints, sockets, owners and so on.
//!
//! Each function takes the text of one value and gives the checked value or a sentence that says what is
//! wrong and, in parentheses, what would be right. None knows which key it reads for. Only [`owner`] asks the
//! system something.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::unistd::{Group, User};

use super::Endpoint;
use super::hint::did_you_mean;

/// What a parser of a value gives; the error completes "KEY: …".
pub(super) type Parsed<T> = Result<T, String>;

/// The bytes that fit in `sockaddr_un.sun_path`, without the closing zero (`unix(7)`).
const SUN_PATH: usize = 107;

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{} is neither true nor false (write true or false)", quote(other))),
    }
}

pub(super) fn integer(text: &str, min: u32, max: u32) -> Parsed<u32> {
    let value: Option<i64> = text.parse().ok();
    let fits = value.and_then(|value| u32::try_from(value).ok()).filter(|value| (min..=max).contains(value));
    fits.ok_or_else(|| {
        let fault = if value.is_some() { "is out of range" } else { "is not a whole number" };
        format!("{} {fault} (expected {min} to {max})", quote(text))
    })
}

pub(super) fn ratio(text: &str) -> Parsed<f64> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| format!("{} is not a share (expected a number from 0 to 1)", quote(text)))
}

/// Reads a sum of numbers with units, such as `1m30s`.
pub(super) fn duration(text: &str, max: &str) -> Parsed<Duration> {
    const RIGHT: &str = "expected a whole number with ms, s, m or h, such as 500ms, 1s or 1m30s";
    if text.starts_with('-') {
        return Err(format!("{} is negative ({RIGHT})", quote(text)));
    }
    let millis = milliseconds(text).ok_or_else(|| format!("{} is not a duration ({RIGHT})", quote(text)))?;
    if millis == 0 {
        return Err("a duration of zero is not possible (expected at least 1ms)".into());
    }
    if milliseconds(max).is_some_and(|max| millis > max) {
        return Err(format!("{} is too long (at most {max})", quote(text)));
    }
    Ok(Duration::from_millis(millis))
}

fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (amount, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let unit: u64 = match &tail[..end] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        sum = sum.checked_add(amount.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &tail[end..];
    }
    (!text.is_empty()).then_some(sum)
}

/// Reads permission bits in octal, with or without leading `0` or `0o`.
pub(super) fn mode(text: &str) -> Parsed<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.chars().all(|c| c.is_digit(8));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| {
        format!("{} is not a file mode (expected octal up to \"0777\", such as \"0660\")", quote(text))
    })
}

/// Reads `user:group`; `None` for `self`.
///
/// Names are looked up in the system's user and group databases, except root, which is 0 everywhere.
pub(super) fn owner(text: &str) -> Parsed<Option<(u32, u32)>> {
    if text == "self" {
        return Ok(None);
    }
    let Some((user, group)) = text.split_once(':') else {
        return Err(format!("{} has no group (expected USER:GROUP such as root:root, or self)", quote(text)));
    };
    let uid = account(user, "user", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))?;
    let gid = account(group, "group", |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))?;
    Ok(Some((uid, gid)))
}

fn account(name: &str, what: &str, look_up: impl Fn(&str) -> nix::Result<Option<u32>>) -> Parsed<u32> {
    if name == "root" {
        return Ok(0);
    }
    // The largest ID means "do not change" to chown(2).
    if let Some(id) = number(name).filter(|id| *id != u32::MAX) {
        return Ok(id);
    }
    let known = !name.is_empty() && !name.contains('\0');
    match if known { look_up(name) } else { Ok(None) } {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!(
            "there is no {what} {} on this node (name one that exists, or a number)",
            quote(name)
        )),
        Err(error) => Err(format!(
            "the {what} {} could not be looked up: {error} (a number needs no look-up)",
            quote(name)
        )),
    }
}

/// Reads the path of a Unix socket, with or without `unix://`.
pub(super) fn socket(text: &str) -> Parsed<PathBuf> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(format!("{} is not an absolute path (expected unix:///PATH or /PATH)", quote(text)));
    }
    no_zero(path)?;
    if path.len() > SUN_PATH {
        return Err(format!(
            "the path is {} bytes long (a socket's path has at most {SUN_PATH})",
            path.len()
        ));
    }
    Ok(path.into())
}

pub(super) fn directory(text: &str) -> Parsed<PathBuf> {
    no_zero(text)?;
    if text.starts_with('/') {
        Ok(text.into())
    } else {
        Err(format!("{} is not an absolute path (start it with /)", quote(text)))
    }
}

pub(super) fn file(text: &str, base_dir: &Path) -> Parsed<PathBuf> {
    no_zero(text)?;
    if text.is_empty() {
        Err("the path is empty (expected a path of a file)".into())
    } else {
        Ok(base_dir.join(text))
    }
}

/// Reads a number that is written in digits alone.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.chars().all(|c| c.is_ascii_digit()))
}

fn no_zero(path: &str) -> Parsed<()> {
    if path.contains('\0') { Err("the path holds a zero byte (remove it)".into()) } else { Ok(()) }
}

/// Reads a backend's address.
pub(super) fn endpoint(text: &str) -> Parsed<Endpoint> {
    const RIGHT: &str = "expected unix:///PATH, https://HOST:PORT, http://HOST:PORT or vsock://CID:PORT";
    let Some((scheme, rest)) = text.split_once("://") else {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let right = if path.starts_with('/') { format!("write unix://{path}") } else { RIGHT.to_owned() };
        return Err(format!("{} is not an endpoint ({right})", quote(text)));
    };
    match scheme {
        "unix" => Ok(Endpoint::Unix(socket(text)?)),
        "http" | "https" => {
            let (host, port) = host_port(rest)?;
            Ok(Endpoint::Tcp { host, port, tls: scheme == "https" })
        }
        "vsock" => vsock(rest),
        _ => Err(format!("{} has an unknown scheme ({RIGHT})", quote(text))),
    }
}

fn vsock(text: &str) -> Parsed<Endpoint> {
    // The largest value of either means "any" (`vsock(7)`), which cannot be dialled.
    let below_any = |text: &str| number(text).filter(|number| *number != u32::MAX);
    let (cid, port) = text.split_once(':').unwrap_or((text, ""));
    match (below_any(cid), below_any(port)) {
        (Some(cid), Some(port)) => Ok(Endpoint::Vsock { cid, port }),
        _ => Err(format!("{} is not CID:PORT (expected two numbers, as in vsock://3:10010)", quote(text))),
    }
}

/// Reads `HOST:PORT`; an IPv6 address stands in brackets, which are not part of the result.
pub(super) fn host_port(text: &str) -> Parsed<(String, u16)> {
    let fault = |fault: &str| {
        Err(format!("{} {fault} (expected HOST:PORT, an IPv6 address in brackets)", quote(text)))
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(inside) => match inside.split_once("]:") {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
            _ => return fault("is not [IPV6]:PORT"),
        },
        None => match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) => (host, port),
            Some(_) => return fault("has no valid host"),
            None => return fault("has no port"),
        },
    };
    match number(port) {
        Some(port @ 1..) => Ok((host.to_owned(), port)),
        _ => fault("has no valid port"),
    }
}

/// Whether `host` is a DNS name or an IPv4 address.
fn is_host(host: &str) -> bool {
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

/// Reads the name that a certificate must hold: a DNS name or an IP address.
pub(super) fn server_name(text: &str) -> Parsed<String> {
    if is_host(text) || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("{} is not a host name (expected a DNS name or an IP address, without a port)", quote(text)))
}

/// Whether the value is `off`, or the `false` that YAML 1.1 tools make of it.
fn is_off(text: &str) -> bool {
    matches!(text, "off" | "false")
}

/// Reads `IP:PORT`; `None` for `off`.
pub(super) fn address(text: &str) -> Parsed<Option<SocketAddr>> {
    if is_off(text) {
        return Ok(None);
    }
    let fault =
        || format!("{} is not an address (expected IP:PORT such as 127.0.0.1:19440, or off)", quote(text));
    text.parse().map(Some).map_err(|_| fault())
}

/// Reads the address of a collector; `None` for `off`.
pub(super) fn url(text: &str) -> Parsed<Option<String>> {
    if is_off(text) {
        return Ok(None);
    }
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return Err(format!(
            "{} is not an address (expected http://HOST:PORT or https://HOST:PORT, or off)",
            quote(text)
        ));
    };
    host_port(rest).map(|_| Some(text.to_owned()))
}

/// Reads levels, also per target, separated by commas.
pub(super) fn filter(text: &str) -> Parsed<String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for part in text.split(',') {
        let (target, level) = part.split_once('=').unwrap_or(("crimux", part));
        if !LEVELS.contains(&level) {
            let hint = did_you_mean(level, LEVELS).unwrap_or_default();
            return Err(format!(
                "{} is not a log level (expected {}){hint}",
                quote(level),
                LEVELS.join(", ")
            ));
        }
        if target.is_empty() || !target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')) {
            return Err(format!(
                "{} is not a log target (expected a module such as crimux::router)",
                quote(target)
            ));
        }
    }
    Ok(text.to_owned())
}

/// Reads a name that becomes a metric label: a DNS label as in RFC 1123.
pub(super) fn is_label(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The value in quotes, shortened; what may hold `user:password@` is not quoted at all.
pub(super) fn quote(text: &str) -> String {
    if text.contains('@') {
        return "the value".into();
    }
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
