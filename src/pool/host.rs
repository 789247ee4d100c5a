//! One origin: takes its lock, asks the pure state, lets go, acts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use http::Version;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Learned, Plan};
#[cfg(feature = "hyper-util")]
use crate::connection::{Dialled, dial};
use crate::dns::NameUse;
use crate::error::{Error, ErrorKind};
use crate::event::DialRecorder;
use crate::sync::{fence, lock};
use crate::timing::{ConnectionTrace, ConnectionUse, Phase, WaitCause};

use super::asleep::Lessons;
use super::budget::RetryBudget;
use super::capacity::{Blocked, GaveUp, Permit};
use super::dial::{DialTask, Report};
use super::key::Key;
use super::lease::{H1Conn, H1Lease, H2Conn, H2Lease, Home, Lease};
use super::line::Ticket;
use super::maintenance::Janitor;
use super::shared::{Live, ROOM_AFTER, Shared, pool_closed};
use super::state::{Cover, HostState, Idle, Minimum, Multiplexed, Pulse, Purpose, Waiter};
use super::term::Standing;

/// What a waiter gets.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) lease: Lease,
    pub(crate) how: ConnectionUse,
    /// The dial that served it, if one did.
    pub(crate) dial: Option<Arc<ConnectionTrace>>,
    pub(crate) cover: Cover,
}

/// A dial failed; its recorder knows how far it had come.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) error: Error,
    pub(crate) cover: Cover,
    pub(crate) dial: Option<Arc<DialRecorder>>,
}

pub(crate) type Outcome = Result<Grant, Denied>;
pub(super) type State = HostState<Box<H1Conn>, Arc<H2Conn>, oneshot::Sender<Outcome>, Dialling>;

/// A dial under way.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) recorder: Arc<DialRecorder>,
    /// Callers who asked for a connection and not for a request.
    pub(super) reports: Vec<Report>,
    /// The request that gets the connection before all others.
    pub(super) reserved: Option<oneshot::Sender<Outcome>>,
    task: Option<AbortHandle>,
}

/// Who asks for a dial.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) recorder: Option<Arc<DialRecorder>>,
    pub(super) report: Option<Report>,
    pub(super) reserved: Option<oneshot::Sender<Outcome>>,
}

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
    /// What clients want kept warm, for as long as they exist.
    pub(super) minimums: Vec<Weak<Minimum>>,
    /// When peer addresses were last compared with the DNS answers.
    pub(super) addresses_checked: Instant,
    /// Attempts that looked for a connection.
    requests: u64,
    retries: RetryBudget,
}

impl Books {
    /// An origin without connections keeps no room for them.
    pub(super) fn give_room_back(&mut self) {
        self.live.shrink_to_fit();
        self.state.give_room_back();
    }

    /// The largest that anybody wants.
    pub(super) fn minimum(&self) -> Minimum {
        let wanted = self.minimums.iter().filter_map(Weak::upgrade);
        wanted.fold(Minimum::default(), |most, wanted| Minimum {
            idle: most.idle.max(wanted.idle),
            shared: most.shared.max(wanted.shared),
        })
    }
}

