//! The events of a response (Server-Sent Events), with how they came in time.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Body as _;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Sleep, sleep};

use crate::clock::now;
use crate::error::{Error, ErrorKind};
use crate::histogram::DurationHistogram;
use crate::sse::{Event, EventDecoder, Item};

use super::response_body::ResponseBody;

/// The events of a response, decoded as they are asked for. Made by [`Response::events`](super::Response::events).
///
/// ```no_run
/// # async fn read(response: firstbyte::Response) -> Result<(), firstbyte::Error> {
/// let mut events = response.events()?.until("[DONE]");
/// while let Some(event) = events.next().await {
///     println!("{}", event?.data);
/// }
/// println!("first event after {:?}", events.timing().first_event);
/// # Ok(()) }
/// ```
///
/// A body that was cut off is an error and not an end. An event that is not complete when the body ends is dropped, as
/// the standard wants it; where the server says what its last event is, [`until`](Self::until) tells a stream that ended
/// before it from one that is whole.
///
/// As a `Stream`: `futures_util::stream::poll_fn(move |cx| events.poll_next(cx))`. Dropping it is dropping the
/// response's body.
pub struct EventStream {
    body: ResponseBody,
    decoder: EventDecoder,
    chunk: Bytes,
    /// When the chunk was read.
    read_at: Instant,
    state: State,
    last_event: Option<Box<str>>,
    patience: Option<Duration>,
    alarm: Option<Pin<Box<Sleep>>>,
    /// How long the event that comes next was waited for before the alarm was set, and when that was.
    waited: Duration,
    waits_since: Option<Instant>,
    timing: EventTiming,
    arrived: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Open,
    /// The last event was there: what ends the body comes next.
    Ending,
    Ended,
}

/// For how long the end of a body is waited for behind its last event: it is a moment away, as a rule, and whoever does not
/// wait for it has to cut the body off, which costs the connection (HTTP/1.1) or a reset (HTTP/2).
const PATIENCE_AT_THE_END: Duration = Duration::from_millis(50);
/// Frames that are thrown away meanwhile in one turn of the task.
const MOST_AT_THE_END: usize = 16;

/// How the events of a stream have come so far. What came with one read came at one time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EventTiming {
    /// From the start of the call to the first event; `None` before it.
    pub first_event: Option<Duration>,
    /// Events so far.
    pub events: u64,
    /// Comments so far.
    pub comments: u64,
    /// From the first event to the last one.
    pub span: Duration,
    /// Between one event and the next.
    pub gaps: DurationHistogram,
}

impl EventTiming {
    /// Events a second after the first one; `None` before there are two at different times. With a model that sends
    /// a token with each event, its tokens a second.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.span.as_secs_f64();
        (seconds > 0.0).then(|| self.gaps.count() as f64 / seconds)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("connection", self.body.connection())
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

impl EventStream {
    /// Of a body whose server is known to send events, whatever its head says.
    pub fn new(body: ResponseBody) -> Self {
        Self {
            body,
            decoder: EventDecoder::new(),
            chunk: Bytes::new(),
            read_at: now(),
            state: State::Open,
            last_event: None,
            patience: None,
            alarm: None,
            waited: Duration::ZERO,
            waits_since: None,
            timing: EventTiming {
                first_event: None,
                events: 0,
                comments: 0,
                span: Duration::ZERO,
                gaps: DurationHistogram::new(),
            },
            arrived: None,
        }
    }

    /// Ends before the event whose data is this, such as `[DONE]` for most chat completions; a body that ends without
    /// it is an error of kind [`Truncated`](ErrorKind::Truncated). Default none: the end of the body is the end.
    ///
    /// What follows is thrown away: the end of the body is waited for, up to 50 ms, so that the connection is free for
    /// others.
    pub fn until(mut self, data: impl Into<String>) -> Self {
        self.last_event = Some(data.into().into());
        self
    }

    /// Bounds what is kept of an event that is not complete. Default 16 MiB.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.decoder = self.decoder.max_event_bytes(bytes);
        self
    }

    /// Bounds the time for which an event is waited for, however many comments come meanwhile; counted only while
    /// somebody waits, to which the time after a dropped [`next`](Self::next) belongs. Default none. [`Timeouts::between_bytes`](super::Timeouts::between_bytes) bounds silence.
    pub fn event_timeout(mut self, limit: Duration) -> Self {
        self.patience = Some(limit);
        self
    }

    /// The next event; `None` at the end. Comments are passed over.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next event or comment; `None` at the end.
    ///
    /// Dropping the future loses nothing.
    pub async fn next_item(&mut self) -> Option<Result<Item, Error>> {
        poll_fn(|cx| self.poll_next_item(cx)).await
    }

