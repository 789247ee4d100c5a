//! The tickets of one origin and identity.

use std::collections::VecDeque;
use std::sync::Mutex;

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
