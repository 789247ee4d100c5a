//! From an origin to a lease: at once, or by waiting in line within the timeouts.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::error::{Error, ErrorKind};
use crate::event::{DialRecorder, RequestEvent, RequestRecorder};
use crate::timing::{ConnectionTrace, ConnectionUse, Phase, WaitCause, Waited};

use tokio::sync::oneshot;
use tokio::task::unconstrained;

use super::host::{Checkout, Denied, Grant, Host, Place};
use super::lease::Lease;
use super::state::Cover;

/// How long a request may wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WaitLimits {
    /// For a limit.
    pub(crate) queue: Option<Duration>,
    /// For a dial.
    pub(crate) connect: Option<Duration>,
    /// For anything; the request's own end.
    pub(crate) until: Option<(Instant, Duration)>,
}

/// What [`acquire`] found.
pub(crate) enum Found {
    Lease(Lease),
    /// Nothing is free: [`wait_for`] it.
    Nothing(Place),
}

/// Gets a connection, or a stream of one, if one is free now. `find` looks the origin up, again if it was
/// forgotten between; `at` is now. With `early` it may be a connection whose handshake still runs, for this request alone.
///
/// # Errors
/// Limit; PoolClosed.
pub(crate) fn acquire(
    find: impl Fn() -> Result<Arc<Host>, Error>,
    early: bool,
    recorder: &mut RequestRecorder,
    at: Instant,
) -> Result<Found, Error> {
    look(find, early, None, recorder, at)
}

/// With a `turn` for one who had waited since then.
fn look(
    find: impl Fn() -> Result<Arc<Host>, Error>,
    early: bool,
    turn: Option<Instant>,
    recorder: &mut RequestRecorder,
    at: Instant,
) -> Result<Found, Error> {
    let mut at = at;
    loop {
        match find()?.checkout(early, turn, at)? {
            Checkout::Gone => {}
            Checkout::Lease(mut lease, how) => {
                let Err(why) = probe(&mut lease) else {
                    return Ok(Found::Lease(acquired(lease, how, None, recorder)));
                };
                lease.close(why);
                at = now();
            }
            Checkout::Line(place) => return Ok(Found::Nothing(place)),
        }
    }
}

/// Waits in line.
///
/// Dropping the future leaves the line; a dial that runs for it finishes and serves others.
///
/// # Errors
/// Whatever the dial failed with; Timeout in the phase it was in; Limit; PoolClosed.
pub(crate) async fn wait_for(
    mut place: Place,
    find: impl Fn() -> Result<Arc<Host>, Error>,
    early: bool,
    recorder: &mut RequestRecorder,
    limits: WaitLimits,
) -> Result<Lease, Error> {
    loop {
        let turn = Some(place.patient_since);
        let mut grant = wait(place, recorder, limits).await?;
        // What comes straight from its dial still holds the end of the handshake back, so that it
        // leaves with the request.
        let probed = match grant.dial {
            Some(_) => Ok(()),
            None => probe(&mut grant.lease),
        };
        let Err(why) = probed else {
            return Ok(acquired(grant.lease, grant.how, grant.dial, recorder));
        };
        // In line before the place of the dead one comes free: it is ours.
        let found = look(&find, early, turn, recorder, now());
        grant.lease.close(why);
        place = match found? {
            Found::Lease(lease) => return Ok(lease),
            Found::Nothing(place) => place,
        };
        // It may be another origin than it was, if that was forgotten between.
        place.host.drive();
    }
}

/// Gets a connection that was dialled for the request, or any that it may wait for where a limit forbids one
/// more.
///
/// # Errors
/// As [`wait_for`].
pub(crate) async fn acquire_fresh(
    find: impl Fn() -> Result<Arc<Host>, Error>,
    early: bool,
    recorder: &mut RequestRecorder,
    limits: WaitLimits,
) -> Result<Lease, Error> {
    if let Some(grant) = dial_fresh(&find()?, recorder, limits).await? {
        return Ok(acquired(grant.lease, grant.how, grant.dial, recorder));
    }
    match acquire(&find, early, recorder, now())? {
        Found::Lease(lease) => Ok(lease),
        Found::Nothing(place) => wait_for(place, find, early, recorder, limits).await,
    }
}

fn acquired(
    lease: Lease,
    how: ConnectionUse,
    dial: Option<Arc<ConnectionTrace>>,
    recorder: &mut RequestRecorder,
) -> Lease {
    recorder.emit(RequestEvent::Acquired { how, dial });
    lease.info().count_request();
    lease
}

