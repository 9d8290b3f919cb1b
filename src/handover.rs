//! The channel between a crimux and the process that takes over from it.
//!
//! ```text
//! old process                                new process
//!   Offer: listening sockets ──────────────▶   reads the configuration, takes the sockets
//!   writes all of its state, writes no more ◀─ AskState
//!   State: the lock, the stream of changes ─▶   loads the state, lists every backend
//!                                           ◀─ Ready
//!   Memory: what is in memory alone ───────▶
//!   Serve ─────────────────────────────────▶   accepts connections
//!   finishes its calls: Left, once a second ▶   shows them
//!   ends                                    ◀─ End: the new process was told to end
//! ```
//!
//! One message is one packet of a `SOCK_SEQPACKET` pair, JSON with the file descriptors that belong to it
//! (`unix(7)`, `SCM_RIGHTS`). The end of either process ends the channel, however it came. Fields may be
//! added: a process may be handed over to by an older one and hand over to a newer one.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::memfd::MFdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The largest message, in bytes. It names every listening socket.
const MAX_MESSAGE: usize = 128 << 10;
/// The most file descriptors of one message (`SCM_MAX_FD` of Linux).
pub const MAX_FDS: usize = 253;

/// A message of either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverMessage {
    /// The listening sockets, one file descriptor each, and what else the new process needs to begin.
    Offer(Offer),
    /// The new process has read its configuration.
    AskState,
    /// The state is on the disk. With the lock of the state, if the old process holds one, and the stream of
    /// the changes that follow.
    State {
        /// Whether the lock is the first file descriptor.
        locked: bool,
    },
    /// The new process can answer calls.
    Ready {
        /// Its version.
        version: String,
        /// The keys of the sockets that it listens on.
        sockets: Vec<String>,
    },
    /// What the old process keeps in memory alone, as the file descriptor of a file.
    Memory,
    /// The new process is to accept connections; the old one accepts no more.
    Serve,
    /// What processes that were replaced have left: the old one, and those before it.
    Left(Vec<OlderProcess>),
    /// The process that sends it has handed over in its turn: none is to be started in its place.
    HandedOn,
    /// The process that sends it ends as it was told to.
    End,
    /// The new process cannot take over.
    Refuse {
        /// The reason.
        error: String,
    },
}

/// What the old process offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The old process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Where its state is.
    pub state_dir: PathBuf,
    /// The processes before it that still finish calls.
    #[serde(default)]
    pub older: Vec<OlderProcess>,
    /// Its listening sockets, in the order of the file descriptors.
    pub sockets: Vec<OfferedSocket>,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedSocket {
    /// The path or the address of the configuration that it was made for.
    pub key: String,
    /// Whether crimux made its file, and so removes it.
    pub owned: bool,
}

/// A process that was replaced, and what it has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderProcess {
    /// The process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it was replaced, in seconds since the Unix epoch.
    pub since: u64,
    /// Calls in flight, streams of events among them.
    pub calls: usize,
    /// Relayed streams that are open, or may still be opened.
    pub streams: usize,
}

impl OlderProcess {
    /// Returns a process that is replaced now and has nothing left.
    pub fn replaced_now(pid: u32, version: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { pid, version: version.to_owned(), since, calls: 0, streams: 0 }
    }
}

/// Writes `content` to a file in memory, for another process.
///
/// # Errors
/// If the system has no file descriptors or no memory.
pub fn file_of(content: &[u8]) -> io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create(c"crimux-memory", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads a file that another process has made by [`file_of`].
///
/// # Errors
/// If it cannot be read.
pub fn content_of(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::from(fd).read_to_end(&mut content)?;
    Ok(content)
}

/// One end of the channel. The socket is no stream, but tokio waits for both in the same way.
#[derive(Debug)]
pub struct HandoverChannel(UnixStream);

impl HandoverChannel {
    /// Makes a channel. The other end is for the standard input of a process.
    ///
    /// # Errors
    /// If the system has no file descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self::new(ours)?, theirs.into()))
    }

    /// Returns the channel that is the standard input.
    ///
    /// # Errors
    /// If it is not a socket.
    pub fn of_stdin() -> io::Result<Self> {
        let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
        if socket.r#type()? != Type::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no packet socket"));
        }
        Self::new(socket)
    }

    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(OwnedFd::from(socket).into())?))
    }

    /// Sends a message with file descriptors, of which there are at most [`MAX_FDS`].
    ///
    /// # Errors
    /// If the other process has ended.
    pub async fn send(&self, message: &HandoverMessage, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many listening sockets"));
            }
            let flags = SendFlags::NOSIGNAL;
            rustix::net::sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, flags)?;
            Ok(())
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// Receives a message and its file descriptors; `None` once the other process has ended. Dropped early,
    /// it has taken nothing. A message that this version does not know is passed over.
    ///
    /// # Errors
    /// If the system call fails, or a message is too long.
    pub async fn receive(&self) -> io::Result<Option<(HandoverMessage, Vec<OwnedFd>)>> {
        let mut text = vec![0; MAX_MESSAGE];
        loop {
            let mut fds = Vec::new();
            let received = || receive(&self.0, &mut text, &mut fds);
            match self.0.async_io(Interest::READABLE, received).await {
                Ok(0) => return Ok(None),
                Ok(length) => match serde_json::from_slice(&text[..length]) {
                    Ok(message) => return Ok(Some((message, fds))),
                    Err(error) => tracing::debug!(%error, "a message of another version is passed over"),
                },
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(socket: &UnixStream, text: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(text)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::{HandoverChannel, HandoverMessage, content_of, file_of};

    #[test]
    fn a_file_in_memory_holds_more_than_a_message() {
        let content = vec![7; super::MAX_MESSAGE * 3];
        assert!(content_of(file_of(&content).unwrap()).unwrap() == content);
    }

    #[tokio::test]
    async fn a_message_arrives_whole_with_its_file_descriptors_and_an_end_as_none() {
        let (ours, theirs) = HandoverChannel::pair().unwrap();
        let theirs = HandoverChannel::new(theirs.into()).unwrap();
        let (mut kept, sent) = UnixStream::pair().unwrap();
        ours.send(&HandoverMessage::State { locked: true }, &[sent.as_fd()]).await.unwrap();
        ours.send(&HandoverMessage::Serve, &[]).await.unwrap();
        drop(sent);
        let (message, mut fds) = theirs.receive().await.unwrap().unwrap();
        assert_eq!((message, fds.len()), (HandoverMessage::State { locked: true }, 1));
        kept.write_all(b"x").unwrap();
        let mut read = [0];
        UnixStream::from(fds.remove(0)).read_exact(&mut read).unwrap();
        assert_eq!(&read, b"x");
        assert_eq!(theirs.receive().await.unwrap().unwrap().0, HandoverMessage::Serve);
        drop(ours);
        assert!(theirs.receive().await.unwrap().is_none());
        assert!(theirs.send(&HandoverMessage::AskState, &[]).await.is_err());
    }
}