    /// [`next`](Self::next) for whoever polls.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        loop {
            return match ready!(self.poll_next_item(cx)) {
                Some(Ok(Item::Event(event))) => Poll::Ready(Some(Ok(event))),
                Some(Ok(Item::Comment(_))) => continue,
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None => Poll::Ready(None),
            };
        }
    }

    /// [`next_item`](Self::next_item) for whoever polls.
    pub fn poll_next_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        match self.state {
            State::Open => {}
            State::Ending => return self.poll_end(cx).map(|()| None),
            State::Ended => return Poll::Ready(None),
        }
        if self.patience.is_some() {
            self.waits_since.get_or_insert_with(now);
        }
        let had_turn = has_budget_remaining();
        loop {
            match self.decoder.decode(&mut self.chunk) {
                Ok(Some(Item::Event(event))) => {
                    self.stop_waiting();
                    self.waited = Duration::ZERO;
                    if self.last_event.as_deref() == Some(event.data.as_str()) {
                        self.state = State::Ending;
                        self.chunk = Bytes::new();
                        return self.poll_end(cx).map(|()| None);
                    }
                    self.count();
                    return Poll::Ready(Some(Ok(Item::Event(event))));
                }
                Ok(Some(item)) => {
                    // Until it is asked for more, the time is the caller's.
                    self.stop_waiting();
                    // Where comments come without a pause nothing else would look.
                    if self.patience.is_some_and(|limit| self.waited >= limit) {
                        return Poll::Ready(Some(Err(self.out_of_time())));
                    }
                    self.timing.comments += 1;
                    return Poll::Ready(Some(Ok(item)));
                }
                Ok(None) => {}
                Err(error) => {
                    let error = Error::new(ErrorKind::TooLarge, error.to_string());
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
            }
            match poll_chunk(&mut self.body, cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    self.chunk = chunk;
                    self.read_at = now();
                }
                Poll::Ready(Some(Err(error))) => {
                    self.state = State::Ended;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    let Some(last) = &self.last_event else {
                        self.state = State::Ended;
                        return Poll::Ready(None);
                    };
                    let message = format!("the body ended without the event `{last}`");
                    let error = Error::new(ErrorKind::Truncated, message);
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
                Poll::Pending => {
                    // What makes no event had the turn, and the timer does not get any of it either.
                    let is_cut_short = had_turn && !has_budget_remaining();
                    if !(is_cut_short && self.is_out_of_time()) {
                        ready!(self.poll_alarm(cx));
                    }
                    return Poll::Ready(Some(Err(self.out_of_time())));
                }
            }
        }
    }

    /// How the events have come so far.
    pub fn timing(&self) -> &EventTiming {
        &self.timing
    }

    /// The id of the last event that was complete, for `Last-Event-ID`; empty if there was none.
    pub fn last_event_id(&self) -> &str {
        self.decoder.last_event_id()
    }

    /// The reconnection time that the server has sent last.
    pub fn retry(&self) -> Option<Duration> {
        self.decoder.retry()
    }

    /// The body that they come from: its connection, timing and metrics.
    pub fn body(&self) -> &ResponseBody {
        &self.body
    }

    /// Ready once no event has come for too long.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.patience else {
            return Poll::Pending;
        };
        let left = limit.saturating_sub(self.waited);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(left)));
        alarm.as_mut().poll(cx)
    }

    fn is_out_of_time(&self) -> bool {
        let waits = |since: Instant| now().saturating_duration_since(since);
        let waited = self.waited + self.waits_since.map_or(Duration::ZERO, waits);
        self.patience.is_some_and(|limit| waited >= limit)
    }

    fn out_of_time(&mut self) -> Error {
        let limit = self.patience.unwrap_or_default();
        let message = format!("no event came for {limit:?}, the event timeout");
        self.fail(Error::new(ErrorKind::Timeout, message))
    }

    fn stop_waiting(&mut self) {
        self.alarm = None;
        if let Some(since) = self.waits_since.take() {
            self.waited += now().saturating_duration_since(since);
        }
    }

    fn count(&mut self) {
        let at = self.read_at;
        let timing = &mut self.timing;
        timing.events += 1;
        match self.arrived.replace(at) {
            None => {
                let start = self.body.timing().start();
                timing.first_event = Some(at.saturating_duration_since(start));
            }
            Some(before) => {
                let gap = at.saturating_duration_since(before);
                timing.gaps.record(gap);
                timing.span += gap;
            }
        }
    }

    /// Ready once the body has ended, or has taken too long for that.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(sleep(PATIENCE_AT_THE_END)));
        let mut frames = 0;
        while alarm.as_mut().poll(cx).is_pending() {
            if frames == MOST_AT_THE_END {
                // A peer that floods has the time of the alarm, and not the thread.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            frames += 1;
            let frame = ready!(poll_chunk(&mut self.body, cx));
            if !matches!(frame, Some(Ok(_))) {
                break;
            }
        }
        // What it runs over is free for others, whoever holds this.
        self.body.call.finish();
        self.state = State::Ended;
        Poll::Ready(())
    }

    fn fail(&mut self, error: Error) -> Error {
        self.state = State::Ended;
        self.body.call.fail(error)
    }
}

fn poll_chunk(body: &mut ResponseBody, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
    loop {
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let Some(frame) = frame.transpose()? else {
            return Poll::Ready(None);
        };
        // Trailers are none of the stream.
        if let Ok(data) = frame.into_data() {
            return Poll::Ready(Some(Ok(data)));
        }
    }
}
