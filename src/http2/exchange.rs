//! One stream: request out, response in, from the caller's own future.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;

use crate::body::Body;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::timing::Phase;

use super::driver::{Http2, MAX_HEAD, SEND_AT_ONCE};

/// Informational responses accepted before the final one; h2 itself has no bound.
const MAX_INFORMATIONAL: u32 = 32;
/// The id of the first request on a connection (RFC 9113 §5.1.1).
const FIRST_STREAM: u32 = 1;

/// The final head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RecvBody,
}

impl Http2 {
    /// Sends a request and awaits the head of its final response. The caller holds a stream slot.
    ///
    /// `body` is taken once the stream is open; what is left of it is then sent as the response
    /// body is read. Dropping the future resets the stream and nothing else.
    ///
    /// # Errors
    /// Kind ConnectionLost, Refused, Protocol or Body; the replay safety says what is known.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<()>,
        length: Option<u64>,
        body: &mut Option<Body>,
        sent: &AtomicU64,
        recorder: &mut RequestRecorder,
    ) -> Result<ResponseHead, Error> {
        let is_empty = length == Some(0);
        // A connection that has ended, or is about to, says so here: the request was never sent.
        let not_sent = |e| fail(e, Phase::Send, ReplaySafety::NotSent);
        poll_fn(|cx| self.send.poll_ready(cx))
            .await
            .map_err(not_sent)?;
        let (response, stream) = self
            .send
            .send_request(request, is_empty)
            .map_err(not_sent)?;
        let mut upload = Upload::start(stream, body.take().unwrap_or_default(), length, sent);
        if upload.is_at_hand() {
            // What fits the window is queued before the task is given a chance: one write.
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = upload.poll(&mut cx, sent);
        }
        self.open();

        let mut waiting = Waiting {
            handle: self,
            response,
            upload,
            upload_told: false,
            informational: 0,
        };
        poll_fn(|cx| waiting.poll(cx, sent, recorder))
            .await
            .map(|response| {
                let (parts, recv) = response.into_parts();
                ResponseHead {
                    status: parts.status,
                    headers: parts.headers,
                    body: RecvBody {
                        recv,
                        upload: (!waiting.upload.is_done()).then_some(waiting.upload),
                        data_done: false,
                        ended: false,
                    },
                }
            })
    }
}

/// One request while its final head is awaited.
struct Waiting<'a> {
    handle: &'a Http2,
    response: ResponseFuture,
    upload: Upload,
    upload_told: bool,
    informational: u32,
}

impl Waiting<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sent: &AtomicU64,
        recorder: &mut RequestRecorder,
    ) -> Poll<Result<http::Response<RecvStream>, Error>> {
        if let Poll::Ready(Err(error)) = self.upload.poll(cx, sent) {
            return Poll::Ready(Err(error));
        }
        if self.upload.is_complete() && !self.upload_told {
            self.upload_told = true;
            recorder.emit(RequestEvent::UploadEnd);
        }
        let phase = if self.upload_told {
            Phase::Wait
        } else {
            Phase::Send
        };
        let unknown = if self.informational > 0 {
            ReplaySafety::Processed
        } else {
            ReplaySafety::MaybeProcessed
        };
        while let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            interim.map_err(|e| self.fail(e, phase, unknown))?;
            self.informational += 1;
            recorder.emit(RequestEvent::Informational);
            if self.informational > MAX_INFORMATIONAL {
                let error = Error::new(ErrorKind::Protocol, "too many informational responses");
                return Poll::Ready(Err(error.at(phase).with_replay(ReplaySafety::Processed)));
            }
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx))
            .map_err(|e| self.fail(e, phase, unknown))?;
        let stream = self.response.stream_id().as_u32();
        let at = self
            .handle
            .shared
            .tap
            .headers_at(stream, self.informational);
        recorder.emit(RequestEvent::FirstByte(at));
        if let Some(error) = too_large(response.headers()) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(response))
    }

    fn fail(&self, error: h2::Error, phase: Phase, unknown: ReplaySafety) -> Error {
        let stream = self.response.stream_id().as_u32();
        let own_reset = error.is_reset() && error.is_library();
        if own_reset && self.handle.shared.tap.head_bytes(stream) > MAX_HEAD.bytes {
            // h2 gave up on a head beyond its own bound and says only PROTOCOL_ERROR.
            return head_too_large("bytes", MAX_HEAD.bytes).with_source(error);
        }
        // A peer that ends a new connection with an error before it took the first request refuses
        // the connection and not the request.
        let refuses_all = stream == FIRST_STREAM
            && error.is_go_away()
            && error.is_remote()
            && error.reason() != Some(Reason::NO_ERROR);
        if refuses_all && unknown == ReplaySafety::MaybeProcessed {
            return Error::new(
                ErrorKind::ConnectionLost,
                "the peer refused the connection with GOAWAY",
            )
            .at(phase)
            .with_replay(ReplaySafety::Unprocessed)
            .with_source(error);
        }
        if self.handle.is_late() && error.is_io() && unknown == ReplaySafety::MaybeProcessed {
            return Error::new(ErrorKind::ConnectionLost, UNRESPONSIVE)
                .at(phase)
                .with_replay(unknown);
        }
        fail(error, phase, unknown)
    }
}

