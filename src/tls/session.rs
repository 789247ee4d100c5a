//! The tickets of one origin and identity; and those of many servers, for configurations of others.

use std::collections::{HashMap, VecDeque};
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
pub(crate) struct OriginTickets {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    // Newest at the back: it lives longest.
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl OriginTickets {
    /// They know nothing, not even the group that the origin took last.
    pub(crate) fn is_blank(&self) -> bool {
        let kept = lock(&self.kept);
        kept.group.is_none() && kept.tls13.is_empty() && kept.tls12.is_none()
    }

    /// Tickets that are there now, a TLS 1.2 session included.
    pub(crate) fn len(&self) -> usize {
        let kept = lock(&self.kept);
        kept.tls13.len() + usize::from(kept.tls12.is_some())
    }
}

impl ClientSessionStore for OriginTickets {
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

/// Tickets of many servers, for a [`rustls::ClientConfig`] that others use: 32 of TLS 1.3 and a session of TLS 1.2 for
/// each, each ticket used once. rustls' own store has eight for each. [`TlsOptions::client_config`](super::TlsOptions::client_config)
/// has one; a pool needs none, since its origins have their own.
///
/// A store belongs to one configuration: a ticket stands for the certificates that were checked when it was made.
///
/// ```
/// use std::sync::Arc;
/// use rustls::client::Resumption;
///
/// # fn example(config: &mut rustls::ClientConfig) {
/// let store = firstbyte::tls::TicketStore::new(256);
/// config.resumption = Resumption::store(Arc::new(store));
/// # }
/// ```
#[derive(Debug)]
pub struct TicketStore {
    max_servers: usize,
    servers: Mutex<Servers>,
}

#[derive(Debug, Default)]
struct Servers {
    /// With when it was asked for last.
    by_name: HashMap<ServerName<'static>, (Arc<OriginTickets>, u64)>,
    clock: u64,
}

impl TicketStore {
    /// For so many servers, at least one; beyond, the one that was not asked for longest is forgotten.
    pub fn new(max_servers: usize) -> Self {
        Self {
            max_servers: max_servers.max(1),
            servers: Mutex::default(),
        }
    }

    /// The tickets of a server that has some.
    fn find(&self, name: &ServerName<'_>) -> Option<Arc<OriginTickets>> {
        let mut servers = lock(&self.servers);
        servers.clock += 1;
        let at = servers.clock;
        let (tickets, used) = servers.by_name.get_mut(&name.to_owned())?;
        *used = at;
        Some(tickets.clone())
    }

    fn find_or_make(&self, name: &ServerName<'static>) -> Arc<OriginTickets> {
        if let Some(tickets) = self.find(name) {
            return tickets;
        }
        let mut servers = lock(&self.servers);
        if servers.by_name.len() >= self.max_servers {
            let by_use = |(_, (_, used)): &(&ServerName<'static>, &(_, u64))| *used;
            let oldest = servers.by_name.iter().min_by_key(by_use);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                servers.by_name.remove(&oldest);
            }
        }
        let at = servers.clock;
        let new = || (Arc::default(), at);
        let (tickets, _) = servers.by_name.entry(name.clone()).or_insert_with(new);
        tickets.clone()
    }
}

impl ClientSessionStore for TicketStore {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.find_or_make(&name).set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.find(name)?.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.find_or_make(&name).set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.find(name)?.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        if let Some(tickets) = self.find(name) {
            tickets.remove_tls12_session(name);
        }
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.find_or_make(&name).insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.find(name)?.take_tls13_ticket(name)
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
    store: Arc<OriginTickets>,
    race: RaceTickets,
    /// This attempt has the race's ticket.
    holds: AtomicBool,
}

impl AttemptTickets {
    pub(super) fn new(store: Arc<OriginTickets>, race: RaceTickets) -> Self {
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

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn servers_that_are_not_asked_for_are_forgotten_first() {
        let store = TicketStore::new(2);
        let name = |text: &str| ServerName::try_from(text.to_owned()).unwrap();
        let group = |n: u16| NamedGroup::Unknown(n);
        store.set_kx_hint(name("a.test"), group(1));
        store.set_kx_hint(name("b.test"), group(2));
        assert_eq!(store.kx_hint(&name("a.test")), Some(group(1)));
        store.set_kx_hint(name("c.test"), group(3));
        let hints = ["a.test", "b.test", "c.test"].map(|text| store.kx_hint(&name(text)));
        assert_eq!(hints, [Some(group(1)), None, Some(group(3))]);
        // To look for one that is not there makes no room for it.
        assert_eq!(lock(&store.servers).by_name.len(), 2);
    }
}
