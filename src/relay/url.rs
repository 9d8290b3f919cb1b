//! Decides whether a streaming URL passes, is relayed to one address, or is refused.
//!
//! kubelet dials whatever URL a backend returns, so a backend elsewhere could aim `kubectl exec` at this
//! node. The rule that prevents it is here and pure: for a `local: false` backend only the endpoint's own
//! host or the configured `streaming.address` is dialled; a loopback, empty or other host is refused. No
//! error text holds the URL's path, because it contains a token.
//!
//! The first row that fits decides. A relayed URL must also end in the kind of a stream and a token, or it is
//! refused.
//!
//! | backend | `relay` | URL | kubelet's stream |
//! |---|---|---|---|
//! | local | `never` | any | passes |
//! | local | | cannot be read | passes: kubelet says what is wrong with it |
//! | local | | of TLS, or `streaming.tls`, without a `tls` section | passes: it cannot be verified |
//! | local | `auto` | `http` with a host | passes |
//! | local | | any other | is relayed to `streaming.address`, else the URL's host, else 127.0.0.1 |
//! | remote | | cannot be read | is refused |
//! | remote | `never` | names this node, or no host | is refused |
//! | remote | `never` | any other | passes |
//! | remote | | of TLS, or `streaming.tls`, without a `tls` section | is refused |
//! | remote | | any, and `streaming.address` is set | is relayed to that address |
//! | remote | | names this node, or no host | is refused |
//! | remote | | names the endpoint's host | is relayed to the endpoint's host at the URL's port |
//! | remote | | names another host, or the endpoint has no host | is refused |

use std::net::IpAddr;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery};

use crate::config::loopback::may_be_loopback;
use crate::config::{BackendConfig, Endpoint, RelayMode, Streaming};

/// Where crictl and critest look for a stream whose URL names no host: kubelet's own server.
const KUBELET_PORT: u16 = 10250;

/// Why a backend's streaming URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is not an `http` or `https` URL of a host and a path.
    #[error("the backend returned a streaming URL that cannot be read")]
    Malformed,
    /// Its path does not end in `exec`, `attach` or `portforward` and a token.
    #[error("the backend returned a streaming URL that is not one of exec, attach or port-forward")]
    NotAStream,
    /// The URL of a remote backend names this node, or no host.
    #[error(
        "the backend is not on this node but its streaming URL names {host}, which would be this node: set containerd's \
         stream_server_address (and stream_server_port) to the endpoint's host, or set streaming.address"
    )]
    ThisNode {
        /// The host of the URL, or `no host`.
        host: String,
    },
    /// The URL of a remote backend names another host than its endpoint's.
    #[error(
        "the backend's streaming URL names {host}, which is not its endpoint's host {endpoint}: set containerd's \
         stream_server_address (and stream_server_port) to that host, or set streaming.address"
    )]
    OtherHost {
        /// The host of the URL.
        host: String,
        /// The only host that may be dialled.
        endpoint: String,
    },
    /// The endpoint is a Unix or vsock address, so it has no host to dial.
    #[error(
        "the backend's endpoint has no host at which its streams could be dialled: set streaming.address"
    )]
    AddressNeeded,
    /// The streaming server speaks TLS and no authority is configured to verify it.
    #[error("the backend's streaming server speaks TLS but the backend has no tls section to verify it with")]
    NoTls,
    /// The kernel gave no random bytes for a token.
    #[error("no random bytes for a streaming token: {0}")]
    NoRandom(getrandom::Error),
}

/// One stream to relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelayedStream {
    pub(super) kind: StreamKind,
    pub(super) server: StreamServer,
    /// The path at the backend.
    pub(super) path: String,
    /// The query with its `?`, or empty.
    pub(super) query: String,
}

/// A streaming server to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamServer {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

/// The three kinds of streams, by the word in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    Exec,
    Attach,
    PortForward,
}

/// The parts of a URL. The `url` crate does not serve: it repairs `http:///exec/x` into the host `exec`.
struct StreamUrl {
    tls: bool,
    /// Without brackets; `None` if empty or the unspecified address.
    host: Option<String>,
    port: Option<u16>,
    path: String,
    query: String,
}

impl StreamKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        [Self::Exec, Self::Attach, Self::PortForward].into_iter().find(|kind| kind.as_str() == word)
    }
}