/// What became of an idle connection that was to be lent.
pub(super) enum Lent {
    Yes(Box<H1Conn>, ConnectionUse),
    /// It is past its time.
    No(Box<H1Conn>, CloseReason),
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
    pub(super) name_use: Option<Arc<NameUse>>,
    /// Taken off the registry: nobody finds it any more. Set under the lock of the books.
    pub(super) removed: AtomicBool,
    /// Connections have been closed by the peer while they were idle: what that taught is in the books.
    pub(super) is_taught: AtomicBool,
    /// The peer said ENHANCE_YOUR_CALM: no PINGs, for good.
    pub(super) calm: Arc<AtomicBool>,
    /// Somebody wants connections kept warm.
    pub(super) keeps_warm: AtomicBool,
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
    pub(super) fn new(
        key: Key,
        mut plan: Plan,
        shared: Arc<Shared>,
        janitor: Arc<Janitor>,
        runtime: Handle,
        lessons: Option<Lessons>,
    ) -> Arc<Self> {
        let mut state = HostState::new(plan.known_protocol(), now());
        let (mut is_taught, mut is_calm) = (false, false);
        if let Some(lessons) = lessons {
            plan.recall(lessons.dials);
            state.verdict = lessons.verdict;
            state.stream_limit = lessons.stream_limit;
            is_taught = lessons.habits.is_some();
            state.habits = lessons.habits.map(|habits| *habits).unwrap_or_default();
            is_calm = lessons.is_calm;
        }
        let name_use = shared.deps.dns.name_use(plan.target().0);
        Arc::new_cyclic(|this| Self {
            name_use,
            books: Mutex::new(Books {
                state,
                live: Vec::new(),
                minimums: Vec::new(),
                addresses_checked: now(),
                requests: 0,
                retries: RetryBudget::new(now()),
            }),
            key,
            plan: Arc::new(plan),
            shared,
            janitor,
            runtime,
            waiting: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            is_taught: AtomicBool::new(is_taught),
            calm: Arc::new(AtomicBool::new(is_calm)),
            keeps_warm: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// A connection that is not the pool's: it is in no list and under no limit. It shares with those of the pool
    /// what is known of names and addresses, and the tickets.
    ///
    /// # Errors
    /// PoolClosed, and whatever a dial fails with.
    #[cfg(feature = "hyper-util")]
    pub(crate) async fn dial_for_others(&self) -> Result<Dialled, Error> {
        if self.shared.is_closed() {
            return Err(pool_closed().with_origin(self.plan.origin_text.clone()));
        }
        let dialled = dial(&self.plan, &self.shared.deps, &DialRecorder::new()).await;
        self.janitor.replace_key_shares();
        dialled
    }

    /// A connection or stream at once, or a place in line; `early` says that the request may travel
    /// as early data. It has had its `turn` if it has waited already, since that instant, and what it got did not last.
    ///
    /// # Errors
    /// PoolClosed; Limit when `max_waiting` wait already.
    pub(crate) fn checkout(
        self: Arc<Self>,
        early: bool,
        turn: Option<Instant>,
        at: Instant,
    ) -> Result<Checkout, Error> {
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
            books.requests += 1;
            let state = &mut books.state;
            state.last_used = at;
            if turn.is_some() || state.line.is_empty() {
                if let Some(idle) = state.take_idle() {
                    drop(books);
                    self.shared.less_idle();
                    let lent = self.lend_idle(idle, at);
                    self.keep_up();
                    return Ok(match lent {
                        Lent::Yes(conn, how) => {
                            Checkout::Lease(Lease::H1(H1Lease::new(conn, self)), how)
                        }
                        // There may be a younger one below it; ask again.
                        Lent::No(conn, why) => {
                            self.close(conn, why);
                            Checkout::Gone
                        }
                    });
                }
                if let Some((conn, taken)) = state.take_stream() {
                    let spare = state.wants_spare(taken, self.shared.rules(), at);
                    drop(books);
                    let how = self.taken(&conn, taken.before);
                    if spare {
                        self.dial_spare();
                    }
                    let near_its_end = conn.is_near_its_end().then(|| self.clone());
                    // From here on somebody gives the stream back, whatever happens.
                    let lease = H2Lease::new(conn, self);
                    if let Some(host) = near_its_end {
                        host.near_its_end(lease.conn());
                    }
                    return Ok(Checkout::Lease(Lease::H2(lease), how));
                }
            }
            if !self.shared.try_wait(turn.is_some()) {
                drop(books);
                self.shared.counters.limit_hit();
                let waiting = self.shared.waiting.load(Ordering::SeqCst);
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("{waiting} requests wait for a connection already (max_waiting)"),
                )
                .at(Phase::Queue)
                .with_origin(self.plan.origin_text.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            let ticket = match turn {
                Some(since) => state.enqueue_again(sender, early, since, at),
                None => state.enqueue(sender, early, at),
            };
            self.waiting.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            (ticket, receiver)
        };
        let mut place = Place {
            host: self.clone(),
            ticket,
            receiver,
            since: at,
            patient_since: turn.unwrap_or(at),
            waits_for: None,
        };
        if turn.is_some() {
            // What it got is closed next, and with the place that comes free it is seen to.
            return Ok(Checkout::Line(place));
        }
        self.drive();
        if let Some((Cover { since: None, .. }, _)) = self.standing(ticket) {
            let is_suspect = |conn: &Arc<H2Conn>| conn.pulse() == Pulse::Suspect;
            let suspect = lock(&self.books).state.shared.iter().any(is_suspect);
            if suspect {
                // For the answer to a PING: the network, and no limit.
                place.waits_for = Some(WaitCause::Dial);
            } else {
                place.waits_for = Some(WaitCause::Limit);
                self.shared.counters.limit_hit();
            }
        }
        Ok(Checkout::Line(place))
    }

    /// Lends an idle connection, unless it is past its time.
    fn lend_idle(&self, idle: Idle<Box<H1Conn>>, at: Instant) -> Lent {
        // What is kept warm is past its time only for its peer.
        let is_kept = self.keeps_warm.load(Ordering::Relaxed);
        let overdue = idle
            .overdue(at)
            .filter(|why| *why != CloseReason::IdleExpired || !is_kept);
        let Idle {
            mut conn, since, ..
        } = idle;
        let standing = || match conn.term.standing(conn.info.requests(), at) {
            Standing::Over(why) => Some(why),
            Standing::Serves | Standing::Renew(_) => None,
        };
        if let Some(why) = overdue.or_else(standing) {
            return Lent::No(conn, why);
        }
        conn.was_idle = Some(at.saturating_duration_since(since));
        let how = reused(&conn.info);
        Lent::Yes(conn, how)
    }

    /// Books a stream that was taken, and says how it was come by.
    pub(super) fn taken(&self, conn: &Arc<H2Conn>, before: u32) -> ConnectionUse {
        if before > 0 {
            return ConnectionUse::Multiplexed;
        }
        self.shared.less_idle();
        reused(&conn.info)
    }

    /// Keeps it awake for whoever is about to use it; false if it sleeps already, and must be looked up again.
    pub(crate) fn stay_awake(&self) -> bool {
        let mut books = lock(&self.books);
        books.state.last_used = now();
        !self.is_removed()
    }

    /// Nobody finds it any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(crate) fn count_limit_hit(&self) {
        self.shared.counters.limit_hit();
    }

    /// Whether somebody is in line, for who has just given something back.
    pub(super) fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// So many have left the line.
    pub(super) fn left_line(&self, n: usize) {
        self.waiting.fetch_sub(n, Ordering::SeqCst);
        self.shared.waiting.fetch_sub(n, Ordering::SeqCst);
    }

    /// When dials run or ran for this waiter, and the oldest dial; `None` once it has left.
    pub(super) fn standing(&self, ticket: Ticket) -> Option<(Cover, Option<Arc<DialRecorder>>)> {
        let books = lock(&self.books);
        let cover = books.state.cover_of(ticket)?;
        let dial = books.state.dials.first();
        let dial = dial.map(|dial| dial.what.recorder.clone());
        Some((cover, dial))
    }

    /// Takes one retry out of the origin's budget.
    pub(crate) fn may_retry(&self) -> bool {
        let mut books = lock(&self.books);
        let requests = books.requests;
        books.retries.try_spend(requests, now())
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
            self.hand_out(grants);
            if wanted == 0 {
                return;
            }
            let Some(permit) = self.permit() else { return };
            if let Some(unused) = self.start_dial(permit, Purpose::Waiters, Asked::default()) {
                drop(unused);
                return;
            }
        }
    }

    /// Hands out what was decided, without a lock.
    pub(super) fn hand_out(self: &Arc<Self>, grants: Vec<(oneshot::Sender<Outcome>, Outcome)>) {
        for (_, outcome) in &grants {
            if let Ok(grant) = outcome
                && let Lease::H2(lease) = &grant.lease
            {
                self.gave(lease.conn());
            }
        }
        deliver(grants);
    }

    pub(super) fn serve(
        self: &Arc<Self>,
        state: &mut State,
        at: Instant,
        grants: &mut Vec<(oneshot::Sender<Outcome>, Outcome)>,
        overdue: &mut Vec<(Box<H1Conn>, CloseReason)>,
    ) {
        while !state.line.is_empty() {
            let (lease, how) = if let Some(idle) = state.take_idle() {
                self.shared.less_idle();
                match self.lend_idle(idle, at) {
                    Lent::Yes(conn, how) => (Lease::H1(H1Lease::new(conn, self.clone())), how),
                    Lent::No(conn, why) => {
                        overdue.push((conn, why));
                        continue;
                    }
                }
            } else if let Some((conn, taken)) = state.take_stream() {
                let how = self.taken(&conn, taken.before);
                (Lease::H2(H2Lease::new(conn, self.clone())), how)
            } else if state.share_early() {
                continue;
            } else {
                return;
            };
            let Waiter { whom, cover, .. } = state.line.pop().expect("the line is not empty");
            self.left_line(1);
            grants.push((
                whom,
                Ok(Grant {
                    lease,
                    how,
                    dial: None,
                    cover,
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
        let at_least = self.room_after();
        let mut is_coming = false;
        if !capacity.has_blocked() {
            match self.room(at_least) {
                GaveUp::Permit(permit) => return Some(permit),
                GaveUp::Soon => is_coming = true,
                GaveUp::Nothing => {}
            }
        }
        let is_new = !self.blocked.swap(true, Ordering::SeqCst);
        if is_new {
            let this: Weak<Self> = self.this.clone();
            capacity.block(this);
        }
        // One may have become idle before we stood in line; or while we did and nobody of ours was there to want
        // it. It goes to who stands at the front.
        let is_first = || lock(&self.books).state.line.len() == 1;
        if !is_coming && (is_new || is_first()) {
            drop(self.room(at_least));
        }
        self.janitor.due_at(deadline(now(), ROOM_AFTER));
        None
    }

    /// The origin has its first connection, or lost its last one.
    pub(super) fn tell_populated(&self) {
        if let Some(room) = self.shared.room.get().and_then(Weak::upgrade) {
            room.populated(&self.key);
        }
    }

    /// More connections may be idle than the pool's limit allows.
    pub(super) fn over_idle_limit(self: &Arc<Self>) {
        if let Some(room) = self.shared.room.get().and_then(Weak::upgrade) {
            let most = room.shed_idle();
            // It may not be among the origins that have connections yet.
            self.shed_idle(most);
        }
    }

    /// Whether one more connection may become idle without another having to go.
    fn has_idle_room(&self) -> bool {
        let (idle, most) = (
            self.shared.idle(),
            self.shared.limits.max_keepalive_connections,
        );
        let room = || self.shared.room.get().and_then(Weak::upgrade);
        idle < most || room().is_some_and(|room| idle < room.idle_limit())
    }

    /// For how long a connection of another origin must have been idle for us to get its place.
    pub(super) fn room_after(&self) -> Duration {
        match self.starves_since() {
            Some(_) => Duration::ZERO,
            None => ROOM_AFTER,
        }
    }

    /// The place of an idle connection of another origin.
    pub(super) fn room(&self, at_least: Duration) -> GaveUp {
        match self.shared.room.get().and_then(Weak::upgrade) {
            Some(room) => room.make_room(&self.key, at_least),
            None => GaveUp::Nothing,
        }
    }

    /// Starts a dial; the permit comes back if it is not wanted any more, or not allowed.
    pub(super) fn start_dial(
        self: &Arc<Self>,
        permit: Permit,
        purpose: Purpose,
        asked: Asked,
    ) -> Option<Permit> {
        let recorder = asked.recorder.unwrap_or_else(DialRecorder::new);
        let for_waiters = purpose == Purpose::Waiters;
        let (id, learned) = {
            let mut books = lock(&self.books);
            let at = now();
            let rules = self.shared.rules();
            let state = &mut books.state;
            let wanted = match purpose {
                Purpose::Waiters => state.dials_wanted(rules, at) > 0,
                Purpose::Spare => state.may_spare(rules, at),
                Purpose::Ordered | Purpose::Reserved => state.may_order(rules),
                Purpose::Successor(_) | Purpose::Minimum => state.has_room(rules),
            };
            if self.is_removed() || self.shared.is_closed() || !wanted {
                return Some(permit);
            }
            let early = for_waiters && self.plan.allows_early_data() && state.wants_early();
            let learned = Learned {
                stream_limit: state.stream_limit,
                early: state.verdict.filter(|_| early),
            };
            let early = learned.early.is_some();
            let dialling = Dialling {
                recorder: recorder.clone(),
                reports: asked.report.into_iter().collect(),
                reserved: asked.reserved,
                task: None,
            };
            let id = state.dial_started(dialling, early, purpose, at);
            (id, learned)
        };
        let task = DialTask {
            id,
            sink: self.clone(),
            plan: self.plan.clone(),
            deps: self.shared.deps.clone(),
            recorder,
            permit,
            learned,
        }
        .spawn(&self.runtime);
        let is_closed = {
            let mut books = lock(&self.books);
            if let Some(dial) = books.state.dial_mut(id) {
                dial.task = Some(task.clone());
            }
            self.shared.is_closed()
        };
        if is_closed {
            // Shutdown did not see it.
            task.abort();
        }
        None
    }

    /// Ends the dials that run.
    pub(super) fn abort_dials(&self) {
        let tasks: Vec<_> = {
            let books = lock(&self.books);
            let tasks = books.state.dials.iter();
            tasks.filter_map(|dial| dial.what.task.clone()).collect()
        };
        for task in tasks {
            task.abort();
        }
    }

    /// One more HTTP/2 connection before anybody waits; never at another origin's expense.
    pub(super) fn dial_spare(self: &Arc<Self>) {
        if !self.has_idle_room() {
            return;
        }
        if let Some(permit) = self.shared.capacity.try_reserve() {
            drop(self.start_dial(permit, Purpose::Spare, Asked::default()));
        }
    }

    /// A connection that a caller asked for. While the protocol is unknown, the one that a running dial
    /// brings.
    ///
    /// # Errors
    /// Limit: no connection more is allowed now; PoolClosed.
    pub(crate) fn order(self: &Arc<Self>, report: Report) -> Result<(), Error> {
        {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            if state.verdict.is_none()
                && let Some(running) = state.dials.first_mut()
            {
                running.what.reports.push(report);
                return Ok(());
            }
        }
        let asked = Asked {
            report: Some(report),
            ..Asked::default()
        };
        self.order_dial(asked)
    }

    /// A connection of its own for one request.
    ///
    /// # Errors
    /// As [`order`](Self::order).
    pub(crate) fn order_for_request(
        self: &Arc<Self>,
        whom: oneshot::Sender<Outcome>,
        recorder: Arc<DialRecorder>,
    ) -> Result<(), Error> {
        let asked = Asked {
            reserved: Some(whom),
            recorder: Some(recorder),
            report: None,
        };
        self.order_dial(asked)
    }

    /// The limit that keeps it from one more connection now, in words.
    pub(super) fn held_back_by(&self) -> Option<String> {
        let limits = &self.shared.limits;
        let (open, places, verdict) = {
            let books = lock(&self.books);
            let state = &books.state;
            (state.open, state.places(), state.verdict)
        };
        let most = self.shared.rules().max_shared;
        if verdict == Some(Version::HTTP_2) && places >= most {
            return Some(format!(
                "every stream of {places} HTTP/2 connection(s) is in use (max_connections_per_origin)"
            ));
        }
        if limits
            .max_connections_per_host
            .is_some_and(|most| open >= most)
        {
            return Some(format!(
                "{open} connection(s) are in use (max_connections_per_host)"
            ));
        }
        let open = self.shared.capacity.open();
        (open >= limits.max_connections)
            .then(|| format!("{open} connection(s) of the pool are in use (max_connections)"))
    }

    fn order_dial(self: &Arc<Self>, asked: Asked) -> Result<(), Error> {
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
        let permit = self
            .shared
            .capacity
            .try_reserve()
            .ok_or_else(|| limit("max_connections"))?;
        let purpose = match asked.reserved {
            Some(_) => Purpose::Reserved,
            None => Purpose::Ordered,
        };
        match self.start_dial(permit, purpose, asked) {
            None => Ok(()),
            Some(unused) => {
                drop(unused);
                Err(limit("the limit of connections per origin"))
            }
        }
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

/// How a request comes by a connection that was there.
pub(super) fn reused(info: &ConnectionInfo) -> ConnectionUse {
    if info.requests() == 0 {
        ConnectionUse::Prewarmed
    } else {
        ConnectionUse::Idle
    }
}

impl Blocked for Host {
    fn unblocked(self: Arc<Self>, permit: Permit) -> Option<Permit> {
        self.blocked.store(false, Ordering::SeqCst);
        let unused = self.start_dial(permit, Purpose::Waiters, Asked::default());
        if unused.is_none() {
            // There may be more who wait.
            self.drive();
        }
        unused
    }

    fn starves_since(&self) -> Option<Instant> {
        let books = lock(&self.books);
        let first = books.state.line.iter().next()?;
        // What is upgraded, or ends with what it carries, serves nobody.
        let serves = |live: &Live| live.tenure.over.get().is_none();
        let has_none = !books.live.iter().any(serves) && books.state.dials.is_empty();
        has_none.then_some(first.since)
    }
}

/// A place in the line of an origin. Dropped, it is left; a lease that was on its way goes home.
pub(crate) struct Place {
    pub(crate) host: Arc<Host>,
    ticket: Ticket,
    pub(crate) receiver: oneshot::Receiver<Outcome>,
    pub(crate) since: Instant,
    /// Since when its request has waited, which may be longer.
    pub(crate) patient_since: Instant,
    /// What it waits for as long as no dial runs for it; `None` for nothing but ourselves.
    pub(crate) waits_for: Option<WaitCause>,
}

impl Place {
    /// When dials run or ran for it, and the oldest dial; `None` once it has been served.
    pub(crate) fn standing(&self) -> Option<(Cover, Option<Arc<DialRecorder>>)> {
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
            self.host.left_line(1);
        }
    }
}
