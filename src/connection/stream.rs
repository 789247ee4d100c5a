//! The byte stream under HTTP: plain or TLS, over the wire.
//!
//! With early data HTTP begins before the handshake has ended ([`Early`]). Then a flush is done when
//! the bytes are in the socket, and a read drives the handshake first; HTTP notices nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::client::TlsStream;

use crate::clock::now;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::io::{Carrier, Expected, Transport, Wire};
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

/// A handshake that still runs under early data, and how long it may.
#[derive(Debug)]
pub(crate) struct OpenHandshake {
    early: Arc<Early>,
    /// Counted from the first flight: a request that is not polled does not run out of time.
    left: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl OpenHandshake {
    pub(super) fn new(early: Arc<Early>, left: Duration) -> Self {
        Self {
            early,
            left,
            timer: None,
        }
    }

    /// Ready with the error once its time is over.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let left = self.left;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Error::new(ErrorKind::Timeout, "the handshake took too long").at(Phase::Tls))
    }

    /// Notes how it failed, for whoever asks, and as the error of the stream.
    fn fail(&self, error: Error, at: Instant) -> io::Error {
        // Early data may have been read before the handshake failed.
        let error = error.with_replay(ReplaySafety::MaybeProcessed);
        self.early.failed(error.clone(), at);
        io::Error::new(io::ErrorKind::ConnectionAborted, error)
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
        let Self::Tls {
            tls,
            early: early @ Some(_),
        } = self
        else {
            return Poll::Ready(Ok(()));
        };
        let open = early.as_mut().expect("it was just matched");
        if let Some(error) = open.early.failure() {
            let error = error.clone();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)));
        }
        // tokio-rustls ends the handshake, and repeats rejected bytes, in its flush.
        let flushed = Pin::new(&mut **tls).poll_flush(cx);
        let (wire, session) = tls.get_ref();
        let at = wire.last_read().unwrap_or_else(now);
        match flushed {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(open.fail(tls::explain(error), at)));
            }
            Poll::Pending if session.is_handshaking() => {
                let error = ready!(open.poll_timer(cx));
                return Poll::Ready(Err(open.fail(error, at)));
            }
            // The handshake is over, and what is left of the request waits for the socket: the answer
            // can be read meanwhile.
            Poll::Pending if session.is_early_data_accepted() => {}
            // Rejected, and not yet all sent again.
            Poll::Pending => return Poll::Pending,
        }
        let ended = open.early.ended(tls::late_facts(session), at);
        match ended {
            Ok(()) => {
                *early = None;
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, error))),
        }
    }

    /// A write under early data. Beyond what the ticket allows, tokio-rustls drives the handshake in it.
    #[cold]
    fn after_early_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Self::Tls {
            tls,
            early: Some(open),
        } = self
        else {
            return written;
        };
        let at = now();
        match written {
            Poll::Ready(Err(error)) => Poll::Ready(Err(open.fail(tls::explain(error), at))),
            Poll::Pending => {
                // Who waits here waits for the answer to a flight that must have left.
                let wire = tls.get_mut().0;
                wire.uncork();
                if let Poll::Ready(Err(error)) = Pin::new(wire).poll_flush(cx) {
                    return Poll::Ready(Err(open.fail(tls::explain(error), at)));
                }
                if tls.get_ref().1.is_handshaking() {
                    let error = ready!(open.poll_timer(cx));
                    return Poll::Ready(Err(open.fail(error, at)));
                }
                Poll::Pending
            }
            written => written,
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

    fn bytes_read(&self) -> u64 {
        self.wire().bytes_read()
    }

    fn hold(&mut self) {
        self.wire_mut().hold();
    }

    fn uncork(&mut self) {
        self.wire_mut().uncork();
    }

    fn write_ahead(&mut self) {
        self.wire_mut().write_ahead();
    }

    fn release_buffers(&mut self) {
        self.wire_mut().release_buffers();
    }

    fn expect(&mut self, expected: Expected) {
        self.wire_mut().expect(expected);
    }

    fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(wire) => wire.has_unsent(),
            Self::Tls { tls, .. } => {
                let (wire, session) = tls.get_ref();
                wire.has_unsent() || session.wants_write()
            }
        }
    }

    fn is_still_quiet(&mut self) -> bool {
        !self.is_early() && !self.wire_mut().read_ahead(Transport::read_now)
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

impl AsyncBufRead for Stream {
    fn poll_fill_buf(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.is_early() {
            ready!(self.poll_end_early(cx))?;
        }
        each_stream!(self, io => Pin::new(io).poll_fill_buf(cx))
    }

    fn consume(self: Pin<&mut Self>, n: usize) {
        each_stream!(self, io => Pin::new(io).consume(n));
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_early() {
            let this = self.as_mut();
            let written = each_stream!(this, io => Pin::new(io).poll_write(cx, buf));
            return self.after_early_write(cx, written);
        }
        each_stream!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_early() {
            let this = self.as_mut();
            let written = each_stream!(this, io => Pin::new(io).poll_write_vectored(cx, bufs));
            return self.after_early_write(cx, written);
        }
        each_stream!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_early() {
            match self.poll_end_early(cx) {
                Poll::Pending if !self.has_unsent() => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(ended) => ended?,
            }
        }
        each_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_early() {
            // There is no session yet to say goodbye in, and nothing that waits shall leave any more.
            let wire = self.wire_mut();
            wire.discard();
            return Pin::new(wire).poll_shutdown(cx);
        }
        each_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
