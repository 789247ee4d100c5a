//! One exchange: request out, response in, from the caller's own future.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use tokio::time::{Sleep, sleep};

use crate::body::Body;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::io::Traffic;
use crate::timing::Phase;

use super::driver::{Http2, MAX_HEAD};
use super::fail;
use super::hold::Hold;
use super::stream::{Parts, Recv};
use super::upload::Upload;

/// Informational responses accepted before the final one; h2 itself has no bound.
const MAX_INFORMATIONAL: u32 = 32;

/// A request as it goes to h2.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: Request<()>,
    /// The length of the body, if it is known.
    pub(crate) length: Option<u64>,
    /// The body waits for 100 Continue, at most for so long (RFC 9110 §10.1.1).
    pub(crate) expect: Option<Duration>,
}

/// The final head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead<L: Send + 'static> {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RecvBody<L>,
}

impl Http2 {
    /// Sends a request and awaits the head of its final response. `lease` is the stream slot that the
    /// caller has taken; it is given back when the stream is over.
    ///
    /// `body` is taken once the stream is open; what is left of it is then sent as the response
    /// body is read. Dropping the future resets the stream and nothing else, at once or as soon as
    /// resets can be paid.
    ///
    /// # Errors
    /// Kind ConnectionLost, Refused, Http1Required, SlowReader, Protocol, TooLarge or Body; the replay
    /// safety says what is known.
    pub(crate) async fn exchange<L: Send + 'static>(
        mut self,
        request: Outgoing,
        body: &mut Option<Body>,
        traffic: &Traffic,
        recorder: &mut RequestRecorder,
        lease: L,
    ) -> Result<ResponseHead<L>, Error> {
        let is_empty = request.length == Some(0);
        let shared = &self.shared;
        // A connection that has ended, or is about to, says so here: the request was never sent.
        let not_sent = |e: h2::Error| {
            shared.refuse();
            fail::describe(e, &shared.tap, Phase::Send, ReplaySafety::NotSent)
        };
        poll_fn(|cx| self.send.poll_ready(cx))
            .await
            .map_err(&not_sent)?;
        let send = &mut self.send;
        let open = || send.send_request(request.head, is_empty);
        let mut hold = Hold::open(open, shared.clone(), lease).map_err(not_sent)?;
        let mut upload = Upload::new(body.take().unwrap_or_default(), request.length);
        let expect = request.expect.filter(|_| !upload.is_done());
        if expect.is_none() {
            hold.stream
                .with(|parts| upload.send_at_once(&mut parts.send));
        }
        if expect.is_none() && upload.is_at_hand() {
            // What fits the window is queued before the task is given a chance: one write.
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = upload.poll(&mut cx, &hold.stream);
        }
        hold.is_sent = upload.is_complete();
        self.open();
        let mut waiting = Waiting {
            hold,
            upload,
            expect: expect.map(|limit| Box::pin(sleep(limit))),
            upload_told: false,
            informational: 0,
            informational_bytes: 0,
        };
        let response = poll_fn(|cx| waiting.poll(cx, traffic, recorder)).await?;
        let Waiting { hold, upload, .. } = waiting;
        Ok(ResponseHead {
            status: response.status(),
            headers: response.into_parts().0.headers,
            body: RecvBody {
                hold: Some(hold),
                upload: (!upload.is_done()).then_some(upload),
                data_done: false,
            },
        })
    }
}

/// One request while its final head is awaited.
struct Waiting<L: Send + 'static> {
    hold: Hold<L>,
    upload: Upload,
    /// While it is there the body waits for 100 Continue.
    expect: Option<Pin<Box<Sleep>>>,
    upload_told: bool,
    informational: u32,
    informational_bytes: usize,
}

