//! The body of a request on its way out.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Frame;

use crate::body::{Body, forbidden_trailer};
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::timing::Phase;

use super::stream::Stream;

/// Bodies up to this size are handed to h2 with their HEADERS, so that both leave in one write:
/// the initial window that RFC 9113 §6.9.2 gives every stream.
const SEND_AT_ONCE: usize = 65_535;
/// No more is asked for at a time.
const MOST_AT_ONCE: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Upload {
    body: Body,
    /// Data that waits for window.
    pending: Bytes,
    /// The length of the whole, if it is known, and what of it has not come from the body yet.
    length: Option<u64>,
    left: Option<u64>,
    sent: u64,
    /// What follows a body of known length, once all of it is there.
    end: End,
    stage: Stage,
}

#[derive(Debug)]
enum End {
    Unknown,
    Plain,
    Trailers(HeaderMap),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Body,
    /// The peer has answered without it. It may be told so.
    Withheld,
    /// Everything was handed over.
    Complete,
    /// The peer wants no more of it; the answer tells why.
    Stopped,
}

impl Upload {
    pub(super) fn new(body: Body, length: Option<u64>) -> Self {
        // Any other has to say itself that it has nothing.
        let is_empty = body.as_bytes().is_some_and(|bytes| bytes.is_empty());
        Self {
            body,
            pending: Bytes::new(),
            length,
            left: length,
            sent: 0,
            end: End::Unknown,
            stage: if is_empty && length == Some(0) {
                Stage::Complete
            } else {
                Stage::Body
            },
        }
    }

    /// The body, of which nothing was asked yet.
    pub(super) fn into_body(self) -> Body {
        self.body
    }

    /// Hands over a body that is at hand and fits the initial window of any peer.
    pub(super) fn send_at_once(&mut self, stream: &mut SendStream<Bytes>) {
        if self.stage == Stage::Body
            && let Some(bytes) = self.body.as_bytes().filter(|b| !b.is_empty())
            && bytes.len() <= SEND_AT_ONCE
            && self.left.is_none_or(|left| left == bytes.len() as u64)
        {
            // Without capacity h2 buffers it.
            self.sent = bytes.len() as u64;
            self.stage = match stream.send_data(bytes.clone(), true) {
                Ok(()) => Stage::Complete,
                Err(_) => Stage::Stopped,
            };
        }
    }

