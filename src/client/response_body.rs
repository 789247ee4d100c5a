//! The body of a response: the rest of the request's journey, with its lease and its clock.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::clock::now;
use crate::connection::ConnectionInfo;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::http2::{RecvBody, Tunnel};
use crate::metrics::StepMetrics;
use crate::pool::{H1Lease, H2Lease};
use crate::sync::lock;
use crate::timing::{ConnectionUse, Phase, RequestTiming, millis};

use super::upgraded::Upgraded;

/// The body of a response, as a stream of frames. It has the connection (or the stream) to itself
/// until its end.
///
/// Dropping it before the end resets an HTTP/2 stream and nothing else. On HTTP/1.1 the rest is read in
/// the background, within [`Limits::max_drain_bytes`](crate::Limits::max_drain_bytes) and
/// [`max_drain_time`](crate::Limits::max_drain_time), to keep the connection; beyond that it is closed.
pub struct ResponseBody {
    source: Source,
    call: FinishedCall,
    length: Option<u64>,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Source {
    Ended,
    H1(H1Lease),
    H2(RecvBody<H2Lease>),
    /// 101 Switching Protocols.
    Tunnel(H1Lease),
    /// 2xx to an extended CONNECT.
    StreamTunnel(RecvBody<H2Lease>),
}

/// What is known of the call once its response head is there.
pub(crate) struct FinishedCall {
    pub(crate) recorder: Box<RequestRecorder>,
    pub(crate) info: ConnectionInfo,
    pub(crate) total: Option<(Pin<Box<Sleep>>, Duration)>,
    pub(crate) between_bytes: Option<Duration>,
    pub(crate) pause: Option<Pin<Box<Sleep>>>,
    handle: Option<Arc<Mutex<RequestTiming>>>,
    /// Bytes sent, and received until the head was whole.
    moved: (u64, u64),
}

impl FinishedCall {
    pub(crate) fn new(
        recorder: Box<RequestRecorder>,
        info: ConnectionInfo,
        total: Option<(Pin<Box<Sleep>>, Duration)>,
        between_bytes: Option<Duration>,
        moved: (u64, u64),
    ) -> Self {
        Self {
            moved,
            recorder,
            info,
            total,
            between_bytes,
            pause: None,
            handle: None,
        }
    }

    fn end(&mut self) {
        self.recorder.emit(RequestEvent::End);
        if let Some(handle) = self.handle.take() {
            *lock(&handle) = self.recorder.timing();
        }
    }

    fn is_over_time(&self) -> Option<Error> {
        let (timer, limit) = self.total.as_ref()?;
        let is_over = now() >= timer.deadline().into_std();
        is_over.then(|| expired("timeout", *limit))
    }

    /// A timer that has run out while a read is pending.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Option<Error> {
        if let Some((timer, limit)) = &mut self.total
            && timer.as_mut().poll(cx).is_ready()
        {
            return Some(expired("timeout", *limit));
        }
        if let Some(limit) = self.between_bytes {
            let timer = self
                .pause
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
            if timer.as_mut().poll(cx).is_ready() {
                return Some(expired("between_bytes timeout", limit));
            }
        }
        None
    }
}

fn expired(what: &str, limit: Duration) -> Error {
    let message = format!("reading the body took longer than the {what} of {limit:?}");
    Error::new(ErrorKind::Timeout, message)
        .at(Phase::Receive)
        .with_replay(ReplaySafety::Processed)
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("connection", &self.call.info)
            .field("is_end", &self.is_end_stream())
            .finish_non_exhaustive()
    }
}

impl ResponseBody {
    pub(crate) fn http1(mut lease: H1Lease, call: FinishedCall, length: Option<u64>) -> Self {
        let source = if lease.http1().is_end() {
            Source::Ended
        } else {
            Source::H1(lease)
        };
        Self::new(source, call, length)
    }

    pub(crate) fn tunnel(lease: H1Lease, call: FinishedCall) -> Self {
        Self::new(Source::Tunnel(lease), call, None)
    }

    pub(crate) fn http2_tunnel(body: RecvBody<H2Lease>, call: FinishedCall) -> Self {
        Self::new(Source::StreamTunnel(body), call, None)
    }

    pub(crate) fn http2(
        mut body: RecvBody<H2Lease>,
        call: FinishedCall,
        length: Option<u64>,
    ) -> Self {
        let source = if body.is_end() {
            Source::Ended
        } else {
            Source::H2(body)
        };
        Self::new(source, call, length)
    }

    fn new(source: Source, call: FinishedCall, length: Option<u64>) -> Self {
        let mut body = Self {
            source,
            call,
            length,
        };
        if let Source::Ended = body.source {
            body.length = Some(0);
            body.call.end();
        }
        body
    }

    /// The connection it comes over.
    pub fn connection(&self) -> &ConnectionInfo {
        &self.call.info
    }

    /// The timing so far; final once the body has ended.
    pub fn timing(&self) -> RequestTiming {
        self.call.recorder.timing()
    }