/// What is told of a connection that was given up because nothing was heard any more.
pub(crate) const UNRESPONSIVE: &str =
    "the peer fell silent: it did not answer a PING, and the connection was given up";

/// The bounds of a response head, counted as RFC 9113 §6.5.2 counts. h2's own bound is wider and
/// speaks of a broken protocol.
fn too_large(headers: &HeaderMap) -> Option<Error> {
    const OVERHEAD: usize = 32;
    let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + OVERHEAD
    };
    if headers.len() > MAX_HEAD.headers {
        Some(head_too_large("headers", MAX_HEAD.headers))
    } else if headers.iter().map(size).sum::<usize>() > MAX_HEAD.bytes {
        Some(head_too_large("bytes", MAX_HEAD.bytes))
    } else {
        None
    }
}

fn head_too_large(what: &str, limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("response head has more than {limit} {what}"),
    )
    .at(Phase::Wait)
    .with_replay(ReplaySafety::Processed)
}

/// The body of a request on its way out.
#[derive(Debug)]
struct Upload {
    stream: SendStream<Bytes>,
    body: Body,
    /// Data that waits for window.
    pending: Bytes,
    left: Option<u64>,
    stage: Stage,
}

#[derive(Debug, PartialEq)]
enum Stage {
    Body,
    /// Everything was handed over.
    Complete,
    /// The peer wants no more of it; the answer tells why.
    Stopped,
}

impl Upload {
    fn start(stream: SendStream<Bytes>, body: Body, length: Option<u64>, sent: &AtomicU64) -> Self {
        let mut upload = Self {
            stream,
            body,
            pending: Bytes::new(),
            left: length,
            stage: if length == Some(0) {
                Stage::Complete
            } else {
                Stage::Body
            },
        };
        if let Some(bytes) = upload.body.as_bytes().filter(|b| !b.is_empty())
            && bytes.len() <= SEND_AT_ONCE
        {
            // Without capacity h2 buffers it; what fits the initial window leaves at once.
            sent.fetch_add(bytes.len() as u64, Relaxed);
            upload.stage = match upload.stream.send_data(bytes.clone(), true) {
                Ok(()) => Stage::Complete,
                Err(_) => Stage::Stopped,
            };
        }
        upload
    }

    fn is_at_hand(&self) -> bool {
        self.stage == Stage::Body && self.body.as_bytes().is_some()
    }

    fn is_done(&self) -> bool {
        self.stage != Stage::Body
    }

    fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }

    /// Sends what it can. An error is the caller's body's; a peer that wants no more is not.
    fn poll(&mut self, cx: &mut Context<'_>, sent: &AtomicU64) -> Poll<Result<(), Error>> {
        while self.stage == Stage::Body {
            if !self.pending.is_empty() {
                if self.stream.capacity() == 0 {
                    self.stream.reserve_capacity(self.pending.len());
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => {
                            self.stage = Stage::Stopped;
                            break;
                        }
                    }
                }
                let n = self.stream.capacity().min(self.pending.len());
                if n == 0 {
                    continue;
                }
                let piece = self.pending.split_to(n);
                let is_last = self.pending.is_empty() && self.left == Some(0);
                sent.fetch_add(n as u64, Relaxed);
                self.stage = match self.stream.send_data(piece, is_last) {
                    Ok(()) if is_last => Stage::Complete,
                    Ok(()) => Stage::Body,
                    Err(_) => Stage::Stopped,
                };
                continue;
            }
            // A peer that resets the stream stops the body too.
            if self.stream.poll_reset(cx).is_ready() {
                self.stage = Stage::Stopped;
                break;
            }
            match ready!(self.body.poll_next(cx)) {
                Some(Ok(frame)) => self.take(frame)?,
                None if self.left.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Err(self.abort(length_error())));
                }
                None => {
                    self.stage = match self.stream.send_data(Bytes::new(), true) {
                        Ok(()) => Stage::Complete,
                        Err(_) => Stage::Stopped,
                    };
                }
                Some(Err(source)) => {
                    let failed = Error::new(ErrorKind::Body, "the request body failed");
                    return Poll::Ready(Err(self.abort(failed.with_source(source))));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), Error> {
        match frame.into_data() {
            Ok(data) => {
                if let Some(left) = &mut self.left {
                    match left.checked_sub(data.len() as u64) {
                        Some(rest) => *left = rest,
                        None => return Err(self.abort(length_error())),
                    }
                }
                self.pending = data;
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.stage = match self.stream.send_trailers(trailers) {
                        Ok(()) => Stage::Complete,
                        Err(_) => Stage::Stopped,
                    };
                }
            }
        }
        Ok(())
    }

    fn abort(&mut self, error: Error) -> Error {
        self.stage = Stage::Stopped;
        self.stream.send_reset(Reason::CANCEL);
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

/// The body of a response. Dropping it before its end resets the stream.
#[derive(Debug)]
pub(crate) struct RecvBody {
    recv: RecvStream,
    /// A request body that outlives the response head (RFC 9113 §8.1 allows both ways at once).
    upload: Option<Upload>,
    data_done: bool,
    ended: bool,
}

impl RecvBody {
    /// The next frame. Window is given back to the peer as frames are handed out.
    pub(crate) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        recorder: &mut RequestRecorder,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(upload) = &mut self.upload {
            let polled = upload.poll(cx, &AtomicU64::new(0));
            if upload.is_done() {
                if upload.is_complete() {
                    recorder.emit(RequestEvent::UploadEnd);
                }
                self.upload = None;
            }
            if let Poll::Ready(Err(error)) = polled {
                self.ended = true;
                let error = error
                    .at(Phase::Receive)
                    .with_replay(ReplaySafety::Processed);
                return Poll::Ready(Some(Err(error)));
            }
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.data_done {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only when the stream is gone, which the next poll tells.
                    let _ = self.recv.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) => return Poll::Ready(self.failed(e)),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        self.ended = true;
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|t| Ok(Frame::trailers(t))),
            Err(e) => self.failed(e),
        })
    }

    fn failed(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, Error>> {
        self.ended = true;
        // RFC 9113 §8.1: NO_ERROR after a complete response only stops the request body.
        if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) && self.recv.is_end_stream()
        {
            return None;
        }
        Some(Err(fail(error, Phase::Receive, ReplaySafety::Processed)))
    }

    /// Whether nothing more will come.
    pub(crate) fn is_end(&self) -> bool {
        self.ended || (self.recv.is_end_stream() && self.upload.is_none())
    }
}

/// Turns an error of h2 into ours: whose fault, and what is known about the request.
fn fail(error: h2::Error, phase: Phase, unknown: ReplaySafety) -> Error {
    let reason = error.reason();
    let (kind, message, replay) = if unknown == ReplaySafety::NotSent {
        (
            ErrorKind::ConnectionLost,
            "the HTTP/2 connection takes no new streams",
            ReplaySafety::NotSent,
        )
    } else if error.is_go_away() && error.is_remote() {
        // RFC 9113 §6.8: streams above the last stream id were not processed.
        (
            ErrorKind::Refused,
            "the peer sent GOAWAY and did not process the request",
            if unknown == ReplaySafety::Processed {
                unknown
            } else {
                ReplaySafety::Unprocessed
            },
        )
    } else if error.is_reset() && error.is_remote() {
        match reason {
            // RFC 9113 §8.7.
            Some(Reason::REFUSED_STREAM) if unknown != ReplaySafety::Processed => (
                ErrorKind::Refused,
                "the peer refused the stream",
                ReplaySafety::Unprocessed,
            ),
            _ => (ErrorKind::Refused, "the peer reset the stream", unknown),
        }
    } else if error.is_io() {
        (
            ErrorKind::ConnectionLost,
            "the HTTP/2 connection was lost",
            unknown,
        )
    } else {
        (ErrorKind::Protocol, "the peer broke HTTP/2", unknown)
    };
    Error::new(kind, message)
        .at(phase)
        .with_replay(replay)
        .with_source(error)
}
