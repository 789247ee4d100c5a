//! The journey of one call.
//!
//! ```text
//! prepared request
//!   attempt: acquire (pool) -> exchange (h1 or h2) -> response head
//!      '-- failed: retry's verdict: again, or the error with all that is known
//!   response body goes on from here with the lease and the clock
//! ```

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::header::{EXPECT, HeaderValue};
use http::uri::Authority;
use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::time::timeout_at;

use crate::clock::{deadline, now};
use crate::connection::{ConnectOptions, ConnectionInfo, Early, Protocols};
use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::event::{RequestEvent, RequestRecorder};
use crate::http1::RequestHead;
use crate::http2::{Doubter, Outgoing};
use crate::io::Traffic;
use crate::metrics::{Counters, Served};
use crate::origin::Origin;
use crate::pool::{
    Found as Free, Host, Lease, Minimum, Pool, WaitLimits, acquire, acquire_fresh, wait_for,
};
use crate::sync::lock;
use crate::timing::{ConnectionUse, Phase};

use super::call::{Call, Length, Source};
use super::response_body::ResponseBody;
use super::retry::{Answer, Failure, Tries, Verdict};

/// How long an origin that ends HTTP/2 connections with HTTP_1_1_REQUIRED gets none, and one that takes no
/// WebSockets over HTTP/2 is not asked again.
const REMEMBER_HTTP1: Duration = Duration::from_secs(600);

/// Where requests of one origin and one set of options go.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) origin: Origin,
    pub(crate) origin_text: Arc<str>,
    pub(crate) authority: Authority,
    pub(crate) options: Arc<ConnectOptions>,
    /// Connections that are kept warm from the first look on.
    pub(crate) minimum: Option<Arc<Minimum>>,
    /// The origin in the pool, as found last: on the warm path nobody makes a key or hashes it. It does
    /// not keep the origin alive.
    found: ArcSwapOption<Found>,
    /// The same origin over HTTP/1.1 alone, once it was needed.
    http1: OnceLock<Box<Self>>,
    /// The same origin through a tunnel, where a proxy would be asked for each request.
    tunnelled: OnceLock<Box<Self>>,
    /// Until then requests go over HTTP/1.1: the origin ended a connection that spoke HTTP/2.
    http1_until: Until,
    /// Until then WebSockets do: the origin does not take them over HTTP/2.
    websockets_http1_until: Until,
}

/// A time until which something holds, mostly none.
#[derive(Debug, Default)]
struct Until {
    is_set: AtomicBool,
    at: Mutex<Option<Instant>>,
}

impl Until {
    fn set(&self, at: Instant) {
        *lock(&self.at) = Some(at);
        self.is_set.store(true, Release);
    }

    fn holds(&self) -> bool {
        self.is_set.load(Acquire) && lock(&self.at).is_some_and(|at| now() < at)
    }
}

#[derive(Debug)]
struct Found {
    runtime: RuntimeId,
    host: Weak<Host>,
}

impl Route {
    pub(crate) fn new(origin: Origin, options: Arc<ConnectOptions>) -> Result<Self, Error> {
        let authority = Authority::from_maybe_shared(origin.authority().into_bytes())
            .map_err(|e| Error::invalid("URL host is not valid").with_source(e))?;
        let origin_text = origin.to_string().into();
        Ok(Self::of(origin, origin_text, authority, options))
    }

    /// One that has found and learned nothing yet.
    fn of(
        origin: Origin,
        origin_text: Arc<str>,
        authority: Authority,
        options: Arc<ConnectOptions>,
    ) -> Self {
        Self {
            origin,
            origin_text,
            authority,
            options,
            minimum: None,
            found: ArcSwapOption::empty(),
            http1: OnceLock::new(),
            tunnelled: OnceLock::new(),
            http1_until: Until::default(),
            websockets_http1_until: Until::default(),
        }
    }

    /// The same origin by other options.
    fn with_options(&self, change: impl FnOnce(&mut ConnectOptions)) -> Box<Self> {
        let mut options = ConnectOptions::clone(&self.options);
        change(&mut options);
        let (origin, text) = (self.origin.clone(), self.origin_text.clone());
        let authority = self.authority.clone();
        Box::new(Self::of(origin, text, authority, Arc::new(options)))
    }

    fn may_use_http1(&self) -> bool {
        self.options.protocols == Protocols::Auto
    }

    /// Where a request goes that needs HTTP/1.1; `None` if the options forbid it.
    fn over_http1(&self) -> Option<&Self> {
        if !self.may_use_http1() {
            return None;
        }
        let http1 = || self.with_options(|options| options.protocols = Protocols::Http1);
        Some(self.http1.get_or_init(http1))
    }

