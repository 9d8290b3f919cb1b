//! Parsers of single values: durations, endpoints, sockets, owners and so on.
//!
//! Each function takes the text of one value and gives the checked value or a sentence that says what is
//! wrong and, in parentheses, what would be right. None knows which key it reads for. Only [`owner`] asks the
//! system something.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Group, User};

use super::address::{SUN_PATH, host_and_port, is_host, number};
use super::hint::did_you_mean;
use super::{Endpoint, likely};

/// What a parser of a value gives; the error completes "KEY: …".
pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => {
            let right = likely::boolean(other).unwrap_or("true or false");
            Err(format!("{} is neither true nor false (write {right})", quote(other)))
        }
    }
}

pub(super) fn integer(text: &str, min: u32, max: u32) -> Parsed<u32> {
    let value: Option<i64> = text.parse().ok();
    let fits = value.and_then(|value| u32::try_from(value).ok()).filter(|value| (min..=max).contains(value));
    fits.ok_or_else(|| {
        let digits = text.trim_start_matches('-');
        let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
        let unit = digits.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let has_unit = unit.len() < digits.len() && unit.chars().all(|c| c.is_ascii_alphabetic() || c == '%');
        let (fault, advice) = match (is_number, has_unit) {
            (true, _) => ("is out of range", ""),
            (false, true) => ("is not a whole number", "write it without a unit, "),
            (false, false) => ("is not a whole number", ""),
        };
        format!("{} {fault} ({advice}expected {min} to {max})", quote(text))
    })
}

pub(super) fn ratio(text: &str) -> Parsed<f64> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| format!("{} is not a share (expected a number from 0 to 1)", quote(text)))
}

