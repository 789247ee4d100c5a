//! One origin: takes its lock, asks the pure state, lets go, acts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use http::Version;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Learned, Plan};
use crate::dns::NameUse;
use crate::error::{Error, ErrorKind};
use crate::event::DialRecorder;
use crate::sync::{fence, lock};
use crate::timing::{ConnectionTrace, ConnectionUse, Phase};

use super::capacity::{Blocked, Permit};
use super::dial::{DialTask, Report};
use super::key::Key;
use super::lease::{H1Conn, H1Lease, H2Conn, H2Lease, Home, Lease};
use super::line::Ticket;
use super::maintenance::Janitor;
use super::shared::{Live, Shared, pool_closed};
use super::state::{HostState, Idle, Multiplexed, Waiter};

/// What a waiter gets.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) lease: Lease,
    pub(crate) how: ConnectionUse,
    /// The dial that served it, if one did.
    pub(crate) dial: Option<Arc<ConnectionTrace>>,
    pub(crate) covered: Option<Instant>,
}

/// A dial failed; its recorder knows how far it had come.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) error: Error,
    pub(crate) covered: Option<Instant>,
    pub(crate) dial: Option<Arc<DialRecorder>>,
}

pub(crate) type Outcome = Result<Grant, Denied>;
pub(super) type State = HostState<H1Conn, Arc<H2Conn>, oneshot::Sender<Outcome>, Arc<DialRecorder>>;

/// What asking for a connection gives at once.
pub(crate) enum Checkout {
    Lease(Lease, ConnectionUse),
    Line(Place),
    /// The origin was just forgotten; look it up again.
    Gone,
}

#[derive(Debug)]
pub(super) struct Books {
    pub(super) state: State,
    pub(super) live: Vec<Live>,
}

/// One origin with one set of options on one runtime.
pub(crate) struct Host {
    pub(crate) key: Key,
    pub(crate) plan: Arc<Plan>,
    pub(super) shared: Arc<Shared>,
    pub(super) janitor: Arc<Janitor>,
    pub(super) runtime: Handle,
    pub(super) books: Mutex<Books>,
    /// Waiters in line, for who gives a stream back without the lock: a waiter gets in line and
    /// then looks for a slot, a stream gives its slot back and then looks for waiters, so one of
    /// them sees the other (modelled in `http2::streams`).
    pub(super) waiting: AtomicUsize,
    /// Tells DNS that the name is in use, though nobody looks it up.
    name_use: Option<Arc<NameUse>>,
    /// Taken off the registry: nobody finds it any more. Set under the lock of the books.
    pub(super) removed: AtomicBool,
    /// It stands in the line for a permit.
    pub(super) blocked: AtomicBool,
    pub(super) this: Weak<Self>,
}

impl fmt::Debug for Host {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let books = lock(&self.books);
        let state = &books.state;
        let streams: u32 = state.shared.iter().map(Multiplexed::in_use).sum();
        write!(
            f,
            "{} {}: {} open, {} idle h1, {} h2 with {streams} streams, {} dialling, {} waiting",
            self.key.origin(),
            match state.verdict {
                Some(Version::HTTP_2) => "h2",
                Some(_) => "h1",
                None => "unknown",
            },
            state.open,
            state.idle.len(),
            state.shared.len(),
            state.dials.len(),
            state.line.len(),
        )
    }
}

