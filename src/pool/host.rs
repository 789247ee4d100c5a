//! One origin: takes its lock, asks the pure state, lets go, acts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use http::Version;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Link, Opened, Plan, Stream};
use crate::error::{Error, ErrorKind};
use crate::event::DialRecorder;
use crate::http1::Http1;
use crate::http2::{Driver, Http2, Released, Watch};
use crate::sync::{fence, lock};
use crate::timing::{ConnectionTrace, ConnectionUse, Phase};

use super::capacity::{Blocked, Permit};
use super::dial::{DialSink, DialTask, Dialled, Report};
use super::key::Key;
use super::lease::{H1Conn, H1Lease, H2Conn, H2Lease, Home, IdleWake, Lease};
use super::line::Ticket;
use super::maintenance::{Janitor, Tended};
use super::shared::{Live, REMEMBER_ORIGIN, Shared, pool_closed};
use super::state::{DialEntry, HostState, Idle, Multiplexed, Waiter};

/// A failed dial beside a working HTTP/2 connection is not repeated before.
const SPARE_PAUSE: Duration = Duration::from_secs(1);

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
type State = HostState<H1Conn, Arc<H2Conn>, oneshot::Sender<Outcome>, Arc<DialRecorder>>;

/// What asking for a connection gives at once.
pub(crate) enum Checkout {
    Lease(Lease, ConnectionUse),
    Line(Place),
    /// The origin was just forgotten; look it up again.
    Gone,
}

#[derive(Debug)]
struct Books {
    state: State,
    live: Vec<Live>,
    /// Taken off the registry: nobody finds it any more.
    removed: bool,
}

