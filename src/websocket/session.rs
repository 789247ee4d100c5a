//! A WebSocket over a byte stream, from behind the handshake to the end.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::{has_budget_remaining, poll_proceed};
use tokio::time::{Sleep, sleep_until};
use tokio_websockets::proto::ProtocolError;
use tokio_websockets::{ClientBuilder, CloseCode, Error as WsError, Limits, WebSocketStream};

use crate::clock::{deadline, now};
use crate::error::{Error, ErrorKind};
use crate::text::Text;
use crate::timing::Phase;

use super::liveness::{Due, Heard, Liveness};
use super::{CloseFrame, Message};

/// Pings of the peer whose answers it does not take. More are an attack, or a peer that is no longer there.
const MOST_OWED: u32 = 1_000;
/// Control frames that are dealt with in one turn of the task.
const MOST_IN_ONE_TURN: u32 = 64;
/// Messages that are given out although a Close should have come by then: they may have been there before.
const MOST_BEHIND_TIME: u32 = 1_000;
/// The longest payload of a control frame (RFC 6455 §5.5).
const CONTROL: usize = 125;
/// For how long the server may take to end the connection once both sides have closed (RFC 6455 §7.1.1: it is the
/// one to do it first).
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(1);

/// What a session may take.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    pub(crate) max_message_bytes: usize,
    pub(crate) ping_interval: Option<Duration>,
    pub(crate) ping_timeout: Duration,
    pub(crate) close_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 * 1024 * 1024,
            ping_interval: Some(Duration::from_secs(20)),
            ping_timeout: Duration::from_secs(20),
            close_timeout: Duration::from_secs(5),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Open,
    /// We have sent a Close, or the peer has.
    Closing {
        until: Instant,
    },
    /// The closing is done, or the peer was told what it did wrong: it may end the connection.
    Leaving {
        until: Instant,
    },
    Ended,
}

/// A WebSocket. Its two ways may be polled by two tasks, with one waker for both.
pub(crate) struct Session<T> {
    /// `None` once it has ended: whatever it runs over is given back at once.
    frames: Option<WebSocketStream<Watched<T>>>,
    options: SessionOptions,
    /// We may end our way out before the server ends its own: over a stream of HTTP/2 that costs nobody anything, and
    /// some servers wait for it (Apache 2.4.71). A TCP connection is the server's to end first.
    ends_first: bool,
    state: State,
    liveness: Liveness,
    /// Fires no later than something is due; what it finds then may be later still.
    alarm: Option<Pin<Box<Sleep>>>,
    pings: u64,
    round_trip: Option<Duration>,
    /// Pongs that were not taken yet.
    owed: u32,
    /// Messages that came when the closing was over its time.
    late: u32,
    close: Option<CloseFrame>,
    /// Why nothing can be sent any more. What has arrived is read all the same.
    write_failure: Option<Error>,
    /// What ended it.
    failure: Option<Error>,
    /// The same, if only the way out was told of it so far: to the way in it is no clean end.
    untold: Option<Error>,
}