    /// The same origin by a connection of our own, where a proxy would forward each request: it may not pass on what
    /// belongs to one connection (RFC 9110 §7.6.1), such as an upgrade (RFC 6455 §4.1).
    pub(crate) fn tunnelled(&self) -> &Self {
        if !self.options.forwards(&self.origin) {
            return self;
        }
        let tunnelled = || self.with_options(|options| options.tunnels = true);
        self.tunnelled.get_or_init(tunnelled)
    }

    /// The origin ended a connection because it spoke HTTP/2.
    fn require_http1(&self) {
        self.http1_until.set(deadline(now(), REMEMBER_HTTP1));
    }

    /// The origin takes no WebSockets over HTTP/2.
    fn require_http1_for_websockets(&self) {
        let until = deadline(now(), REMEMBER_HTTP1);
        self.websockets_http1_until.set(until);
    }

    /// This, unless the origin is known to want HTTP/1.1.
    fn preferred(&self, is_websocket: bool) -> &Self {
        let is_required =
            self.http1_until.holds() || is_websocket && self.websockets_http1_until.holds();
        let over_http1 = is_required.then(|| self.over_http1()).flatten();
        let route = over_http1.unwrap_or(self);
        if is_websocket {
            route.tunnelled()
        } else {
            route
        }
    }

    /// Whether the origin's budget pays for one more attempt.
    fn may_retry(&self, pool: &Pool) -> bool {
        self.host(pool).is_ok_and(|host| host.may_retry())
    }

    /// The same, with connections kept warm.
    pub(crate) fn keeping_warm(mut self, minimum: Minimum) -> Self {
        self.minimum = (minimum != Minimum::default()).then(|| Arc::new(minimum));
        self
    }

    /// The origin in the pool, which does not fall asleep before it is used.
    ///
    /// # Errors
    /// As [`host`](Self::host).
    pub(crate) fn awake(&self, pool: &Pool) -> Result<Arc<Host>, Error> {
        loop {
            let host = self.host(pool)?;
            if host.stay_awake() {
                return Ok(host);
            }
        }
    }

    /// The origin in the pool, for the runtime we are on.
    ///
    /// # Errors
    /// Invalid: no runtime, options that do not fit the origin.
    pub(crate) fn host(&self, pool: &Pool) -> Result<Arc<Host>, Error> {
        let runtime = Handle::try_current()
            .map_err(|e| Error::invalid("no tokio runtime is running here").with_source(e))?;
        let id = runtime.id();
        if let Some(found) = &*self.found.load()
            && found.runtime == id
            && let Some(host) = found.host.upgrade()
            && !host.is_removed()
        {
            return Ok(host);
        }
        let host = pool.host(&self.origin, &self.options, runtime)?;
        if let Some(minimum) = &self.minimum {
            host.keep_warm(minimum);
        }
        self.found.store(Some(Arc::new(Found {
            runtime: id,
            host: Arc::downgrade(&host),
        })));
        Ok(host)
    }
}

/// A call until its response has a head. Dropped before, it is counted all the same.
struct Sending<'a> {
    /// Until the response takes it.
    call: Option<Box<Call>>,
    counters: [Option<&'a Counters>; 2],
    secure: bool,
    counted: bool,
    /// What the attempts before this one went over.
    earlier: Option<(ConnectionInfo, ConnectionUse)>,
}

