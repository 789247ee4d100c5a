//! What remains of a connection, or of a stream, when HTTP hands it over.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Stream;
use crate::http2::Tunnel;
use crate::io::{AttendUpload, BoxFuture};
use crate::pool::{H2Lease, UpgradedLease, UpgradedParts};

/// A connection that left HTTP (RFC 9110 §7.8), or one stream of an HTTP/2 connection (RFC 8441). Reads what
/// came behind the response head first.
///
/// Shutting it down ends the way out alone: close_notify and FIN, or END_STREAM. Dropping it closes the
/// connection, or resets the stream unless both ways have ended; other streams notice nothing.
#[derive(Debug)]
pub struct Upgraded {
    inner: Inner,
}

enum Inner {
    Connection {
        left_over: Bytes,
        stream: Box<Stream>,
        attendance: Attendance,
        _lease: UpgradedLease,
    },
    Stream(Box<Tunnel<H2Lease>>),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // None of the bytes.
            Self::Connection { stream, .. } => stream.fmt(f),
            Self::Stream(tunnel) => tunnel.fmt(f),
        }
    }
}

/// Keeps the kernel from ending the connection while the peer takes its time with what was sent, from the first write
/// on. Polled beside whatever waits.
struct Attendance {
    attendant: Option<Box<dyn AttendUpload>>,
    attending: Option<BoxFuture<'static, ()>>,
}

impl fmt::Debug for Attendance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attendance").finish_non_exhaustive()
    }
}

impl Attendance {
    /// Something is written: from now on it looks, whoever waits for what.
    fn attend(&mut self, cx: &mut Context<'_>) {
        if let Some(attendant) = self.attendant.take() {
            self.attending = attendant.attend();
        }
        self.look(cx);
    }

    fn look(&mut self, cx: &mut Context<'_>) {
        if let Some(attending) = &mut self.attending {
            let _never = attending.as_mut().poll(cx);
        }
    }

    /// Passes on what waits.
    fn beside<R>(&mut self, cx: &mut Context<'_>, polled: Poll<R>) -> Poll<R> {
        if polled.is_pending() {
            self.look(cx);
        }
        polled
    }
}

impl Upgraded {
    pub(crate) fn connection(parts: UpgradedParts) -> Self {
        let UpgradedParts {
            stream,
            left_over,
            attendant,
            lease,
        } = parts;
        Self {
            inner: Inner::Connection {
                left_over,
                stream: Box::new(stream),
                attendance: Attendance {
                    attendant,
                    attending: None,
                },
                _lease: lease,
            },
        }
    }

    pub(crate) fn stream(tunnel: Tunnel<H2Lease>) -> Self {
        Self {
            inner: Inner::Stream(Box::new(tunnel)),
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Connection { left_over, .. } if !left_over.is_empty() => {
                let n = left_over.len().min(buf.remaining());
                buf.put_slice(&left_over.split_to(n));
                Poll::Ready(Ok(()))
            }
            Inner::Connection {
                stream, attendance, ..
            } => {
                let read = Pin::new(stream).poll_read(cx, buf);
                attendance.beside(cx, read)
            }
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Connection {
                stream, attendance, ..
            } => {
                attendance.attend(cx);
                Pin::new(stream).poll_write_vectored(cx, bufs)
            }
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Connection {
                stream, attendance, ..
            } => {
                let flushed = Pin::new(stream).poll_flush(cx);
                attendance.beside(cx, flushed)
            }
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Connection { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_shutdown(cx),
        }
    }
}
