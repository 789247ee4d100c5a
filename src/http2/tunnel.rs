//! A stream as a byte stream, after an extended CONNECT was accepted (RFC 8441 §5, RFC 9113 §8.5).

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::now;
use crate::error::ErrorKind;

use super::hold::Hold;
use super::receive::{Failed, RecvBody, poll_data};

/// The most that one write hands over.
const MAX_WRITE: usize = 64 * 1024;

/// Either way ends for itself. Dropped before both have ended the stream is reset, and nothing else.
pub(crate) struct Tunnel<L: Send + 'static> {
    hold: Hold<L>,
    /// What of the last frame was not read yet.
    rest: Bytes,
    is_read: bool,
}

impl<L: Send + 'static> fmt::Debug for Tunnel<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // None of the bytes.
        f.debug_struct("Tunnel")
            .field("stream", &self.hold.stream.id())
            .finish_non_exhaustive()
    }
}

impl<L: Send + 'static> Tunnel<L> {
    /// The stream of an accepted request; `None` if it is over.
    pub(crate) fn of(body: RecvBody<L>) -> Option<Self> {
        Some(Self {
            hold: body.into_hold()?,
            rest: Bytes::new(),
            is_read: false,
        })
    }

    fn failed(&self, why: Failed) -> io::Error {
        let error = why.describe(&self.hold);
        let kind = match error.kind() {
            ErrorKind::ConnectionLost | ErrorKind::Refused | ErrorKind::SlowReader => {
                io::ErrorKind::ConnectionReset
            }
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

impl<L: Send + Unpin + 'static> AsyncRead for Tunnel<L> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() && !this.is_read {
            match ready!(poll_data(&this.hold, cx)) {
                Some(Ok((data, _))) => {
                    this.hold.taken(data.len(), now());
                    this.rest = data;
                }
                Some(Err(why)) => return Poll::Ready(Err(this.failed(why))),
                None => this.is_read = true,
            }
        }
        let n = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..n]);
        this.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<L: Send + Unpin + 'static> AsyncWrite for Tunnel<L> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Takes what the peer's window has room for, as one piece of data, and waits while it has none.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        if this.hold.is_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = this.hold.stream.with(|parts| {
            let send = &mut parts.send;
            if send.capacity() == 0 {
                // Enough to be woken: what is set aside for a writer that nobody polls is missing to all the others.
                send.reserve_capacity(1);
            }
            while send.capacity() == 0 {
                match ready!(send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(Failed::H2(error))),
                    None => return Poll::Ready(Ok(None)),
                }
            }
            send.reserve_capacity(len.min(MAX_WRITE));
            let n = send.capacity().min(len);
            let sent = send.send_data(first_bytes(bufs, n), false);
            send.reserve_capacity(0);
            Poll::Ready(sent.map(|()| Some(n)).map_err(Failed::H2))
        });
        match ready!(written.unwrap_or(Poll::Ready(Err(Failed::CutOff)))) {
            Ok(Some(n)) => {
                this.hold.shared.tap.handed(n as u64);
                Poll::Ready(Ok(n))
            }
            Ok(None) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Err(why) => Poll::Ready(Err(this.failed(why))),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is the connection's task's to send.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends our half (END_STREAM).
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.hold.is_sent {
            return Poll::Ready(Ok(()));
        }
        let ended = this
            .hold
            .stream
            .with(|parts| parts.send.send_data(Bytes::new(), true));
        match ended {
            Some(Ok(())) => {
                this.hold.is_sent = true;
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => Poll::Ready(Err(this.failed(Failed::H2(error)))),
            None => Poll::Ready(Err(this.failed(Failed::CutOff))),
        }
    }
}

fn first_bytes(bufs: &[IoSlice<'_>], mut n: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(n);
    for buf in bufs {
        let piece = &buf[..n.min(buf.len())];
        bytes.extend_from_slice(piece);
        n -= piece.len();
    }
    bytes.freeze()
}
