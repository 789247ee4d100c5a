//! The response after its head.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::Frame;

use crate::clock::now;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::timing::Phase;

use super::fail;
use super::hold::Hold;
use super::stream::{Parts, Recv};
use super::upload::Upload;

/// The body of a response. Dropping it before its end resets the stream, at once or as soon as resets can
/// be paid.
#[derive(Debug)]
pub(crate) struct RecvBody<L: Send + 'static> {
    /// `None` once the response has ended or failed.
    hold: Option<Hold<L>>,
    /// A request body that outlives the response head (RFC 9113 §8.1 allows both ways at once).
    upload: Option<Box<Upload>>,
    data_done: bool,
    /// The response has no more than its head.
    is_over: bool,
}

impl<L: Send + 'static> RecvBody<L> {
    pub(super) fn new(hold: Hold<L>, upload: Option<Box<Upload>>, is_over: bool) -> Self {
        Self {
            hold: Some(hold),
            upload,
            data_done: false,
            is_over,
        }
    }

    /// The id of its stream; `None` if it is over.
    #[cfg(any(test, fuzzing))]
    pub(super) fn stream_id(&self) -> Option<u32> {
        self.hold.as_ref().map(|hold| hold.stream.id())
    }

    /// The stream itself; `None` if it is over.
    pub(super) fn into_hold(self) -> Option<Hold<L>> {
        self.hold
    }

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
        let had_upload = self.upload.is_some();
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
            match ready!(poll_data(hold, cx)) {
                Some(Ok((data, is_over))) => {
                    // Time that the request's own body takes is not the caller's.
                    let began = recorder.read_at().filter(|_| !had_upload);
                    let at = if is_over {
                        // And all that was unread of it is off the books.
                        self.end();
                        began
                    } else {
                        let at = began.unwrap_or_else(now);
                        hold.taken(data.len(), at);
                        Some(at)
                    };
                    if let Some(at) = at {
                        recorder.emit(RequestEvent::AtHand(at));
                    }
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
        let trailers = ready!(trailers.unwrap_or(Poll::Ready(Err(Failed::CutOff))));
        let trailers = match trailers {
            Err(why) if why.is_past_the_end(hold) => Ok(None),
            trailers => trailers,
        };
        match trailers {
            Ok(trailers) => {
                self.end();
                Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))))
            }
            Err(e) => Poll::Ready(Some(Err(self.failed(e)))),
        }
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
        hold.handed(upload.sent());
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
        let error = match &self.hold {
            Some(hold) => why.describe(hold),
            None => fail::cut_off(Phase::Receive),
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

    /// Whether nothing more will come, as it was when the head or the last frame was handed out. Lets go of the stream
    /// then.
    pub(crate) fn is_end(&mut self) -> bool {
        if self.is_over {
            self.end();
        }
        self.hold.is_none()
    }
}

/// The next piece of data, and whether nothing comes behind it. Its window is given back to the peer, and the books are told by the caller.
pub(super) fn poll_data<L: Send + 'static>(
    hold: &Hold<L>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<(Bytes, bool), Failed>>> {
    let polled = hold.stream.with(|parts: &mut Parts| {
        let Recv::Body(recv) = &mut parts.recv else {
            return Poll::Ready(Some(Err(Failed::CutOff)));
        };
        let next = ready!(recv.poll_data(cx));
        if let Some(Ok(data)) = &next {
            // Fails only when the stream is gone, which the next poll tells.
            let _ = recv.flow_control().release_capacity(data.len());
        }
        let is_stopped = is_stopped_after_its_end(&next, recv);
        let next = next.filter(|_| !is_stopped);
        let with_end = |data| (data, recv.is_end_stream());
        Poll::Ready(next.map(|next| next.map(with_end).map_err(Failed::H2)))
    });
    match polled.unwrap_or(Poll::Ready(Some(Err(Failed::CutOff)))) {
        Poll::Ready(Some(Err(why))) if why.is_past_the_end(hold) => Poll::Ready(None),
        polled => polled,
    }
}

/// Why a response does not go on.
#[derive(Debug)]
pub(super) enum Failed {
    H2(h2::Error),
    CutOff,
}

impl Failed {
    /// The response was complete when the connection ended. h2 forgets that where the request was not.
    fn is_past_the_end<L: Send + 'static>(&self, hold: &Hold<L>) -> bool {
        let Self::H2(error) = self else { return false };
        // One that h2 itself ends for what came last may not have read all of it.
        (error.is_io() || error.is_go_away() && error.is_remote()) && hold.is_answered()
    }

    pub(super) fn describe<L: Send + 'static>(self, hold: &Hold<L>) -> Error {
        match self {
            Self::H2(error) => match hold.shared.own_end().filter(|_| error.is_io()) {
                Some(why) => Error::new(ErrorKind::ConnectionLost, why),
                None => {
                    let tap = &hold.shared.tap;
                    fail::describe(error, tap, Phase::Receive, ReplaySafety::Processed)
                }
            },
            Self::CutOff => fail::cut_off(Phase::Receive),
        }
    }
}

/// RFC 9113 §8.1: NO_ERROR after a complete response only stops the request body.
fn is_stopped_after_its_end(next: &Option<Result<Bytes, h2::Error>>, recv: &RecvStream) -> bool {
    matches!(next, Some(Err(e)) if e.is_reset()
        && e.reason() == Some(Reason::NO_ERROR)
        && recv.is_end_stream())
}
