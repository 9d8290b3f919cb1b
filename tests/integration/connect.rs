//! Connections to backends: what comes through, and what each failure says.

use std::time::Duration;

use crate::pki::{Authority, Files, backend, replace, server};
use crimux::backend::connect::{ConnectError, ConnectStep, Connector, Stream};
use crimux::backend::tls::{CertificateFault, CertificateRole};
use crimux::config::{BackendConfig, Endpoint, Tls};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// Serves TLS on a port of its own: greets every peer with its ALPN protocol, then echoes. Ends with the
/// test.
async fn greeter(acceptor: TlsAcceptor) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let protocol = stream.get_ref().1.alpn_protocol().unwrap_or(b"--").to_vec();
                if stream.write_all(&protocol[..2]).await.is_ok() {
                    let (mut from, mut to) = tokio::io::split(stream);
                    tokio::io::copy(&mut from, &mut to).await.ok();
                }
            });
        }
    });
    port
}

fn https(host: &str, port: u16, tls: Tls) -> BackendConfig {
    let mut config = backend(Endpoint::Tcp { host: host.to_owned(), port, tls: true }, false);
    config.tls = Some(tls);
    // The machine may be busy; the limits themselves are tested on their own.
    config.timeouts.connect = Duration::from_secs(10);
    config
}

async fn connect(config: &BackendConfig) -> Result<Stream, ConnectError> {
    Connector::new(config).unwrap().connect().await
}

async fn greeting(stream: &mut Stream) -> [u8; 2] {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.unwrap();
    greeting
}

async fn fault(config: &BackendConfig) -> (CertificateFault, String) {
    match connect(config).await.unwrap_err() {
        ConnectError::Certificate { target, fault } => {
            let text = ConnectError::Certificate { target, fault: fault.clone() }.to_string();
            (fault, text)
        }
        other => panic!("not about a certificate: {other}"),
    }
}

#[tokio::test]
async fn mutual_tls_of_both_versions_speaks_h2() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &[])));
    for version in BOTH {
        let acceptor = server(&authority.issue("node", &["localhost"]), Some(&authority), &[version]);
        let port = greeter(acceptor).await;
        let mut stream = connect(&https("localhost", port, files.tls())).await.unwrap();
        assert_eq!(&greeting(&mut stream).await, b"h2");
        stream.write_all(b"echo").await.unwrap();
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"echo");
    }
}

#[tokio::test]
async fn a_streaming_server_is_reached_over_http1_with_the_same_identity() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &[])));
    let acceptor = server(&authority.issue("node", &["localhost"]), Some(&authority), BOTH);
    let port = greeter(acceptor).await;
    let connector = Connector::new(&https("elsewhere", 1, files.tls())).unwrap();
    let mut stream = connector.connect_to("localhost", port, true).await.unwrap();
    assert_eq!(&greeting(&mut stream).await, b"ht");
}

#[tokio::test]
async fn an_ip_address_or_a_configured_name_may_be_the_server_name() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let by_address = greeter(server(&authority.issue("node", &["127.0.0.1"]), None, BOTH)).await;
    connect(&https("127.0.0.1", by_address, files.tls())).await.unwrap();
    let by_name = greeter(server(&authority.issue("node", &["node-7.example"]), None, BOTH)).await;
    let tls = Tls { server_name: Some("node-7.example".to_owned()), ..files.tls() };
    connect(&https("127.0.0.1", by_name, tls)).await.unwrap();
}

#[tokio::test]
async fn an_unknown_authority_is_named_as_such() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let files = Files::new(&ours.pem(), None);
    let port = greeter(server(&theirs.issue("node", &["localhost"]), None, BOTH)).await;
    let (fault, text) = fault(&https("localhost", port, files.tls())).await;
    assert_eq!(fault, CertificateFault::UnknownAuthority { ca: files.path("ca.crt") });
    assert!(text.starts_with(&format!("localhost:{port}: its certificate is signed by")), "{text}");
}

