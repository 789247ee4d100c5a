//! What one origin has and what it needs. Pure: ids, counts and instants; `now` is handed in, and
//! connections, streams and waiters are whatever the caller says they are.
//!
//! Rules (design of the pool):
//! * While the protocol is unknown one dial runs, whoever waits. HTTP/2 is then shared by all;
//!   HTTP/1.1 fans out: as many dials as waiters and limits allow.
//! * Idle HTTP/1.1 connections are used last in, first out.
//! * A new stream goes to the connection with the fewest. One that owes an answer to a PING gets
//!   none; once the answer is late, its place is given to another.
//! * Waiters are served first come, first served; a waiter is *covered* once a dial runs that is
//!   for it, and until then waits for a limit.
//! * A connection that is at the end of its term goes on until its successor is ready.
//! * Kept-warm minimums outlive our own expiry, but not the peer's.

use std::time::{Duration, Instant};

use http::Version;

use crate::clock::deadline;
use crate::close_reason::CloseReason;

use super::habits::Habits;
use super::line::{Line, Ticket};

/// An HTTP/2 connection as the rules see it.
pub(crate) trait Multiplexed {
    /// Takes a stream slot, if one is free.
    fn try_take(&self) -> Option<crate::http2::Taken>;
    fn in_use(&self) -> u32;
    /// Its limit is the peer's word and not our assumption.
    fn is_settled(&self) -> bool;
    /// Whether the peer owes an answer to a PING.
    fn pulse(&self) -> Pulse;
    /// Its handshake runs under early data: it belongs to one request until that is over.
    fn is_reserved(&self) -> bool;
}

/// Its limit is known and so is that it lives, or it is given up: what it can carry is all there is.
fn says_all<S: Multiplexed>(conn: &S) -> bool {
    match conn.pulse() {
        Pulse::Alive => conn.is_settled(),
        Pulse::Suspect => false,
        Pulse::Late => true,
    }
}

/// Whether a connection is known to be alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulse {
    Alive,
    /// A PING is not answered yet.
    Suspect,
    /// The answer is late.
    Late,
}

/// An idle HTTP/1.1 connection.
#[derive(Debug)]
pub(crate) struct Idle<I> {
    pub(crate) conn: I,
    pub(crate) since: Instant,
    /// When it has been idle for as long as we allow.
    pub(crate) expires: Instant,
    /// When the peer will close it, as far as it told or taught us.
    pub(crate) peer_expires: Option<Instant>,
}

impl<I> Idle<I> {
    /// Why it may not be used any more.
    pub(crate) fn overdue(&self, now: Instant) -> Option<CloseReason> {
        if self.peer_expires.is_some_and(|at| at <= now) {
            Some(CloseReason::LearnedLimit)
        } else if self.expires <= now {
            Some(CloseReason::IdleExpired)
        } else {
            None
        }
    }
}

/// When a dial ran that was for a waiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cover {
    /// Since when one runs now.
    pub(crate) since: Option<Instant>,
    /// From the first to the last moment of those that served others or failed.
    pub(crate) before: Option<(Instant, Instant)>,
}

impl Cover {
    fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            let first = self.before.map_or(since, |(first, _)| first);
            // One that ended as it began has covered nothing.
            if first < now {
                self.before = Some((first, now));
            }
        }
    }
}

/// A request in line.
#[derive(Debug)]
pub(crate) struct Waiter<W> {
    pub(crate) whom: W,
    pub(crate) since: Instant,
    pub(crate) cover: Cover,
    /// Its request may travel as early data.
    pub(crate) early: bool,
}

/// A dial in progress.
#[derive(Debug)]
pub(crate) struct DialEntry<D> {
    pub(crate) id: u64,
    pub(crate) started: Instant,
    pub(crate) what: D,
    /// It is for a request that may travel as early data.
    pub(crate) early: bool,
    pub(crate) purpose: Purpose,
}

/// What a dial was started for; what it brings serves whoever waits all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Those in line.
    Waiters,
    /// Streams run short, or a connection is suspect.
    Spare,
    /// A caller asked for a connection.
    Ordered,
    /// One request gets it before all others.
    Reserved,
    /// To follow the connection with this number.
    Successor(u64),
    /// To keep a minimum warm.
    Minimum,
}

/// Connections that are kept warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Minimum {
    /// HTTP/1.1 connections that are idle.
    pub(crate) idle: usize,
    /// HTTP/2 connections.
    pub(crate) shared: usize,
}

/// Limits that hold for one origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) max_per_host: usize,
    /// HTTP/2 connections.
    pub(crate) max_shared: usize,
}

