//! The books of one call, from its first poll until its response is gone. In one place, which does not
//! move: what goes from hand to hand is a pointer.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode, Version};
use tokio::time::Sleep;

use crate::body::Body;
use crate::clock::now;
use crate::connection::ConnectionInfo;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::http2::RecvBody;
use crate::pool::{H1Lease, H2Lease};
use crate::sync::lock;
use crate::timing::{Phase, RequestTiming};

use super::options::CallOptions;
use super::prepare::Prepared;

/// Where the bytes of a response come from.
#[derive(Debug)]
pub(super) enum Source {
    Ended,
    H1(H1Lease),
    H2(RecvBody<H2Lease>),
    /// 101 Switching Protocols.
    Tunnel(H1Lease),
    /// 2xx to an extended CONNECT.
    StreamTunnel(RecvBody<H2Lease>),
}

/// How long a body is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    Known(Option<u64>),
    /// The head says it, or nobody: seldom does somebody ask.
    InHead,
}

/// One call.
pub(crate) struct Call {
    /// Until there is a response.
    pub(super) request: Option<Prepared>,
    /// For another attempt, if there can be one.
    pub(super) body: Option<Body>,
    /// The attempt's, until the protocol takes it.
    pub(super) attempt_body: Option<Body>,
    pub(super) options: CallOptions,
    pub(super) recorder: RequestRecorder,
    /// Of the attempt that is under way, and at last of the response.
    pub(super) connection: Option<ConnectionInfo>,
    pub(super) status: StatusCode,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) source: Source,
    pub(super) length: Length,
    pub(super) url: ResponseUrl,
    pub(super) total: Option<(Pin<Box<Sleep>>, Duration)>,
    pub(super) pause: Option<Pin<Box<Sleep>>>,
    pub(super) handle: Option<Arc<Mutex<RequestTiming>>>,
    /// Bytes sent, and received until the head was whole.
    pub(super) moved: (u64, u64),
}

impl Call {
    /// Begins: this is the call's first poll. In a box from here on.
    pub(super) fn begin(request: Prepared, body: Body, mut options: CallOptions) -> Box<Self> {
        Box::new(Self {
            recorder: RequestRecorder::start(options.listener.take()),
            request: Some(request),
            body: Some(body),
            attempt_body: None,
            options,
            connection: None,
            status: StatusCode::OK,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            source: Source::Ended,
            length: Length::Known(None),
            url: ResponseUrl::default(),
            total: None,
            pause: None,
            handle: None,
            moved: (0, 0),
        })
    }

    pub(super) fn request(&self) -> &Prepared {
        self.request.as_ref().expect("there is no response yet")
    }

    /// The next attempt's body, as far as there is one.
    pub(super) fn take_body(&mut self) {
        self.attempt_body = Some(Body::for_attempt(&mut self.body));
    }

    /// The attempt's response is not the call's.
    pub(super) fn forget_answer(&mut self) {
        self.source = Source::Ended;
        self.headers.clear();
        self.length = Length::Known(None);
    }

    /// How long the body is, if that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self.length {
            Length::Known(length) => length,
            Length::InHead => content_length(&self.headers),
        }
    }

    pub(super) fn connection(&self) -> &ConnectionInfo {
        let connection = self.connection.as_ref();
        connection.expect("a response comes over a connection")
    }

    pub(super) fn end(&mut self) {
        self.recorder.emit(RequestEvent::End);
        if let Some(handle) = self.handle.take() {
            *lock(&handle) = self.recorder.timing();
        }
    }

    pub(super) fn is_over_time(&self) -> Option<Error> {
        let (timer, limit) = self.total.as_ref()?;
        let is_over = now() >= timer.deadline().into_std();
        is_over.then(|| expired("timeout", *limit))
    }

    /// A timer that has run out while a read is pending.
    pub(super) fn poll_timers(&mut self, cx: &mut Context<'_>) -> Option<Error> {
        if let Some((timer, limit)) = &mut self.total
            && timer.as_mut().poll(cx).is_ready()
        {
            return Some(expired("timeout", *limit));
        }
        if let Some(limit) = self.options.timeouts.between_bytes {
            let timer = self
                .pause
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
            if timer.as_mut().poll(cx).is_ready() {
                return Some(expired("between_bytes timeout", limit));
            }
        }
        None
    }

    /// The next frame of the body, from wherever it comes.
    pub(super) fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Error>>> {
        match &mut self.source {
            Source::Ended | Source::Tunnel(_) | Source::StreamTunnel(_) => Poll::Ready(None),
            Source::H1(lease) => {
                let http1 = lease.http1();
                let polled = http1.poll_body(cx);
                if let Some(sent) = http1.take_sent() {
                    let (bytes, total) = (sent.bytes, sent.total);
                    self.recorder.emit(RequestEvent::BodySent { bytes, total });
                    if sent.is_all {
                        self.recorder.emit(RequestEvent::UploadEnd);
                    }
                }
                if http1.was_at_hand()
                    && let Some(at) = self.recorder.read_at()
                {
                    self.recorder.emit(RequestEvent::AtHand(at));
                }
                polled
            }
            Source::H2(body) => body.poll_body(cx, &mut self.recorder),
        }
    }

    pub(super) fn source_is_end(&mut self) -> bool {
        match &mut self.source {
            Source::Ended => true,
            Source::Tunnel(_) | Source::StreamTunnel(_) => false,
            Source::H1(lease) => lease.http1().is_end(),
            Source::H2(body) => body.is_end(),
        }
    }

    /// The body has come to its end: the lease goes home before the caller looks at anything else.
    pub(super) fn finish(&mut self) {
        self.end();
        match std::mem::replace(&mut self.source, Source::Ended) {
            Source::H1(lease) => lease.give_back(self.recorder.ended_at()),
            others => drop(others),
        }
    }

    pub(super) fn fail(&mut self, error: Error) -> Error {
        self.finish();
        self.describe(error)
    }

    /// The error with everything that is known of the call.
    pub(super) fn describe(&self, error: Error) -> Error {
        let recorder = &self.recorder;
        error
            .at(Phase::Receive)
            .with_replay(ReplaySafety::Processed)
            .with_origin(self.connection().origin())
            .with_attempt(recorder.attempts(), recorder.is_reused())
            .with_timing(recorder.timing())
            .with_bytes(self.moved.0, self.moved.1 + recorder.body_received())
    }
}

fn expired(what: &str, limit: Duration) -> Error {
    let message = format!("reading the body took longer than the {what} of {limit:?}");
    Error::new(ErrorKind::Timeout, message)
        .at(Phase::Receive)
        .with_replay(ReplaySafety::Processed)
}

/// The length that a head announces.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The URL of a response, put together only for whoever asks.
#[derive(Default)]
pub(super) struct ResponseUrl {
    target: Option<PathAndQuery>,
    text: OnceLock<String>,
}

impl ResponseUrl {
    pub(super) fn set_target(&mut self, target: PathAndQuery) {
        self.target = Some(target);
    }

    pub(super) fn as_str(&self, origin: &str) -> &str {
        self.text.get_or_init(|| {
            let target = self.target.as_ref().map_or("", PathAndQuery::as_str);
            format!("{origin}{target}")
        })
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("connection", &self.connection)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}