impl Sending<'_> {
    fn call(&mut self) -> &mut Call {
        self.call.as_mut().expect("there is no response yet")
    }

    fn recorder(&mut self) -> &mut RequestRecorder {
        &mut self.call().recorder
    }

    /// Before another attempt, which may get none.
    fn note_connection(&mut self) {
        let call = self.call();
        if let Some(info) = call.connection.take() {
            let how = call.recorder.connection_use();
            let earlier = how.map(|how| (info, how));
            // The one that was waited for stands for the whole call.
            if self.paid().is_none() {
                self.earlier = earlier;
            }
        }
    }

    /// The connection of an earlier attempt that waited for it to be set up.
    fn paid(&self) -> Option<(&ConnectionInfo, ConnectionUse)> {
        let (info, how) = self.earlier.as_ref()?;
        (!how.is_reused()).then_some((info, *how))
    }

    /// Counts the call, once.
    fn count(&mut self) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let Some(call) = &self.call else { return };
        let recorder = &call.recorder;
        let counters = self.counters.into_iter().flatten();
        let current = call.connection.as_ref().zip(recorder.connection_use());
        let earlier = || self.earlier.as_ref().map(|(info, how)| (info, *how));
        let paid = self.paid();
        let Some((info, how)) = paid.or(current).or_else(earlier) else {
            counters.for_each(Counters::unserved);
            return;
        };
        let has_waited = paid.is_some() || recorder.has_waited_for_dns();
        let served = Served {
            how,
            secure: self.secure,
            waited_for_query: has_waited && info.trace().has_queried_dns(),
            setup_cost: info.setup_cost(),
            attempts: recorder.attempts(),
        };
        counters.for_each(|counters| counters.served(&served));
    }

    /// The error with everything that is known.
    fn fail(&mut self, error: Error, route: &Route) -> Error {
        self.recorder().emit(RequestEvent::End);
        self.count();
        let recorder = self.recorder();
        error
            .with_origin(route.origin_text.clone())
            .with_attempt(recorder.attempts(), recorder.is_reused())
            .with_timing(recorder.timing())
    }

    /// The response takes the call, and what was for the request alone is gone.
    fn respond(&mut self, until: Option<(Instant, Duration)>, moved: (u64, u64)) -> ResponseBody {
        self.recorder().emit(RequestEvent::Headers);
        self.count();
        let mut call = self.call.take().expect("there is one response");
        if let Some(request) = call.request.take() {
            let draft = request.draft;
            call.url
                .set_target(draft.shown_target.unwrap_or(draft.target));
        }
        call.body = None;
        call.attempt_body = None;
        call.total =
            until.map(|(at, total)| (Box::pin(tokio::time::sleep_until(at.into())), total));
        call.moved = moved;
        // The call's own end is the body's from here on.
        ResponseBody::new(call)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if let Some(call) = &mut self.call {
            call.recorder.emit(RequestEvent::End);
            self.count();
        }
    }
}