/// The books of one origin.
#[derive(Debug)]
pub(crate) struct HostState<I, S, W, D> {
    /// What the origin spoke last.
    pub(crate) verdict: Option<Version>,
    pub(crate) idle: Vec<Idle<I>>,
    pub(crate) shared: Vec<S>,
    /// HTTP/2 connections whose handshake still runs under early data: each belongs to the one
    /// request that it was dialled for, and is shared once it has settled.
    pub(crate) settling: Vec<S>,
    pub(crate) dials: Vec<DialEntry<D>>,
    pub(crate) line: Line<Waiter<W>>,
    /// Connections established and not yet closed, leased and retired ones included.
    pub(crate) open: usize,
    /// The stream limit that the peer told last; the next connection begins with it.
    pub(crate) stream_limit: Option<u32>,
    /// HTTP/1.1 connections that were idle and are being looked at: they go to those in line, or close.
    pub(crate) examined: usize,
    /// After a failed dial beside a working HTTP/2 connection: no further one until then.
    pub(crate) spare_after: Option<Instant>,
    /// No dial for the minimum before.
    pub(crate) minimum_after: Option<Instant>,
    pub(crate) habits: Habits,
    pub(crate) last_used: Instant,
    next_dial: u64,
}

impl<I, S: Multiplexed + Clone, W, D> HostState<I, S, W, D> {
    pub(crate) fn new(verdict: Option<Version>, now: Instant) -> Self {
        Self {
            verdict,
            idle: Vec::new(),
            shared: Vec::new(),
            settling: Vec::new(),
            dials: Vec::new(),
            line: Line::default(),
            open: 0,
            stream_limit: None,
            examined: 0,
            spare_after: None,
            minimum_after: None,
            habits: Habits::default(),
            last_used: now,
            next_dial: 0,
        }
    }

    /// Gives back the room that is not in use.
    pub(crate) fn give_room_back(&mut self) {
        self.idle.shrink_to_fit();
        self.shared.shrink_to_fit();
        self.settling.shrink_to_fit();
        self.dials.shrink_to_fit();
        self.line.give_room_back();
    }

    /// Keeps an idle connection; the stack is in the order in which they became idle.
    pub(crate) fn put_idle(&mut self, idle: Idle<I>) {
        let at = self.idle.partition_point(|other| other.since <= idle.since);
        self.idle.insert(at, idle);
    }

    /// The most recently used idle connection.
    pub(crate) fn take_idle(&mut self) -> Option<Idle<I>> {
        self.idle.pop()
    }

    /// A stream on the least loaded connection with a free slot.
    pub(crate) fn take_stream(&self) -> Option<(S, crate::http2::Taken)> {
        if let [only] = self.shared.as_slice() {
            return Some((only.clone(), only.try_take()?));
        }
        // A handful at most: sorting them beats any index. A slot may go between look and take.
        let mut order: Vec<&S> = self.shared.iter().collect();
        order.sort_by_key(|s| s.in_use());
        order
            .into_iter()
            .find_map(|s| Some((s.clone(), s.try_take()?)))
    }

    /// Gets in line.
    pub(crate) fn enqueue(&mut self, whom: W, early: bool, now: Instant) -> Ticket {
        let ticket = self.line.push(Waiter {
            whom,
            since: now,
            cover: Cover::default(),
            early,
        });
        self.cover(now);
        ticket
    }

    /// Gets back to the front of the line: what it was served with did not last, and it has waited since `since`.
    pub(crate) fn enqueue_again(
        &mut self,
        whom: W,
        early: bool,
        since: Instant,
        now: Instant,
    ) -> Ticket {
        let waiter = Waiter {
            whom,
            since,
            cover: Cover::default(),
            early,
        };
        let ticket = self
            .line
            .push_front(waiter, |waiter| waiter.cover.begin(now));
        self.cover(now);
        ticket
    }

    /// When a dial runs or ran for this waiter; `None` once it has left.
    pub(crate) fn cover_of(&self, ticket: Ticket) -> Option<Cover> {
        Some(self.line.get(ticket)?.cover)
    }

    /// Whom a new connection serves: the first in line, or the first whose request may travel as
    /// early data.
    pub(crate) fn next_for(&mut self, early: bool) -> Option<Waiter<W>> {
        if early {
            self.line.leave_first(|waiter| waiter.early)
        } else {
            self.line.pop()
        }
    }

    /// Whether [`next_for`](Self::next_for) would find somebody.
    pub(crate) fn has_waiter(&self, early: bool) -> bool {
        if early {
            self.line.iter().any(|waiter| waiter.early)
        } else {
            !self.line.is_empty()
        }
    }

    /// A connection is on its way that may serve all who wait.
    pub(crate) fn is_opening(&self) -> bool {
        !self.dials.is_empty() || !self.settling.is_empty()
    }

    /// How many dials to start now for those who wait.
    pub(crate) fn dials_wanted(&self, rules: Rules, now: Instant) -> usize {
        let waiting = self.line.len();
        if waiting == 0 {
            return 0;
        }
        let dialing = self.dials.len();
        let wanted = match self.verdict {
            None => usize::from(dialing == 0),
            Some(Version::HTTP_2) => {
                let may = self.settling.is_empty()
                    && self.places() < rules.max_shared
                    && self.shared.iter().all(says_all)
                    && !self.pauses_spares(now);
                usize::from(dialing == 0 && may)
            }
            Some(_) => waiting.saturating_sub(self.dials_for_line() + self.examined),
        };
        wanted.min(rules.max_per_host.saturating_sub(self.open + dialing))
    }

