//! Which URLs pass, which are relayed and where to, and which are refused.

use super::*;
use crate::config::{ImageHandler, Timeouts, Tls};

fn backend(endpoint: &str, local: bool) -> BackendConfig {
    let endpoint = match endpoint.rsplit_once(':') {
        Some((host, port)) => {
            Endpoint::Tcp { host: host.to_owned(), port: port.parse().unwrap(), tls: false }
        }
        None => Endpoint::Unix(endpoint.into()),
    };
    BackendConfig {
        endpoint,
        socket: None,
        required: false,
        optional: false,
        local,
        timeouts: Timeouts::default(),
        tls: None,
        streaming: Streaming { relay: RelayMode::Auto, address: None, tls: false },
        max_in_flight: 1000,
        max_list: 32 << 20,
        image_handler: ImageHandler::Auto,
    }
}

fn with_tls(mut config: BackendConfig) -> BackendConfig {
    config.tls = Some(Tls { ca: "ca.crt".into(), cert: None, key: None, server_name: None });
    config
}

fn with_mode(mut config: BackendConfig, mode: RelayMode) -> BackendConfig {
    config.streaming.relay = mode;
    config
}

fn with_address(mut config: BackendConfig, host: &str, port: u16) -> BackendConfig {
    config.streaming.address = Some((host.to_owned(), port));
    config
}

/// Where `url` is relayed to, as `host:port`, with `+tls`.
fn relayed(config: &BackendConfig, url: &str) -> String {
    match stream_to_relay(config, url).unwrap() {
        Some(RelayedStream { server: StreamServer { host, port, tls }, .. }) => {
            format!("{host}:{port}{}", if tls { "+tls" } else { "" })
        }
        None => panic!("{url} passed"),
    }
}

#[test]
fn urls_that_kubelet_can_dial_on_this_node_pass() {
    let local = backend("/run/cri.sock", true);
    for url in [
        "http://127.0.0.1:3000/exec/abc",
        "http://[::1]:3000/attach/abc",
        "http://localhost:3000/portforward/abc",
        "http://10.0.0.1:3000/exec/abc",
        "whatever a runtime may invent",
    ] {
        assert_eq!(stream_to_relay(&local, url), Ok(None), "{url}");
    }
}

#[test]
fn a_url_of_this_node_without_a_host_is_relayed_to_loopback() {
    let local = backend("/run/cri.sock", true);
    for url in ["http://:3000/exec/abc", "http://0.0.0.0:3000/exec/abc", "http://[::]:3000/exec/abc"] {
        assert_eq!(relayed(&local, url), "127.0.0.1:3000", "{url}");
    }
    for url in ["/exec/abc", "http:///exec/abc"] {
        // As crictl and critest do.
        assert_eq!(relayed(&local, url), "127.0.0.1:10250", "{url}");
        assert_eq!(relayed(&with_address(local.clone(), "127.0.0.1", 9), url), "127.0.0.1:9");
    }
}

#[test]
fn a_url_without_a_scheme_is_one_of_http() {
    let url = "//127.0.0.1:10350/cri/exec/abc";
    assert_eq!(stream_to_relay(&backend("/run/cri.sock", true), url), Ok(None));
    let remote = backend("node-7:1", false);
    assert!(matches!(stream_to_relay(&remote, url), Err(UrlError::ThisNode { .. })));
    let Ok(Some(stream)) = stream_to_relay(&remote, "//node-7:10350/cri/exec/abc") else {
        panic!("it is relayed");
    };
    assert_eq!((stream.server.port, stream.path.as_str()), (10350, "/cri/exec/abc"));
    assert_eq!(relayed(&with_address(remote.clone(), "node-7", 9), url), "node-7:9");
    let Ok(Some(stream)) = stream_to_relay(&remote, "//node-7/exec/abc?back=http://a/b") else {
        panic!("a query does not hide it");
    };
    assert_eq!((stream.server.port, stream.query.as_str()), (80, "?back=http://a/b"));
    let by_address = backend("fd00::7:10010", false);
    assert_eq!(relayed(&by_address, "//[fd00::7]:10350/exec/abc"), "fd00::7:10350");
    for url in ["//[::1]:1/exec/abc", "//localhost:1/exec/abc", "//:1/exec/abc", "///exec/abc"] {
        assert!(matches!(stream_to_relay(&remote, url), Err(UrlError::ThisNode { .. })), "{url}");
    }
    let always = with_mode(backend("/run/cri.sock", true), RelayMode::Always);
    assert_eq!(relayed(&always, url), "127.0.0.1:10350");
}

#[test]
fn an_https_url_of_this_node_is_relayed_only_if_it_can_be_verified() {
    let local = backend("/run/cri.sock", true);
    let url = "https://127.0.0.1:3000/exec/abc";
    assert_eq!(stream_to_relay(&local, url), Ok(None));
    assert_eq!(stream_to_relay(&with_mode(local.clone(), RelayMode::Always), url), Ok(None));
    assert_eq!(relayed(&with_tls(local), url), "127.0.0.1:3000+tls");
}

