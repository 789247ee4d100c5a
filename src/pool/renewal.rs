//! Connections before they are needed: the successor of one at the end of its term, and what clients want
//! kept warm.
//!
//! A connection at the end of its term goes on taking requests until its successor is ready
//! (HTTP/2: until the peer's SETTINGS have come), so that no request waits for a change of connections.
//! One that has never served a request gets no successor: nobody would miss it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::ConnectionId;
use crate::sync::lock;

use super::host::{Asked, Books, Host};
use super::lease::{H2Conn, Home, Tenure};
use super::shared::{Live, Renewal};
use super::state::{Minimum, Purpose};
use super::term::Standing;

/// A successor that could not be had is tried again after that, and twice as long each time, up to a minute.
const RENEW_PAUSE: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 6;
/// Minimums are filled up no more often.
const MINIMUM_PAUSE: Duration = Duration::from_secs(1);

impl Host {
    /// A request was given a stream: it may have been the connection's last, or the one at which a successor
    /// is due.
    pub(super) fn gave(self: &Arc<Self>, conn: &Arc<H2Conn>) {
        if conn.is_near_its_end() {
            self.near_its_end(conn);
        }
    }

    #[cold]
    pub(super) fn near_its_end(self: &Arc<Self>, conn: &Arc<H2Conn>) {
        match conn.term.standing(conn.given(), now()) {
            Standing::Serves => {}
            Standing::Renew(why) => self.renew(conn.info.id(), &conn.tenure, why),
            Standing::Over(why) => {
                self.renew(conn.info.id(), &conn.tenure, why);
                self.retire(conn, why);
            }
        }
    }

    /// Sees to a successor, once.
    pub(super) fn renew(self: &Arc<Self>, id: ConnectionId, tenure: &Tenure, why: CloseReason) {
        if !tenure.is_renewing.swap(true, Ordering::SeqCst) {
            self.dial_successor(id, why);
        }
    }

    fn dial_successor(self: &Arc<Self>, id: ConnectionId, why: CloseReason) {
        {
            let mut books = lock(&self.books);
            let Some(live) = find(&mut books, id.as_u64()) else {
                return;
            };
            let failures = live.renewal.map_or(0, |renewal| renewal.failures);
            live.renewal = Some(Renewal {
                why,
                failures,
                retry: None,
            });
        }
        let purpose = Purpose::Successor(id.as_u64());
        let unused = match self.shared.capacity.try_reserve() {
            Some(permit) => self.start_dial(permit, purpose, Asked::default()),
            None => return self.no_room_for_successor(id.as_u64(), why),
        };
        if let Some(permit) = unused {
            drop(permit);
            self.no_room_for_successor(id.as_u64(), why);
        }
    }

    /// A limit leaves no room for two at a time.
    fn no_room_for_successor(self: &Arc<Self>, old: u64, why: CloseReason) {
        match why {
            // Nothing else would ever end these: the next request dials.
            CloseReason::AddressGone | CloseReason::WornOut => self.end_term(old, false),
            _ => self.successor_failed(old),
        }
    }

    /// The successor of a connection is not to be had now.
    pub(super) fn successor_failed(&self, old: u64) {
        let mut books = lock(&self.books);
        if let Some(live) = find(&mut books, old)
            && live.tenure.over.get().is_none()
            && let Some(renewal) = &mut live.renewal
        {
            let pause = RENEW_PAUSE * (1 << renewal.failures.min(MAX_DOUBLINGS));
            let again = deadline(now(), pause);
            renewal.failures += 1;
            renewal.retry = Some(again);
            drop(books);
            self.janitor.due_at(again);
        }
    }

    /// The successor of a connection is ready: the old one takes no more requests.
    pub(super) fn succeeded(self: &Arc<Self>, old: u64) {
        self.end_term(old, true);
    }