impl<T> fmt::Debug for Session<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("state", &self.state)
            .field("close", &self.close)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Session<T> {
    /// Over a stream whose handshake is done.
    pub(crate) fn new(io: T, is_http2: bool, options: SessionOptions) -> Self {
        let limits =
            Limits::default().max_payload_len(Some(options.max_message_bytes.max(CONTROL)));
        let watched = Watched::new(io);
        Self {
            frames: Some(ClientBuilder::new().limits(limits).take_over(watched)),
            liveness: Liveness::new(options.ping_interval, options.ping_timeout),
            options,
            ends_first: is_http2,
            state: State::Open,
            alarm: None,
            pings: 0,
            round_trip: None,
            owed: 0,
            late: 0,
            close: None,
            write_failure: None,
            failure: None,
            untold: None,
        }
    }

    /// What both halves have to know: whoever changes it has to tell the other.
    pub(crate) fn standing(&self) -> impl PartialEq + use<T> {
        let failed = self.failure.is_some() || self.write_failure.is_some();
        (self.state, failed, self.close.is_some())
    }

    /// What the peer's Close said, once it has come.
    pub(crate) fn close_frame(&self) -> Option<&CloseFrame> {
        self.close.as_ref()
    }

    /// How long the last ping took.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The next message; `None` once both sides have closed. Pings are sent and answered here, and what could not be
    /// written before is.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, Error>>> {
        let had_turn = has_budget_remaining();
        for _ in 0..MOST_IN_ONE_TURN {
            if let State::Leaving { until } = self.state {
                ready!(self.poll_leave(cx, until));
                self.end();
            }
            // Of a message, a ping or a pong that could not leave at once.
            let _in_vain = self.flush_rest(cx);
            let Some(frames) = &mut self.frames else {
                return Poll::Ready(self.untold.take().map(Err));
            };
            let message = match Pin::new(frames).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => message,
                // Its Close has come, and it does not want ours any more.
                Poll::Ready(Some(Err(WsError::Io(_)))) if self.close.is_some() => {
                    self.end();
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    let error = self.refuse(cx, error);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) if self.close.is_some() => {
                    let until = deadline(now(), PATIENCE_AT_THE_END);
                    self.state = State::Leaving { until };
                    continue;
                }
                Poll::Ready(None) => {
                    let message =
                        "the connection ended without a Close frame (RFC 6455 §7.1.5, 1006)";
                    let error = Error::new(ErrorKind::ConnectionLost, message).at(Phase::Receive);
                    // What ended it, if that is known.
                    let error = self.write_failure.clone().unwrap_or(error);
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
                Poll::Pending => {
                    // Fragments that end no message had the turn, and the timer does not get any of it either.
                    let is_cut_short = had_turn && !has_budget_remaining();
                    if is_cut_short && let Err(error) = self.check_time(MOST_IN_ONE_TURN) {
                        return Poll::Ready(Some(Err(self.fail(error))));
                    }
                    let error = ready!(self.poll_alarm(cx));
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
            };
            if let Err(error) = self.check_time(1) {
                return Poll::Ready(Some(Err(self.fail(error))));
            }
            if message.is_text() || message.is_binary() {
                let message = self.data(message);
                let message = message.map_err(|error| self.refuse(cx, error));
                return Poll::Ready(Some(message));
            }
            if let Err(error) = self.control(cx, &message) {
                return Poll::Ready(Some(Err(self.fail(error))));
            }
        }
        // A peer that floods has its turn, and not the thread.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Something came, as good as so many messages. A peer that never stops sending does not put the closing off.
    fn check_time(&mut self, messages: u32) -> Result<(), Error> {
        if let State::Closing { until } = self.state
            && now() >= until
        {
            self.late += messages;
            if self.late > MOST_BEHIND_TIME {
                return Err(self.took_too_long());
            }
        }
        Ok(())
    }

    fn data(&self, message: tokio_websockets::Message) -> Result<Message, WsError> {
        let (len, max_len) = (message.as_payload().len(), self.options.max_message_bytes);
        if len > max_len {
            return Err(WsError::PayloadTooLong { len, max_len });
        }
        let is_text = message.is_text();
        let bytes = Bytes::from(message.into_payload());
        if !is_text {
            return Ok(Message::Binary(bytes));
        }
        // Looked at already, but for a last fragment that is empty (tokio-websockets 0.13.3).
        let text = Text::from_utf8(bytes).ok_or(ProtocolError::InvalidUtf8)?;
        Ok(Message::Text(text))
    }

    fn control(
        &mut self,
        cx: &mut Context<'_>,
        message: &tokio_websockets::Message,
    ) -> Result<(), Error> {
        if let Some((code, reason)) = message.as_close() {
            let code = (code != CloseCode::NO_STATUS_RECEIVED).then(|| code.into());
            let reason = reason.into();
            self.close = Some(CloseFrame { code, reason });
            if self.state == State::Open {
                let until = deadline(now(), self.options.close_timeout);
                self.state = State::Closing { until };
            }
        } else if message.is_ping() {
            self.owed += 1;
            self.pay(cx)?;
        } else {
            self.answered(message.as_payload());
        }
        Ok(())
    }

    /// Takes the message once there is room for it, and is ready once it is written. Dropped in between, the message
    /// goes out with what comes next.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        message: &mut Option<Message>,
    ) -> Poll<Result<(), Error>> {
        if message.is_some() {
            self.check_open()?;
            let Some(frames) = &mut self.frames else {
                return Poll::Ready(Err(self.is_closed()));
            };
            let mut frames = Pin::new(frames);
            let is_ready = ready!(frames.as_mut().poll_ready(cx));
            let message = match message.take() {
                Some(Message::Text(text)) => tokio_websockets::Message::text(text.into_bytes()),
                Some(Message::Binary(bytes)) => tokio_websockets::Message::binary(bytes),
                None => unreachable!("it was looked for"),
            };
            let queued = is_ready.and_then(|()| frames.start_send(message));
            queued.map_err(|error| self.describe(error).at(Phase::Send))?;
        }
        if self.frames.is_some() && self.flush(cx).is_ready() && self.write_failure.is_none() {
            return Poll::Ready(Ok(()));
        }
        // It may have ended while this waited.
        self.check_open()?;
        Poll::Pending
    }

    fn check_open(&self) -> Result<(), Error> {
        if let Some(failure) = self.failure.as_ref().or(self.write_failure.as_ref()) {
            return Err(failure.clone());
        }
        if self.state == State::Open {
            Ok(())
        } else {
            Err(self.is_closed())
        }
    }

    /// Sends a Close, unless the peer has sent one. What ends the session then is [`poll_next`](Self::poll_next).
    pub(crate) fn start_close(&mut self, frame: &CloseFrame) -> Result<(), Error> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let Some(frames) = self.frames.as_mut().filter(|_| self.state == State::Open) else {
            return Ok(());
        };
        let code = frame.code.and_then(|code| CloseCode::try_from(code).ok());
        let message = tokio_websockets::Message::close(code, &frame.reason);
        let queued = Pin::new(frames).start_send(message);
        let until = deadline(now(), self.options.close_timeout);
        self.state = State::Closing { until };
        queued.map_err(|error| {
            let error = self.describe(error).at(Phase::Send);
            self.fail_on_the_way_out(error)
        })
    }

    /// Ready once everything has been written, or nothing can be; the way in tells what became of it.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        if self.flush(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let error = ready!(self.poll_alarm(cx));
        Poll::Ready(Err(self.fail_on_the_way_out(error)))
    }

    /// Writes what there is to be written. A failure is noted, and nothing waits for it.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(frames) = &mut self.frames else {
            return Poll::Ready(());
        };
        let mut frames = Pin::new(frames);
        let flushed = frames.as_mut().poll_flush(cx);
        if let Some(error) = frames.get_mut().get_mut().write_error.take() {
            let error = self.describe(WsError::Io(error)).at(Phase::Send);
            self.write_failure = Some(error);
        }
        // A failure of its own it does not have, since what is below it has none.
        ready!(flushed).unwrap_or_default();
        self.owed = 0;
        self.liveness.sent(now);
        Poll::Ready(())
    }

    /// The same for what was left of an earlier time: TLS keeps what the socket had no room for.
    fn flush_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let frames = self.frames.as_ref();
        if frames.is_some_and(|frames| frames.get_ref().has_unsent) {
            return self.flush(cx);
        }
        Poll::Ready(())
    }

    /// Writes what is owed to the peer, as far as it takes it.
    fn pay(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.flush(cx).is_pending() && self.owed > MOST_OWED {
            let message = format!("the peer sent {MOST_OWED} pings and took no answer");
            return Err(Error::new(ErrorKind::Protocol, message).at(Phase::Send));
        }
        Ok(())
    }

    fn answered(&mut self, payload: &[u8]) {
        let Some(frames) = &self.frames else { return };
        if let Some(asked_at) = self.liveness.asked_at()
            && payload == self.pings.to_be_bytes()
        {
            let at = frames.get_ref().heard.at;
            self.round_trip = Some(at.saturating_duration_since(asked_at));
        }
    }

    /// Ready with what silence has led to.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        // Whoever waits may have been kept from reading by others, or by himself: only a timer that fires now, when there
        // was nothing to read, is a verdict.
        let mut has_fired = false;
        loop {
            let Some(frames) = &self.frames else {
                return Poll::Pending;
            };
            let (heard, wrote) = (frames.get_ref().heard, frames.get_ref().wrote);
            let at = now();
            let due = match self.state {
                State::Closing { until } | State::Leaving { until } if at < until => Due::At(until),
                State::Closing { until } | State::Leaving { until } => Due::Dead(until),
                _ => self.liveness.due(heard, wrote, at),
            };
            let at = match due {
                Due::At(at) => at,
                Due::Never => return Poll::Pending,
                Due::Ask => {
                    self.ask(cx);
                    continue;
                }
                Due::Dead(at) if !has_fired => at,
                Due::Dead(_) if self.state != State::Open => {
                    return Poll::Ready(self.took_too_long());
                }
                Due::Dead(_) => {
                    let limit = self.options.ping_timeout;
                    let message = format!("the peer did not answer a ping for {limit:?}");
                    let error = Error::new(ErrorKind::Timeout, message);
                    return Poll::Ready(error.at(Phase::Receive));
                }
            };
            let alarm = self
                .alarm
                .get_or_insert_with(|| Box::pin(sleep_until(at.into())));
            let at = at.into();
            // One that has fired at this very instant says so again.
            if alarm.deadline() > at || alarm.is_elapsed() && alarm.deadline() < at {
                alarm.as_mut().reset(at);
            }
            ready!(alarm.as_mut().poll(cx));
            has_fired = true;
        }
    }

    /// Asks the peer whether it is there. What does not go out now goes out later, or the peer is dead.
    fn ask(&mut self, cx: &mut Context<'_>) {
        let Some(frames) = &mut self.frames else {
            return;
        };
        self.pings += 1;
        let payload = Bytes::copy_from_slice(&self.pings.to_be_bytes());
        let ping = tokio_websockets::Message::ping(payload);
        if Pin::new(frames).start_send(ping).is_ok() {
            let _later = self.flush(cx);
        }
    }

    /// The peer, or its connection, has failed us. It is told what it did wrong, if it still listens.
    fn refuse(&mut self, cx: &mut Context<'_>, error: WsError) -> Error {
        let is_io = matches!(error, WsError::Io(_));
        let code = match error {
            WsError::PayloadTooLong { .. } => CloseCode::MESSAGE_TOO_BIG,
            WsError::Protocol(ProtocolError::InvalidUtf8) => CloseCode::INVALID_FRAME_PAYLOAD_DATA,
            _ => CloseCode::PROTOCOL_ERROR,
        };
        let error = self.describe(error).at(Phase::Receive);
        if is_io {
            return self.fail(error);
        }
        self.failure = Some(error.clone());
        let until = deadline(now(), PATIENCE_AT_THE_END);
        self.state = State::Leaving { until };
        let Some(frames) = &mut self.frames else {
            return error;
        };
        let mut frames = Pin::new(frames);
        // Said already, and not said twice, if it was seen in a single frame.
        let close = tokio_websockets::Message::close(Some(code), "");
        let _ = frames.as_mut().start_send(close);
        let _ = frames.poll_flush(cx);
        error
    }

    /// Waits, a little, for the server to end the connection, and ends our half.
    fn poll_leave(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let Some(frames) = &mut self.frames else {
            return Poll::Ready(());
        };
        let flushed = Pin::new(&mut *frames).poll_flush(cx);
        let io = frames.get_mut();
        if self.ends_first && flushed.is_ready() {
            let _ = Pin::new(&mut io.io).poll_shutdown(cx);
        }
        let mut is_over = now() >= until;
        let mut reads = 0;
        while !is_over {
            let mut room = [0; 1024];
            let mut room = ReadBuf::new(&mut room);
            match Pin::new(&mut io.io).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {
                    reads += 1;
                    if reads == MOST_IN_ONE_TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(_) => is_over = true,
                Poll::Pending => {
                    let alarm = self
                        .alarm
                        .get_or_insert_with(|| Box::pin(sleep_until(until.into())));
                    alarm.as_mut().reset(until.into());
                    ready!(alarm.as_mut().poll(cx));
                    is_over = true;
                }
            }
        }
        let _ = Pin::new(&mut io.io).poll_shutdown(cx);
        Poll::Ready(())
    }

    fn end(&mut self) {
        self.state = State::Ended;
        self.frames = None;
        self.alarm = None;
    }

    fn fail(&mut self, error: Error) -> Error {
        self.end();
        self.failure = Some(error.clone());
        error
    }

    fn fail_on_the_way_out(&mut self, error: Error) -> Error {
        let error = self.fail(error);
        self.untold = Some(error.clone());
        error
    }

    fn took_too_long(&self) -> Error {
        let limit = self.options.close_timeout;
        let message = format!("the closing took longer than close_timeout of {limit:?}");
        Error::new(ErrorKind::Timeout, message).at(Phase::Receive)
    }

    fn is_closed(&self) -> Error {
        let message = match (&self.close, self.state) {
            (Some(frame), _) => match frame.code {
                Some(code) => format!("the peer has closed the WebSocket with code {code}"),
                None => "the peer has closed the WebSocket".to_owned(),
            },
            (None, _) => "the WebSocket is closed".to_owned(),
        };
        Error::new(ErrorKind::ConnectionLost, message).at(Phase::Send)
    }

    fn describe(&self, error: WsError) -> Error {
        match error {
            WsError::Io(error) => {
                // Of a stream of HTTP/2, which says more.
                let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
                match inner {
                    Some(inner) => inner.clone(),
                    None => {
                        let message = "the connection of the WebSocket was lost";
                        Error::new(ErrorKind::ConnectionLost, message).with_source(error)
                    }
                }
            }
            WsError::PayloadTooLong { len, max_len } => {
                let message = format!(
                    "a message of {len} bytes or more came, the most is max_message_bytes of {max_len}"
                );
                Error::new(ErrorKind::TooLarge, message)
            }
            WsError::AlreadyClosed => self.is_closed(),
            other => {
                let message = "the peer broke the WebSocket protocol";
                Error::new(ErrorKind::Protocol, message).with_source(other)
            }
        }
    }
}