impl<L: Send + 'static> Waiting<L> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        traffic: &Traffic,
        recorder: &mut RequestRecorder,
    ) -> Poll<Result<http::Response<()>, Error>> {
        self.poll_informational(cx, recorder)?;
        self.poll_upload(cx, traffic, recorder)?;
        let head = self.with_response(|response| Pin::new(response).poll(cx));
        let Some(head) = head else {
            return Poll::Ready(Err(cut_off(self.phase())));
        };
        let response = ready!(head).map_err(|e| self.fail(e))?;
        let stream = self.hold.stream.id();
        let at = self.hold.shared.tap.headers_at(stream, self.informational);
        recorder.emit(RequestEvent::FirstByte(at));
        if let Some(error) = too_large(response.headers()) {
            return Poll::Ready(Err(error));
        }
        let (head, body) = response.into_parts();
        self.hold.stream.with(|parts| parts.recv = Recv::Body(body));
        Poll::Ready(Ok(http::Response::from_parts(head, ())))
    }

    fn with_response<T>(
        &self,
        act: impl FnOnce(&mut h2::client::ResponseFuture) -> T,
    ) -> Option<T> {
        let with = self.hold.stream.with(|parts| match &mut parts.recv {
            Recv::Head(response) => Some(act(response)),
            Recv::Body(_) | Recv::Unwanted => None,
        });
        with.flatten()
    }

    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        traffic: &Traffic,
        recorder: &mut RequestRecorder,
    ) -> Result<(), Error> {
        if let Some(limit) = &mut self.expect {
            if limit.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            // RFC 9110 §10.1.1: a client does not wait for ever.
            self.expect = None;
        }
        let polled = self.upload.poll(cx, &self.hold.stream);
        traffic.body_sent.store(self.upload.sent(), Relaxed);
        traffic.sent.store(self.upload.sent(), Relaxed);
        recorder.emit(RequestEvent::BodySent {
            bytes: self.upload.sent(),
            total: self.upload.total(),
        });
        if let Poll::Ready(Err(error)) = polled {
            return Err(error);
        }
        if self.upload.is_complete() && !self.upload_told {
            self.upload_told = true;
            self.hold.is_sent = true;
            recorder.emit(RequestEvent::UploadEnd);
        }
        Ok(())
    }

    fn poll_informational(
        &mut self,
        cx: &mut Context<'_>,
        recorder: &mut RequestRecorder,
    ) -> Result<(), Error> {
        while let Some(Poll::Ready(Some(interim))) =
            self.with_response(|response| response.poll_informational(cx))
        {
            let interim = interim.map_err(|e| self.fail(e))?;
            self.informational += 1;
            self.informational_bytes += size(interim.headers());
            recorder.emit(RequestEvent::Informational {
                status: interim.status(),
                headers: interim.headers(),
            });
            if interim.status() == StatusCode::CONTINUE {
                self.expect = None;
            }
            if self.informational > MAX_INFORMATIONAL || self.informational_bytes > MAX_HEAD.bytes {
                let error = Error::new(ErrorKind::Protocol, "too many informational responses");
                return Err(error.at(self.phase()).with_replay(ReplaySafety::Processed));
            }
        }
        Ok(())
    }

    fn phase(&self) -> Phase {
        if self.upload_told {
            Phase::Wait
        } else {
            Phase::Send
        }
    }

    fn fail(&self, error: h2::Error) -> Error {
        let stream = self.hold.stream.id();
        let tap = &self.hold.shared.tap;
        let own_reset = error.is_reset() && error.is_library();
        if own_reset && tap.head_bytes(stream) > MAX_HEAD.bytes {
            // h2 gave up on a head beyond its own bound and says only PROTOCOL_ERROR.
            return head_too_large("bytes", MAX_HEAD.bytes).with_source(error);
        }
        let unknown = if self.informational > 0 {
            ReplaySafety::Processed
        } else {
            ReplaySafety::MaybeProcessed
        };
        if unknown == ReplaySafety::MaybeProcessed {
            if fail::is_connection_refused(&error, stream) {
                return fail::connection_refused(tap, self.phase());
            }
            if self.hold.shared.is_late() && error.is_io() {
                return Error::new(ErrorKind::ConnectionLost, fail::UNRESPONSIVE)
                    .at(self.phase())
                    .with_replay(unknown);
            }
        }
        fail::describe(error, tap, self.phase(), unknown)
    }
}

/// The task took the stream away.
fn cut_off(phase: Phase) -> Error {
    Error::new(
        ErrorKind::SlowReader,
        "the response was not read while more of it came than may be kept; its stream was reset",
    )
    .at(phase)
    .with_replay(ReplaySafety::Processed)
}

/// The size of headers, counted as RFC 9113 §6.5.2 counts.
fn size(headers: &HeaderMap) -> usize {
    const OVERHEAD: usize = 32;
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD)
        .sum()
}

