//! The byte stream under HTTP: plain or TLS, over the wire.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::io::{Carrier, Transport, Wire};

/// What HTTP is spoken over.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(Wire<Transport>),
    Tls(Box<TlsStream<Wire<Transport>>>),
}

impl Stream {
    fn wire(&self) -> &Wire<Transport> {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    fn wire_mut(&mut self) -> &mut Wire<Transport> {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls(tls) => tls.get_mut().0,
        }
    }

    /// From now on every write is written at once.
    pub(crate) fn write_through(&mut self) {
        self.wire_mut().write_through();
    }
}

impl Carrier for Stream {
    fn last_read(&self) -> Option<Instant> {
        self.wire().last_read()
    }

    fn bytes_written(&self) -> u64 {
        self.wire().bytes_written()
    }

    fn hold(&mut self) {
        self.wire_mut().hold();
    }

    fn uncork(&mut self) {
        self.wire_mut().uncork();
    }

    fn release_buffers(&mut self) {
        self.wire_mut().release_buffers();
    }
}

macro_rules! each_stream {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($io) => $call,
            Stream::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_stream!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_stream!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_stream!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