/// A connection of its own for the request. `None` when a limit forbids one more: then any connection has
/// to do.
async fn dial_fresh(
    host: &Arc<Host>,
    recorder: &mut RequestRecorder,
    limits: WaitLimits,
) -> Result<Option<Grant>, Error> {
    let (sender, receiver) = oneshot::channel();
    let dial = DialRecorder::new();
    if host.order_for_request(sender, dial.clone()).is_err() {
        return Ok(None);
    }
    let since = now();
    // It waits for this dial and for no limit.
    let limits = WaitLimits {
        queue: None,
        ..limits
    };
    let alarm = Alarm::next(since, Some(since), limits);
    tokio::select! {
        biased;
        outcome = receiver => match outcome {
            Ok(Ok(grant)) => {
                let stay = Stay { since, waits_for: None };
                stay.note(recorder, grant.cover, grant.dial.as_deref());
                Ok(Some(grant))
            }
            Ok(Err(denied)) => {
                recorder.waiting(WaitCause::Dial, since, denied.dial);
                Err(denied.error)
            }
            Err(_) => Ok(None),
        },
        () = alarm.sleep() => Err(alarm.error(recorder, Some(since), Some(dial), host)),
    }
}

/// Takes a lease on a warm connection, as [`acquire`] does when it need not wait, and gives it back. False
/// if there was none. `at` is now, as in a request, which has read its clock already.
pub(crate) fn check_out(host: Arc<Host>, at: Instant) -> Result<bool, Error> {
    match host.checkout(false, None, at)? {
        Checkout::Lease(mut lease, _) => {
            let probed = probe(&mut lease);
            match probed {
                Ok(()) => lease.give_back(at),
                Err(why) => lease.close(why),
            }
            Ok(probed.is_ok())
        }
        Checkout::Line(_) | Checkout::Gone => Ok(false),
    }
}

/// Looks once more, right before the request is written, whether the peer has closed the
/// connection or said something unasked.
fn probe(lease: &mut Lease) -> Result<(), CloseReason> {
    let Lease::H1(h1) = lease else {
        return Ok(());
    };
    let http1 = h1.http1();
    if http1.is_still_quiet() {
        return Ok(());
    }
    // It may be a ticket. Nobody shall be woken: the connection is used, or closed, at once. A task that has used its turn up would see every
    // socket as quiet.
    let mut cx = Context::from_waker(Waker::noop());
    let look = pin!(unconstrained(poll_fn(|cx| {
        Poll::Ready(http1.poll_quiet(cx))
    })));
    match look.poll(&mut cx) {
        Poll::Ready(looked) => looked,
        Poll::Pending => Ok(()),
    }
}

async fn wait(
    mut place: Place,
    recorder: &mut RequestRecorder,
    limits: WaitLimits,
) -> Result<Grant, Error> {
    let since = place.since;
    let stay = Stay {
        since,
        waits_for: place.waits_for,
    };
    loop {
        let (cover, dial) = place.standing().unwrap_or_default();
        let alarm = Alarm::next(place.patient_since, cover.since, limits);
        let outcome = tokio::select! {
            biased;
            outcome = &mut place.receiver => outcome,
            () = alarm.sleep() => {
                let standing = place.standing();
                let Some((now_cover, dial)) = standing else {
                    // Served in this very moment: the answer is on its way.
                    continue;
                };
                if now_cover.since != cover.since || alarm.is_look {
                    continue;
                }
                stay.note(recorder, now_cover, None);
                return Err(alarm.error(recorder, now_cover.since, dial, &place.host));
            }
        };
        drop(dial);
        return match outcome {
            Ok(Ok(grant)) => {
                if stay.note(recorder, grant.cover, grant.dial.as_deref()) {
                    place.host.count_limit_hit();
                }
                Ok(grant)
            }
            Ok(Err(Denied { error, cover, dial })) => {
                match (dial, cover.since) {
                    // It failed with this dial: its phases are what was waited for.
                    (Some(dial), Some(covered)) => {
                        stay.note_before(recorder, cover, covered);
                        recorder.waiting(WaitCause::Dial, covered, Some(dial));
                    }
                    _ => {
                        stay.note(recorder, cover, None);
                    }
                }
                Err(error)
            }
            Err(_) => unreachable!("a waiter leaves the line only with an answer"),
        };
    }
}