#[test]
fn the_modes_always_and_never_are_obeyed() {
    let local = backend("/run/cri.sock", true);
    let url = "http://127.0.0.1:3000/exec/abc";
    assert_eq!(relayed(&with_mode(local.clone(), RelayMode::Always), url), "127.0.0.1:3000");
    assert_eq!(stream_to_relay(&with_mode(local, RelayMode::Never), "http://:3000/exec/abc"), Ok(None));
    let remote = with_mode(backend("node-7:10010", false), RelayMode::Never);
    assert_eq!(stream_to_relay(&remote, "http://node-8:3000/exec/abc"), Ok(None));
    assert!(matches!(stream_to_relay(&remote, url), Err(UrlError::ThisNode { .. })));
}

#[test]
fn a_remote_backend_is_relayed_to_its_own_host() {
    let remote = backend("node-7.example:10010", false);
    assert_eq!(relayed(&remote, "http://NODE-7.example.:3000/exec/abc"), "node-7.example:3000");
    assert_eq!(relayed(&remote, "http://node-7.example/exec/abc"), "node-7.example:80");
    let by_address = backend("fd00::7:10010", false);
    assert_eq!(relayed(&by_address, "http://[fd00:0::7]:3000/exec/abc"), "fd00::7:3000");
    assert_eq!(relayed(&with_tls(remote.clone()), "https://node-7.example/exec/a"), "node-7.example:443+tls");
    let mut tls = with_tls(remote);
    tls.streaming.tls = true;
    assert_eq!(relayed(&tls, "http://node-7.example:3000/exec/abc"), "node-7.example:3000+tls");
}

#[test]
fn a_remote_backend_never_aims_a_stream_at_this_node_or_another() {
    for remote in [
        backend("node-7:10010", false),
        backend("127.0.0.1:10010", false),
        backend("/run/tunnel.sock", false),
        with_mode(backend("node-7:10010", false), RelayMode::Always),
    ] {
        for host in [
            "127.0.0.1:10250",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "localhost:1",
            "LOCALHOST.:1",
            "a.localhost:1",
            "0.0.0.0:1",
            "[::]:1",
            ":1",
            "",
        ] {
            let url = format!("http://{host}/exec/abc");
            assert!(matches!(stream_to_relay(&remote, &url), Err(UrlError::ThisNode { .. })), "{url}");
        }
        assert!(stream_to_relay(&remote, "http://10.96.0.1:443/exec/abc").is_err());
        assert!(stream_to_relay(&remote, "http://node-7@127.0.0.1:1/exec/abc").is_err());
        assert!(stream_to_relay(&remote, "http://node-7.evil:1/exec/abc").is_err());
        assert!(matches!(stream_to_relay(&remote, "/exec/abc"), Err(UrlError::ThisNode { .. })));
    }
}

#[test]
fn a_configured_address_is_dialled_whatever_the_url_names() {
    let remote = with_address(backend("node-7:10010", false), "node-7", 10011);
    for url in ["http://127.0.0.1:3000/exec/abc", "http://10.9.9.9:1/exec/abc", "/exec/abc"] {
        assert_eq!(relayed(&remote, url), "node-7:10011", "{url}");
    }
}

#[test]
fn a_remote_tls_server_that_cannot_be_verified_is_refused() {
    let remote = backend("node-7:10010", false);
    assert_eq!(stream_to_relay(&remote, "https://node-7:1/exec/abc"), Err(UrlError::NoTls));
}

#[test]
fn urls_that_could_smuggle_or_are_no_streams_are_refused() {
    let remote = backend("node-7:10010", false);
    for (url, error) in [
        ("http://node-7:1/exec/a\r\nHost: x", UrlError::Malformed),
        ("http://node-7:1/exec/a b", UrlError::Malformed),
        ("http://node-7:99999/exec/abc", UrlError::Malformed),
        ("ftp://node-7:1/exec/abc", UrlError::Malformed),
        ("http://node-7:1", UrlError::Malformed),
        ("", UrlError::Malformed),
        ("http://node-7:1/metrics", UrlError::NotAStream),
        ("http://node-7:1/exec/", UrlError::NotAStream),
    ] {
        assert_eq!(stream_to_relay(&remote, url), Err(error), "{url}");
    }
}

#[test]
fn refusals_say_what_to_set_and_keep_the_token_to_themselves() {
    let remote = backend("node-7:10010", false);
    for url in ["http://127.0.0.1:1/exec/sEcReT", "http://node-8:1/exec/sEcReT"] {
        let text = stream_to_relay(&remote, url).unwrap_err().to_string();
        assert!(text.contains("stream_server_address") && text.contains("stream_server_port"), "{text}");
        assert!(!text.contains("sEcReT"), "{text}");
    }
}

#[test]
fn path_prefix_and_query_are_kept() {
    let remote = backend("node-7:10010", false);
    let Ok(Some(stream)) = stream_to_relay(&remote, "http://node-7:1/cri/exec/abc?x=1&y") else {
        panic!("passed")
    };
    assert_eq!(
        (stream.kind, stream.path.as_str(), stream.query.as_str()),
        (StreamKind::Exec, "/cri/exec/abc", "?x=1&y")
    );
}