/// Sends a request and awaits the head of its response.
///
/// Dropping the future gives back whatever it held: its place in line, its stream (reset), its
/// HTTP/1.1 connection (closed once the request has begun).
pub(crate) async fn send(
    pool: &Arc<Pool>,
    client_counters: Option<&Counters>,
    mut route: &Route,
    call: Box<Call>,
) -> Result<ResponseBody, Error> {
    let mut sending = Sending {
        call: Some(call),
        counters: [Some(pool.counters()), client_counters],
        secure: route.origin.is_https(),
        counted: false,
        earlier: None,
    };
    let call = sending.call();
    let total = call.options.timeouts.total;
    let until = total.map(|total| (deadline(now(), total), total));
    route = route.preferred(call.request().draft.is_websocket);
    let may_expect = call.request().length != Some(0);
    let expect = call.options.expect_continue.filter(|_| may_expect);
    if let (Some(_), Some(request)) = (expect, &mut call.request) {
        let value = HeaderValue::from_static("100-continue");
        request.draft.headers.insert(EXPECT, value);
    }
    let mut early = call.request().early;
    let mut tries = Tries::default();
    let mut fresh = false;
    // Of the attempts before: a later one that was not sent does not make them undone.
    let mut known = ReplaySafety::NotSent;
    loop {
        sending.note_connection();
        let call = sending.call();
        call.recorder.emit(RequestEvent::AttemptStart);
        call.take_body();
        let timeouts = &call.options.timeouts;
        let limits = WaitLimits {
            queue: timeouts.queue,
            connect: timeouts.connect,
            until,
        };
        let find = || route.host(pool);
        // What may be replayed must be there to be sent again.
        let may_be_early = early && call.body.is_some();
        let recorder = &mut call.recorder;
        let found = if fresh {
            // It takes its time in any case, and most requests need not carry the room for it.
            Box::pin(acquire_fresh(
                || route.awake(pool),
                may_be_early,
                recorder,
                limits,
            ))
            .await
        } else {
            // A factory of bodies may have taken its time.
            let is_at_hand = call.body.as_ref().is_some_and(|b| b.as_bytes().is_some());
            let at = if is_at_hand {
                recorder.attempt_start()
            } else {
                now()
            };
            match acquire(find, may_be_early, recorder, at) {
                Ok(Free::Lease(lease)) => Ok(lease),
                Ok(Free::Nothing(place)) => {
                    Box::pin(wait_for(place, find, may_be_early, recorder, limits)).await
                }
                Err(error) => Err(error),
            }
        };
        let lease = match found {
            Ok(lease) => lease,
            Err(error) => {
                let safety = known.and(error.replay_safety());
                return Err(sending.fail(error.with_replay(safety), route));
            }
        };
        // Only the request that finds the handshake open travels as early data.
        let handshake = lease
            .info()
            .early()
            .filter(|early| early.is_open())
            .cloned();
        let http1 = matches!(lease, Lease::H1(_));
        let unsettled = lease.is_unsettled();
        let first_byte = call.options.timeouts.first_byte;
        let has_deadline = first_byte.is_some() || until.is_some();
        let doubter = if has_deadline { lease.doubter() } else { None };
        call.connection = Some(lease.info().clone());
        let traffic = Traffic::default();
        let result = {
            let attempt = pin!(exchange(call, route, expect, &traffic, lease));
            if has_deadline {
                bounded(attempt, first_byte, until, &traffic, doubter).await
            } else {
                Ok(attempt.await)
            }
        };
        let result = result.unwrap_or_else(|expired| Err(expired.into_error(call, &traffic)));
        let result = match &handshake {
            None => result,
            Some(handshake) => {
                early = false;
                after_early(result, handshake, &mut call.recorder)
            }
        };
        if let Err(error) = &result
            && call.request().draft.is_websocket
            && error.kind() == ErrorKind::Unsupported
            && let Some(over_http1) = route.over_http1()
        {
            // No failure, but how one finds out.
            route.require_http1_for_websockets();
            route = over_http1;
            continue;
        }
        let policy = call.options.retry;
        let verdict = match &result {
            Ok(()) => {
                let how = call.recorder.connection_use();
                let answer = Answer {
                    status: call.status,
                    was_early: handshake.is_some(),
                    was_shared: how.is_some_and(|how| how != ConnectionUse::New),
                    has_body: call.body.is_some(),
                };
                tries.answered(policy, answer)
            }
            Err(error) => {
                if call.body.is_none() {
                    let unused = call.attempt_body.take();
                    call.body = unused.filter(|body| !body.is_touched());
                }
                let failure = Failure {
                    idempotent: call.request().idempotent,
                    has_body: call.body.is_some(),
                    unsettled,
                    may_use_http1: route.may_use_http1(),
                    ..Failure::new(error, call.recorder.is_reused(), http1)
                };
                if error.kind() == ErrorKind::Http1Required && error.is_of_connection() {
                    route.require_http1();
                }
                tries.verdict(policy, failure)
            }
        };
        known = known.and(match &result {
            Ok(()) => ReplaySafety::Unprocessed,
            Err(error) => error.replay_safety(),
        });
        match verdict {
            Verdict::Again(again) if again.is_free || route.may_retry(pool) => {
                call.forget_answer();
                fresh = again.fresh;
                if again.over_http1 {
                    route = route.over_http1().unwrap_or(route);
                }
                if again.pause {
                    // Past the total timeout the next attempt finds itself out of time.
                    let at = deadline(now(), jitter());
                    let at = until.map_or(at, |(until, _)| at.min(until));
                    tokio::time::sleep_until(at.into()).await;
                }
            }
            _ => {
                let moved = traffic.totals();
                return match result {
                    Ok(()) => Ok(sending.respond(until, moved)),
                    Err(error) => {
                        let (sent, received) = moved;
                        let error = error.with_bytes(sent, received).with_replay(known);
                        Err(sending.fail(error, route))
                    }
                };
            }
        }
    }
}

/// What is known once the request's own handshake is over: early data may have been rejected, and
/// the handshake itself may be what failed.
fn after_early(
    result: Result<(), Error>,
    handshake: &Early,
    recorder: &mut RequestRecorder,
) -> Result<(), Error> {
    if let Some(error) = handshake.failure() {
        return Err(error.clone());
    }
    if let Some((at, dial)) = handshake.rejected() {
        recorder.emit(RequestEvent::EarlyRejected { dial, at });
    }
    result
}

/// 10 to 50 ms. The hasher's keys are the standard library's only source of randomness.
fn jitter() -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0u8);
    Duration::from_millis(10 + random % 41)
}