/// Notes when something came and went, and keeps an error of writing from whoever reads: what has arrived is worth more.
#[derive(Debug)]
struct Watched<T> {
    io: T,
    heard: Heard,
    /// When something was taken last.
    wrote: Option<Instant>,
    /// Something was written and not flushed.
    has_unsent: bool,
    /// Nothing is written any more, and nobody is told but once.
    is_broken: bool,
    write_error: Option<io::Error>,
}

impl<T> Watched<T> {
    fn new(io: T) -> Self {
        Self {
            io,
            heard: Heard {
                reads: 0,
                at: now(),
            },
            wrote: None,
            has_unsent: false,
            is_broken: false,
            write_error: None,
        }
    }

    fn break_down(&mut self, error: io::Error) {
        self.is_broken = true;
        self.has_unsent = false;
        self.write_error = Some(error);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A stream of HTTP/2 has as much as there is, and a frame may be two bytes.
        ready!(poll_proceed(cx)).made_progress();
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.reads += 1;
            self.heard.at = now();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_broken {
            return Poll::Ready(Ok(all));
        }
        match ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs)) {
            Ok(n) if n > 0 || all == 0 => {
                self.has_unsent = true;
                self.wrote = Some(now());
                Poll::Ready(Ok(n))
            }
            Ok(_) => {
                self.break_down(io::ErrorKind::WriteZero.into());
                Poll::Ready(Ok(all))
            }
            Err(error) => {
                self.break_down(error);
                Poll::Ready(Ok(all))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_broken {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.io).poll_flush(cx)) {
            Ok(()) => self.has_unsent = false,
            Err(error) => self.break_down(error),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module, its siblings and clock, which is below.
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::time::advance;

    use super::*;

    /// A message that goes on for ever and has nothing in it: there is always something to read.
    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buf.put_slice(&[0, 0]);
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_although_nothing_but_empty_fragments_comes() {
        let first = &b"\x01\x00"[..];
        let io = tokio::io::join(first.chain(Endless), tokio::io::sink());
        let mut session = Session::new(io, false, SessionOptions::default());
        session
            .start_close(&CloseFrame {
                code: None,
                reason: "".into(),
            })
            .unwrap();
        let mut turns = 0;
        let turn = async |session: &mut Session<_>| {
            let once = poll_fn(|cx| Poll::Ready(session.poll_next(cx))).await;
            tokio::task::yield_now().await;
            once
        };
        for _ in 0..100 {
            assert!(turn(&mut session).await.is_pending(), "it has time");
        }
        advance(SessionOptions::default().close_timeout).await;
        let error = loop {
            turns += 1;
            assert!(turns < 100, "it has no time left");
            if let Poll::Ready(message) = turn(&mut session).await {
                break message.unwrap().unwrap_err();
            }
        };
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
}