    /// Dials whose HTTP/1.1 connections go to those in line.
    fn dials_for_line(&self) -> usize {
        let is_theirs = |dial: &&DialEntry<D>| dial.purpose != Purpose::Reserved;
        self.dials.iter().filter(is_theirs).count()
    }

    /// A connection that waits for the peer's SETTINGS, and for nothing else, is shared before they have
    /// come: somebody needs it now. False if there is none.
    pub(crate) fn share_early(&mut self) -> bool {
        let Some(at) = self.settling.iter().position(|s| !s.is_reserved()) else {
            return false;
        };
        let conn = self.settling.remove(at);
        self.shared.push(conn);
        true
    }

    /// Whether streams run short, so that one more HTTP/2 connection should be opened before
    /// anybody waits: at 80 % of the peer's limit.
    pub(crate) fn wants_spare(
        &self,
        taken: crate::http2::Taken,
        rules: Rules,
        now: Instant,
    ) -> bool {
        let in_use = u64::from(taken.before) + 1;
        in_use * 5 >= u64::from(taken.limit) * 4 && self.may_spare(rules, now)
    }

    /// Whether a further HTTP/2 connection may be opened beside those that work, or should.
    pub(crate) fn may_spare(&self, rules: Rules, now: Instant) -> bool {
        !self.is_opening()
            && self.places() < rules.max_shared
            && self.open < rules.max_per_host
            && self.shared.iter().all(says_all)
            && !self.pauses_spares(now)
    }

    /// A dial has just failed beside a connection that works, as far as one still does.
    fn pauses_spares(&self, now: Instant) -> bool {
        !self.shared.is_empty() && self.spare_after.is_some_and(|after| after > now)
    }

    /// HTTP/2 connections that count: a peer that is late with its answer has lost its place.
    pub(crate) fn places(&self) -> usize {
        let counts = |s: &&S| s.pulse() != Pulse::Late;
        self.shared.iter().filter(counts).count()
    }

    /// How many dials keep the minimum up; asked again `pause` later at the earliest, so that a peer
    /// which closes what is kept warm is not dialled in circles.
    pub(crate) fn minimum_wanted(
        &mut self,
        minimum: Minimum,
        rules: Rules,
        pause: Duration,
        now: Instant,
    ) -> usize {
        if self.minimum_after.is_some_and(|after| after > now) {
            return 0;
        }
        let opening = self.dials.len() + self.settling.len();
        let missing = match self.verdict {
            // One dial tells the protocol.
            None => usize::from(minimum != Minimum::default() && opening == 0),
            Some(Version::HTTP_2) => {
                let most = rules.max_shared;
                minimum
                    .shared
                    .min(most)
                    .saturating_sub(self.places() + opening)
            }
            Some(_) => minimum.idle.saturating_sub(self.idle.len() + opening),
        };
        let room = rules
            .max_per_host
            .saturating_sub(self.open + self.dials.len());
        let wanted = missing.min(room);
        if wanted > 0 {
            self.minimum_after = Some(deadline(now, pause));
        }
        wanted
    }

    /// Whether every idle HTTP/1.1 connection is to be kept, whatever the idle limit says.
    pub(crate) fn keeps_idle(&self, minimum: Minimum) -> bool {
        self.idle.len() <= minimum.idle
    }

    /// Whether every HTTP/2 connection is to be kept, whatever the idle limit says.
    pub(crate) fn keeps_shared(&self, minimum: Minimum) -> bool {
        self.shared.len() <= minimum.shared
    }

    /// Takes out the idle connections that are past their time, or over for another reason, the oldest
    /// first; the youngest up to the minimum stay until the peer's own limit. Says when the next one is
    /// due.
    pub(crate) fn expire_idle(
        &mut self,
        minimum: Minimum,
        now: Instant,
        is_over: impl Fn(&I) -> Option<CloseReason>,
    ) -> (Vec<(Idle<I>, CloseReason)>, Option<Instant>) {
        let mut overdue = Vec::new();
        let mut next: Option<Instant> = None;
        let mut left = self.idle.len();
        for idle in std::mem::take(&mut self.idle) {
            let is_kept = left <= minimum.idle;
            match is_over(&idle.conn).or_else(|| idle.overdue(now)) {
                Some(CloseReason::IdleExpired) if is_kept => {}
                Some(why) => {
                    overdue.push((idle, why));
                    left -= 1;
                    continue;
                }
                None => {}
            }
            let due = [(!is_kept).then_some(idle.expires), idle.peer_expires];
            next = due.into_iter().flatten().chain(next).min();
            self.idle.push(idle);
        }
        (overdue, next)
    }

    /// The peer turned out to close idle connections after `limit`: those that are idle now must go
    /// before, too.
    pub(crate) fn shorten_idle(&mut self, limit: Duration) {
        for idle in &mut self.idle {
            let ends = deadline(idle.since, limit);
            idle.peer_expires = Some(idle.peer_expires.map_or(ends, |at| at.min(ends)));
        }
    }