/// The bounds of a response head. h2's own bound is wider and speaks of a broken protocol.
fn too_large(headers: &HeaderMap) -> Option<Error> {
    if headers.len() > MAX_HEAD.headers {
        Some(head_too_large("headers", MAX_HEAD.headers))
    } else if size(headers) > MAX_HEAD.bytes {
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

/// The body of a response. Dropping it before its end resets the stream, at once or as soon as resets can
/// be paid.
#[derive(Debug)]
pub(crate) struct RecvBody<L: Send + 'static> {
    /// `None` once the response has ended or failed.
    hold: Option<Hold<L>>,
    /// A request body that outlives the response head (RFC 9113 §8.1 allows both ways at once).
    upload: Option<Upload>,
    data_done: bool,
}

impl<L: Send + 'static> RecvBody<L> {
    /// The slot; `None` once the response has ended or failed.
    pub(crate) fn lease(&self) -> Option<&L> {
        self.hold.as_ref().map(Hold::lease)
    }

    /// The next frame. Window is given back to the peer as frames are handed out.
    pub(crate) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        recorder: &mut RequestRecorder,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Err(error) = self.poll_upload(cx, recorder) {
            self.end();
            let error = error
                .at(Phase::Receive)
                .with_replay(ReplaySafety::Processed);
            return Poll::Ready(Some(Err(error)));
        }
        let Some(hold) = &self.hold else {
            return Poll::Ready(None);
        };
        if !self.data_done {
            match ready!(Self::poll_data(hold, cx)) {
                Some(Ok(data)) => {
                    hold.taken(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(self.failed(e)))),
                None => self.data_done = true,
            }
        }
        let trailers = hold.stream.with(|parts| match &mut parts.recv {
            Recv::Body(recv) => recv.poll_trailers(cx).map_err(Failed::H2),
            Recv::Head(_) | Recv::Unwanted => Poll::Ready(Err(Failed::CutOff)),
        });
        match ready!(trailers.unwrap_or(Poll::Ready(Err(Failed::CutOff)))) {
            Ok(trailers) => {
                self.end();
                Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))))
            }
            Err(e) => Poll::Ready(Some(Err(self.failed(e)))),
        }
    }

    fn poll_data(hold: &Hold<L>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failed>>> {
        let polled = hold.stream.with(|parts: &mut Parts| {
            let Recv::Body(recv) = &mut parts.recv else {
                return Poll::Ready(Some(Err(Failed::CutOff)));
            };
            let next = ready!(recv.poll_data(cx));
            if let Some(Ok(data)) = &next {
                // Fails only when the stream is gone, which the next poll tells.
                let _ = recv.flow_control().release_capacity(data.len());
            }
            let is_over = is_stopped_after_its_end(&next, recv);
            Poll::Ready(
                next.filter(|_| !is_over)
                    .map(|next| next.map_err(Failed::H2)),
            )
        });
        polled.unwrap_or(Poll::Ready(Some(Err(Failed::CutOff))))
    }

    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        recorder: &mut RequestRecorder,
    ) -> Result<(), Error> {
        let (Some(upload), Some(hold)) = (&mut self.upload, &mut self.hold) else {
            return Ok(());
        };
        let polled = upload.poll(cx, &hold.stream);
        recorder.emit(RequestEvent::BodySent {
            bytes: upload.sent(),
            total: upload.total(),
        });
        if upload.is_done() {
            if upload.is_complete() {
                hold.is_sent = true;
                recorder.emit(RequestEvent::UploadEnd);
            }
            self.upload = None;
        }
        match polled {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn failed(&mut self, why: Failed) -> Error {
        let error = match (why, &self.hold) {
            (Failed::H2(error), Some(hold)) if error.is_io() && hold.shared.is_late() => {
                Error::new(ErrorKind::ConnectionLost, fail::UNRESPONSIVE)
            }
            (Failed::H2(error), Some(hold)) => {
                let tap = &hold.shared.tap;
                fail::describe(error, tap, Phase::Receive, ReplaySafety::Processed)
            }
            _ => cut_off(Phase::Receive),
        };
        self.end();
        error
    }

    /// Lets go of the stream. A request body that is still on its way is stopped: with the response
    /// complete nobody waits for it (RFC 9113 §8.1).
    fn end(&mut self) {
        if let (Some(_), Some(hold)) = (self.upload.take(), &self.hold) {
            hold.stream
                .with(|parts| parts.send.send_reset(Reason::NO_ERROR));
        }
        self.hold = None;
    }

    /// Whether nothing more will come. Lets go of the stream then.
    pub(crate) fn is_end(&mut self) -> bool {
        let Some(hold) = &self.hold else { return true };
        let is_end = hold.stream.with(|parts| match &parts.recv {
            Recv::Body(recv) => recv.is_end_stream(),
            Recv::Head(_) | Recv::Unwanted => false,
        });
        if is_end == Some(true) {
            self.end();
            return true;
        }
        false
    }
}

/// Why a body does not go on.
enum Failed {
    H2(h2::Error),
    CutOff,
}

/// RFC 9113 §8.1: NO_ERROR after a complete response only stops the request body.
fn is_stopped_after_its_end(next: &Option<Result<Bytes, h2::Error>>, recv: &RecvStream) -> bool {
    matches!(next, Some(Err(e)) if e.is_reset()
        && e.reason() == Some(Reason::NO_ERROR)
        && recv.is_end_stream())
}
