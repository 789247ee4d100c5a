//! One connection: request out, response in, all inside the caller's own future.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version};
use http_body::Frame;
use tokio::io::{AsyncReadExt, ReadBuf};
use tokio::task::coop;
use tokio::time::{Sleep, sleep};

use crate::body::Body;
use crate::clock::now;
use crate::close_reason::CloseReason;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::http_head::{Head, HeadError, HeadLimits, HeadParser};
use crate::io::{AttendUpload, BoxFuture, Carrier, Expected, Traffic};
use crate::timing::Phase;

use super::chunked::{ChunkedDecoder, Decoded};
use super::encode::{Forward, RequestHead};
use super::framing::{self, BodyFraming};
use super::interrupt::{Interrupt, Killer};
use super::keep_alive::KeepAlive;
use super::upload::{Rest, Sent, Upload, UploadError};

/// Asked of the stream by one read of a body.
const READ_SIZE: usize = 16 * 1024;
/// A request below this fits into any sound peer's window.
const SMALL_REQUEST: u64 = 16 * 1024;
/// Informational responses accepted before the final one; together they must fit into one head.
const MAX_INFORMATIONAL: u32 = 32;
/// On shorter paths our bytes are acknowledged before the write returns, more or less.
const TELLING_RTT: Duration = Duration::from_millis(1);

/// The final head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    /// The length of the body, if its framing tells it.
    pub(crate) length: Option<u64>,
    /// The connection now speaks another protocol.
    pub(crate) is_tunnel: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    /// A request is under way; if its future is dropped the connection stays here for good.
    Busy,
    Body(Decoder),
    /// The response is complete and the connection may not be used again.
    Done(CloseReason),
    Tunnel,
}

#[derive(Debug)]
enum Decoder {
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub(crate) struct Http1<S> {
    io: S,
    attendant: Option<Box<dyn AttendUpload>>,
    /// What the TCP handshake took.
    rtt: Option<Duration>,
    interrupt: Arc<Interrupt>,
    /// It may hold a waker.
    is_awaited: bool,
    /// Nothing holds the end of the handshake back any more.
    is_open: bool,
    /// The last frame of a body was at hand: nothing had to be read for it.
    was_at_hand: bool,
    buffer: BytesMut,
    state: State,
    keep_alive: Result<(), CloseReason>,
    rest: Option<Box<Rest>>,
    sent: Option<Sent>,
    /// Of the version that the last response had.
    is_http10: bool,
    announced: KeepAlive,
    limits: HeadLimits,
    /// The other end is a proxy that forwards.
    forward: Option<Forward>,
}

impl<S: Carrier> Http1<S> {
    pub(crate) fn new(
        io: S,
        attendant: Option<Box<dyn AttendUpload>>,
        rtt: Option<Duration>,
        forward: Option<Forward>,
    ) -> Self {
        Self {
            io,
            attendant,
            rtt,
            interrupt: Arc::default(),
            is_awaited: false,
            forward,
            is_open: false,
            was_at_hand: false,
            buffer: BytesMut::new(),
            state: State::Idle,
            keep_alive: Ok(()),
            rest: None,
            sent: None,
            is_http10: false,
            announced: KeepAlive::default(),
            limits: HeadLimits::DEFAULT,
        }
    }

    /// What the last response announced about the connection.
    pub(crate) fn announced(&self) -> KeepAlive {
        self.announced
    }

    /// Whether at most `bytes` of the response body are still to come, as far as that is known.
    pub(crate) fn may_drain(&self, bytes: u64) -> bool {
        match &self.state {
            // What a chunked body still holds is not known before it is there.
            State::Body(Decoder::Length(left)) => *left <= bytes && self.keep_alive.is_ok(),
            State::Body(Decoder::Chunked(_)) => self.keep_alive.is_ok(),
            _ => false,
        }
    }

    /// Ends an exchange that is under way, in whatever task it runs.
    pub(crate) fn killer(&self) -> Killer {
        Killer::new(&self.interrupt)
    }

    /// Whether a further request may use it, or why not.
    pub(crate) fn reusable(&self) -> Result<(), CloseReason> {
        match &self.state {
            State::Idle if self.buffer.is_empty() => Ok(()),
            State::Idle => Err(CloseReason::UnsolicitedBytes),
            State::Busy | State::Body(_) => Err(CloseReason::Cancelled),
            State::Done(reason) => Err(*reason),
            State::Tunnel => Err(CloseReason::Upgraded),
        }
    }