/// One attempt, to the head of its response, which the call gets.
async fn exchange(
    call: &mut Call,
    route: &Route,
    expect: Option<Duration>,
    traffic: &Traffic,
    lease: Lease,
) -> Result<(), Error> {
    let request = call.request.as_ref().expect("there is no response yet");
    let draft = &*request.draft;
    let body = &mut call.attempt_body;
    let recorder = &mut call.recorder;
    match lease {
        Lease::H1(_) if draft.options.extended_connect.is_some() => {
            let message =
                "the connection speaks HTTP/1.1, which has no extended CONNECT (RFC 8441)";
            let error = Error::new(ErrorKind::Unsupported, message).at(Phase::Send);
            Err(error.with_replay(ReplaySafety::NotSent))
        }
        Lease::H1(mut lease) => {
            let head = RequestHead {
                method: &draft.method,
                target: draft.target.as_str(),
                authority: route.authority.as_str(),
                headers: &draft.headers,
                defaults: request.defaults(),
            };
            let body = body.get_or_insert_default();
            let http1 = lease.http1();
            let head = http1
                .exchange(&head, request.length, expect, body, traffic, recorder)
                .await?;
            call.status = head.status;
            call.version = head.version;
            call.headers = head.headers;
            call.length = Length::Known(head.length);
            call.source = if head.is_tunnel {
                Source::Tunnel(lease)
            } else {
                Source::H1(lease)
            };
            Ok(())
        }
        Lease::H2(lease) => {
            let handle = lease.handle();
            let protocol = request.protocol();
            if protocol.is_some() {
                traffic.is_held.store(true, Relaxed);
                handle.check_extended_connect().await?;
                traffic.is_held.store(false, Relaxed);
            }
            let outgoing = Outgoing {
                head: || request.http2(&route.origin, &route.authority),
                length: request.length,
                expect,
                protocol,
            };
            let mut exchange = handle.start(outgoing, body, recorder, lease)?;
            let head = exchange.head(traffic, recorder).await?;
            let head = exchange.into_response(head);
            call.status = head.status;
            call.version = http::Version::HTTP_2;
            call.length = if head.is_tunnel {
                Length::Known(None)
            } else {
                Length::InHead
            };
            call.headers = head.headers;
            call.source = if head.is_tunnel {
                Source::StreamTunnel(head.body)
            } else {
                Source::H2(head.body)
            };
            Ok(())
        }
    }
}

/// Which timeout ran out.
struct Expired {
    what: &'static str,
    limit: Duration,
}

impl Expired {
    fn into_error(self, call: &Call, traffic: &Traffic) -> Error {
        let phase = call.recorder.timing().current_phase();
        let safety = if traffic.is_held.load(Relaxed) {
            ReplaySafety::NotSent
        } else if traffic.is_answered.load(Relaxed) {
            ReplaySafety::Processed
        } else {
            ReplaySafety::MaybeProcessed
        };
        let doing = if phase == Phase::Send {
            "sending the request"
        } else {
            "the response"
        };
        let message = format!(
            "{doing} took longer than the {} of {:?}",
            self.what, self.limit
        );
        Error::new(ErrorKind::Timeout, message)
            .at(phase)
            .with_replay(safety)
    }
}

/// Bounds the exchange by the total timeout and by `first_byte`, which starts again whenever the
/// upload moves. Pinned by its caller: a future that is moved in would be kept in several copies.
async fn bounded<F: Future>(
    exchange: Pin<&mut F>,
    first_byte: Option<Duration>,
    until: Option<(Instant, Duration)>,
    traffic: &Traffic,
    doubter: Option<Doubter>,
) -> Result<F::Output, Expired> {
    if let Some((at, limit)) = until
        && at <= now()
    {
        // To get here took all the time there was, and nothing has been sent yet.
        traffic.is_held.store(true, Relaxed);
        let what = "timeout";
        return Err(Expired { what, limit });
    }
    let mut watched = Watched {
        exchange,
        traffic,
        sent: 0,
        progress_at: now(),
    };
    loop {
        let first_byte_at = |watched: &Watched<'_, F>| {
            first_byte.map(|limit| (deadline(watched.progress_at, limit), limit))
        };
        let total = until.map(|(at, limit)| (at, limit, "timeout"));
        let first_byte =
            first_byte_at(&watched).map(|(at, limit)| (at, limit, "first_byte timeout"));
        let Some((at, limit, what)) = first_byte.into_iter().chain(total).min_by_key(|t| t.0)
        else {
            return Ok(watched.await);
        };
        // Not `select!`: a task that has used its turn up would never see the timer.
        if let Ok(output) = timeout_at(at.into(), &mut watched).await {
            return Ok(output);
        }
        let has_moved = first_byte_at(&watched).is_some_and(|(later, _)| later > at);
        if what == "timeout" || !has_moved {
            // Before the stream is given back, and given to somebody else.
            if let Some(doubter) = doubter {
                doubter.doubt();
            }
            return Err(Expired { what, limit });
        }
    }
}

/// An exchange, and when its upload moved last.
struct Watched<'a, F> {
    exchange: Pin<&'a mut F>,
    traffic: &'a Traffic,
    sent: u64,
    progress_at: Instant,
}

impl<F: Future> Future for Watched<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.exchange.as_mut().poll(cx);
        let sent = self.traffic.body_sent.load(Relaxed);
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.progress_at = now();
        }
        polled
    }
}