#[tokio::test]
async fn an_authority_of_the_same_name_with_another_key_is_unknown_too() {
    let (ours, theirs) = (Authority::new("site"), Authority::new("site"));
    let files = Files::new(&ours.pem(), None);
    let port = greeter(server(&theirs.issue("node", &["localhost"]), None, BOTH)).await;
    let (fault, _) = fault(&https("localhost", port, files.tls())).await;
    assert_eq!(fault, CertificateFault::UnknownAuthority { ca: files.path("ca.crt") });
}

#[tokio::test]
async fn an_expired_certificate_is_reported_with_its_date() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let expired = authority.issue_for("node", &["localhost"], (2020, 1, 1), (2021, 2, 3));
    let port = greeter(server(&expired, None, BOTH)).await;
    let (fault, text) = fault(&https("localhost", port, files.tls())).await;
    assert!(!fault.is_ours());
    assert_eq!(
        text,
        format!("localhost:{port}: its certificate has been expired since 2021-02-03T00:00:00Z")
    );
}

#[tokio::test]
async fn a_certificate_of_the_future_is_reported_with_its_date() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let future = authority.issue_for("node", &["localhost"], (2089, 1, 2), (2090, 1, 1));
    let port = greeter(server(&future, None, BOTH)).await;
    let (_, text) = fault(&https("localhost", port, files.tls())).await;
    assert!(text.ends_with("its certificate is not valid before 2089-01-02T00:00:00Z"), "{text}");
}

#[tokio::test]
async fn a_wrong_name_is_reported_with_the_names_it_holds() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let acceptor = server(&authority.issue("node", &["node-7.example", "10.0.0.7"]), None, BOTH);
    let port = greeter(acceptor).await;
    let (fault, text) = fault(&https("localhost", port, files.tls())).await;
    let holds = vec!["node-7.example".to_owned(), "10.0.0.7".to_owned()];
    assert_eq!(fault, CertificateFault::WrongName { expected: "localhost".to_owned(), holds });
    assert!(text.ends_with("does not hold the name localhost, only node-7.example, 10.0.0.7"), "{text}");
}

#[tokio::test]
async fn a_missing_client_certificate_is_told_in_both_versions() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    for version in BOTH {
        let acceptor = server(&authority.issue("node", &["localhost"]), Some(&authority), &[version]);
        let port = greeter(acceptor).await;
        let (fault, _) = fault(&https("localhost", port, files.tls())).await;
        assert_eq!(fault, CertificateFault::OursMissing, "{version:?}");
        assert!(fault.is_ours());
    }
}