    /// Looks whether the idle connection is quiet. The waker of `cx` is woken when the peer sends
    /// something or closes. Post-handshake TLS messages are read and are no reason to close.
    pub(crate) fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        self.reusable()?;
        if !self.is_open || self.io.has_unsent() {
            // The end of its handshake: held back for a request, or without room when early data was taken.
            self.io.uncork();
            // A transport of somebody else's may have more of it than we can see.
            self.is_open = Pin::new(&mut self.io).poll_flush(cx).is_ready();
        }
        // Whatever comes ends the connection, so there is no need to keep it.
        let mut scrap = [0; 16];
        let mut scrap = ReadBuf::new(&mut scrap);
        self.io.expect(Expected::Nothing);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut scrap);
        self.io.expect(Expected::Something);
        match read {
            Poll::Pending => Ok(()),
            // RFC 9112 §9.2: no request is outstanding, so this is nobody's answer.
            Poll::Ready(Ok(())) if !scrap.filled().is_empty() => Err(CloseReason::UnsolicitedBytes),
            Poll::Ready(_) => Err(CloseReason::PeerClosedIdle),
        }
    }

    /// Whether the connection, quiet when it was looked at last, has been so since: the kernel is asked, for the
    /// runtime may not have been told yet. False also where that cannot be known, or if what came needs a closer
    /// look.
    pub(crate) fn is_still_quiet(&mut self) -> bool {
        self.reusable().is_ok() && self.io.is_still_quiet()
    }

    /// Ready once every handshake below is over. Nothing may be written before, unless it may be
    /// replayed.
    pub(crate) async fn established(&mut self) -> io::Result<()> {
        self.io.uncork();
        poll_fn(|cx| match self.io.poll_established(cx) {
            Poll::Pending => self.poll_interrupt(cx),
            ready => ready,
        })
        .await
    }

    /// Gives memory back while idle.
    pub(crate) fn release_buffers(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        self.io.release_buffers();
        if std::mem::take(&mut self.is_awaited) {
            self.interrupt.forget_waker();
        }
    }

    /// Says goodbye as far as that is possible without waiting (TLS close_notify, FIN).
    pub(crate) fn close(mut self) {
        if std::thread::panicking() {
            // Perhaps it was the transport that panicked; a second panic would end the process.
            return;
        }
        // Whoever closes it, the pool's own task above all, has other things to do if a transport of the user's panics.
        let _panicked = catch_unwind(AssertUnwindSafe(move || {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = Pin::new(&mut self.io).poll_shutdown(&mut cx);
            drop(self);
        }));
    }

    /// The stream, what was read of the next protocol (RFC 9110 §7.8), and who looks after the socket.
    pub(crate) fn into_parts(self) -> (S, Bytes, Option<Box<dyn AttendUpload>>) {
        (self.io, self.buffer.freeze(), self.attendant)
    }

    /// Sends a request and reads the head of its final response.
    ///
    /// With `expect` the body waits for 100 Continue, at most for so long; the header is the caller's.
    /// `traffic` counts, so that a timer can see progress. Dropping the future leaves the connection
    /// unusable.
    ///
    /// # Errors
    /// Kind ConnectionLost, Protocol, TooLarge, Body or Unsupported; the replay safety says what is known.
    pub(crate) async fn exchange(
        &mut self,
        request: &RequestHead<'_>,
        length: Option<u64>,
        expect: Option<Duration>,
        body: &mut Body,
        traffic: &Traffic,
        recorder: &mut RequestRecorder,
    ) -> Result<ResponseHead, Error> {
        let mut upload = Upload::new(request, length, body, self.forward.as_ref());
        if self.is_http10 && upload.total().is_none() {
            // It would take the chunks for what comes next (RFC 9112 §6.1).
            let message = "the server speaks HTTP/1.0, which has no chunked coding: \
                           the request's body needs a length";
            let error = Error::new(ErrorKind::Unsupported, message).at(Phase::Send);
            return Err(error.with_replay(ReplaySafety::NotSent));
        }
        self.state = State::Busy;
        self.is_open = true;
        self.keep_alive = Ok(());
        upload.is_expecting = expect.is_some() && !upload.is_empty();
        let mut exchange = Exchange {
            method: request.method,
            began: recorder.acquired_at().unwrap_or_else(now),
            written_before: self.io.bytes_written(),
            read_before: self.io.bytes_read(),
            expect: expect
                .filter(|_| upload.is_expecting)
                .map(|patience| Box::pin(sleep(patience))),
            upload,
            is_stray: false,
            write_error: None,
            attending: None,
            parser: HeadParser::default(),
            first_byte: None,
            informational: 0,
            informational_bytes: 0,
            connection: self,
        };
        exchange.connection.io.uncork();
        let result = poll_fn(|cx| {
            let polled = exchange.poll(cx, body, recorder);
            exchange.count(traffic);
            polled
        })
        .await;
        let is_stray = exchange.is_stray;
        let has_failed = exchange.write_error.is_some();
        let (upload, attending) = (exchange.upload, exchange.attending.flatten());
        let (head, framing) = match result {
            Ok(done) => done,
            Err(error) => {
                let unanswered = error.kind() == ErrorKind::ConnectionLost
                    && error.replay_safety() != ReplaySafety::Processed;
                self.state = State::Done(if is_stray {
                    CloseReason::UnsolicitedBytes
                } else if unanswered {
                    CloseReason::ClosedUnanswered
                } else {
                    CloseReason::Failed
                });
                return Err(error);
            }
        };
        self.is_http10 = head.is_http10;
        self.announced = if head.speaks_of.keep_alive {
            KeepAlive::parse(&head.headers)
        } else {
            KeepAlive::default()
        };
        if !framing.keep_alive {
            self.keep_alive = Err(match framing.body {
                BodyFraming::UntilClose => CloseReason::ResponseEnded,
                _ => CloseReason::PeerAskedToClose,
            });
        }
        if asks_to_close(request.headers) {
            self.keep_alive = Err(CloseReason::RequestAskedToClose);
        }
        if !upload.is_done() {
            // An early answer that is no success, or closes, ends the upload (RFC 9112 §9.5). Any other begins beside it,
            // as that of a server which answers piece by piece, and may not end before.
            let has_body = matches!(framing.body, BodyFraming::Length(_) | BodyFraming::Chunked);
            let goes_on = head.status.is_success() && self.keep_alive.is_ok() && has_body;
            if goes_on && !has_failed && !upload.is_expecting {
                self.rest = Some(Box::new(Rest {
                    upload,
                    body: std::mem::take(body),
                    attending,
                    keep_alive: self.keep_alive,
                }));
            }
            // What is left of it could never be told from a next request.
            self.keep_alive = Err(CloseReason::UploadUnfinished);
        }
        self.state = match framing.body {
            BodyFraming::Empty => State::Idle,
            BodyFraming::Length(n) => State::Body(Decoder::Length(n)),
            BodyFraming::Chunked => State::Body(Decoder::Chunked(ChunkedDecoder::new())),
            BodyFraming::UntilClose => State::Body(Decoder::UntilClose),
            BodyFraming::Tunnel => State::Tunnel,
        };
        if framing.body == BodyFraming::Empty {
            self.end_response();
        }
        Ok(ResponseHead {
            status: head.status,
            version: if head.is_http10 {
                Version::HTTP_10
            } else {
                Version::HTTP_11
            },
            headers: head.headers,
            length: match framing.body {
                BodyFraming::Empty => Some(0),
                BodyFraming::Length(n) => Some(n),
                _ => None,
            },
            is_tunnel: framing.body == BodyFraming::Tunnel,
        })
    }

    /// Nothing had to be read for the last frame of a body.
    pub(crate) fn was_at_hand(&self) -> bool {
        self.was_at_hand
    }

    /// The next frame of the response body.
    pub(crate) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let (had_rest, had_turn) = (self.rest.is_some(), coop::has_budget_remaining());
        if let Err(error) = self.poll_rest(cx) {
            return self.fail_body(error);
        }
        // Nor is the time at hand that the request's own body takes.
        self.was_at_hand = !had_rest;
        loop {
            let State::Body(decoder) = &mut self.state else {
                return Poll::Ready(None);
            };
            match decoder {
                Decoder::Length(left) if !self.buffer.is_empty() => {
                    let n = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(self.buffer.len());
                    *left -= n as u64;
                    let data = self.buffer.split_to(n).freeze();
                    if *left == 0 {
                        self.end_response();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Decoder::UntilClose if !self.buffer.is_empty() => {
                    let data = self.buffer.split().freeze();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Decoder::Chunked(chunked) => match chunked.decode(&mut self.buffer) {
                    Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Decoded::End(trailers)) => {
                        self.end_response();
                        return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
                    }
                    Ok(Decoded::Incomplete) => {}
                    Err(why) => {
                        let error = Error::new(ErrorKind::Protocol, why);
                        return self.fail_body(error);
                    }
                },
                _ => {}
            }
            let filled = if had_turn && self.rest.is_some() && !coop::has_budget_remaining() {
                // The upload has used the task's turn up, as it may the next ones.
                pin!(coop::unconstrained(poll_fn(|cx| self.poll_fill(cx)))).poll(cx)
            } else {
                self.poll_fill(cx)
            };
            match ready!(filled) {
                Ok(0) if matches!(self.state, State::Body(Decoder::UntilClose)) => {
                    self.end_response();
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    let error = Error::new(
                        ErrorKind::Truncated,
                        "the connection closed before the end of the body",
                    );
                    return self.fail_body(error);
                }
                Ok(_) => {}
                // TLS without close_notify: whoever cut the connection could have cut the body
                // (RFC 9112 §9.8).
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    let error = Error::new(
                        ErrorKind::Truncated,
                        "the connection closed before the end of the body",
                    );
                    return self.fail_body(error.with_source(e));
                }
                Err(e) => {
                    let error = Error::new(
                        ErrorKind::ConnectionLost,
                        "the connection was lost in the middle of the body",
                    );
                    return self.fail_body(error.with_source(e));
                }
            }
        }
    }

    /// Sends more of the request.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(rest) = &mut self.rest else {
            return Ok(());
        };
        if let Some(attending) = &mut rest.attending {
            let _never = attending.as_mut().poll(cx);
        }
        let polled = rest.upload.poll(cx, &mut self.io, &mut rest.body);
        self.sent = Some(Sent {
            bytes: rest.upload.body_sent,
            total: rest.upload.total(),
            is_all: rest.upload.is_done(),
        });
        match polled {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                self.keep_alive = rest.keep_alive;
                self.rest = None;
            }
            // The answer may be whole all the same.
            Poll::Ready(Err(UploadError::Write(_))) => self.rest = None,
            Poll::Ready(Err(UploadError::Body(error))) => {
                self.rest = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// How far the request is, if more of it was sent while its answer was read.
    pub(crate) fn take_sent(&mut self) -> Option<Sent> {
        self.sent.take()
    }

    /// Reads what is left of the body and throws it away, at most `most` bytes. Ready when it has ended
    /// or is too long; [`reusable`](Self::reusable) tells which.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, most: &mut u64) -> Poll<()> {
        while !self.is_end() {
            match ready!(self.poll_body(cx)) {
                Some(Ok(frame)) => {
                    let len = frame.data_ref().map_or(0, Bytes::len) as u64;
                    match most.checked_sub(len) {
                        Some(left) => *most = left,
                        None => return Poll::Ready(()),
                    }
                }
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    fn fail_body(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.state = State::Done(CloseReason::Failed);
        self.rest = None;
        let error = error
            .at(Phase::Receive)
            .with_replay(ReplaySafety::Processed);
        Poll::Ready(Some(Err(error)))
    }

    /// Nothing was read beyond the response.
    #[cfg(any(test, fuzzing))]
    pub(super) fn has_nothing_left(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether the response is complete.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self.state, State::Idle | State::Done(_))
    }

    fn end_response(&mut self) {
        self.rest = None;
        self.state = match self.keep_alive {
            Err(reason) => State::Done(reason),
            // Bytes behind a complete response could be taken for the answer to the next request.
            Ok(()) if !self.buffer.is_empty() => State::Done(CloseReason::UnsolicitedBytes),
            Ok(()) => State::Idle,
        };
    }

    /// Waits for the peer, or for an end from outside.
    fn poll_interrupt<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.is_awaited = true;
        self.interrupt.poll(cx)
    }

    /// Reads for a head, which is as a rule all that comes at once: it is kept in as little memory as it needs,
    /// for as long as somebody looks at its headers.
    fn poll_fill_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.interrupt.check()?;
        match Pin::new(&mut self.io).poll_fill_buf(cx) {
            Poll::Pending => self.poll_interrupt(cx),
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(bytes)) => {
                if self.buffer.is_empty() {
                    self.buffer = BytesMut::from(bytes);
                } else {
                    self.buffer.extend_from_slice(bytes);
                }
                let n = bytes.len();
                Pin::new(&mut self.io).consume(n);
                Poll::Ready(Ok(n))
            }
        }
    }

    /// Reads for a body.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.was_at_hand = false;
        self.interrupt.check()?;
        if self.buffer.capacity() - self.buffer.len() < READ_SIZE / 2 {
            let most = match &self.state {
                State::Body(Decoder::Length(left)) => usize::try_from(*left).unwrap_or(READ_SIZE),
                _ => READ_SIZE,
            };
            self.buffer.reserve(most.min(READ_SIZE));
        }
        let read = pin!(self.io.read_buf(&mut self.buffer));
        match read.poll(cx) {
            Poll::Pending => self.poll_interrupt(cx),
            ready => ready,
        }
    }
}