    /// Whether a connection that is free now goes to another origin, which has none and whose first
    /// request has waited since `blocked`, rather than to our own first in line.
    pub(crate) fn gives_way(&self, blocked: Instant) -> bool {
        self.line.first().is_none_or(|first| blocked < first.since)
    }

    /// Whether the next dial should be for a request that may travel as early data: one waits that
    /// no such dial is for.
    pub(crate) fn wants_early(&self) -> bool {
        let waiting = self.line.iter().filter(|waiter| waiter.early).count();
        waiting > self.dials.iter().filter(|dial| dial.early).count()
    }

    /// A dial begins; it is for the first in line that have none yet.
    pub(crate) fn dial_started(
        &mut self,
        what: D,
        early: bool,
        purpose: Purpose,
        now: Instant,
    ) -> u64 {
        let id = self.next_dial;
        self.next_dial += 1;
        self.dials.push(DialEntry {
            id,
            started: now,
            what,
            early,
            purpose,
        });
        self.cover(now);
        id
    }

    /// Marks the waiters for whom a dial runs, and no others.
    pub(crate) fn cover(&mut self, now: Instant) {
        let covered = match self.verdict {
            Some(Version::HTTP_11) => self.dials_for_line(),
            _ if !self.is_opening() => 0,
            _ => self.line.len(),
        };
        self.line.mark(covered, |waiter| waiter.cover.begin(now));
        self.line.unmark(covered, |waiter| waiter.cover.end(now));
    }

    /// A dial is over.
    pub(crate) fn dial_ended(&mut self, id: u64) -> Option<DialEntry<D>> {
        let at = self.dials.iter().position(|dial| dial.id == id)?;
        Some(self.dials.remove(at))
    }

    /// Whom the failure of a dial concerns: with HTTP/1.1 the first in line, else all who wait
    /// for it, unless they can still be served by a connection that works.
    pub(crate) fn failed_waiters(&mut self, purpose: Purpose) -> Vec<Waiter<W>> {
        match self.verdict {
            // It was for somebody else.
            Some(Version::HTTP_11) if purpose == Purpose::Reserved => Vec::new(),
            // The others have a dial each.
            Some(Version::HTTP_11) if self.line.len() <= self.dials_for_line() => Vec::new(),
            Some(Version::HTTP_11) => self.line.pop().into_iter().collect(),
            _ if !self.shared.is_empty() || self.is_opening() => Vec::new(),
            _ => self.all_waiters(),
        }
    }

    /// The handshake of an HTTP/2 connection is over: it may be shared. False if it was not open.
    pub(crate) fn settled(&mut self, is_it: impl Fn(&S) -> bool) -> bool {
        let Some(at) = self.settling.iter().position(is_it) else {
            return false;
        };
        let settled = self.settling.remove(at);
        self.shared.push(settled);
        true
    }

    /// Takes an HTTP/2 connection off the books.
    pub(crate) fn take_off(&mut self, is_it: impl Fn(&S) -> bool) -> Option<S> {
        for conns in [&mut self.shared, &mut self.settling] {
            if let Some(at) = conns.iter().position(&is_it) {
                return Some(conns.remove(at));
            }
        }
        None
    }

    /// Every HTTP/2 connection that has not retired.
    pub(crate) fn multiplexed(&self) -> impl Iterator<Item = &S> {
        self.shared.iter().chain(&self.settling)
    }

    /// Everybody leaves the line.
    pub(crate) fn all_waiters(&mut self) -> Vec<Waiter<W>> {
        std::iter::from_fn(|| self.line.pop()).collect()
    }

    pub(crate) fn dial_mut(&mut self, id: u64) -> Option<&mut D> {
        let dial = self.dials.iter_mut().find(|dial| dial.id == id);
        dial.map(|dial| &mut dial.what)
    }

    /// Whether a caller may have one connection more.
    pub(crate) fn may_order(&self, rules: Rules) -> bool {
        let opening = self.dials.len() + self.settling.len();
        self.has_room(rules)
            && (self.verdict != Some(Version::HTTP_2) || self.places() + opening < rules.max_shared)
    }

    /// Connections and dials against the limit per origin.
    pub(crate) fn has_room(&self, rules: Rules) -> bool {
        self.open + self.dials.len() < rules.max_per_host
    }

    /// Nothing is left but what was learned.
    pub(crate) fn is_unused(&self) -> bool {
        self.open == 0 && self.dials.is_empty() && self.line.is_empty()
    }
}

/// The properties that the fuzz target asserts while it plays the acting part with operations made of its
/// input, two bytes each: slots in use are leases alive, limits hold, every waiter settles once and in its
/// turn, nobody waits beside what could serve them, and nothing is used after it was closed.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_operations(input: &[u8]) {
    let mut play = play::Play::new(input.first().copied().unwrap_or(0));
    for op in input.get(1..).unwrap_or_default().chunks_exact(2) {
        play.act(op[0], op[1]);
        play.check();
    }
    play.finish();
}

#[cfg(any(test, fuzzing))]
mod play {
    // layering: uses this module, its siblings line and habits, and http2, which is below.
    use std::cell::Cell;
    use std::collections::{HashMap, HashSet};
    use std::rc::Rc;

