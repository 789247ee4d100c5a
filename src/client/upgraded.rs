//! What remains of a connection, or of a stream, when HTTP hands it over.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Stream;
use crate::http2::Tunnel;
use crate::pool::{H2Lease, UpgradedLease};

/// A connection that left HTTP (RFC 9110 §7.8), or one stream of an HTTP/2 connection (RFC 8441). Reads what
/// came behind the response head first.
///
/// Shutting it down ends the way out alone: close_notify and FIN, or END_STREAM. Dropping it closes the
/// connection, or resets the stream unless both ways have ended; other streams notice nothing.
#[derive(Debug)]
pub struct Upgraded {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Connection {
        left_over: Bytes,
        stream: Box<Stream>,
        _lease: UpgradedLease,
    },
    Stream(Box<Tunnel<H2Lease>>),
}

impl Upgraded {
    pub(crate) fn connection(stream: Stream, left_over: Bytes, lease: UpgradedLease) -> Self {
        Self {
            inner: Inner::Connection {
                left_over,
                stream: Box::new(stream),
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
            Inner::Connection { stream, .. } => Pin::new(stream).poll_read(cx, buf),
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Connection { stream, .. } => Pin::new(stream).poll_write(cx, buf),
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Connection { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
            Inner::Stream(tunnel) => Pin::new(tunnel).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Connection { stream, .. } => Pin::new(stream).poll_flush(cx),
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
