//! The byte stream under HTTP: plain or TLS, over the wire.
//!
//! With early data HTTP begins before the handshake has ended ([`Early`]). Then a flush is done when
//! the bytes are in the socket, and a read drives the handshake first; HTTP notices nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::client::TlsStream;

use crate::clock::now;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::io::{Carrier, Transport, Wire};
use crate::timing::Phase;
use crate::tls;

use super::early::Early;

/// What HTTP is spoken over.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(Wire<Transport>),
    Tls {
        tls: Box<TlsStream<Wire<Transport>>>,
        early: Option<OpenHandshake>,
    },
}

/// A handshake that still runs under early data, and until when it may.
#[derive(Debug)]
pub(crate) struct OpenHandshake {
    early: Arc<Early>,
    timer: Pin<Box<Sleep>>,
}

impl OpenHandshake {
    pub(super) fn new(early: Arc<Early>, until: Instant) -> Self {
        Self {
            early,
            timer: Box::pin(tokio::time::sleep_until(until.into())),
        }
    }
}

impl Stream {
    fn wire(&self) -> &Wire<Transport> {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls { tls, .. } => tls.get_ref().0,
        }
    }

    fn wire_mut(&mut self) -> &mut Wire<Transport> {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls { tls, .. } => tls.get_mut().0,
        }
    }

    /// From now on every write is written at once.
    pub(crate) fn write_through(&mut self) {
        self.wire_mut().write_through();
    }

    /// The handshake that still runs.
    pub(super) fn early(&self) -> Option<Arc<Early>> {
        match self {
            Self::Tls { early, .. } => early.as_ref().map(|open| open.early.clone()),
            Self::Plain(_) => None,
        }
    }

    fn is_early(&self) -> bool {
        matches!(self, Self::Tls { early: Some(_), .. })
    }

    /// Drives a handshake under early data to its end.
    #[cold]
    fn poll_end_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Tls { tls, early: open } = self else {
            return Poll::Ready(Ok(()));
        };
        let Some(OpenHandshake { early, timer }) = open else {
            return Poll::Ready(Ok(()));
        };
        // tokio-rustls ends the handshake, and repeats rejected bytes, in its flush.
        let flushed = match Pin::new(&mut **tls).poll_flush(cx) {
            Poll::Ready(flushed) => flushed.map_err(tls::explain),
            Poll::Pending => {
                ready!(timer.as_mut().poll(cx));
                Err(Error::new(ErrorKind::Timeout, "the handshake took too long").at(Phase::Tls))
            }
        };
        let (wire, session) = tls.get_ref();
        let at = wire.last_read().unwrap_or_else(now);
        let ended = match flushed {
            Ok(()) => early.ended(tls::late_facts(session), at),
            Err(error) => {
                // Early data may have been read before the handshake failed.
                let error = error.with_replay(ReplaySafety::MaybeProcessed);
                early.failed(error.clone(), at);
                Err(error)
            }
        };
        match ended {
            Ok(()) => {
                *open = None;
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, error))),
        }
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

    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end_early(cx)
    }
}

macro_rules! each_stream {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($io) => $call,
            Stream::Tls { tls: $io, .. } => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_early() {
            ready!(self.poll_end_early(cx))?;
        }
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_early() {
            return match self.poll_end_early(cx) {
                Poll::Pending if !self.wire().has_unsent() => Poll::Ready(Ok(())),
                ended => ended,
            };
        }
        each_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