    use super::*;
    use crate::http2::Taken;

    /// An HTTP/2 connection: streams in use, their limit, what is known of it.
    #[derive(Clone, Debug)]
    pub(super) struct Shared(Rc<Facts>);

    #[derive(Debug)]
    struct Facts {
        id: u64,
        in_use: Cell<u32>,
        limit: Cell<u32>,
        is_settled: Cell<bool>,
        pulse: Cell<Pulse>,
    }

    impl Multiplexed for Shared {
        fn try_take(&self) -> Option<Taken> {
            let (before, limit) = (self.0.in_use.get(), self.0.limit.get());
            let may = before < limit && self.0.pulse.get() == Pulse::Alive;
            may.then(|| {
                self.0.in_use.set(before + 1);
                Taken { before, limit }
            })
        }
        fn in_use(&self) -> u32 {
            self.0.in_use.get()
        }
        fn is_settled(&self) -> bool {
            self.0.is_settled.get()
        }
        fn pulse(&self) -> Pulse {
            self.0.pulse.get()
        }
        fn is_reserved(&self) -> bool {
            self.0.id.is_multiple_of(2)
        }
    }

    enum Lease {
        H1(u64),
        H2(Shared),
    }

    pub(super) struct Play {
        state: HostState<u64, Shared, u64, ()>,
        rules: Rules,
        minimum: Minimum,
        idle_limit: usize,
        now: Instant,
        next: u64,
        leases: Vec<Lease>,
        alive: HashSet<u64>,
        /// Retired, with streams still.
        retired: Vec<Shared>,
        waiting: HashMap<u64, Ticket>,
        settled: HashSet<u64>,
        served_last: u64,
    }

    impl Play {
        pub(super) fn new(setup: u8) -> Self {
            let now = Instant::now();
            let verdict = match setup % 3 {
                0 => None,
                1 => Some(Version::HTTP_11),
                _ => Some(Version::HTTP_2),
            };
            let n = usize::from(setup / 3 % 4);
            Self {
                state: HostState::new(verdict, now),
                rules: Rules {
                    max_per_host: 1 + n,
                    max_shared: 1 + usize::from(setup / 12 % 3),
                },
                minimum: Minimum {
                    idle: usize::from(setup / 36 % 3),
                    shared: usize::from(setup / 36 % 2),
                },
                idle_limit: usize::from(setup / 108 % 3),
                now,
                next: 0,
                leases: Vec::new(),
                alive: HashSet::new(),
                retired: Vec::new(),
                waiting: HashMap::new(),
                settled: HashSet::new(),
                served_last: 0,
            }
        }

        fn id(&mut self) -> u64 {
            self.next += 1;
            self.next
        }

        pub(super) fn act(&mut self, op: u8, arg: u8) {
            match op % 13 {
                0..=2 => self.request(arg),
                3 => self.dial_ends(arg, true, false),
                4 => self.dial_ends(arg, true, true),
                5 => self.dial_ends(arg, false, false),
                6 | 7 => self.lease_ends(arg),
                8 => self.waiter_goes(arg),
                9 => self.idle_closes(arg),
                10 => self.shared_changes(arg),
                11 => self.now += Duration::from_millis(u64::from(arg) * 40),
                _ => self.expire(),
            }
            self.drive();
        }

        fn request(&mut self, arg: u8) {
            if self.state.line.is_empty() {
                if let Some(idle) = self.state.take_idle() {
                    return self.lend(Lease::H1(idle.conn));
                }
                if let Some((conn, taken)) = self.state.take_stream() {
                    if self.state.wants_spare(taken, self.rules, self.now) {
                        self.state.dial_started((), false, Purpose::Spare, self.now);
                    }
                    return self.lend(Lease::H2(conn));
                }
            }
            let whom = self.id();
            let ticket = self.state.enqueue(whom, arg & 1 == 1, self.now);
            self.waiting.insert(whom, ticket);
        }

        fn lend(&mut self, lease: Lease) {
            if let Lease::H1(id) = &lease {
                assert!(self.alive.contains(id), "used after it was closed");
            }
            self.leases.push(lease);
        }

        fn serve(&mut self, waiter: &Waiter<u64>, lease: Lease) {
            self.settle(waiter.whom);
            if !waiter.early {
                // Those who may travel as early data can be called before their turn.
                let turn = self.waiting.keys().all(|other| {
                    *other > waiter.whom || {
                        let ticket = self.waiting[other];
                        self.state.line.get(ticket).is_some_and(|w| w.early)
                    }
                });
                assert!(turn, "out of turn");
            }
            self.served_last = waiter.whom;
            self.lend(lease);
        }

        fn settle(&mut self, whom: u64) {
            assert!(self.waiting.remove(&whom).is_some(), "it was waiting");
            assert!(self.settled.insert(whom), "every waiter settles once");
        }