/// One origin with one set of options on one runtime.
pub(crate) struct Host {
    pub(crate) key: Key,
    pub(crate) plan: Arc<Plan>,
    shared: Arc<Shared>,
    janitor: Arc<Janitor>,
    runtime: Handle,
    books: Mutex<Books>,
    /// Waiters in line, for who gives a stream back without the lock: a waiter gets in line and
    /// then looks for a slot, a stream gives its slot back and then looks for waiters, so one of
    /// them sees the other (modelled in `http2::streams`).
    waiting: AtomicUsize,
    /// It stands in the line for a permit.
    blocked: AtomicBool,
    this: Weak<Self>,
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
        Arc::new_cyclic(|this| Self {
            books: Mutex::new(Books {
                state: HostState::new(plan.known_protocol(), now()),
                live: Vec::new(),
                removed: false,
            }),
            key,
            plan: Arc::new(plan),
            shared,
            janitor,
            runtime,
            waiting: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// A connection or stream at once, or a place in line.
    ///
    /// # Errors
    /// PoolClosed; Limit when `max_waiting` wait already.
    pub(crate) fn checkout(self: &Arc<Self>) -> Result<Checkout, Error> {
        let at = now();
        let (sender, receiver) = oneshot::channel();
        let ticket = {
            let mut books = lock(&self.books);
            if books.removed {
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
            let ticket = state.enqueue(sender, at);
            self.count_waiting(1);
            ticket
        };
        let place = Place {
            host: self.clone(),
            ticket,
            receiver,
            since: at,
        };
        self.drive();
        if matches!(self.standing(ticket), Some((None, _))) {
            self.shared.counters.limit_hit();
        }
        Ok(Checkout::Line(place))
    }

    /// An idle connection leaves the stack; one that is past its time is closed instead.
    fn lend_idle(self: &Arc<Self>, idle: Idle<H1Conn>, at: Instant) -> Checkout {
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

    fn overdue(&self, conn: &H1Conn, since: Instant, at: Instant) -> Option<CloseReason> {
        if conn.retire_at.is_some_and(|retire| retire <= at) {
            Some(CloseReason::Lifetime)
        } else if deadline(since, self.shared.limits.keepalive_expiry) <= at {
            Some(CloseReason::IdleExpired)
        } else {
            None
        }
    }

    /// Books a stream that was taken, and says how it was come by.
    fn taken(&self, conn: &Arc<H2Conn>, before: u32) -> ConnectionUse {
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

    /// Whether somebody is in line, for who has just given something back.
    fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst) > 0
    }

    fn count_waiting(&self, change: isize) {
        self.waiting.fetch_add(change as usize, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.shared
            .waiting
            .fetch_add(change as usize, Ordering::SeqCst);
    }

    /// Since when a dial runs for this waiter, and the oldest dial; `None` once it has left.
    fn standing(&self, ticket: Ticket) -> Option<(Option<Instant>, Option<Arc<DialRecorder>>)> {
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

    fn serve(
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
    fn permit(self: &Arc<Self>) -> Option<Permit> {
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
    fn start_dial(
        self: &Arc<Self>,
        permit: Permit,
        report: Option<Report>,
        if_wanted: bool,
    ) -> bool {
        let recorder = DialRecorder::new();
        let id = {
            let mut books = lock(&self.books);
            let at = now();
            let wanted = books.state.dials_wanted(self.shared.rules(), at) > 0;
            if self.shared.is_closed() || (if_wanted && !wanted) {
                drop(books);
                drop(permit);
                return false;
            }
            books.state.dial_started(recorder.clone(), at)
        };
        DialTask {
            id,
            sink: self.clone(),
            plan: self.plan.clone(),
            deps: self.shared.deps.clone(),
            recorder,
            permit,
            report,
        }
        .spawn(&self.runtime);
        true
    }

    /// One more HTTP/2 connection before anybody waits; never at another origin's expense.
    fn dial_spare(self: &Arc<Self>) {
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

    fn opened(self: &Arc<Self>, id: u64, opened: Opened, permit: Permit, report: Option<Report>) {
        let Opened { info, link } = opened;
        self.shared
            .counters
            .opened(info.tls_resumed() == Some(true));
        let retire_at = self.shared.retire_at(info.ready_at());
        match link {
            Link::Http1(http1) => self.opened_http1(id, http1, info.clone(), permit, retire_at),
            Link::Http2(handle, driver) => {
                self.opened_http2(id, handle, *driver, info.clone(), permit, retire_at);
            }
        }
        if let Some(report) = report {
            // Whoever asked may be gone.
            let _ = report.send(Ok(info));
        }
    }

    fn opened_http1(
        self: &Arc<Self>,
        id: u64,
        http1: Box<Http1<Stream>>,
        info: ConnectionInfo,
        permit: Permit,
        retire_at: Option<Instant>,
    ) {
        let trace = info.shared_trace();
        let this: Weak<Self> = self.this.clone();
        let conn = H1Conn {
            http1,
            info,
            permit,
            wake: IdleWake::new(this),
            retire_at,
        };
        let waiter = {
            let mut books = lock(&self.books);
            books.live.push(Live {
                id: conn.info.id(),
                info: conn.info.clone(),
                killer: None,
            });
            let state = &mut books.state;
            state.verdict = Some(Version::HTTP_11);
            state.open += 1;
            let dial = state.dial_ended(id);
            let waiter = state.line.pop();
            state.cover(now());
            waiter.map(|waiter| (waiter, dial))
        };
        match waiter {
            Some((waiter, dial)) => {
                self.count_waiting(-1);
                let grant = Grant {
                    lease: Lease::H1(H1Lease::new(conn, self.clone())),
                    how: new_or_joined(&waiter, dial.as_ref(), true),
                    dial: Some(trace),
                    covered: waiter.covered,
                };
                deliver(vec![(waiter.whom, Ok(grant))]);
            }
            None => self.clone().check_in(conn),
        }
        self.drive();
    }

    fn opened_http2(
        self: &Arc<Self>,
        id: u64,
        handle: Http2,
        driver: Driver<Stream>,
        info: ConnectionInfo,
        permit: Permit,
        retire_at: Option<Instant>,
    ) {
        let trace = info.shared_trace();
        let conn = Arc::new(H2Conn::new(handle, info, retire_at));
        // It is idle until its first stream is taken.
        self.shared.idle.fetch_add(1, Ordering::SeqCst);
        let mut grants = Vec::new();
        {
            let mut books = lock(&self.books);
            books.live.push(Live {
                id: conn.info.id(),
                info: conn.info.clone(),
                killer: Some(conn.handle.killer()),
            });
            let state = &mut books.state;
            state.verdict = Some(Version::HTTP_2);
            state.open += 1;
            let dial = state.dial_ended(id);
            state.shared.push(conn.clone());
            while !state.line.is_empty() {
                let Some(taken) = conn.try_take() else { break };
                if taken.before == 0 {
                    self.shared.idle.fetch_sub(1, Ordering::SeqCst);
                }
                let waiter = state.line.pop().expect("the line is not empty");
                self.count_waiting(-1);
                let grant = Grant {
                    lease: Lease::H2(H2Lease::new(conn.clone(), self.clone())),
                    how: new_or_joined(&waiter, dial.as_ref(), grants.is_empty()),
                    dial: Some(trace.clone()),
                    covered: waiter.covered,
                };
                grants.push((waiter.whom, Ok(grant)));
            }
        }
        let watch = Watching {
            host: self.clone(),
            conn: Arc::downgrade(&conn),
            info: conn.info.clone(),
            why: conn.why.clone(),
            settled: conn.settled.clone(),
            permit: Some(permit),
        };
        self.runtime.spawn(async move {
            let why = driver.run(&watch).await;
            watch.ended(why);
        });
        if let Some(retire) = retire_at {
            self.janitor.due_at(retire);
        }
        if grants.is_empty() {
            conn.handle.open();
            self.went_idle(&conn);
        }
        // Not held while the grants go out: the last handle ends the connection.
        drop(conn);
        deliver(grants);
        self.drive();
    }

    fn dial_failed(
        self: &Arc<Self>,
        id: u64,
        error: Error,
        recorder: &Arc<DialRecorder>,
        report: Option<Report>,
    ) {
        self.shared.counters.dial_failed();
        let failed = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            state.dial_ended(id);
            let failed = state.failed_waiters();
            if !state.shared.is_empty() {
                state.spare_after = Some(deadline(now(), SPARE_PAUSE));
            }
            if state.dials.is_empty() {
                for waiter in state.line.iter_mut() {
                    waiter.covered = None;
                }
            }
            failed
        };
        self.count_waiting(-(failed.len() as isize));
        self.janitor.due_at(deadline(now(), REMEMBER_ORIGIN));
        let denied = |waiter: Waiter<oneshot::Sender<Outcome>>| {
            let denied = Denied {
                error: error.clone(),
                covered: waiter.covered,
                dial: Some(recorder.clone()),
            };
            (waiter.whom, Err(denied))
        };
        deliver(failed.into_iter().map(denied).collect());
        if let Some(report) = report {
            let _ = report.send(Err(error));
        }
    }

    /// An HTTP/2 connection has no streams now.
    fn went_idle(self: &Arc<Self>, conn: &Arc<H2Conn>) {
        let at = now();
        conn.set_idle_since(at);
        let expires = deadline(at, self.shared.limits.http2_keepalive_expiry);
        self.janitor
            .due_at(conn.retire_at.map_or(expires, |retire| retire.min(expires)));
        let idle = self.shared.idle.load(Ordering::SeqCst);
        if idle > self.shared.limits.max_keepalive_connections {
            self.retire_idle(conn, CloseReason::IdleLimit);
        }
    }

    fn retire_idle(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) -> bool {
        if conn.handle.slots().retire_if_idle().is_none() {
            return false;
        }
        self.shared.idle.fetch_sub(1, Ordering::SeqCst);
        self.take_off(conn, why);
        true
    }

    /// No new streams on this connection from now on.
    fn retire(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) {
        if let Some(left) = conn.handle.slots().retire() {
            if left.in_use == 0 {
                self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            }
            self.take_off(conn, why);
        }
    }

    fn take_off(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) {
        let _ = conn.why.set(why);
        // Its task must run to say goodbye.
        conn.handle.open();
        let removed = {
            let mut books = lock(&self.books);
            let shared = &mut books.state.shared;
            let at = shared.iter().position(|c| Arc::ptr_eq(c, conn));
            at.map(|at| shared.remove(at))
        };
        // The last handle ends the connection: not under the lock.
        drop(removed);
        if self.has_waiters() {
            self.drive();
        }
    }

    /// A connection is gone: the books, the counters, the permit, and whoever waits for it.
    fn forget(self: &Arc<Self>, info: &ConnectionInfo, why: CloseReason, permit: Option<Permit>) {
        {
            let mut books = lock(&self.books);
            books.live.retain(|live| live.id != info.id());
            books.state.open -= 1;
            books.state.last_used = now();
        }
        self.shared.counters.closed(why);
        self.janitor.due_at(deadline(now(), REMEMBER_ORIGIN));
        drop(permit);
        if self.has_waiters() {
            self.drive();
        }
    }

    /// Closes the longest idle HTTP/1.1 connection and gives its permit away; an idle HTTP/2
    /// connection gives its permit back when its task has ended.
    pub(crate) fn give_up_idle(self: &Arc<Self>) -> Option<Permit> {
        let (oldest, shared) = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            let oldest = (!state.idle.is_empty()).then(|| state.idle.remove(0));
            (oldest, state.shared.clone())
        };
        if let Some(Idle { conn, .. }) = oldest {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            let H1Conn {
                http1,
                info,
                permit,
                ..
            } = conn;
            http1.close();
            self.forget(&info, CloseReason::MadeRoom, None);
            return Some(permit);
        }
        let _ = shared
            .iter()
            .any(|conn| self.retire_idle(conn, CloseReason::MadeRoom));
        None
    }

    /// When its longest idle connection became so.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let books = lock(&self.books);
        let h1 = books.state.idle.first().map(|idle| idle.since);
        let h2 = books
            .state
            .shared
            .iter()
            .filter(|conn| conn.in_use() == 0)
            .map(|conn| conn.idle_since())
            .min();
        h1.into_iter().chain(h2).min()
    }

    /// Closes everything idle.
    pub(crate) fn close_idle(self: &Arc<Self>, why: CloseReason) {
        let (idle, shared) = {
            let mut books = lock(&self.books);
            (
                std::mem::take(&mut books.state.idle),
                books.state.shared.clone(),
            )
        };
        for Idle { conn, .. } in idle {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            self.clone().close(conn, why);
        }
        for conn in &shared {
            self.retire_idle(conn, why);
        }
    }

    /// The pool is closed: nobody waits any longer, idle connections end, others when their
    /// requests do.
    pub(crate) fn shut_down(self: &Arc<Self>, why: CloseReason) {
        let (waiters, shared) = {
            let mut books = lock(&self.books);
            (books.state.all_waiters(), books.state.shared.clone())
        };
        self.count_waiting(-(waiters.len() as isize));
        let error = pool_closed().with_origin(self.plan.origin_text.clone());
        let denied = |waiter: Waiter<oneshot::Sender<Outcome>>| {
            let error = error.clone();
            (
                waiter.whom,
                Err(Denied {
                    error,
                    covered: waiter.covered,
                    dial: None,
                }),
            )
        };
        deliver(waiters.into_iter().map(denied).collect());
        self.close_idle(why);
        for conn in &shared {
            self.retire(conn, why);
        }
    }

    /// Ends HTTP/2 connections with whatever they carry.
    pub(crate) fn kill(&self) {
        let killers: Vec<_> = {
            let books = lock(&self.books);
            books
                .live
                .iter()
                .filter_map(|live| live.killer.clone())
                .collect()
        };
        for killer in killers {
            killer.kill();
        }
    }

    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        lock(&self.books)
            .live
            .iter()
            .map(|live| live.info.clone())
            .collect()
    }

    /// Takes it off the books if nothing but memories is left since `before`.
    pub(crate) fn remove_if_unused(&self, before: Instant) -> bool {
        let mut books = lock(&self.books);
        let unused = books.state.is_unused() && books.state.last_used <= before;
        books.removed |= unused;
        unused
    }
}

fn new_or_joined<W, D>(
    waiter: &Waiter<W>,
    dial: Option<&DialEntry<D>>,
    first: bool,
) -> ConnectionUse {
    // It was there before the dial began and is the first that the dial serves: its own dial.
    if first && dial.is_some_and(|dial| dial.started >= waiter.since) {
        ConnectionUse::New
    } else {
        ConnectionUse::Joined
    }
}

/// Hands out what was decided, without a lock: a grant that nobody takes goes home when dropped.
fn deliver(grants: Vec<(oneshot::Sender<Outcome>, Outcome)>) {
    for (whom, outcome) in grants {
        drop(whom.send(outcome));
    }
}

impl Home for Host {
    fn check_in(self: Arc<Self>, mut conn: H1Conn) {
        let at = now();
        if self.shared.is_closed() {
            return self.close(conn, CloseReason::PoolClosed);
        }
        if conn.retire_at.is_some_and(|retire| retire <= at) {
            return self.close(conn, CloseReason::Lifetime);
        }
        // From here on the waker tells of whatever the peer does.
        conn.wake.reset();
        let waker = conn.wake.waker();
        let quiet = conn.http1.poll_quiet(&mut Context::from_waker(&waker));
        if let Err(why) = quiet {
            return self.close(conn, why);
        }
        conn.http1.release_buffers();
        let expires = deadline(at, self.shared.limits.keepalive_expiry);
        let expires = conn.retire_at.map_or(expires, |retire| retire.min(expires));
        let wake = conn.wake.clone();
        let mut evicted = None;
        let mut grant = None;
        let mut refused = None;
        {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            if let Some(Waiter { whom, covered, .. }) = state.line.pop() {
                self.count_waiting(-1);
                state.cover(at);
                let how = if conn.info.requests() == 0 {
                    ConnectionUse::Prewarmed
                } else {
                    ConnectionUse::Idle
                };
                let lease = Lease::H1(H1Lease::new(conn, self.clone()));
                grant = Some((
                    whom,
                    Ok(Grant {
                        lease,
                        how,
                        dial: None,
                        covered,
                    }),
                ));
            } else if self.shared.try_idle() {
                state.idle.push(Idle { conn, since: at });
            } else if state.idle.is_empty() {
                refused = Some(conn);
            } else {
                evicted = Some(state.idle.remove(0).conn);
                state.idle.push(Idle { conn, since: at });
            }
        }
        if let Some(conn) = refused.or(evicted) {
            self.clone().close(conn, CloseReason::IdleLimit);
        }
        if let Some(grant) = grant {
            return deliver(vec![grant]);
        }
        self.janitor.due_at(expires);
        // What happened before it was on the stack was told to nobody who could find it.
        if wake.is_woken() {
            self.clone().idle_woken();
        }
        // Shutdown may have emptied the stack just before.
        if self.shared.is_closed() {
            self.close_idle(CloseReason::PoolClosed);
        }
    }

    fn close(self: Arc<Self>, conn: H1Conn, why: CloseReason) {
        let H1Conn {
            http1,
            info,
            permit,
            ..
        } = conn;
        http1.close();
        self.forget(&info, why, Some(permit));
    }

    fn released(self: Arc<Self>, conn: &Arc<H2Conn>, left: Released) {
        if left.in_use == 0 && !left.retired {
            self.shared.idle.fetch_add(1, Ordering::SeqCst);
            self.went_idle(conn);
        }
        if self.has_waiters() {
            self.drive();
        }
    }

    fn upgraded(self: Arc<Self>, _: &ConnectionInfo) {
        self.shared.upgraded.fetch_add(1, Ordering::SeqCst);
    }

    fn upgrade_ended(self: Arc<Self>, info: &ConnectionInfo, permit: Permit) {
        self.shared.upgraded.fetch_sub(1, Ordering::SeqCst);
        self.forget(info, CloseReason::Upgraded, Some(permit));
    }

    fn idle_woken(self: Arc<Self>) {
        let this: Weak<Self> = self.this.clone();
        self.janitor.wake_for(this);
    }
}

impl DialSink for Host {
    fn dialled(self: Arc<Self>, dialled: Dialled) {
        let Dialled {
            id,
            result,
            permit,
            recorder,
            report,
        } = dialled;
        match result {
            Ok(opened) => self.opened(id, opened, permit, report),
            Err(error) => {
                self.dial_failed(id, error, &recorder, report);
                drop(permit);
                self.drive();
            }
        }
        if self.shared.is_closed() {
            self.shut_down(CloseReason::PoolClosed);
        }
    }
}

impl Blocked for Host {
    fn unblocked(self: Arc<Self>) {
        self.blocked.store(false, Ordering::SeqCst);
        self.drive();
    }
}

impl Tended for Host {
    fn sweep(self: Arc<Self>) {
        let woken: Vec<H1Conn> = {
            let mut books = lock(&self.books);
            let idle = std::mem::take(&mut books.state.idle);
            let (woken, quiet): (Vec<_>, Vec<_>) =
                idle.into_iter().partition(|idle| idle.conn.wake.is_woken());
            books.state.idle = quiet;
            woken.into_iter().map(|idle| idle.conn).collect()
        };
        for conn in woken {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            // Looks at it, and keeps it if it was only a ticket or the like.
            self.clone().check_in(conn);
        }
    }

    fn expire(self: Arc<Self>, at: Instant) -> Option<Instant> {
        let limits = &self.shared.limits;
        let mut next: Option<Instant> = None;
        let mut due = |when: Instant| next = Some(next.map_or(when, |next| next.min(when)));
        let mut overdue = Vec::new();
        let shared = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            for idle in std::mem::take(&mut state.idle) {
                match self.overdue(&idle.conn, idle.since, at) {
                    Some(why) => overdue.push((idle.conn, why)),
                    None => {
                        let expires = deadline(idle.since, limits.keepalive_expiry);
                        due(idle
                            .conn
                            .retire_at
                            .map_or(expires, |retire| retire.min(expires)));
                        state.idle.push(idle);
                    }
                }
            }
            if state.is_unused() && overdue.is_empty() {
                due(deadline(state.last_used, REMEMBER_ORIGIN));
            }
            state.shared.clone()
        };
        for (conn, why) in overdue {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            self.clone().close(conn, why);
        }
        for conn in &shared {
            if conn.retire_at.is_some_and(|retire| retire <= at) {
                self.retire(conn, CloseReason::Lifetime);
                continue;
            }
            if let Some(retire) = conn.retire_at {
                due(retire);
            }
            if conn.in_use() == 0 {
                let expires = deadline(conn.idle_since(), limits.http2_keepalive_expiry);
                if expires > at {
                    due(expires);
                } else {
                    self.retire_idle(conn, CloseReason::IdleExpired);
                }
            }
        }
        next
    }
}

/// The pool's eye on one HTTP/2 connection, owned by the connection's task. It holds no handle:
/// the connection ends when the last one is gone.
struct Watching {
    host: Arc<Host>,
    conn: Weak<H2Conn>,
    info: ConnectionInfo,
    why: Arc<OnceLock<CloseReason>>,
    settled: Arc<Notify>,
    permit: Option<Permit>,
}

impl Watching {
    fn ended(mut self, why: CloseReason) {
        self.finish(why);
    }

    fn finish(&mut self, why: CloseReason) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        if let Some(conn) = self.conn.upgrade() {
            self.host.retire(&conn, why);
        }
        let why = self.why.get().copied().unwrap_or(why);
        self.settled.notify_waiters();
        self.host.forget(&self.info, why, Some(permit));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.finish(CloseReason::RuntimeGone);
    }
}

impl Watch for Watching {
    fn limit_changed(&self, limit: u32) {
        let grew = self
            .conn
            .upgrade()
            .map(|conn| conn.handle.slots().set_limit(limit));
        if grew == Some(true) && self.host.has_waiters() {
            self.host.drive();
        }
    }

    fn retired(&self, why: CloseReason) {
        if let Some(conn) = self.conn.upgrade() {
            self.host.retire(&conn, why);
        }
    }

    fn settled(&self) {
        self.settled.notify_waiters();
        if self.host.has_waiters() {
            self.host.drive();
        }
    }
}

/// A place in the line of an origin. Dropped, it is left; a lease that was on its way goes home.
pub(crate) struct Place {
    pub(crate) host: Arc<Host>,
    ticket: Ticket,
    pub(crate) receiver: oneshot::Receiver<Outcome>,
    pub(crate) since: Instant,
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