/// The request's own `connection: close`.
fn asks_to_close(headers: &HeaderMap) -> bool {
    if headers.is_empty() {
        return false;
    }
    headers
        .get_all(http::header::CONNECTION)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// A final head, and where its body ends.
type Accepted = (Head, framing::Framing);

/// One request while its final head is awaited.
struct Exchange<'a, S> {
    connection: &'a mut Http1<S>,
    method: &'a Method,
    began: Instant,
    written_before: u64,
    read_before: u64,
    upload: Upload,
    /// While it is there the body waits for 100 Continue.
    expect: Option<Pin<Box<Sleep>>>,
    write_error: Option<io::Error>,
    /// What came cannot be the answer to this request.
    is_stray: bool,
    /// Asked for once more has left than a small request; `Some(None)` where there is nothing to do.
    attending: Option<Option<BoxFuture<'static, ()>>>,
    parser: HeadParser,
    /// The read that brought the first byte of the head now being read.
    first_byte: Option<Instant>,
    informational: u32,
    informational_bytes: usize,
}

impl<S: Carrier> Exchange<'_, S> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Body,
        recorder: &mut RequestRecorder,
    ) -> Poll<Result<Accepted, Error>> {
        loop {
            self.poll_upload(cx, body, recorder)?;
            let head = if self.upload.is_done() || coop::has_budget_remaining() {
                self.poll_head(cx, recorder)
            } else {
                // The upload has used the task's turn up, as it may the next ones: the answer would not be seen.
                pin!(coop::unconstrained(poll_fn(
                    |cx| self.poll_head(cx, recorder)
                )))
                .poll(cx)
            };
            if let Some(done) = ready!(head)? {
                return Poll::Ready(Ok(done));
            }
            // An informational response, and perhaps the one that the body waits for.
        }
    }

    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Body,
        recorder: &mut RequestRecorder,
    ) -> Result<(), Error> {
        if self.upload.is_done() || self.write_error.is_some() {
            return Ok(());
        }
        if let Some(patience) = &mut self.expect
            && patience.as_mut().poll(cx).is_ready()
        {
            // RFC 9110 §10.1.1: a client does not wait for ever.
            self.go_on();
        }
        let polled = self.upload.poll(cx, &mut self.connection.io, body);
        recorder.emit(RequestEvent::BodySent {
            bytes: self.upload.body_sent,
            total: self.upload.total(),
        });
        match polled {
            Poll::Ready(Ok(())) => recorder.emit(RequestEvent::UploadEnd),
            Poll::Ready(Err(UploadError::Body(error))) => return Err(self.error(error)),
            // The answer may have arrived all the same: read on, and tell of the write error
            // only if there is none.
            Poll::Ready(Err(UploadError::Write(error))) => self.write_error = Some(error),
            Poll::Pending => {}
        }
        Ok(())
    }

    /// The body need not wait any more.
    fn go_on(&mut self) {
        self.expect = None;
        self.upload.is_expecting = false;
    }

    /// The next head; `None` for an informational one.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        recorder: &mut RequestRecorder,
    ) -> Poll<Result<Option<Accepted>, Error>> {
        loop {
            let unparsed = self.connection.buffer.len();
            if let Some(head) = self.parse_head()? {
                let bytes = unparsed - self.connection.buffer.len();
                return Poll::Ready(self.accept(head, bytes, recorder));
            }
            let had_bytes = !self.connection.buffer.is_empty();
            let lost = match self.connection.poll_fill_head(cx) {
                Poll::Pending => {
                    self.attend(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => None,
                Poll::Ready(Ok(_)) => {
                    if !had_bytes {
                        self.first_byte = self.connection.io.last_read();
                        self.check_is_answer()?;
                    }
                    continue;
                }
                Poll::Ready(Err(error)) => Some(error),
            };
            return Poll::Ready(Err(self.lost(lost)));
        }
    }

    /// Bytes that come while the peer's kernel has acknowledged nothing of our request answer something
    /// else, or nothing: they were on their way already. Only worth a look if they come in less time than
    /// a round trip takes.
    fn check_is_answer(&mut self) -> Result<(), Error> {
        let connection = &mut *self.connection;
        let (Some(rtt), Some(read_at)) = (connection.rtt, self.first_byte) else {
            return Ok(());
        };
        if rtt < TELLING_RTT || read_at.saturating_duration_since(self.began) >= rtt {
            return Ok(());
        }
        let attendant = connection.attendant.as_deref();
        let Some(path) = attendant.and_then(AttendUpload::path) else {
            return Ok(());
        };
        // The handshake took longer than the path if our own process was busy: not to be asked for nothing with
        // every response.
        connection.rtt = Some(path.min_rtt.map_or(rtt, |shortest| shortest.min(rtt)));
        if path.acknowledged > self.written_before {
            return Ok(());
        }
        self.is_stray = true;
        let error = Error::new(
            ErrorKind::ConnectionLost,
            "bytes came that cannot answer the request, since its peer had not received it",
        );
        Err(error
            .at(Phase::Wait)
            .with_replay(ReplaySafety::MaybeProcessed))
    }

    /// Tells what was moved so far.
    fn count(&self, traffic: &Traffic) {
        let io = &self.connection.io;
        traffic.body_sent.store(self.upload.body_sent, Relaxed);
        traffic.is_answered.store(self.is_answered(), Relaxed);
        traffic
            .sent
            .store(io.bytes_written() - self.written_before, Relaxed);
        traffic
            .received
            .store(io.bytes_read() - self.read_before, Relaxed);
    }

    /// Whether or not all was written: it may still wait in our kernel.
    fn attend(&mut self, cx: &mut Context<'_>) {
        let connection = &*self.connection;
        if connection.io.bytes_written() - self.written_before < SMALL_REQUEST {
            return;
        }
        let attendant = connection.attendant.as_deref();
        let attending = self
            .attending
            .get_or_insert_with(|| attendant.and_then(AttendUpload::attend));
        if let Some(attending) = attending {
            let _never = attending.as_mut().poll(cx);
        }
    }

    fn parse_head(&mut self) -> Result<Option<Head>, Error> {
        let connection = &mut *self.connection;
        if connection.buffer.is_empty() {
            return Ok(None);
        }
        self.parser
            .parse(&mut connection.buffer, connection.limits)
            .map_err(|e| {
                let kind = match e {
                    HeadError::TooLarge(..) => ErrorKind::TooLarge,
                    _ => ErrorKind::Protocol,
                };
                Error::new(kind, e.to_string())
                    .at(Phase::Wait)
                    .with_replay(ReplaySafety::Processed)
            })
    }

    /// Decides on a head of so many bytes: an informational one is told, counted and skipped.
    fn accept(
        &mut self,
        head: Head,
        bytes: usize,
        recorder: &mut RequestRecorder,
    ) -> Result<Option<Accepted>, Error> {
        let protocol = |why: &str| {
            let error = Error::new(ErrorKind::Protocol, why);
            Err(error.at(Phase::Wait).with_replay(ReplaySafety::Processed))
        };
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !self.upload.asks_upgrade {
                return protocol("101 Switching Protocols, but no upgrade was asked for");
            }
            if !self.upload.is_done() {
                // What is still to be sent would be read as the next protocol.
                return protocol("101 Switching Protocols in the middle of the request");
            }
        } else if head.status.is_informational() {
            self.informational += 1;
            self.informational_bytes += bytes;
            recorder.emit(RequestEvent::Informational {
                status: head.status,
                headers: &head.headers,
            });
            let is_too_much = self.informational_bytes > self.connection.limits.bytes;
            if self.informational > MAX_INFORMATIONAL || is_too_much {
                return protocol("too many informational responses");
            }
            if head.status == StatusCode::CONTINUE {
                self.go_on();
            }
            // What is left of the buffer came with the last read.
            self.first_byte = self.connection.io.last_read();
            return Ok(None);
        }
        let framing = match framing::decide(self.method, &head) {
            Ok(framing) => framing,
            Err(why) => return protocol(why),
        };
        if let Some(at) = self.first_byte.or_else(|| self.connection.io.last_read()) {
            recorder.emit(RequestEvent::FirstByte(at));
        }
        Ok(Some((head, framing)))
    }

    /// The connection ended before the head did.
    fn lost(&mut self, error: Option<io::Error>) -> Error {
        let write_error = self.write_error.take();
        let message = match (&error, &write_error, self.connection.buffer.is_empty()) {
            (_, _, false) => "the connection was lost in the middle of the response head",
            (None, None, _) => "the connection was closed before a response",
            _ => "the connection was lost before a response",
        };
        let lost = Error::new(ErrorKind::ConnectionLost, message);
        match write_error.or(error) {
            Some(source) => self.error(lost.with_source(source)),
            None => self.error(lost),
        }
    }

    /// A part of a response has come.
    fn is_answered(&self) -> bool {
        !self.connection.buffer.is_empty() || self.informational > 0
    }

    fn error(&self, error: Error) -> Error {
        let replay = if self.is_answered() {
            ReplaySafety::Processed
        } else if self.connection.io.bytes_written() == self.written_before {
            ReplaySafety::NotSent
        } else {
            ReplaySafety::MaybeProcessed
        };
        let phase = if self.upload.is_done() {
            Phase::Wait
        } else {
            Phase::Send
        };
        error.at(phase).with_replay(replay)
    }
}

