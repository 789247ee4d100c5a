//! One exchange, to the head of its response: from the caller's own future.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use tokio::time::{Sleep, sleep};

use crate::body::Body;
use crate::clock::now;
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::io::Traffic;
use crate::timing::Phase;

use super::driver::{Http2, MAX_HEAD};
use super::fail;
use super::hold::Hold;
use super::receive::RecvBody;
use super::stream::{Parts, Recv};
use super::unread::Arrival;
use super::upload::Upload;

/// Informational responses accepted before the final one; h2 itself has no bound.
const MAX_INFORMATIONAL: u32 = 32;

/// A request as it goes to h2.
#[derive(Debug)]
pub(crate) struct Outgoing<F> {
    /// Makes its head, which is large, where it is handed over.
    pub(crate) head: F,
    /// The length of the body, if it is known.
    pub(crate) length: Option<u64>,
    /// The body waits for 100 Continue, at most for so long (RFC 9110 §10.1.1).
    pub(crate) expect: Option<Duration>,
    /// What an extended CONNECT wants to speak over its stream (RFC 8441 §4). It has no body.
    pub(crate) protocol: Option<Arc<str>>,
}

/// The final head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead<L: Send + 'static> {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RecvBody<L>,
    /// The stream is a tunnel from here on.
    pub(crate) is_tunnel: bool,
}

impl Http2 {
    /// Sends a request: its head, and of its body what is at hand. `lease` is the stream slot that the caller
    /// has taken; it is given back when the stream is over.
    ///
    /// `body` is taken once the stream is open; what is left of it is then sent while the head of the response
    /// is awaited, and as its body is read.
    ///
    /// # Errors
    /// Kind ConnectionLost, Refused or Protocol; the request was not sent. Body: it is not as long as it should be.
    /// TooLarge: its head is larger than the peer takes.
    pub(crate) fn start<L: Send + 'static>(
        self,
        request: Outgoing<impl FnOnce() -> Request<()>>,
        body: &mut Option<Body>,
        recorder: &RequestRecorder,
        lease: L,
    ) -> Result<Exchange<L>, Error> {
        let is_connect = request.protocol.is_some();
        let mut upload = Upload::new(body.take().unwrap_or_default(), request.length);
        let is_empty = upload.is_complete() && !is_connect;
        let mut head = (request.head)();
        if let Some(protocol) = request.protocol {
            let protocol = h2::ext::Protocol::from(&*protocol);
            head.extensions_mut().insert(protocol);
        }
        let Self { mut send, shared } = self;
        if let Some(limit) = shared.tap.header_list_limit()
            && list_size(&head) > limit as usize
        {
            *body = Some(upload.into_body());
            let size = list_size(&head);
            return Err(beyond_peers_limit(size, limit));
        }
        // A handle of one's own has sent nothing that it could be waiting for: it is ready.
        let open = || send.send_request(head, is_empty);
        let at = recorder.acquired_at().unwrap_or_else(now);
        let mut hold = match Hold::open(open, shared, lease, at) {
            Ok(hold) => hold,
            Err(error) => {
                *body = Some(upload.into_body());
                return Err(error);
            }
        };
        let expect = request.expect.filter(|_| !upload.is_done());
        if expect.is_none() && !upload.is_done() {
            hold.stream
                .with(|parts| upload.send_at_once(&mut parts.send));
            if upload.is_at_hand() {
                // What fits the window is queued before the task is given a chance: one write.
                let mut cx = Context::from_waker(Waker::noop());
                let polled = upload.poll(&mut cx, &hold.stream);
                hold.handed(upload.sent());
                if let Poll::Ready(Err(error)) = polled {
                    return Err(error);
                }
            }
        }
        hold.is_sent = upload.is_complete() && !is_connect;
        hold.handed(upload.sent());
        hold.shared.open();
        Ok(Exchange {
            hold,
            upload,
            is_connect,
            expect: expect.map(|limit| Box::pin(sleep(limit))),
            upload_told: false,
            was_polled: false,
            is_all: false,
            informational: 0,
            informational_bytes: 0,
        })
    }

    /// Waits for the peer's SETTINGS, which alone say whether extended CONNECT may be used (RFC 8441 §3).
    /// How long is the connection's to bound.
    ///
    /// # Errors
    /// Unsupported: it may not.
    pub(crate) async fn check_extended_connect(&self) -> Result<(), Error> {
        self.open();
        self.shared.settled().await;
        if self.send.is_extended_connect_protocol_enabled() || !self.has_settings() {
            // Without SETTINGS the connection has ended, and says so next.
            return Ok(());
        }
        let message = "the peer does not allow extended CONNECT (RFC 8441 §3: \
            SETTINGS_ENABLE_CONNECT_PROTOCOL is not set)";
        let error = Error::new(ErrorKind::Unsupported, message);
        Err(error.at(Phase::Send).with_replay(ReplaySafety::NotSent))
    }
}

