//! The tickets of one origin and identity.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio_rustls::rustls;

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use crate::sync::lock;

/// Tickets kept: a TLS 1.3 ticket serves once, so a burst of n resumptions needs n of them. A
/// ticket is a few KiB with its certificates.
const MAX_TICKETS: usize = 32;

/// Keeps sessions for resumption. rustls' own store is shared by all origins, holds eight tickets
/// for each and forgets by age of origin; this one belongs to one origin and goes with it.
#[derive(Debug, Default)]
pub(crate) struct TicketStore {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    // Newest at the back: it lives longest.
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl TicketStore {
    /// Tickets that are there now, a TLS 1.2 session included.
    pub(crate) fn len(&self) -> usize {
        let kept = lock(&self.kept);
        kept.tls13.len() + usize::from(kept.tls12.is_some())
    }
}

impl ClientSessionStore for TicketStore {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        lock(&self.kept).group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        lock(&self.kept).group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        lock(&self.kept).tls12 = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        lock(&self.kept).tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        lock(&self.kept).tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = lock(&self.kept);
        if kept.tls13.len() >= MAX_TICKETS {
            kept.tls13.pop_front();
        }
        kept.tls13.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        // RFC 8446 §C.4: used once.
        lock(&self.kept).tls13.pop_back()
    }
}

/// One ticket at a time for all attempts of a dial: a race over several addresses must not spend one
/// on each, since a TLS 1.3 ticket serves once.
#[derive(Clone, Debug, Default)]
pub(crate) struct RaceTickets {
    held: Arc<AtomicBool>,
}

/// The tickets of an origin as one attempt sees them.
#[derive(Debug)]
pub(super) struct AttemptTickets {
    store: Arc<TicketStore>,
    race: RaceTickets,
    /// This attempt has the race's ticket.
    holds: AtomicBool,
}

impl AttemptTickets {
    pub(super) fn new(store: Arc<TicketStore>, race: RaceTickets) -> Self {
        Self {
            store,
            race,
            holds: AtomicBool::new(false),
        }
    }
}

impl Drop for AttemptTickets {
    fn drop(&mut self) {
        // The attempt is over: the next one may have a ticket.
        if *self.holds.get_mut() {
            self.race.held.store(false, Ordering::Release);
        }
    }
}

impl ClientSessionStore for AttemptTickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.store.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.store.set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.store.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.store.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.store.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.race.held.swap(true, Ordering::AcqRel) {
            return None;
        }
        let ticket = self.store.take_tls13_ticket(name);
        let is_held = ticket.is_some();
        self.race.held.store(is_held, Ordering::Release);
        self.holds.store(is_held, Ordering::Release);
        ticket
    }
}