        /// As the host does after every change.
        fn drive(&mut self) {
            while !self.state.line.is_empty() {
                let lease = if let Some(idle) = self.state.take_idle() {
                    Lease::H1(idle.conn)
                } else if let Some((conn, _)) = self.state.take_stream() {
                    Lease::H2(conn)
                } else if self.state.share_early() {
                    continue;
                } else {
                    break;
                };
                let waiter = self.state.next_for(false).expect("not empty");
                self.serve(&waiter, lease);
            }
            self.state.cover(self.now);
            while self.state.dials_wanted(self.rules, self.now) > 0 {
                self.state
                    .dial_started((), false, Purpose::Waiters, self.now);
            }
            let pause = Duration::from_secs(1);
            let wanted = self
                .state
                .minimum_wanted(self.minimum, self.rules, pause, self.now);
            for _ in 0..wanted {
                self.state
                    .dial_started((), false, Purpose::Minimum, self.now);
            }
        }

        fn dial_ends(&mut self, arg: u8, succeeds: bool, is_http2: bool) {
            if self.state.dials.is_empty() {
                return;
            }
            let id = self.state.dials[usize::from(arg) % self.state.dials.len()].id;
            assert!(self.state.dial_ended(id).is_some());
            assert!(self.state.dial_ended(id).is_none());
            if !succeeds {
                if !self.state.shared.is_empty() {
                    self.state.spare_after = Some(self.now + Duration::from_secs(1));
                }
                for waiter in self.state.failed_waiters(Purpose::Waiters) {
                    self.settle(waiter.whom);
                }
                return;
            }
            let id = self.id();
            self.state.open += 1;
            self.alive.insert(id);
            if is_http2 {
                self.state.verdict = Some(Version::HTTP_2);
                let conn = Shared(Rc::new(Facts {
                    id,
                    in_use: Cell::new(0),
                    limit: Cell::new(u32::from(arg % 4)),
                    is_settled: Cell::new(arg & 64 == 0),
                    pulse: Cell::new(Pulse::Alive),
                }));
                if arg & 128 == 0 || !self.state.line.is_empty() {
                    self.state.shared.push(conn);
                } else {
                    self.state.settling.push(conn);
                }
            } else {
                self.state.verdict = Some(Version::HTTP_11);
                if let Some(waiter) = self.state.next_for(false) {
                    self.serve(&waiter, Lease::H1(id));
                } else {
                    self.put_idle(id);
                }
            }
        }

        fn put_idle(&mut self, conn: u64) {
            self.state.put_idle(Idle {
                conn,
                since: self.now,
                expires: self.now + Duration::from_secs(5),
                peer_expires: None,
            });
            let over = self.state.idle.len() > self.idle_limit;
            if over && !self.state.keeps_idle(self.minimum) {
                let oldest = self.state.idle.remove(0);
                self.close(oldest.conn);
            }
        }

        fn close(&mut self, id: u64) {
            assert!(self.alive.remove(&id), "closed once");
            self.state.open -= 1;
        }

        fn lease_ends(&mut self, arg: u8) {
            if self.leases.is_empty() {
                return;
            }
            let at = usize::from(arg) % self.leases.len();
            match self.leases.swap_remove(at) {
                Lease::H1(id) if arg & 128 != 0 => self.close(id),
                Lease::H1(id) => match self.state.next_for(false) {
                    Some(waiter) => self.serve(&waiter, Lease::H1(id)),
                    None => self.put_idle(id),
                },
                Lease::H2(conn) => {
                    conn.0.in_use.set(conn.0.in_use.get() - 1);
                    let is_it = |c: &Shared| Rc::ptr_eq(&c.0, &conn.0);
                    if conn.in_use() == 0 && self.retired.iter().any(is_it) {
                        self.retired.retain(|c| !is_it(c));
                        self.close(conn.0.id);
                    }
                }
            }
        }

        fn waiter_goes(&mut self, arg: u8) {
            let mut waiting: Vec<_> = self.waiting.keys().copied().collect();
            waiting.sort_unstable();
            if waiting.is_empty() {
                return;
            }
            let whom = waiting[usize::from(arg) % waiting.len()];
            let ticket = self.waiting[&whom];
            let waiter = self.state.line.leave(ticket).expect("it stands in line");
            assert_eq!(waiter.whom, whom);
            self.settle(whom);
        }

        fn idle_closes(&mut self, arg: u8) {
            if !self.state.idle.is_empty() {
                let at = usize::from(arg) % self.state.idle.len();
                let idle = self.state.idle.remove(at);
                self.close(idle.conn);
            }
        }

        fn shared_changes(&mut self, arg: u8) {
            let all: Vec<_> = self.state.multiplexed().cloned().collect();
            if all.is_empty() {
                return;
            }
            let conn = all[usize::from(arg) % all.len()].clone();
            let is_it = |c: &Shared| Rc::ptr_eq(&c.0, &conn.0);
            match arg / 16 % 6 {
                0 => conn.0.limit.set(u32::from(arg % 5)),
                1 => conn.0.pulse.set(Pulse::Suspect),
                2 if conn.pulse() == Pulse::Suspect => conn.0.pulse.set(Pulse::Late),
                2 | 3 => conn.0.pulse.set(Pulse::Alive),
                4 => {
                    conn.0.is_settled.set(true);
                    self.state.settled(is_it);
                }
                _ => {
                    assert!(self.state.take_off(is_it).is_some());
                    assert!(self.state.take_off(is_it).is_none());
                    if conn.in_use() == 0 {
                        self.close(conn.0.id);
                    } else {
                        self.retired.push(conn);
                    }
                }
            }
        }

