//! The request on its way out: its head, and its body framed, in as few writes as the body allows.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;

use crate::body::{Body, forbidden_trailer};
use crate::close_reason::CloseReason;
use crate::error::{Error, ErrorKind};
use crate::io::{BoxFuture, Carrier};

use super::encode::{self, Forward, RequestHead, UploadFraming};

pub(super) enum UploadError {
    /// The caller's body failed.
    Body(Error),
    Write(io::Error),
}

/// A part of the request as it stands in the queue.
struct Piece {
    bytes: Bytes,
    /// Content of the body, and not its framing.
    is_body: bool,
}

/// The request on its way out.
pub(super) struct Upload {
    /// What of the head has not been written.
    head: BytesMut,
    /// What follows it.
    queue: VecDeque<Piece>,
    framing: UploadFraming,
    body_left: Option<u64>,
    /// Content of the body that has been written.
    pub(super) body_sent: u64,
    /// The body waits for 100 Continue.
    pub(super) is_expecting: bool,
    pub(super) asks_upgrade: bool,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Body,
    Flush,
    Done,
}

impl Upload {
    pub(super) fn new(
        request: &RequestHead<'_>,
        length: Option<u64>,
        body: &Body,
        forward: Option<&Forward>,
    ) -> Self {
        // Any other body has to say itself that it has nothing.
        let is_empty = body.as_bytes().is_some_and(|bytes| bytes.is_empty());
        let has_trailers = !is_empty && request.headers.contains_key(http::header::TRAILER);
        let framing = UploadFraming::new(request.method, length, has_trailers);
        Self {
            head: encode::head(request, framing, forward),
            queue: VecDeque::new(),
            framing,
            body_left: length,
            body_sent: 0,
            is_expecting: false,
            asks_upgrade: request.headers.contains_key(http::header::UPGRADE),
            stage: if is_empty && framing == UploadFraming::Empty {
                Stage::Flush
            } else {
                Stage::Body
            },
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Pieces that wait to be written.
    fn waiting(&self) -> usize {
        usize::from(!self.head.is_empty()) + self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(
            self.framing,
            UploadFraming::Empty | UploadFraming::Length(0)
        )
    }

    /// Bytes that the whole body has, if that is known.
    pub(super) fn total(&self) -> Option<u64> {
        match self.framing {
            UploadFraming::Empty => Some(0),
            UploadFraming::Length(n) => Some(n),
            UploadFraming::Chunked => None,
        }
    }

    pub(super) fn poll<S: Carrier>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
        body: &mut Body,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            // The body is asked before the queue is written, so that a body that is at hand
            // leaves in one write with the head.
            if self.stage == Stage::Body && self.waiting() <= 1 && !self.is_expecting {
                match body.poll_next(cx) {
                    Poll::Ready(next) => {
                        self.push(next).map_err(UploadError::Body)?;
                        continue;
                    }
                    Poll::Pending if self.waiting() == 0 => {
                        // Nothing more for now: what was written must not wait for it.
                        ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(UploadError::Write)?;
                        if self.has_all() {
                            break;
                        }
                        return Poll::Pending;
                    }
                    Poll::Pending => {}
                }
            }
            if self.waiting() == 0 {
                if self.stage != Stage::Flush && !self.is_expecting {
                    continue;
                }
                ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(UploadError::Write)?;
                if self.is_expecting {
                    return Poll::Pending;
                }
                break;
            }
            if self.stage == Stage::Flush {
                io.write_ahead();
            }
            ready!(self.poll_write(cx, io)).map_err(UploadError::Write)?;
        }
        self.stage = Stage::Done;
        Poll::Ready(Ok(()))
    }

    /// The body has given all that it announced, and nothing has to follow it. That it has ended it may say later, or
    /// never.
    fn has_all(&self) -> bool {
        self.body_left == Some(0) && self.framing != UploadFraming::Chunked
    }

    fn poll_write<S: Carrier>(&mut self, cx: &mut Context<'_>, io: &mut S) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&self.head); 5];
        let mut used = 1;
        for (slice, piece) in slices[1..].iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(&piece.bytes);
            used += 1;
        }
        let mut n = ready!(Pin::new(io).poll_write_vectored(cx, &slices[..used]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_head = n.min(self.head.len());
        self.head.advance(of_head);
        n -= of_head;
        while let Some(front) = self.queue.front_mut() {
            let written = n.min(front.bytes.len());
            if front.is_body {
                self.body_sent += written as u64;
            }
            if n < front.bytes.len() {
                front.bytes.advance(n);
                break;
            }
            n -= written;
            self.queue.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    fn push(
        &mut self,
        next: Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>,
    ) -> Result<(), Error> {
        match next {
            None => self.end(None),
            Some(Err(source)) => {
                let failed = Error::new(ErrorKind::Body, "the request body failed");
                Err(failed.with_source(source))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => Ok(()),
                Ok(data) => {
                    if let Some(left) = &mut self.body_left {
                        *left = left
                            .checked_sub(data.len() as u64)
                            .ok_or_else(length_error)?;
                    }
                    if self.framing == UploadFraming::Chunked {
                        self.push_framing(encode::chunk_size(data.len()));
                    }
                    self.queue.push_back(Piece {
                        bytes: data,
                        is_body: true,
                    });
                    if self.framing == UploadFraming::Chunked {
                        self.push_framing(Bytes::from_static(b"\r\n"));
                    }
                    Ok(())
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => self.end(Some(&trailers)),
                    Err(_) => Ok(()),
                },
            },
        }
    }

    fn push_framing(&mut self, bytes: Bytes) {
        self.queue.push_back(Piece {
            bytes,
            is_body: false,
        });
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Error> {
        if self.body_left.is_some_and(|left| left > 0) {
            return Err(length_error());
        }
        if let Some(error) = trailers.and_then(forbidden_trailer) {
            return Err(error);
        }
        if self.framing == UploadFraming::Chunked {
            self.push_framing(encode::last_chunk(trailers));
        } else if trailers.is_some_and(|trailers| !trailers.is_empty()) {
            // RFC 9112 §7.1.2: trailers exist only in the chunked coding.
            return Err(Error::new(
                ErrorKind::Body,
                "trailers cannot follow a body of known length over HTTP/1.1; \
                 announce them in the header `trailer`",
            ));
        }
        self.stage = Stage::Flush;
        Ok(())
    }
}

/// What is left of a request whose answer has begun: both go on beside each other.
pub(super) struct Rest {
    pub(super) upload: Upload,
    pub(super) body: Body,
    pub(super) attending: Option<BoxFuture<'static, ()>>,
    /// Whether the connection may serve another request once all of it is sent.
    pub(super) keep_alive: Result<(), CloseReason>,
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

/// How far the rest of a request is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) total: Option<u64>,
    pub(crate) is_all: bool,
}

fn length_error() -> Error {
    Error::new(
        ErrorKind::Body,
        "the request body is not as long as its content-length",
    )
}