    /// A handle that knows the final timing when the body is gone.
    pub fn timing_handle(&mut self) -> TimingHandle {
        let timing = self.call.recorder.timing();
        if timing.is_complete() {
            return TimingHandle(Arc::new(Mutex::new(timing)));
        }
        let cell = self
            .call
            .handle
            .get_or_insert_with(|| Arc::new(Mutex::new(timing)));
        TimingHandle(cell.clone())
    }

    /// How the request came to its connection.
    pub fn connection_use(&self) -> ConnectionUse {
        self.call
            .recorder
            .connection_use()
            .unwrap_or(ConnectionUse::New)
    }

    /// The numbers that users watch.
    pub fn metrics(&self) -> StepMetrics {
        let timing = self.timing();
        StepMetrics {
            network_overhead_ms: millis(timing.network_overhead()),
            connection_reused: self.call.recorder.is_reused(),
            protocol: self.call.info.protocol(),
            attempts: self.call.recorder.attempts(),
            ttfb_ms: timing.time_to_first_byte().map(millis),
        }
    }

    /// After 101 Switching Protocols: the connection itself, with what was read of the new
    /// protocol already. After 2xx to an extended CONNECT (RFC 8441): its stream. `None` for any other
    /// response.
    pub fn into_upgraded(mut self) -> Option<Upgraded> {
        match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Tunnel(lease) => {
                self.call.end();
                let (stream, left_over, lease) = lease.into_upgraded();
                Some(Upgraded::connection(stream, left_over, lease))
            }
            Source::StreamTunnel(body) => {
                self.call.end();
                Tunnel::of(body).map(Upgraded::stream)
            }
            source => {
                self.source = source;
                None
            }
        }
    }

    fn finish(&mut self) {
        // The lease goes home here, before the caller looks at anything else.
        self.source = Source::Ended;
        self.call.end();
    }

    fn fail(&mut self, error: Error) -> Error {
        self.finish();
        self.describe(error)
    }

    /// The error with everything that is known of the call.
    pub(crate) fn describe(&self, error: Error) -> Error {
        error
            .at(Phase::Receive)
            .with_replay(ReplaySafety::Processed)
            .with_origin(self.call.info.origin())
            .with_attempt(
                self.call.recorder.attempts(),
                self.call.recorder.is_reused(),
            )
            .with_timing(self.call.recorder.timing())
            .with_bytes(
                self.call.moved.0,
                self.call.moved.1 + self.call.recorder.body_received(),
            )
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.source {
            Source::Ended | Source::Tunnel(_) | Source::StreamTunnel(_) => Poll::Ready(None),
            Source::H1(lease) => lease.http1().poll_body(cx),
            Source::H2(body) => body.poll_body(cx, &mut self.call.recorder),
        }
    }

    fn source_is_end(&mut self) -> bool {
        match &mut self.source {
            Source::Ended => true,
            Source::Tunnel(_) | Source::StreamTunnel(_) => false,
            Source::H1(lease) => lease.http1().is_end(),
            Source::H2(body) => body.is_end(),
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Source::Ended | Source::Tunnel(_) | Source::StreamTunnel(_) = this.source {
            return Poll::Ready(None);
        }
        this.call.recorder.emit(RequestEvent::ReadStart);
        // A body that is always at hand must not outlive its time either.
        if let Some(error) = this.call.is_over_time() {
            return Poll::Ready(Some(Err(this.fail(error))));
        }
        match this.poll_source(cx) {
            Poll::Pending => match this.call.poll_timers(cx) {
                Some(error) => {
                    if let Source::H2(body) = &this.source
                        && let Some(lease) = body.lease()
                    {
                        lease.doubt();
                    }
                    Poll::Ready(Some(Err(this.fail(error))))
                }
                None => Poll::Pending,
            },
            Poll::Ready(Some(Ok(frame))) => {
                this.call.pause = None;
                if let Some(data) = frame.data_ref() {
                    let n = data.len() as u64;
                    let before = this.call.recorder.body_received();
                    let total = this.length.map(|left| before + left);
                    this.length = this.length.map(|left| left.saturating_sub(n));
                    let bytes = before + n;
                    let event = RequestEvent::BodyReceived { bytes, total };
                    this.call.recorder.emit(event);
                }
                if this.source_is_end() {
                    this.finish();
                } else {
                    this.call.recorder.emit(RequestEvent::ReadEnd);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(this.fail(error)))),
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.call.end();
        if let Source::H1(lease) = std::mem::replace(&mut self.source, Source::Ended) {
            lease.drain();
        }
    }
}

/// Knows the timing of a request when its response is gone.
#[derive(Clone, Debug)]
pub struct TimingHandle(Arc<Mutex<RequestTiming>>);

impl TimingHandle {
    /// The final timing once the body has ended or was dropped; before that the timing at the
    /// moment when the handle was made.
    pub fn get(&self) -> RequestTiming {
        *lock(&self.0)
    }
}