        fn expire(&mut self) {
            let before = self.state.idle.len();
            let (overdue, next) = self.state.expire_idle(self.minimum, self.now, |_| None);
            assert!(next.is_none_or(|next| next > self.now));
            assert_eq!(before, self.state.idle.len() + overdue.len());
            if !overdue.is_empty() {
                assert!(self.state.idle.len() >= self.minimum.idle.min(before));
            }
            for (idle, why) in overdue {
                assert_eq!(why, CloseReason::IdleExpired);
                self.close(idle.conn);
            }
        }

        pub(super) fn check(&self) {
            let state = &self.state;
            let of = |conn: &Shared| {
                let is_on =
                    |lease: &&Lease| matches!(lease, Lease::H2(c) if Rc::ptr_eq(&c.0, &conn.0));
                self.leases.iter().filter(is_on).count()
            };
            for conn in state.multiplexed().chain(&self.retired) {
                assert_eq!(conn.in_use() as usize, of(conn), "slots are leases");
                assert!(self.alive.contains(&conn.0.id));
            }
            assert_eq!(state.open, self.alive.len());
            assert!(state.open + state.dials.len() <= self.rules.max_per_host);
            let most_idle = self.idle_limit.max(self.minimum.idle);
            assert!(state.idle.len() <= most_idle, "{}", state.idle.len());
            let mut idle = HashSet::new();
            for entry in &state.idle {
                assert!(self.alive.contains(&entry.conn) && idle.insert(entry.conn));
                let is_lent = |lease: &Lease| matches!(lease, Lease::H1(id) if *id == entry.conn);
                assert!(!self.leases.iter().any(is_lent), "lent and idle");
            }
            assert!(state.idle.is_sorted_by_key(|idle| idle.since));
            assert_eq!(state.line.len(), self.waiting.len());
            if !state.line.is_empty() {
                assert!(state.idle.is_empty(), "waiting beside an idle connection");
                let free = |c: &Shared| c.in_use() < c.0.limit.get() && c.pulse() == Pulse::Alive;
                assert!(
                    !state.shared.iter().any(free),
                    "waiting beside a free stream"
                );
            }
            // Who is covered stands before who is not, and never without a dial.
            let covered: Vec<_> = state.line.iter().map(|w| w.cover.since.is_some()).collect();
            assert!(covered.is_sorted_by(|a, b| a >= b), "{covered:?}");
            assert!(state.is_opening() || !covered.contains(&true));
            if state.verdict.is_none() {
                assert!(state.dials.len() <= 1, "one dial tells the protocol");
            }
        }