#[cfg(test)]
mod tests {
    // layering: uses io, event and http_head, which are below.
    use super::*;
    use crate::io::{PathFacts, Wire};
    use std::sync::atomic::AtomicU32;
    use tokio::io::AsyncWriteExt;

    /// The kernel of the other end has acknowledged so many bytes.
    #[derive(Debug)]
    struct Acknowledged {
        bytes: Option<u64>,
        asked: Arc<AtomicU32>,
    }

    impl AttendUpload for Acknowledged {
        fn attend(&self) -> Option<BoxFuture<'static, ()>> {
            None
        }

        fn path(&self) -> Option<PathFacts> {
            self.asked.fetch_add(1, Relaxed);
            Some(PathFacts {
                acknowledged: self.bytes?,
                min_rtt: Some(Duration::from_micros(50)),
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_come_before_the_request_was_received_are_not_its_answer() {
        const MINUTE: Duration = Duration::from_secs(60);
        for (acknowledged, rtt, is_answer) in [
            (Some(0), Some(MINUTE), false),
            (Some(1), Some(MINUTE), true),
            // Nobody knows.
            (None, Some(MINUTE), true),
            (Some(0), None, true),
            // Too short a path to tell, and enough time for an answer.
            (Some(0), Some(TELLING_RTT / 2), true),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let asked = Arc::new(AtomicU32::new(0));
            let attendant = Box::new(Acknowledged {
                bytes: acknowledged,
                asked: asked.clone(),
            });
            let mut http1 = Http1::new(Wire::new(ours), Some(attendant), rtt, None);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            theirs.write_all(answer).await.unwrap();
            let request = RequestHead {
                method: &Method::GET,
                target: "/",
                authority: "h.test",
                headers: &HeaderMap::new(),
                defaults: None,
            };
            let mut recorder = RequestRecorder::start(None);
            let (mut body, traffic) = (Body::empty(), Traffic::default());
            let result = http1
                .exchange(&request, Some(0), None, &mut body, &traffic, &mut recorder)
                .await;
            assert_eq!(result.is_ok(), is_answer, "{acknowledged:?} {rtt:?}");
            if acknowledged == Some(1) {
                // The handshake had taken a minute, but the path is short: it is not looked at again.
                theirs.write_all(answer).await.unwrap();
                let mut recorder = RequestRecorder::start(None);
                let again = http1
                    .exchange(&request, Some(0), None, &mut body, &traffic, &mut recorder)
                    .await;
                assert!(again.is_ok() && asked.load(Relaxed) == 1);
            }
            if let Err(error) = result {
                assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
                assert_eq!(http1.reusable(), Err(CloseReason::UnsolicitedBytes));
            }
        }
    }
}
