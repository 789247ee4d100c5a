//! The server's end of a connection: gives back the bytes peeked from it, and knows how many have been written.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What an HTTP/2 client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream with its first bytes put back in front, whose written bytes are counted (above TLS).
pub(super) struct Io<S> {
    front: Bytes,
    stream: S,
    written: Arc<Written>,
}

impl<S: AsyncRead + Unpin> Io<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            front: Bytes::new(),
            stream,
            written: Arc::default(),
        }
    }

    /// With bytes of the stream that were read before.
    pub(super) fn with_front(front: Vec<u8>, stream: S) -> Self {
        Self {
            front: front.into(),
            ..Self::new(stream)
        }
    }

    pub(super) fn written(&self) -> Arc<Written> {
        Arc::clone(&self.written)
    }

    /// Reads until the peer is known to speak HTTP/2 or not, and puts back what it read.
    pub(super) async fn has_preface(&mut self) -> io::Result<bool> {
        let mut seen = self.front.to_vec();
        while PREFACE.starts_with(&seen) && seen.len() < PREFACE.len() {
            if self.stream.read_buf(&mut seen).await? == 0 {
                break;
            }
        }
        let is_h2 = seen.starts_with(PREFACE);
        self.front = seen.into();
        Ok(is_h2)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.front.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let taken = self.front.len().min(buf.remaining());
        buf.put_slice(&self.front[..taken]);
        self.front.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.written.add(taken);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.written.add(taken);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.written.flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How many bytes a connection has written, for those who must not cut before theirs are out.
#[derive(Default)]
pub(super) struct Written {
    state: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    written: u64,
    flushed: u64,
    wakers: Vec<Waker>,
}

impl Written {
    pub(super) fn so_far(&self) -> u64 {
        self.state().written
    }

    /// Ready once `goal` bytes are written and whoever writes has nothing more in hand.
    pub(super) fn poll_flushed(&self, goal: u64, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.flushed >= goal {
            return Poll::Ready(());
        }
        state.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    fn add(&self, bytes: usize) {
        self.state().written += bytes as u64;
    }

    fn flush(&self) {
        let mut state = self.state();
        state.flushed = state.written;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.state.lock().expect("no panic under this lock")
    }
}
