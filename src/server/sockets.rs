//! The listening sockets of the process: those it was handed, and those it hands over.
//!
//! A process that takes over from another one (`handover.rs`) gets its listening sockets, so that no client
//! is refused in between. Each is asked for by what the configuration calls it, a path or an address; one
//! that was not handed over is bound. No connection is accepted before [`Sockets::open`], because until then
//! the other process accepts them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::Listener;
use crate::handover::{MAX_FDS, OfferedSocket};
use crate::mutex::lock;

/// The listening sockets of the process. Clones are of the same sockets.
#[derive(Debug, Clone, Default)]
pub struct Sockets(Arc<SocketTable>);

#[derive(Debug, Default)]
struct SocketTable {
    /// Those that another process handed over, until they are taken.
    handed: Mutex<BTreeMap<String, Handed>>,
    listening: Mutex<Vec<Weak<ListeningSocket>>>,
    open: CancellationToken,
}

/// A socket that another process handed over.
#[derive(Debug)]
struct Handed {
    fd: OwnedFd,
    owned: bool,
}

/// A socket that listens, for as long as this value lives.
#[derive(Debug)]
pub struct ListeningSocket {
    key: String,
    owned: bool,
    fd: Mutex<Option<OwnedFd>>,
    /// Whether its file is another process's, which listens on it too.
    released: AtomicBool,
}

impl Sockets {
    /// Returns sockets that are accepted from at once; none was handed over.
    pub fn fresh() -> Self {
        let sockets = Self::default();
        sockets.open();
        sockets
    }

    /// Returns sockets that another process handed over; none is accepted from before [`Sockets::open`].
    pub fn from_offer(offered: impl Iterator<Item = (OfferedSocket, OwnedFd)>) -> Self {
        let sockets = Self::default();
        let handed = offered.map(|(OfferedSocket { key, owned }, fd)| (key, Handed { fd, owned }));
        lock(&sockets.0.handed).extend(handed);
        sockets
    }

    /// Lets connections be accepted, closes what was handed over for nothing, and takes the files over.
    pub fn open(&self) {
        lock(&self.0.handed).clear();
        for socket in self.listening() {
            socket.released.store(false, Ordering::SeqCst);
        }
        self.0.open.cancel();
    }

    /// Completes once connections may be accepted.
    pub async fn may_accept(&self) {
        self.0.open.cancelled().await;
    }

    /// Listens on a path: takes the socket that was handed over for it, or does as [`Listener::bind`].
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn listen(
        &self,
        path: &Path,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> anyhow::Result<Listener> {
        let key = path.display().to_string();
        let mut listener = match self.take(&key) {
            Some(Handed { fd, owned }) => {
                let listener = Listener::from_handed(fd.into(), path, owned)?;
                if owned {
                    super::set_permissions(path, mode, owner)?;
                }
                listener
            }
            None => Listener::bind(path, mode, owner).await?,
        };
        let is_ours = listener.file.made.is_some();
        self.keep(key, is_ours, &mut listener)?;
        Ok(listener)
    }

    /// Takes the socket that another process handed over for a path without owning its file.
    ///
    /// # Errors
    /// If it cannot be set to non-blocking.
    pub fn take_inherited(&self, path: &Path) -> io::Result<Option<Listener>> {
        let key = path.display().to_string();
        let mut handed = lock(&self.0.handed);
        if handed.get(&key).is_none_or(|handed| handed.owned) {
            return Ok(None);
        }
        let Some(Handed { fd, .. }) = handed.remove(&key) else { return Ok(None) };
        drop(handed);
        self.adopt(Listener::from_inherited(fd.into(), path)?, path).map(Some)
    }

    /// Adds a socket that was opened elsewhere; `path` is the configured one.
    ///
    /// # Errors
    /// If the system has no file descriptor.
    pub fn adopt(&self, mut listener: Listener, path: &Path) -> io::Result<Listener> {
        self.keep(path.display().to_string(), false, &mut listener)?;
        Ok(listener)
    }

    fn keep(&self, key: String, owned: bool, listener: &mut Listener) -> io::Result<()> {
        listener.file.socket = Some(self.register(key, owned, listener.bound.as_fd())?);
        listener.sockets = Some(self.clone());
        Ok(())
    }

    /// Listens on an address: takes the socket that was handed over for it, or binds it.
    ///
    /// # Errors
    /// What bind(2) says.
    pub async fn listen_tcp(&self, address: SocketAddr) -> io::Result<(TcpListener, Arc<ListeningSocket>)> {
        let key = address.to_string();
        let listener = match self.take(&key) {
            Some(Handed { fd, .. }) => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)?
            }
            None => TcpListener::bind(address).await?,
        };
        let socket = self.register(key, false, listener.as_fd())?;
        Ok((listener, socket))
    }

    fn take(&self, key: &str) -> Option<Handed> {
        lock(&self.0.handed).remove(key)
    }

    fn register(&self, key: String, owned: bool, fd: BorrowedFd<'_>) -> io::Result<Arc<ListeningSocket>> {
        let fd = Mutex::new(Some(fd.try_clone_to_owned()?));
        // Until this process accepts, the files are the other one's.
        let released = AtomicBool::new(!self.0.open.is_cancelled());
        let socket = Arc::new(ListeningSocket { key, owned, fd, released });
        let mut listening = lock(&self.0.listening);
        listening.retain(|socket| socket.strong_count() > 0);
        listening.push(Arc::downgrade(&socket));
        Ok(socket)
    }

    /// Returns the keys of the sockets that listen.
    pub fn keys(&self) -> Vec<String> {
        self.listening().iter().map(|socket| socket.key.clone()).collect()
    }

    /// Returns the sockets that listen, for another process.
    ///
    /// # Errors
    /// If they are more than one message takes, or the system has no file descriptors.
    pub fn offer(&self) -> io::Result<Vec<(OfferedSocket, OwnedFd)>> {
        let mut offered = Vec::new();
        for socket in self.listening() {
            if let Some(fd) = &*lock(&socket.fd) {
                let (key, owned) = (socket.key.clone(), socket.owned);
                offered.push((OfferedSocket { key, owned }, fd.try_clone()?));
            }
        }
        if offered.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many listening sockets"));
        }
        Ok(offered)
    }

    /// Leaves the files of these sockets to the process that listens on them now.
    pub fn release(&self, keys: &[String]) {
        for socket in self.listening().iter().filter(|socket| keys.contains(&socket.key)) {
            socket.released.store(true, Ordering::SeqCst);
        }
    }

    fn listening(&self) -> Vec<Arc<ListeningSocket>> {
        lock(&self.0.listening).iter().filter_map(Weak::upgrade).collect()
    }
}

impl ListeningSocket {
    /// Stops listening, once the listener itself is closed too.
    pub fn close(&self) {
        lock(&self.fd).take();
    }

    /// Tells whether the file is another process's.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}

impl Listener {
    /// Wraps a socket that another process handed over; with `owned`, its file is crimux's.
    fn from_handed(listener: std::os::unix::net::UnixListener, path: &Path, owned: bool) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let made = owned.then(|| super::device_and_inode(path).ok()).flatten();
        let file = super::SocketFile { path: path.to_owned(), made, socket: None };
        Ok(Self { bound: UnixListener::from_std(listener)?, file, sockets: None })
    }
}