#[tokio::test]
async fn a_refused_client_certificate_is_described_without_its_key() {
    let (site, other) = (Authority::new("site"), Authority::new("other"));
    let client = other.issue_for("crimux", &[], (2020, 1, 1), (2022, 1, 1));
    let files = Files::new(&site.pem(), Some(&client));
    for version in BOTH {
        let port = greeter(server(&site.issue("node", &["localhost"]), Some(&site), &[version])).await;
        let (fault, text) = fault(&https("localhost", port, files.tls())).await;
        assert!(fault.is_ours(), "{text}");
        assert!(
            text.contains("client.crt (CN=crimux, valid from 2020-01-01T00:00:00Z to 2022-01-01"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_refusal_that_comes_late_is_found_in_the_read_error() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let acceptor = server(&authority.issue("node", &["localhost"]), Some(&authority), &[&TLS13]);
    let port = greeter(acceptor).await;
    let connector = Connector::new(&https("localhost", port, files.tls())).unwrap();
    let mut stream = connector.connect_to("localhost", port, true).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert!(matches!(
        ConnectError::find(&error),
        Some(ConnectError::Certificate { fault: CertificateFault::OursMissing, .. })
    ));
}

#[tokio::test]
async fn certificates_are_rotated_without_a_new_connector() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new(&new.pem(), Some(&old.issue("crimux", &[])));
    let port = greeter(server(&new.issue("node", &["localhost"]), Some(&new), BOTH)).await;
    let connector = Connector::new(&https("localhost", port, files.tls())).unwrap();
    assert!(matches!(connector.connect().await, Err(ConnectError::Certificate { .. })));

    files.rotate(&new.issue("crimux", &[]));
    connector.connect().await.unwrap();

    replace(&files.path("client.crt"), "half a certific");
    connector.connect().await.expect("the certificate read before stays current");

    files.rotate(&old.issue("crimux", &[]));
    assert!(matches!(connector.connect().await, Err(ConnectError::Certificate { .. })));
}

#[tokio::test]
async fn a_plain_text_peer_is_recognised() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = https("localhost", port, files.tls());
    let connecting = tokio::spawn(async move { connect(&config).await });
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = connecting.await.unwrap().unwrap_err();
    assert_eq!(error.step(), ConnectStep::Handshake);
    assert!(error.to_string().ends_with("the peer answers, but not with TLS"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_host_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let endpoint = |host: &str| Endpoint::Tcp { host: host.to_owned(), port, tls: false };
    let refused = connect(&backend(endpoint("127.0.0.1"), false)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Connect { .. }), "{refused}");
    assert!(refused.to_string().starts_with(&format!("127.0.0.1:{port}: cannot be connected")), "{refused}");

    let mut unknown = backend(endpoint("no such host"), false);
    unknown.timeouts.connect = Duration::from_secs(30);
    let error = connect(&unknown).await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_never_answers_the_handshake_costs_no_more_than_the_timeout() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = https("127.0.0.1", listener.local_addr().unwrap().port(), files.tls());
    config.timeouts.connect = Duration::from_millis(300);
    let error = connect(&config).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { step: ConnectStep::Handshake, .. }), "{error}");
    assert!(
        error.to_string().ends_with("not connected within 300ms: the TLS handshake took too long"),
        "{error}"
    );
}

#[tokio::test]
async fn a_unix_socket_is_connected_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    let config = backend(Endpoint::Unix(path.clone()), true);
    let missing = connect(&config).await.unwrap_err().to_string();
    assert!(missing.starts_with(&format!("{}: cannot be connected", path.display())), "{missing}");
    let listener = UnixListener::bind(&path).unwrap();
    let mut stream = connect(&config).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.write_all(b"hi").await.unwrap();
    assert_eq!(&greeting(&mut stream).await, b"hi");
}

#[tokio::test]
async fn a_unix_socket_with_a_full_backlog_is_late_and_not_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cri.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let mut config = backend(Endpoint::Unix(path), true);
    config.timeouts.connect = Duration::from_millis(200);
    let _first = connect(&config).await.unwrap();
    let error = connect(&config).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { step: ConnectStep::Connect, .. }), "{error}");
}

#[tokio::test]
async fn our_certificates_are_described_for_the_operator() {
    let authority = Authority::new("site");
    let client = authority.issue_for("crimux", &[], (2020, 1, 1), (2033, 4, 5));
    let files = Files::new(&authority.pem(), Some(&client));
    let described = Connector::new(&https("localhost", 1, files.tls())).unwrap().describe_tls().unwrap();
    let roles: Vec<_> = described.iter().map(|info| info.role).collect();
    assert_eq!(roles, [CertificateRole::Authority, CertificateRole::Client]);
    assert!(described[1].to_string().ends_with("to 2033-04-05T00:00:00Z)"), "{}", described[1]);
}

#[test]
fn unusable_files_are_named_and_never_quoted() {
    let authority = Authority::new("site");
    let files = Files::new(&authority.pem(), Some(&authority.issue("crimux", &[])));
    let config = https("localhost", 1, files.tls());
    let error = || Connector::new(&config).unwrap_err().to_string();

    replace(&files.path("client.key"), &authority.issue("other", &[]).key);
    assert!(error().contains("do not belong together"), "{}", error());

    replace(
        &files.path("client.key"),
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!!\n-----END PRIVATE KEY-----\n",
    );
    assert!(error().ends_with("client.key holds no usable private key"), "{}", error());

    std::fs::remove_file(files.path("client.key")).unwrap();
    assert!(error().contains("client.key: No such file"), "{}", error());
}