    pub(super) fn is_at_hand(&self) -> bool {
        self.stage == Stage::Body && self.body.as_bytes().is_some()
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Complete | Stage::Stopped)
    }

    /// It will not be sent.
    pub(super) fn withhold(&mut self) {
        self.stage = Stage::Withheld;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }

    /// Bytes handed over so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that the whole body has, if that is known.
    pub(super) fn total(&self) -> Option<u64> {
        self.length
    }

    /// Sends what it can. An error is the caller's body's; a peer that wants no more is not.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Stream,
    ) -> Poll<Result<(), Error>> {
        while self.stage == Stage::Body {
            if !self.pending.is_empty() {
                ready!(self.poll_send(cx, stream));
                continue;
            }
            // A peer that resets the stream stops the body too.
            let reset = stream.with(|parts| parts.send.poll_reset(cx).is_ready());
            if reset != Some(false) {
                self.stage = Stage::Stopped;
                break;
            }
            match &mut self.end {
                End::Trailers(trailers) => {
                    let trailers = std::mem::take(trailers);
                    self.end(stream, |send| send.send_trailers(trailers));
                    break;
                }
                // It said so when all of it had been sent.
                End::Plain => {
                    self.end(stream, |send| send.send_data(Bytes::new(), true));
                    break;
                }
                End::Unknown => {}
            }
            match ready!(self.body.poll_next(cx)) {
                Some(Ok(frame)) => self.take(frame, cx, stream)?,
                None if self.left.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Err(self.abort(length_error(), stream)));
                }
                None => self.end(stream, |send| send.send_data(Bytes::new(), true)),
                Some(Err(source)) => {
                    let failed = Error::new(ErrorKind::Body, "the request body failed");
                    let failed = failed.with_source(source);
                    return Poll::Ready(Err(self.abort(failed, stream)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends of what is pending as much as there is window for.
    fn poll_send(&mut self, cx: &mut Context<'_>, stream: &Stream) -> Poll<()> {
        let capacity = stream.with(|parts| {
            let send = &mut parts.send;
            if send.capacity() == 0 {
                // Enough to be woken. What is set aside for a request that nobody polls is missing to all the others.
                send.reserve_capacity(1);
                match ready!(send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(None),
                }
            }
            // As much of it as there is; h2 counts in 32 bits, and gives no more at a time.
            send.reserve_capacity(self.pending.len().min(MOST_AT_ONCE));
            Poll::Ready(Some(send.capacity()))
        });
        let Some(capacity) = ready!(capacity.unwrap_or(Poll::Ready(None))) else {
            self.stage = Stage::Stopped;
            return Poll::Ready(());
        };
        let n = capacity.min(self.pending.len());
        if n > 0 {
            let piece = self.pending.split_to(n);
            let is_last = self.pending.is_empty() && matches!(self.end, End::Plain);
            self.sent += n as u64;
            let sent = stream.with(|parts| parts.send.send_data(piece, is_last));
            self.stage = match sent {
                Some(Ok(())) if is_last => Stage::Complete,
                Some(Ok(())) => Stage::Body,
                Some(Err(_)) | None => Stage::Stopped,
            };
        }
        Poll::Ready(())
    }

    fn take(
        &mut self,
        frame: Frame<Bytes>,
        cx: &mut Context<'_>,
        stream: &Stream,
    ) -> Result<(), Error> {
        match frame.into_data() {
            Ok(data) => {
                if let Some(left) = &mut self.left {
                    match left.checked_sub(data.len() as u64) {
                        Some(rest) => *left = rest,
                        None => return Err(self.abort(length_error(), stream)),
                    }
                }
                self.pending = data;
                if self.left == Some(0) {
                    self.look_for_the_end(cx, stream)?;
                }
            }
            Err(frame) => {
                if self.left.is_some_and(|left| left > 0) {
                    return Err(self.abort(length_error(), stream));
                }
                if let Ok(trailers) = frame.into_trailers() {
                    let trailers = self.check(trailers, stream)?;
                    self.end(stream, |send| send.send_trailers(trailers));
                }
            }
        }
        Ok(())
    }

    /// All that was announced is there: if the body knows that it ends, the last piece says so. If it has
    /// more, nobody shall believe that this was all.
    fn look_for_the_end(&mut self, cx: &mut Context<'_>, stream: &Stream) -> Result<(), Error> {
        loop {
            let frame = match self.body.poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => {
                    self.end = End::Plain;
                    return Ok(());
                }
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(source))) => {
                    let failed = Error::new(ErrorKind::Body, "the request body failed");
                    return Err(self.abort(failed.with_source(source), stream));
                }
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(_) => return Err(self.abort(length_error(), stream)),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.end = End::Trailers(self.check(trailers, stream)?);
                        return Ok(());
                    }
                }
            }
        }
    }

    fn check(&mut self, trailers: HeaderMap, stream: &Stream) -> Result<HeaderMap, Error> {
        match forbidden_trailer(&trailers) {
            Some(error) => Err(self.abort(error, stream)),
            None => Ok(trailers),
        }
    }

    fn end(
        &mut self,
        stream: &Stream,
        act: impl FnOnce(&mut SendStream<Bytes>) -> Result<(), h2::Error>,
    ) {
        self.stage = match stream.with(|parts| act(&mut parts.send)) {
            Some(Ok(())) => Stage::Complete,
            Some(Err(_)) | None => Stage::Stopped,
        };
    }

    fn abort(&mut self, error: Error, stream: &Stream) -> Error {
        self.stage = Stage::Stopped;
        stream.with(|parts| parts.send.send_reset(Reason::CANCEL));
        error
            .at(Phase::Send)
            .with_replay(ReplaySafety::MaybeProcessed)
    }
}

fn length_error() -> Error {
    Error::new(
        ErrorKind::Body,
        "the request body is not as long as its content-length",
    )
}