impl StreamUrl {
    fn parse(url: &str) -> Result<Self, UrlError> {
        // cri-dockerd names no scheme, and older runtimes neither scheme nor host; clients add both (crictl
        // `exec.go`).
        let without_scheme = || ("http", url.strip_prefix("//").unwrap_or(url));
        // A query may hold a URL of its own.
        let with_scheme = url.split_once("://").filter(|(scheme, _)| !scheme.contains('/'));
        let (scheme, rest) = with_scheme.unwrap_or_else(without_scheme);
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(UrlError::Malformed),
        };
        let (authority, path) = rest.split_at(rest.find('/').ok_or(UrlError::Malformed)?);
        let path = PathAndQuery::from_str(path).map_err(|_| UrlError::Malformed)?;
        let (host, port) = parse_authority(authority)?;
        Ok(Self {
            tls,
            port: port.or_else(|| host.as_ref().map(|_| if tls { 443 } else { 80 })),
            host,
            path: path.path().to_owned(),
            query: path.query().map(|query| format!("?{query}")).unwrap_or_default(),
        })
    }

    fn kind(&self) -> Result<StreamKind, UrlError> {
        let mut last_first = self.path.rsplit('/');
        let token = last_first.next().unwrap_or_default();
        let kind = last_first.next().and_then(StreamKind::parse);
        kind.filter(|_| !token.is_empty()).ok_or(UrlError::NotAStream)
    }

    fn names_this_node(&self) -> bool {
        self.host.as_deref().is_none_or(may_be_loopback)
    }

    fn this_node_error(&self) -> UrlError {
        UrlError::ThisNode { host: self.host.clone().unwrap_or_else(|| "no host".to_owned()) }
    }

    fn relay_to(self, (host, port): (String, u16), streaming: &Streaming) -> Result<RelayedStream, UrlError> {
        let server = StreamServer { host, port, tls: self.tls || streaming.tls };
        Ok(RelayedStream { kind: self.kind()?, server, path: self.path, query: self.query })
    }
}

/// Returns the stream to relay for `url`, which a backend with `config` returned; `None` if the URL passes as
/// it is. See the table above.
pub(super) fn stream_to_relay(config: &BackendConfig, url: &str) -> Result<Option<RelayedStream>, UrlError> {
    let parsed = StreamUrl::parse(url);
    match (config.local, config.streaming.relay) {
        (true, RelayMode::Never) => Ok(None),
        (true, mode) => parsed.map_or(Ok(None), |url| relay_local(config, mode, url)),
        (false, RelayMode::Never) => match parsed? {
            url if url.names_this_node() => Err(url.this_node_error()),
            _ => Ok(None),
        },
        (false, _) => relay_remote(config, parsed?),
    }
}

/// A backend on this node may name any address. A TLS server that crimux cannot verify is left to kubelet.
fn relay_local(
    config: &BackendConfig,
    mode: RelayMode,
    url: StreamUrl,
) -> Result<Option<RelayedStream>, UrlError> {
    let dialable = url.host.is_some() && !url.tls;
    let unverifiable = (url.tls || config.streaming.tls) && config.tls.is_none();
    if unverifiable || (dialable && mode == RelayMode::Auto) {
        return Ok(None);
    }
    let address = match (&config.streaming.address, url.port) {
        (Some(address), _) => address.clone(),
        (None, Some(port)) => (url.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned()), port),
        (None, None) => ("127.0.0.1".to_owned(), KUBELET_PORT),
    };
    url.relay_to(address, &config.streaming).map(Some)
}

/// A remote backend never chooses the host that is dialled.
fn relay_remote(config: &BackendConfig, url: StreamUrl) -> Result<Option<RelayedStream>, UrlError> {
    if (url.tls || config.streaming.tls) && config.tls.is_none() {
        return Err(UrlError::NoTls);
    }
    if let Some(address) = &config.streaming.address {
        return url.relay_to(address.clone(), &config.streaming).map(Some);
    }
    let (Some(host), Some(port)) = (&url.host, url.port) else { return Err(url.this_node_error()) };
    if may_be_loopback(host) {
        return Err(url.this_node_error());
    }
    match &config.endpoint {
        Endpoint::Tcp { host: own, .. } if is_same_host(own, host) => {
            url.relay_to((own.clone(), port), &config.streaming).map(Some)
        }
        Endpoint::Tcp { host: own, .. } => {
            Err(UrlError::OtherHost { host: host.clone(), endpoint: own.clone() })
        }
        Endpoint::Unix(_) | Endpoint::Vsock { .. } => Err(UrlError::AddressNeeded),
    }
}

fn parse_authority(authority: &str) -> Result<(Option<String>, Option<u16>), UrlError> {
    let number = |port: &str| port.parse().map_err(|_| UrlError::Malformed);
    if authority.is_empty() {
        return Ok((None, None));
    }
    if let Some(port) = authority.strip_prefix(':') {
        return Ok((None, Some(number(port)?)));
    }
    let parsed = Authority::from_str(authority).map_err(|_| UrlError::Malformed)?;
    // Only a port may follow the host. User information would precede it, so it fails here too.
    let port = match authority.strip_prefix(parsed.host()).ok_or(UrlError::Malformed)? {
        "" => None,
        rest => Some(number(rest.strip_prefix(':').ok_or(UrlError::Malformed)?)?),
    };
    let host = parsed.host().trim_start_matches('[').trim_end_matches(']');
    let unspecified = host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_unspecified());
    Ok(((!unspecified).then(|| host.to_owned()), port))
}

fn is_same_host(own: &str, named: &str) -> bool {
    match (own.parse::<IpAddr>(), named.parse::<IpAddr>()) {
        (Ok(own), Ok(named)) => own.to_canonical() == named.to_canonical(),
        (Err(_), Err(_)) => own.trim_end_matches('.').eq_ignore_ascii_case(named.trim_end_matches('.')),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