impl Host {
    pub(crate) fn new(
        key: Key,
        plan: Plan,
        shared: Arc<Shared>,
        janitor: Arc<Janitor>,
        runtime: Handle,
    ) -> Arc<Self> {
        let name_use = shared.deps.dns.name_use(plan.target().0);
        Arc::new_cyclic(|this| Self {
            name_use,
            books: Mutex::new(Books {
                state: HostState::new(plan.known_protocol(), now()),
                live: Vec::new(),
            }),
            key,
            plan: Arc::new(plan),
            shared,
            janitor,
            runtime,
            waiting: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// A connection or stream at once, or a place in line; `early` says that the request may travel
    /// as early data.
    ///
    /// # Errors
    /// PoolClosed; Limit when `max_waiting` wait already.
    pub(crate) fn checkout(self: &Arc<Self>, early: bool) -> Result<Checkout, Error> {
        let at = now();
        if let Some(name_use) = &self.name_use {
            name_use.mark();
        }
        let (ticket, receiver) = {
            let mut books = lock(&self.books);
            if self.is_removed() {
                return Ok(Checkout::Gone);
            }
            // Looked at under the lock: shutdown empties every line after it closed the pool.
            if self.shared.is_closed() {
                return Err(pool_closed().with_origin(self.plan.origin_text.clone()));
            }
            let state = &mut books.state;
            state.last_used = at;
            if state.line.is_empty() {
                if let Some(idle) = state.take_idle() {
                    drop(books);
                    self.shared.idle.fetch_sub(1, Ordering::SeqCst);
                    return Ok(self.lend_idle(idle, at));
                }
                if let Some((conn, taken)) = state.take_stream() {
                    let spare = state.wants_spare(taken, self.shared.rules(), at);
                    drop(books);
                    let how = self.taken(&conn, taken.before);
                    if spare {
                        self.dial_spare();
                    }
                    let lease = Lease::H2(H2Lease::new(conn, self.clone()));
                    return Ok(Checkout::Lease(lease, how));
                }
            }
            let waiting = self.shared.waiting.load(Ordering::SeqCst);
            if self
                .shared
                .limits
                .max_waiting
                .is_some_and(|max| waiting >= max)
            {
                self.shared.counters.limit_hit();
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("{waiting} requests wait for a connection already (max_waiting)"),
                )
                .at(Phase::Queue)
                .with_origin(self.plan.origin_text.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            let ticket = state.enqueue(sender, early, at);
            self.count_waiting(1);
            (ticket, receiver)
        };
        let mut place = Place {
            host: self.clone(),
            ticket,
            receiver,
            since: at,
            met_limit: false,
        };
        self.drive();
        if matches!(self.standing(ticket), Some((None, _))) {
            place.met_limit = true;
            self.shared.counters.limit_hit();
        }
        Ok(Checkout::Line(place))
    }

    /// An idle connection leaves the stack; one that is past its time is closed instead.
    pub(super) fn lend_idle(self: &Arc<Self>, idle: Idle<H1Conn>, at: Instant) -> Checkout {
        let Idle { conn, since } = idle;
        if let Some(why) = self.overdue(&conn, since, at) {
            self.clone().close(conn, why);
            // There may be a younger one below it; ask again.
            return Checkout::Gone;
        }
        let how = if conn.info.requests() == 0 {
            ConnectionUse::Prewarmed
        } else {
            ConnectionUse::Idle
        };
        Checkout::Lease(Lease::H1(H1Lease::new(conn, self.clone())), how)
    }

    pub(super) fn overdue(
        &self,
        conn: &H1Conn,
        since: Instant,
        at: Instant,
    ) -> Option<CloseReason> {
        if conn.retire_at.is_some_and(|retire| retire <= at) {
            Some(CloseReason::Lifetime)
        } else if deadline(since, self.shared.limits.keepalive_expiry) <= at {
            Some(CloseReason::IdleExpired)
        } else {
            None
        }
    }

    /// Books a stream that was taken, and says how it was come by.
    pub(super) fn taken(&self, conn: &Arc<H2Conn>, before: u32) -> ConnectionUse {
        if before > 0 {
            return ConnectionUse::Multiplexed;
        }
        self.shared.idle.fetch_sub(1, Ordering::SeqCst);
        if conn.info.requests() == 0 {
            ConnectionUse::Prewarmed
        } else {
            ConnectionUse::Idle
        }
    }

    /// Nobody finds it any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Whether somebody is in line, for who has just given something back.
    pub(super) fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst) > 0
    }

    pub(super) fn count_waiting(&self, change: isize) {
        self.waiting.fetch_add(change as usize, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.shared
            .waiting
            .fetch_add(change as usize, Ordering::SeqCst);
    }

    /// Since when a dial runs for this waiter, and the oldest dial; `None` once it has left.
    pub(super) fn standing(
        &self,
        ticket: Ticket,
    ) -> Option<(Option<Instant>, Option<Arc<DialRecorder>>)> {
        let books = lock(&self.books);
        let waiter = books.state.line.get(ticket)?;
        let dial = books.state.dials.first().map(|dial| dial.what.clone());
        Some((waiter.covered, dial))
    }

    /// Serves whoever can be served and starts the dials that are wanted.
    pub(crate) fn drive(self: &Arc<Self>) {
        loop {
            let mut grants = Vec::new();
            let mut overdue = Vec::new();
            let wanted = {
                let mut books = lock(&self.books);
                let state = &mut books.state;
                let at = now();
                self.serve(state, at, &mut grants, &mut overdue);
                state.cover(at);
                if self.shared.is_closed() {
                    0
                } else {
                    state.dials_wanted(self.shared.rules(), at)
                }
            };
            for (conn, why) in overdue {
                self.clone().close(conn, why);
            }
            deliver(grants);
            if wanted == 0 {
                return;
            }
            let Some(permit) = self.permit() else { return };
            if !self.start_dial(permit, None, true) {
                return;
            }
        }
    }

    pub(super) fn serve(
        self: &Arc<Self>,
        state: &mut State,
        at: Instant,
        grants: &mut Vec<(oneshot::Sender<Outcome>, Outcome)>,
        overdue: &mut Vec<(H1Conn, CloseReason)>,
    ) {
        while !state.line.is_empty() {
            let (lease, how) = if let Some(Idle { conn, since }) = state.take_idle() {
                self.shared.idle.fetch_sub(1, Ordering::SeqCst);
                if let Some(why) = self.overdue(&conn, since, at) {
                    overdue.push((conn, why));
                    continue;
                }
                let how = if conn.info.requests() == 0 {
                    ConnectionUse::Prewarmed
                } else {
                    ConnectionUse::Idle
                };
                (Lease::H1(H1Lease::new(conn, self.clone())), how)
            } else if let Some((conn, taken)) = state.take_stream() {
                let how = self.taken(&conn, taken.before);
                (Lease::H2(H2Lease::new(conn, self.clone())), how)
            } else {
                return;
            };
            let Waiter { whom, covered, .. } = state.line.pop().expect("the line is not empty");
            self.count_waiting(-1);
            grants.push((
                whom,
                Ok(Grant {
                    lease,
                    how,
                    dial: None,
                    covered,
                }),
            ));
        }
    }

    /// A permit for one more connection: free, or made so by closing another origin's idle one.
    pub(super) fn permit(self: &Arc<Self>) -> Option<Permit> {
        let capacity = &self.shared.capacity;
        if let Some(permit) = capacity.try_reserve() {
            return Some(permit);
        }
        let room = self.shared.room.get().and_then(Weak::upgrade);
        if let Some(permit) = room.and_then(|room| room.make_room(&self.key)) {
            return Some(permit);
        }
        if !self.blocked.swap(true, Ordering::SeqCst) {
            let this: Weak<Self> = self.this.clone();
            capacity.block(this);
        }
        // One may have been given back before we stood in line.
        capacity.try_reserve()
    }

    /// Starts a dial, unless (for waiters) it is no longer wanted.
    pub(super) fn start_dial(
        self: &Arc<Self>,
        permit: Permit,
        report: Option<Report>,
        if_wanted: bool,
    ) -> bool {
        let recorder = DialRecorder::new();
        let (id, learned) = {
            let mut books = lock(&self.books);
            let at = now();
            let state = &mut books.state;
            let wanted = state.dials_wanted(self.shared.rules(), at) > 0;
            if self.shared.is_closed() || (if_wanted && !wanted) {
                drop(books);
                drop(permit);
                return false;
            }
            let early = if_wanted && self.plan.allows_early_data() && state.wants_early();
            let learned = Learned {
                stream_limit: state.stream_limit,
                early: state.verdict.filter(|_| early),
            };
            let id = state.dial_started(recorder.clone(), learned.early.is_some(), at);
            (id, learned)
        };
        DialTask {
            id,
            sink: self.clone(),
            plan: self.plan.clone(),
            deps: self.shared.deps.clone(),
            recorder,
            permit,
            report,
            learned,
        }
        .spawn(&self.runtime);
        true
    }

    /// One more HTTP/2 connection before anybody waits; never at another origin's expense.
    pub(super) fn dial_spare(self: &Arc<Self>) {
        if let Some(permit) = self.shared.capacity.try_reserve() {
            self.start_dial(permit, None, false);
        }
    }

    /// A connection for nobody in particular. Fails if no permit is free.
    pub(crate) fn dial_for(self: &Arc<Self>, report: Report) -> Result<(), Error> {
        let limit = |what: &str| {
            self.shared.counters.limit_hit();
            Error::new(
                ErrorKind::Limit,
                format!("no connection is free under {what}"),
            )
            .at(Phase::Queue)
            .with_origin(self.plan.origin_text.clone())
        };
        if self.shared.is_closed() {
            return Err(pool_closed().with_origin(self.plan.origin_text.clone()));
        }
        {
            let books = lock(&self.books);
            let open = books.state.open + books.state.dials.len();
            if open >= self.shared.rules().max_per_host {
                return Err(limit("max_connections_per_host"));
            }
        }
        let permit = self
            .shared
            .capacity
            .try_reserve()
            .ok_or_else(|| limit("max_connections"))?;
        self.start_dial(permit, Some(report), false);
        Ok(())
    }

    /// Idle HTTP/1.1 connections, live HTTP/2 connections, and the protocol if it is known.
    pub(crate) fn warmth(&self) -> (Vec<ConnectionInfo>, Vec<Arc<H2Conn>>, Option<Version>) {
        let books = lock(&self.books);
        let idle = books
            .state
            .idle
            .iter()
            .map(|i| i.conn.info.clone())
            .collect();
        (idle, books.state.shared.clone(), books.state.verdict)
    }
}

/// Hands out what was decided, without a lock: a grant that nobody takes goes home when dropped.
pub(super) fn deliver(grants: Vec<(oneshot::Sender<Outcome>, Outcome)>) {
    for (whom, outcome) in grants {
        drop(whom.send(outcome));
    }
}

impl Blocked for Host {
    fn unblocked(self: Arc<Self>) {
        self.blocked.store(false, Ordering::SeqCst);
        self.drive();
    }
}

/// A place in the line of an origin. Dropped, it is left; a lease that was on its way goes home.
pub(crate) struct Place {
    pub(crate) host: Arc<Host>,
    ticket: Ticket,
    pub(crate) receiver: oneshot::Receiver<Outcome>,
    pub(crate) since: Instant,
    /// No dial could be started for it at once.
    pub(crate) met_limit: bool,
}

impl Place {
    /// Since when a dial runs for it, and the oldest dial; `None` once it has been served.
    pub(crate) fn standing(&self) -> Option<(Option<Instant>, Option<Arc<DialRecorder>>)> {
        self.host.standing(self.ticket)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let waiter = {
            let mut books = lock(&self.host.books);
            let waiter = books.state.line.leave(self.ticket);
            if waiter.is_some() {
                // Its dial is now for somebody else.
                books.state.cover(now());
            }
            waiter
        };
        if waiter.is_some() {
            self.host.count_waiting(-1);
        }
    }
}
