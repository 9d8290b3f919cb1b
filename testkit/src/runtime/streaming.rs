//! The server behind the URLs of Exec, Attach and `PortForward`.
//!
//! It checks the token, answers `101 Switching Protocols` and then returns every byte it is sent, whatever
//! the protocol: what is tested is a relay, which must not understand the bytes either. The end of what comes
//! in ends what goes out, after the last echo. Tokens are good once, as containerd's are.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::ids::Ids;

/// The largest request head that is read, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// A request that reached the streaming server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRequest {
    /// The request line and the headers as they came, without the empty line.
    pub head: String,
    /// The status code it was answered with.
    pub status: u16,
}

/// Tokens given out and requests seen.
#[derive(Debug)]
pub(crate) struct Streams {
    port: u16,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ids: Ids,
    open: HashSet<String>,
    requests: Vec<StreamRequest>,
}

impl Streams {
    /// Binds a loopback port and serves it until the task is aborted.
    pub(crate) async fn start(seed: Option<u64>) -> io::Result<(Arc<Self>, tokio::task::JoinHandle<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let inner = Inner { ids: Ids::new(seed), open: HashSet::new(), requests: Vec::new() };
        let streams = Arc::new(Self { port: listener.local_addr()?.port(), inner: Mutex::new(inner) });
        let task = tokio::spawn(accept(listener, Arc::clone(&streams)));
        Ok((streams, task))
    }

    /// Makes a URL that is good for one connection.
    pub(crate) fn mint(&self, base: &str, verb: &str) -> String {
        let mut inner = self.lock();
        let token = inner.ids.next_token();
        let path = format!("/{verb}/{token}");
        inner.open.insert(path.clone());
        format!("{}{path}", base.replace("{port}", &self.port.to_string()))
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn requests(&self) -> Vec<StreamRequest> {
        self.lock().requests.clone()
    }

    /// Decides on a request by its head, and writes it down.
    fn admit(&self, head: &str) -> u16 {
        let mut inner = self.lock();
        let path = head.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
        let status = match (inner.open.contains(path), header(head, "upgrade")) {
            (false, _) => 404,
            (true, None) => 400,
            (true, Some(_)) => 101,
        };
        if status == 101 {
            inner.open.remove(path);
        }
        inner.requests.push(StreamRequest { head: head.to_owned(), status });
        status
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

async fn accept(listener: TcpListener, streams: Arc<Streams>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        let streams = Arc::clone(&streams);
        // A connection that breaks is the peer's business.
        connections.spawn(async move { serve(connection, &streams).await.unwrap_or_default() });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut connection: TcpStream, streams: &Streams) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let Some((head, rest)) = read_head(&mut connection).await? else { return Ok(()) };
    let status = streams.admit(&head);
    if status != 101 {
        let reason = if status == 404 { "Not Found" } else { "Bad Request" };
        let answer = format!("HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        connection.write_all(answer.as_bytes()).await?;
        return connection.shutdown().await;
    }
    let mut answer = String::from("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n");
    for name in ["Upgrade", "X-Stream-Protocol-Version", "Sec-WebSocket-Protocol"] {
        if let Some(value) = header(&head, name) {
            let first = value.split(',').next().unwrap_or_default().trim();
            answer.extend([name, ": ", first, "\r\n"]);
        }
    }
    answer.push_str("\r\n");
    connection.write_all(answer.as_bytes()).await?;
    connection.write_all(&rest).await?;
    let (mut incoming, mut outgoing) = connection.split();
    tokio::io::copy(&mut incoming, &mut outgoing).await?;
    outgoing.shutdown().await
}

/// Reads up to the empty line; returns the head and the bytes after it.
async fn read_head(connection: &mut TcpStream) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut buffer = Vec::with_capacity(1024);
    while buffer.len() < MAX_HEAD {
        if connection.read_buf(&mut buffer).await? == 0 {
            return Ok(None);
        }
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            buffer.truncate(end);
            return Ok(Some((String::from_utf8_lossy(&buffer).into_owned(), rest)));
        }
    }
    Ok(None)
}

/// Returns the value of a header, whatever its case.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim()))
}
