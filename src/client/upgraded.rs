//! What remains of a connection when HTTP hands it over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Stream;
use crate::pool::UpgradedLease;

/// A connection that left HTTP (RFC 9110 §7.8). Reads what came behind the response head first.
#[derive(Debug)]
pub struct Upgraded {
    left_over: Bytes,
    stream: Stream,
    _lease: UpgradedLease,
}

impl Upgraded {
    pub(crate) fn new(stream: Stream, left_over: Bytes, lease: UpgradedLease) -> Self {
        Self {
            left_over,
            stream,
            _lease: lease,
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.left_over.is_empty() {
            let n = self.left_over.len().min(buf.remaining());
            buf.put_slice(&self.left_over.split_to(n));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
