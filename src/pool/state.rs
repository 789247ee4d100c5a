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

/// A request in line.
#[derive(Debug)]
pub(crate) struct Waiter<W> {
    pub(crate) whom: W,
    pub(crate) since: Instant,
    /// Since when a dial runs that is for it.
    pub(crate) covered: Option<Instant>,
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
            spare_after: None,
            minimum_after: None,
            habits: Habits::default(),
            last_used: now,
            next_dial: 0,
        }
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
            covered: None,
            early,
        });
        self.cover(now);
        ticket
    }

    /// Since when a dial runs that is for this waiter: the inner `None` says that it waits for a
    /// limit, the outer one that it has left.
    pub(crate) fn covered(&self, ticket: Ticket) -> Option<Option<Instant>> {
        Some(self.line.get(ticket)?.covered)
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
            Some(_) => waiting.saturating_sub(dialing),
        };
        wanted.min(rules.max_per_host.saturating_sub(self.open + dialing))
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
        self.places() > 0 && self.spare_after.is_some_and(|after| after > now)
    }

    /// HTTP/2 connections that count: a peer that is late with its answer has lost its place.
    fn places(&self) -> usize {
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

    /// Whether one of the idle connections more is to be kept, whatever the idle limit says.
    pub(crate) fn is_below_minimum(&self, minimum: Minimum) -> bool {
        match self.verdict {
            Some(Version::HTTP_2) => self.shared.len() <= minimum.shared,
            _ => self.idle.len() < minimum.idle,
        }
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

    /// Marks the waiters for whom a dial runs.
    pub(crate) fn cover(&mut self, now: Instant) {
        let covered = match self.verdict {
            Some(Version::HTTP_11) => self.dials.len(),
            _ if !self.is_opening() => 0,
            _ => self.line.len(),
        };
        self.line.mark(covered, |waiter| waiter.covered = Some(now));
    }

    /// No dial runs any more for those who wait.
    pub(crate) fn uncover(&mut self) {
        self.line.unmark(|waiter| waiter.covered = None);
    }

    /// A dial is over.
    pub(crate) fn dial_ended(&mut self, id: u64) -> Option<DialEntry<D>> {
        let at = self.dials.iter().position(|dial| dial.id == id)?;
        Some(self.dials.remove(at))
    }

    /// Whom the failure of a dial concerns: with HTTP/1.1 the first in line, else all who wait
    /// for it, unless they can still be served by a connection that works.
    pub(crate) fn failed_waiters(&mut self) -> Vec<Waiter<W>> {
        match self.verdict {
            // The others have a dial each.
            Some(Version::HTTP_11) if self.line.len() <= self.dials.len() => Vec::new(),
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

#[cfg(test)]
mod tests {
    // layering: uses this module and http2, which is below.
    use super::*;
    use crate::http2::Taken;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

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

    #[test]
    fn unknown_protocol_dials_once_whoever_waits() {
        let (mut state, now) = state(None, 50);
        assert_eq!(state.dials_wanted(RULES, now), 1);
        state.dial_started((), false, Purpose::Waiters, now);
        assert_eq!(state.dials_wanted(RULES, now), 0);
        assert!(state.line.iter().all(|w| w.covered == Some(now)));
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
        let covered = state.line.iter().filter(|w| w.covered.is_some()).count();
        assert_eq!(covered, 7);
        // The first is served by somebody else's connection: its dial is now for the eighth.
        state.line.pop();
        let later = now + Duration::from_millis(1);
        state.cover(later);
        assert_eq!(state.line.iter().nth(6).unwrap().covered, Some(later));
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
        assert_eq!(unknown.failed_waiters().len(), 3);
        let (mut http1, _) = state(Some(Version::HTTP_11), 3);
        assert_eq!(http1.failed_waiters().len(), 1);
        let (mut http2, _) = state(Some(Version::HTTP_2), 3);
        http2.shared = vec![Fake::new(2, 2)];
        assert_eq!(http2.failed_waiters().len(), 0);
    }
}