        /// Everything that runs comes to its end: nobody is left over.
        pub(super) fn finish(mut self) {
            for round in 0..10_000 {
                self.now += Duration::from_secs(2);
                for conn in self.state.multiplexed() {
                    conn.0.pulse.set(Pulse::Alive);
                    conn.0.is_settled.set(true);
                    conn.0.limit.set(conn.0.limit.get().max(1));
                }
                let is_http2 = self.state.verdict == Some(Version::HTTP_2);
                while let Some(conn) = self.state.settling.first().cloned() {
                    self.state.settled(|c| Rc::ptr_eq(&c.0, &conn.0));
                }
                self.dial_ends(1, true, is_http2);
                self.lease_ends(0);
                self.drive();
                self.check();
                if self.waiting.is_empty() && self.leases.is_empty() && self.state.dials.is_empty()
                {
                    return;
                }
                assert!(round < 9_999, "somebody is left over");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and http2, which is below.
    use super::*;
    use crate::http2::Taken;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[derive(Clone)]
    struct Fake(Rc<(Cell<u32>, u32, bool)>);

    impl Fake {
        fn new(in_use: u32, limit: u32) -> Self {
            Self(Rc::new((Cell::new(in_use), limit, true)))
        }
    }

    impl Multiplexed for Fake {
        fn try_take(&self) -> Option<Taken> {
            let before = self.0.0.get();
            (before < self.0.1).then(|| {
                self.0.0.set(before + 1);
                Taken {
                    before,
                    limit: self.0.1,
                }
            })
        }
        fn in_use(&self) -> u32 {
            self.0.0.get()
        }
        fn is_settled(&self) -> bool {
            self.0.2
        }
        fn pulse(&self) -> Pulse {
            Pulse::Alive
        }
        fn is_reserved(&self) -> bool {
            true
        }
    }

    type State = HostState<u32, Fake, u32, ()>;
    const RULES: Rules = Rules {
        max_per_host: 10,
        max_shared: 4,
    };

    fn state(verdict: Option<Version>, waiters: u32) -> (State, Instant) {
        let now = Instant::now();
        let mut state = State::new(verdict, now);
        for n in 0..waiters {
            state.enqueue(n, false, now);
        }
        (state, now)
    }

    proptest! {
        #[test]
        fn books_balance_whatever_happens(ops in prop::collection::vec(any::<u8>(), 0..600)) {
            check_operations(&ops);
        }
    }

    #[test]
    fn unknown_protocol_dials_once_whoever_waits() {
        let (mut state, now) = state(None, 50);
        assert_eq!(state.dials_wanted(RULES, now), 1);
        state.dial_started((), false, Purpose::Waiters, now);
        assert_eq!(state.dials_wanted(RULES, now), 0);
        assert!(state.line.iter().all(|w| w.cover.since == Some(now)));
    }

    #[test]
    fn http1_fans_out_up_to_the_limit_and_covers_the_first_in_line() {
        let (mut state, now) = state(Some(Version::HTTP_11), 50);
        state.open = 3;
        assert_eq!(state.dials_wanted(RULES, now), 7);
        for _ in 0..7 {
            state.dial_started((), false, Purpose::Waiters, now);
        }
        assert_eq!(state.dials_wanted(RULES, now), 0);
        let covered = state
            .line
            .iter()
            .filter(|w| w.cover.since.is_some())
            .count();
        assert_eq!(covered, 7);
        // The first is served by somebody else's connection: its dial is now for the eighth.
        state.line.pop();
        let later = now + Duration::from_millis(1);
        state.cover(later);
        assert_eq!(state.line.iter().nth(6).unwrap().cover.since, Some(later));
    }

    #[test]
    fn http2_opens_one_more_connection_at_a_time_up_to_its_maximum() {
        let (mut state, now) = state(Some(Version::HTTP_2), 5);
        state.shared = vec![Fake::new(2, 2)];
        assert_eq!(state.dials_wanted(RULES, now), 1);
        state.dial_started((), false, Purpose::Waiters, now);
        assert_eq!(state.dials_wanted(RULES, now), 0);
        state.dials.clear();
        state.shared = (0..4).map(|_| Fake::new(2, 2)).collect();
        assert_eq!(state.dials_wanted(RULES, now), 0);
    }

    #[test]
    fn streams_go_to_the_least_loaded_connection() {
        let (mut state, _) = state(Some(Version::HTTP_2), 0);
        state.shared = vec![Fake::new(3, 10), Fake::new(1, 10), Fake::new(10, 10)];
        let (_, taken) = state.take_stream().unwrap();
        assert_eq!(taken.before, 1);
        state.shared = vec![Fake::new(2, 2)];
        assert!(state.take_stream().is_none());
    }

    #[test]
    fn connection_that_is_looked_at_serves_one_who_waits_without_a_dial() {
        let (mut state, now) = state(Some(Version::HTTP_11), 3);
        assert_eq!(state.dials_wanted(RULES, now), 3);
        state.examined = 2;
        assert_eq!(state.dials_wanted(RULES, now), 1);
    }

    #[test]
    fn spare_connection_is_wanted_at_80_percent_and_not_before_settings() {
        let (mut state, now) = state(Some(Version::HTTP_2), 0);
        state.shared = vec![Fake::new(8, 10)];
        assert!(state.wants_spare(
            Taken {
                before: 7,
                limit: 10
            },
            RULES,
            now
        ));
        assert!(!state.wants_spare(
            Taken {
                before: 6,
                limit: 10
            },
            RULES,
            now
        ));
        state.shared = vec![Fake(Rc::new((Cell::new(8), 10, false)))];
        assert!(!state.wants_spare(
            Taken {
                before: 7,
                limit: 10
            },
            RULES,
            now
        ));
    }

    #[test]
    fn connection_under_early_data_is_waited_for_and_shared_only_when_settled() {
        let (mut state, now) = state(Some(Version::HTTP_2), 0);
        state.enqueue(0, false, now);
        assert!(!state.wants_early());
        state.enqueue(1, true, now);
        assert!(state.wants_early());
        let id = state.dial_started((), true, Purpose::Waiters, now);
        assert!(!state.wants_early(), "its dial is for it");
        state.dial_ended(id);
        let served = state.line.leave_first(|waiter| waiter.early).unwrap();
        assert_eq!(served.whom, 1);
        let conn = Fake::new(1, 10);
        state.settling.push(conn.clone());
        assert_eq!(state.dials_wanted(RULES, now), 0, "it is on its way");
        assert!(
            state.take_stream().is_none(),
            "and nobody else's until then"
        );
        state.settled(|c| Rc::ptr_eq(&c.0, &conn.0));
        assert!(state.take_stream().is_some());
    }

    #[test]
    fn failed_dial_concerns_all_who_waited_for_it_or_one_of_http1() {
        let (mut unknown, _) = state(None, 3);
        assert_eq!(unknown.failed_waiters(Purpose::Waiters).len(), 3);
        let (mut http1, _) = state(Some(Version::HTTP_11), 3);
        assert_eq!(http1.failed_waiters(Purpose::Waiters).len(), 1);
        let (mut http2, _) = state(Some(Version::HTTP_2), 3);
        http2.shared = vec![Fake::new(2, 2)];
        assert_eq!(http2.failed_waiters(Purpose::Waiters).len(), 0);
    }
}
