//! The body of a response: the rest of the request's journey, with its lease and its clock.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::connection::ConnectionInfo;
use crate::error::Error;
use crate::event::RequestEvent;
use crate::http2::Tunnel;
use crate::metrics::StepMetrics;
use crate::sync::lock;
use crate::timing::{ConnectionUse, RequestTiming, millis};

use super::call::{Call, Length, Source};
use super::upgraded::Upgraded;

/// The body of a response, as a stream of frames. It has the connection (or the stream) to itself
/// until its end.
///
/// Dropping it before the end resets an HTTP/2 stream and nothing else. On HTTP/1.1 the rest is read in
/// the background, within [`Limits::max_drain_bytes`](crate::Limits::max_drain_bytes) and
/// [`max_drain_time`](crate::Limits::max_drain_time), to keep the connection; beyond that it is closed.
pub struct ResponseBody {
    pub(super) call: Box<Call>,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("connection", self.connection())
            .field("is_end", &self.is_end_stream())
            .finish_non_exhaustive()
    }
}

impl ResponseBody {
    /// Of a call whose response head has arrived.
    pub(super) fn new(mut call: Box<Call>) -> Self {
        if call.source_is_end() {
            call.length = Length::Known(Some(0));
            call.finish();
        }
        Self { call }
    }

    /// With its head.
    pub(super) fn into_http(mut self) -> http::Response<Self> {
        self.call.length = Length::Known(self.call.length());
        let headers = std::mem::take(&mut self.call.headers);
        let (status, version) = (self.call.status, self.call.version);
        let mut response = http::Response::new(self);
        *response.status_mut() = status;
        *response.version_mut() = version;
        *response.headers_mut() = headers;
        response
    }

    /// The connection it comes over.
    pub fn connection(&self) -> &ConnectionInfo {
        self.call.connection()
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
        let handle = &mut self.call.handle;
        let cell = handle.get_or_insert_with(|| Arc::new(Mutex::new(timing)));
        TimingHandle(cell.clone())
    }

    /// How the request came to its connection.
    pub fn connection_use(&self) -> ConnectionUse {
        let how = self.call.recorder.connection_use();
        how.unwrap_or(ConnectionUse::New)
    }

    /// The numbers that users watch.
    pub fn metrics(&self) -> StepMetrics {
        let timing = self.timing();
        StepMetrics {
            network_overhead_ms: millis(timing.network_overhead()),
            connection_reused: self.call.recorder.is_reused(),
            protocol: self.connection().protocol(),
            attempts: self.call.recorder.attempts(),
            ttfb_ms: timing.time_to_first_byte().map(millis),
        }
    }

    /// After 101 Switching Protocols: the connection itself, with what was read of the new
    /// protocol already. After 2xx to an extended CONNECT (RFC 8441): its stream. `None` for any other
    /// response.
    pub fn into_upgraded(mut self) -> Option<Upgraded> {
        match std::mem::replace(&mut self.call.source, Source::Ended) {
            Source::Tunnel(lease) => {
                self.call.end();
                Some(Upgraded::connection(lease.into_upgraded()))
            }
            Source::StreamTunnel(body) => {
                self.call.end();
                Tunnel::of(body).map(Upgraded::stream)
            }
            source => {
                self.call.source = source;
                None
            }
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
        let call = &mut *self.call;
        if let Source::Ended | Source::Tunnel(_) | Source::StreamTunnel(_) = call.source {
            return Poll::Ready(None);
        }
        call.recorder.emit(RequestEvent::ReadStart);
        // A body that is always at hand must not outlive its time either.
        if let Some(error) = call.is_over_time() {
            return Poll::Ready(Some(Err(call.fail(error))));
        }
        match call.poll_source(cx) {
            Poll::Pending => match call.poll_timers(cx) {
                Some(error) => {
                    if let Source::H2(body) = &call.source
                        && let Some(lease) = body.lease()
                    {
                        lease.doubt();
                    }
                    Poll::Ready(Some(Err(call.fail(error))))
                }
                None => Poll::Pending,
            },
            Poll::Ready(Some(Ok(frame))) => {
                call.pause = None;
                if let Some(data) = frame.data_ref() {
                    let n = data.len() as u64;
                    let before = call.recorder.body_received();
                    let bytes = before + n;
                    let is_told = call.recorder.has_listener();
                    let total = is_told.then(|| call.length()).flatten();
                    let event = RequestEvent::BodyReceived { bytes, total };
                    call.recorder.emit(event);
                }
                if call.source_is_end() {
                    call.finish();
                } else {
                    call.recorder.emit(RequestEvent::ReadEnd);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(call.fail(error)))),
            Poll::Ready(None) => {
                call.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.call.source, Source::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        let call = &*self.call;
        let left = |length: u64| length.saturating_sub(call.recorder.body_received());
        let left = call.length().map(left);
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.call.end();
        if let Source::H1(lease) = std::mem::replace(&mut self.call.source, Source::Ended) {
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