fn too_many_informational() -> Error {
    Error::new(ErrorKind::Protocol, "too many informational responses")
        .with_replay(ReplaySafety::Processed)
}

/// A request that was sent, while the head of its response is awaited. Dropping it resets the stream and
/// nothing else, at once or as soon as resets can be paid.
pub(crate) struct Exchange<L: Send + 'static> {
    hold: Hold<L>,
    upload: Upload,
    /// It asks for a tunnel: what follows its head is the tunnel's.
    is_connect: bool,
    /// While it is there the body waits for 100 Continue.
    expect: Option<Pin<Box<Sleep>>>,
    upload_told: bool,
    /// Something may have arrived since.
    was_polled: bool,
    /// The head was all of the response.
    is_all: bool,
    informational: u32,
    informational_bytes: usize,
}

/// What h2 has of a response.
enum Arrived {
    Informational(Result<http::Response<()>, h2::Error>),
    /// And whether that is all of it.
    Final(Result<(http::Response<()>, bool), h2::Error>),
    CutOff,
}

impl<L: Send + 'static> Exchange<L> {
    /// Awaits the head of the final response.
    ///
    /// # Errors
    /// Kind ConnectionLost, Refused, Http1Required, SlowReader, Protocol, TooLarge or Body; the replay safety
    /// says what is known.
    pub(crate) async fn head(
        &mut self,
        traffic: &Traffic,
        recorder: &mut RequestRecorder,
    ) -> Result<http::response::Parts, Error> {
        poll_fn(|cx| self.poll(cx, traffic, recorder)).await
    }

    /// What its body is read from.
    pub(crate) fn into_response(self, response: http::response::Parts) -> ResponseHead<L> {
        let Self {
            mut hold,
            mut upload,
            is_connect,
            expect,
            is_all,
            ..
        } = self;
        if expect.is_some() {
            // RFC 9110 §10.1.1: a final answer in place of 100 Continue.
            upload.withhold();
        }
        let is_tunnel = is_connect && response.status.is_success();
        if is_connect && !is_tunnel {
            // There is nothing more to say.
            let end = |parts: &mut Parts| parts.send.send_data(Bytes::new(), true).is_ok();
            hold.is_sent = hold.stream.with(end) == Some(true);
        }
        ResponseHead {
            status: response.status,
            is_tunnel,
            headers: response.headers,
            body: RecvBody::new(hold, (!upload.is_done()).then(|| Box::new(upload)), is_all),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        traffic: &Traffic,
        recorder: &mut RequestRecorder,
    ) -> Poll<Result<http::response::Parts, Error>> {
        loop {
            if !self.upload_told {
                self.poll_upload(cx, traffic, recorder)?;
            }
            let stream = self.hold.stream.id();
            let arrival = if self.was_polled {
                self.hold.shared.tap.arrival(stream)
            } else {
                Arrival::default()
            };
            self.was_polled = true;
            match ready!(self.poll_arrived(cx, arrival)) {
                Arrived::Informational(interim) => {
                    let interim = interim.map_err(|e| self.fail(e, arrival))?;
                    traffic.is_answered.store(true, Relaxed);
                    self.informed(&interim, recorder)?;
                }
                Arrived::Final(response) => {
                    let (response, is_all) = response.map_err(|e| self.fail(e, arrival))?;
                    self.is_all = is_all;
                    let tap = &self.hold.shared.tap;
                    let arrival = if arrival.is_final(self.informational) {
                        arrival
                    } else {
                        tap.arrival(stream)
                    };
                    let at = arrival.of_final(self.informational);
                    let at = at.unwrap_or_else(|| tap.heard());
                    recorder.emit(RequestEvent::FirstByte(at));
                    if let Some(error) = too_large(response.headers()) {
                        return Poll::Ready(Err(error));
                    }
                    return Poll::Ready(Ok(response.into_parts().0));
                }
                Arrived::CutOff => {
                    let error = if self.hold.shared.tap.arrival(stream).is_a_flood() {
                        too_many_informational().at(self.phase())
                    } else {
                        fail::cut_off(self.phase())
                    };
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// The body of a final response stays with the stream.
    fn poll_arrived(&self, cx: &mut Context<'_>, arrival: Arrival) -> Poll<Arrived> {
        let may_be_informational = !arrival.is_final(self.informational);
        let arrived = self.hold.stream.with(|parts| {
            let Recv::Head(response) = &mut parts.recv else {
                return Poll::Ready(Arrived::CutOff);
            };
            // Only once there is none: h2 throws one away that comes between this look and the next.
            if may_be_informational && let Some(interim) = ready!(response.poll_informational(cx)) {
                return Poll::Ready(Arrived::Informational(interim));
            }
            let response = ready!(Pin::new(response).poll(cx)).map(|response| {
                let (head, body) = response.into_parts();
                // Where DATA has come it is not.
                let is_all = may_be_informational && body.is_end_stream();
                parts.recv = Recv::Body(body);
                (http::Response::from_parts(head, ()), is_all)
            });
            Poll::Ready(Arrived::Final(response))
        });
        arrived.unwrap_or(Poll::Ready(Arrived::CutOff))
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
        self.hold.handed(self.upload.sent());
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
            self.hold.is_sent = !self.is_connect;
            recorder.emit(RequestEvent::UploadEnd);
        }
        Ok(())
    }

    /// An informational response is told and counted.
    fn informed(
        &mut self,
        interim: &http::Response<()>,
        recorder: &mut RequestRecorder,
    ) -> Result<(), Error> {
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
            return Err(too_many_informational().at(self.phase()));
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

    fn fail(&self, error: h2::Error, arrival: Arrival) -> Error {
        let stream = self.hold.stream.id();
        let tap = &self.hold.shared.tap;
        let own_reset = error.is_reset() && error.is_library();
        if own_reset && tap.head_bytes(stream) > MAX_HEAD.bytes {
            // h2 gave up on a head beyond its own bound and says only PROTOCOL_ERROR.
            return head_too_large("bytes", MAX_HEAD.bytes).with_source(error);
        }
        // With a head that DATA follows a response has begun, whatever is wrong with it: it may have been an
        // informational one, for which h2 was not asked.
        let unknown = if self.informational > 0 || arrival.is_final(0) {
            ReplaySafety::Processed
        } else if error.is_io() && self.hold.is_unwritten() {
            ReplaySafety::NotSent
        } else {
            ReplaySafety::MaybeProcessed
        };
        if unknown != ReplaySafety::Processed {
            if fail::is_connection_refused(&error, stream) {
                return fail::connection_refused(tap, self.phase());
            }
            if let Some(why) = self.hold.shared.own_end().filter(|_| error.is_io()) {
                return Error::new(ErrorKind::ConnectionLost, why)
                    .at(self.phase())
                    .with_replay(unknown);
            }
        }
        fail::describe(error, tap, self.phase(), unknown)
    }
}

/// The size of headers, counted as RFC 9113 §6.5.2 counts.
fn size(headers: &HeaderMap) -> usize {
    const OVERHEAD: usize = 32;
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD)
        .sum()
}

/// The size of a request's head, counted in the same way.
fn list_size(head: &Request<()>) -> usize {
    // `:method`, `:scheme`, `:authority` and `:path` with their values.
    const PSEUDO: usize = 4 * 32 + 7 + 7 + 10 + 5;
    let uri = head.uri();
    let path = uri.path_and_query().map_or(1, |path| path.as_str().len());
    let authority = uri
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    let scheme = uri.scheme_str().map_or(0, str::len);
    let method = head.method().as_str().len();
    PSEUDO + method + scheme + authority + path + size(head.headers())
}

/// h2 would send it; a peer that does not take it may end the connection, with whatever else it carries (RFC 9113
/// §10.5.1).
#[cold]
fn beyond_peers_limit(size: usize, limit: u32) -> Error {
    let message = format!(
        "the head of the request has {size} bytes and the peer takes {limit} \
         (SETTINGS_MAX_HEADER_LIST_SIZE)"
    );
    Error::new(ErrorKind::TooLarge, message)
        .at(Phase::Send)
        .with_replay(ReplaySafety::NotSent)
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
