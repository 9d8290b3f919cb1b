//! A connection to a backend over any transport.
//!
//! gRPC and the streaming relay only read and write bytes, so all transports are one type. Bytes pass
//! unchanged. A TLS alert that refuses our client certificate is translated, because in TLS 1.3 it arrives
//! after the handshake.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tokio_vsock::VsockStream;

use super::ConnectError;
use crate::backend::tls::{CertificateInfo, CertificateRole, TlsIdentity, certificate_refusal, describe};

/// A connected byte stream to a backend.
#[derive(Debug)]
pub enum Stream {
    /// `unix://`.
    Unix(UnixStream),
    /// `http://`.
    Tcp(TcpStream),
    /// `https://`.
    Tls(Box<TlsConnection>),
    /// `vsock://`.
    Vsock(VsockStream),
}

/// A TLS connection. A read error tells if the backend refused our client certificate.
pub struct TlsConnection {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) identity: Arc<TlsIdentity>,
    pub(super) target: String,
}

/// The common interface of the transports.
trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

impl Stream {
    /// Describes the backend's certificate; `None` without TLS.
    pub fn peer_certificate(&self) -> Option<CertificateInfo> {
        let Self::Tls(connection) = self else { return None };
        let chain = connection.stream.get_ref().1.peer_certificates()?;
        describe(chain.first()?, CertificateRole::Backend, Path::new(&connection.target))
    }

    /// Returns the process that listens at a Unix socket, as far as the kernel tells: the one that called
    /// listen(2), which is systemd's if it activates the backend.
    pub fn peer_pid(&self) -> Option<i32> {
        match self {
            Self::Unix(stream) => stream.peer_cred().ok()?.pid(),
            Self::Tcp(_) | Self::Tls(_) | Self::Vsock(_) => None,
        }
    }

    /// Registers the connection with the calling tokio runtime, after it was connected on another thread's.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub fn move_here(mut self) -> io::Result<Self> {
        let tcp = match &mut self {
            Self::Tls(connection) => connection.stream.get_mut().0,
            Self::Tcp(tcp) => tcp,
            Self::Unix(_) | Self::Vsock(_) => return Ok(self),
        };
        // A duplicated descriptor, because the original is registered with the first runtime.
        let copy = std::net::TcpStream::from(tcp.as_fd().try_clone_to_owned()?);
        *tcp = TcpStream::from_std(copy)?;
        Ok(self)
    }

    fn transport(self: Pin<&mut Self>) -> Pin<&mut dyn Transport> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream),
            Self::Tcp(stream) => Pin::new(stream),
            Self::Tls(connection) => Pin::new(&mut connection.stream),
            Self::Vsock(stream) => Pin::new(stream),
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        match self {
            Self::Tls(connection) => connection.explain(error),
            _ => error,
        }
    }
}

impl TlsConnection {
    /// Translates the alert for a refused client certificate, and the end of a connection without one; other
    /// errors pass.
    fn explain(&self, error: io::Error) -> io::Error {
        match certificate_refusal(&error, &self.identity) {
            Some(fault) => {
                let target = self.target.clone();
                io::Error::new(error.kind(), ConnectError::Certificate { target, fault })
            }
            // A process that is killed sends no close_notify, which is what rustls' text is about.
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), "the backend closed the connection")
            }
            None => error,
        }
    }
}

impl fmt::Debug for TlsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnection").field("target", &self.target).finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.as_mut().transport().poll_read(cx, buf);
        read.map_err(|error| self.explain(error))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.transport().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.transport().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(connection) => connection.stream.is_write_vectored(),
            Self::Vsock(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport().poll_shutdown(cx)
    }
}