/// What a place in line tells of its time.
#[derive(Clone, Copy)]
struct Stay {
    since: Instant,
    waits_for: Option<WaitCause>,
}

impl Stay {
    /// Tells the recorder what was waited for. With the dial that served it, its phases explain the
    /// time from its start on. True if it met a limit only on the way.
    fn note(
        self,
        recorder: &mut RequestRecorder,
        cover: Cover,
        served_by: Option<&ConnectionTrace>,
    ) -> bool {
        let leave = now();
        let met_limit = self.note_before(recorder, cover, cover.since.unwrap_or(leave));
        if let Some(enter) = cover.since {
            let leave = served_by.map_or(leave, |trace| trace.start.min(leave));
            waited(recorder, Some(WaitCause::Dial), enter, leave);
        }
        met_limit
    }

    /// The time before the last dial that ran for it, up to `leave`. If nothing forbade a dial at first,
    /// that was our own work; what lies behind one that served others was a limit's.
    fn note_before(self, recorder: &mut RequestRecorder, cover: Cover, leave: Instant) -> bool {
        let Some((first, last)) = cover.before else {
            waited(recorder, self.waits_for, self.since, leave);
            return false;
        };
        waited(recorder, self.waits_for, self.since, first);
        waited(recorder, Some(WaitCause::Dial), first, last);
        let why = self.waits_for.unwrap_or(WaitCause::Limit);
        waited(recorder, Some(why), last, leave) && self.waits_for.is_none()
    }
}

fn waited(
    recorder: &mut RequestRecorder,
    why: Option<WaitCause>,
    enter: Instant,
    leave: Instant,
) -> bool {
    let Some(why) = why.filter(|_| leave > enter) else {
        return false;
    };
    recorder.emit(RequestEvent::Waited(Waited { why, enter, leave }));
    true
}

/// The timeout that runs out first.
struct Alarm {
    at: Option<Instant>,
    what: &'static str,
    limit: Duration,
    /// No timeout, but time to look whether one applies by now.
    is_look: bool,
}

impl Alarm {
    fn next(since: Instant, covered: Option<Instant>, limits: WaitLimits) -> Self {
        /// A dial may end without having served those who waited for it; then the queue's timeout
        /// holds again, and nobody tells.
        const LOOK: Duration = Duration::from_millis(50);
        let timeout = |at, what, limit| (deadline(at, limit), what, limit);
        let own = match covered {
            Some(covered) => limits
                .connect
                .map(|limit| timeout(covered, "connect timeout", limit)),
            None => limits
                .queue
                .map(|limit| timeout(since, "queue timeout", limit)),
        };
        let look = limits.queue.filter(|_| covered.is_some()).map(|limit| {
            let at = deadline(since, limit).max(deadline(now(), LOOK));
            (at, "", limit)
        });
        // A dial may begin meanwhile, and nobody tells: its time cannot be over before that.
        let dial_look = limits.connect.filter(|_| covered.is_none());
        let dial_look = dial_look.map(|limit| (deadline(now(), limit), "", limit));
        let total = limits.until.map(|(at, d)| (at, "timeout", d));
        let all = own.into_iter().chain(total).chain(look).chain(dial_look);
        let first = all.min_by_key(|(at, ..)| *at);
        let (at, what, limit) = first.map_or((None, "", Duration::ZERO), |(at, what, limit)| {
            (Some(at), what, limit)
        });
        Self {
            at,
            what,
            limit,
            is_look: at.is_some() && what.is_empty(),
        }
    }

    async fn sleep(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }

    fn error(
        &self,
        recorder: &mut RequestRecorder,
        covered: Option<Instant>,
        dial: Option<Arc<DialRecorder>>,
        host: &Host,
    ) -> Error {
        let phase = match (covered, dial) {
            (Some(since), Some(dial)) => {
                let phase = dial.current_phase();
                recorder.waiting(WaitCause::Dial, since, Some(dial));
                phase
            }
            _ => Phase::Queue,
        };
        let (doing, why) = if phase == Phase::Queue {
            ("waiting for a connection", host.held_back_by())
        } else {
            ("connecting", None)
        };
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        Error::new(
            ErrorKind::Timeout,
            format!(
                "{doing} took longer than the {} of {:?}{why}",
                self.what, self.limit
            ),
        )
        .at(phase)
        .with_origin(host.plan.origin_text.clone())
    }
}