    /// The connection takes no more requests. Without a successor one that is shared ends only when it carries
    /// nothing: others would wait for its last stream.
    fn end_term(self: &Arc<Self>, old: u64, has_successor: bool) {
        let (why, shared, idle) = {
            let mut books = lock(&self.books);
            let Some(live) = find(&mut books, old) else {
                return;
            };
            let why = live
                .renewal
                .map_or(CloseReason::Lifetime, |renewal| renewal.why);
            let tenure = live.tenure.clone();
            let state = &mut books.state;
            let shared = state.multiplexed().find(|c| c.info.id().as_u64() == old);
            let shared = shared.cloned();
            if has_successor || shared.is_none() {
                let _ = tenure.over.set(why);
            }
            let is_it = |idle: &super::state::Idle<Box<super::lease::H1Conn>>| {
                idle.conn.info.id().as_u64() == old
            };
            let at = state.idle.iter().position(is_it);
            let idle = at.map(|at| state.idle.remove(at));
            (why, shared, idle)
        };
        if let Some(conn) = shared {
            if has_successor {
                self.retire(&conn, why);
            } else if !self.retire_idle(&conn, why) {
                self.successor_failed(old);
            }
        }
        if let Some(idle) = idle {
            self.shared.less_idle();
            self.clone().close(idle.conn, why);
        }
    }

    /// Renews what is at the end of its time, and tries again what failed. Says when to look again.
    pub(super) fn renew_due(self: &Arc<Self>, at: Instant) -> Option<Instant> {
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        {
            let mut books = lock(&self.books);
            for live in &mut books.live {
                let mut look = |when: Option<Instant>| next = next.into_iter().chain(when).min();
                look(live.term.next_change(at));
                if live.tenure.over.get().is_some() {
                    continue;
                }
                match live.renewal {
                    None if live.info.requests() == 0 => {}
                    None => {
                        if let Standing::Renew(why) | Standing::Over(why) =
                            live.term.standing(live.info.requests(), at)
                        {
                            due.push((live.id, why, live.tenure.clone()));
                        }
                    }
                    Some(Renewal {
                        why,
                        retry: Some(retry),
                        ..
                    }) if retry <= at => {
                        live.tenure.is_renewing.store(false, Ordering::SeqCst);
                        due.push((live.id, why, live.tenure.clone()));
                    }
                    Some(renewal) => look(renewal.retry),
                }
            }
        }
        for (id, why, tenure) in due {
            self.renew(id, &tenure, why);
        }
        next
    }

    /// Ends, in favour of successors, the connections to addresses that are in no DNS answer any more.
    pub(super) fn leave_old_addresses(self: &Arc<Self>, at: Instant) {
        let (host, _) = self.plan.target();
        let gone: Vec<_> = {
            let books = lock(&self.books);
            let is_free = |live: &&Live| live.renewal.is_none() && live.tenure.over.get().is_none();
            let lives = books.live.iter().filter(is_free);
            lives
                .filter_map(|live| Some((live.id, live.info.dialled_ip()?, live.tenure.clone())))
                .collect()
        };
        for (id, ip, tenure) in gone {
            if self.shared.deps.dns.has_left(host, ip, at) {
                self.renew(id, &tenure, CloseReason::AddressGone);
            }
        }
    }

    /// Keeps so many connections warm from now on, for as long as `minimum` exists.
    pub(crate) fn keep_warm(self: &Arc<Self>, minimum: &Arc<Minimum>) {
        {
            let mut books = lock(&self.books);
            books.minimums.retain(|known| known.strong_count() > 0);
            let is_it = |known: &Weak<Minimum>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(minimum));
            if !books.minimums.iter().any(is_it) {
                books.minimums.push(Arc::downgrade(minimum));
            }
            self.keeps_warm.store(true, Ordering::SeqCst);
        }
        self.keep_up();
    }

    /// Dials what is missing of the minimum.
    pub(super) fn keep_up(self: &Arc<Self>) {
        if !self.keeps_warm.load(Ordering::Relaxed) || self.shared.is_closed() {
            return;
        }
        let at = now();
        let (wanted, again) = {
            let mut books = lock(&self.books);
            let minimum = books.minimum();
            let rules = self.shared.rules();
            let state = &mut books.state;
            let wanted = state.minimum_wanted(minimum, rules, MINIMUM_PAUSE, at);
            let again = state
                .minimum_after
                .filter(|_| minimum != Minimum::default());
            (wanted, again)
        };
        for _ in 0..wanted {
            let Some(permit) = self.shared.capacity.try_reserve() else {
                break;
            };
            drop(self.start_dial(permit, Purpose::Minimum, Asked::default()));
        }
        if let Some(again) = again.filter(|again| *again > at) {
            self.janitor.due_at(again);
        }
    }
}

fn find(books: &mut Books, id: u64) -> Option<&mut Live> {
    books.live.iter_mut().find(|live| live.id.as_u64() == id)
}