/// Reads one word of a closed set.
pub(super) fn word<T: Copy>(text: &str, meanings: &[(&'static str, T)]) -> Parsed<T> {
    let words = || meanings.iter().map(|(word, _)| *word);
    let meaning = meanings.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    meaning.ok_or_else(|| {
        if let Some(word) = likely::word(text, words()) {
            return format!("{} is not known here (write {word})", quote(text));
        }
        let right = words().collect::<Vec<_>>().join(" or ");
        let hint = did_you_mean(text, words()).unwrap_or_default();
        format!("{} is not known here (expected {right}){hint}", quote(text))
    })
}

const DURATION: &str = "expected a whole number with ms, s, m or h, such as 500ms, 1s or 1m30s";

/// Says that a text is no duration, and what it probably should be.
pub(super) fn not_a_duration(text: &str) -> String {
    let right = likely::duration(text).map(|right| format!("write {right}"));
    format!("{} is not a duration ({})", quote(text), right.as_deref().unwrap_or(DURATION))
}

/// Reads a sum of numbers with units, such as `1m30s`; `why` says why it is at most `max`.
pub(super) fn duration(text: &str, max: &str, why: &str) -> Parsed<Duration> {
    if text.starts_with('-') {
        return Err(format!("{} is negative ({DURATION})", quote(text)));
    }
    let limit = milliseconds(max);
    let millis = milliseconds(text).ok_or_else(|| {
        let meant = likely::duration(text).and_then(|likely| milliseconds(&likely));
        if meant.zip(limit).is_some_and(|(meant, limit)| meant > limit) {
            return format!("{} is not a duration (write {max} at most)", quote(text));
        }
        not_a_duration(text)
    })?;
    if millis == 0 {
        return Err("a duration of zero is not possible (expected at least 1ms)".into());
    }
    if limit.is_some_and(|limit| millis > limit) {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        return Err(format!("{} is too long (at most {max}{why})", quote(text)));
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
    let scheme = if text.starts_with("unix://") { "unix://" } else { "" };
    let path = text.strip_prefix(scheme).unwrap_or(text);
    let fault = |fault: &str, right: &str| Err(format!("{} {fault} ({right})", quote(text)));
    if path.trim_matches('/').is_empty() {
        return fault("names no socket", "write unix:///PATH, as in unix:///run/NAME.sock");
    }
    if path.ends_with('/') {
        let right =
            format!("name the socket in it, as in {scheme}/{}NAME.sock", path.trim_start_matches('/'));
        return fault("is a directory, not a socket", &right);
    }
    if !path.starts_with('/') {
        return Err(not_absolute(text, scheme, path, "/run"));
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

/// Says how a path that does not begin with `/` is written; `scheme` stands before it in the file. A name
/// alone would be one below the root; it is shown in the `usual` directory.
fn not_absolute(text: &str, scheme: &str, path: &str, usual: &str) -> String {
    let bare = path.trim_start().trim_start_matches("./").trim_start_matches('/');
    let right = match likely::template_piece(path) {
        Some(piece) if path.starts_with(piece) => format!("fill in {piece}; the path begins with /"),
        _ if path.starts_with('@') => {
            "an abstract socket is not supported; name one in a directory".to_owned()
        }
        _ if path.contains("://") || path.contains('@') || path.len() > SUN_PATH => {
            "start the path with /".to_owned()
        }
        _ if !bare.contains('/') => {
            let name = if usual.ends_with(&format!("/{bare}")) || usual.contains(&format!("/{bare}/")) {
                "crimux"
            } else {
                bare
            };
            format!("write a path that begins with /, such as {scheme}{usual}/{name}")
        }
        _ => format!("write {scheme}/{bare}"),
    };
    format!("{} is not an absolute path ({right})", quote(text))
}

pub(super) fn directory(text: &str) -> Parsed<PathBuf> {
    no_zero(text)?;
    if text.starts_with('/') { Ok(text.into()) } else { Err(not_absolute(text, "", text, "/var/lib")) }
}

pub(super) fn file(text: &str, base_dir: &Path) -> Parsed<PathBuf> {
    no_zero(text)?;
    if text.is_empty() {
        Err("the path is empty (expected a path of a file)".into())
    } else {
        Ok(base_dir.join(text))
    }
}

fn no_zero(path: &str) -> Parsed<()> {
    if path.contains('\0') { Err("the path holds a zero byte (remove it)".into()) } else { Ok(()) }
}

/// Reads a backend's address.
pub(super) fn endpoint(text: &str) -> Parsed<Endpoint> {
    const RIGHT: &str = "expected unix:///PATH, https://HOST:PORT, http://HOST:PORT or vsock://CID:PORT";
    let fault = |fault: &str, right: &str| {
        let write = likely::endpoint(text).map(|likely| format!("write {likely}"));
        format!("{} {fault} ({})", quote(text), write.as_deref().unwrap_or(right))
    };
    let Some((scheme, rest)) = text.split_once("://") else { return Err(fault("is not an endpoint", RIGHT)) };
    match scheme {
        "unix" => Ok(Endpoint::Unix(socket(text)?)),
        "http" | "https" => {
            let (host, port) = host_and_port(rest).map_err(|what| fault(what, HOST_PORT))?;
            Ok(Endpoint::Tcp { host, port, tls: scheme == "https" })
        }
        "vsock" => vsock(rest),
        _ => Err(fault("has an unknown scheme", RIGHT)),
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

const HOST_PORT: &str = "expected HOST:PORT, an IPv6 address in brackets";

/// Reads `HOST:PORT`; an IPv6 address stands in brackets, which are not part of the result.
pub(super) fn host_port(text: &str) -> Parsed<(String, u16)> {
    host_and_port(text).map_err(|fault| {
        let write = likely::authority(text).map(|likely| format!("write {likely}"));
        format!("{} {fault} ({})", quote(text), write.as_deref().unwrap_or(HOST_PORT))
    })
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
    text.parse().map(Some).map_err(|_| {
        let right = likely::address(text).map_or_else(
            || "expected IP:PORT such as 127.0.0.1:19440, or off".to_owned(),
            |likely| format!("write {likely}, or off"),
        );
        format!("{} is not an address ({right})", quote(text))
    })
}

/// Reads the address of a collector; `None` for `off`.
pub(super) fn url(text: &str) -> Parsed<Option<String>> {
    if is_off(text) {
        return Ok(None);
    }
    let fault = |fault: &str, right: &str| {
        let write = likely::url(text).map(|likely| format!("write {likely}"));
        format!("{} {fault} ({})", quote(text), write.as_deref().unwrap_or(right))
    };
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return Err(fault("is not an address", "expected http://HOST:PORT or https://HOST:PORT, or off"));
    };
    host_and_port(rest).map(|_| Some(text.to_owned())).map_err(|what| fault(what, HOST_PORT))
}

/// Reads levels, also per target, separated by commas.
pub(super) fn filter(text: &str) -> Parsed<String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for part in text.split(',') {
        let (target, level) = part.split_once('=').unwrap_or(("crimux", part));
        if !LEVELS.contains(&level) {
            if let Some(word) = likely::word(level, LEVELS) {
                return Err(format!("{} is not a log level (write {word})", quote(level)));
            }
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
