//! Look-ups in flight: one query per name and family, whoever asks, in a task of its own.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::watch;

use crate::clock::now;
use crate::origin::Host;
use crate::sync::lock;
use crate::timing::DnsSource;

use super::cache::{Cache, DnsCacheOptions, Found, Outcome};
use super::resolve::{Family, Resolve, ResolveError, ResolveErrorKind};

/// Which families to look up and to connect over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

type Flight = watch::Receiver<Option<Outcome>>;
/// A task lives and dies with its runtime, so flights are not shared between runtimes.
type FlightKey = (RuntimeId, Arc<str>, Family);

/// The pool's resolver: cache above, single-flight between, a [`Resolve`] below.
pub(crate) struct Dns {
    resolver: Arc<dyn Resolve>,
    overrides: HashMap<String, Vec<IpAddr>>,
    cache: Mutex<Cache>,
    // Lock order: `flights` before `cache`.
    flights: Mutex<HashMap<FlightKey, Flight>>,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").finish_non_exhaustive()
    }
}

impl Dns {
    pub(crate) fn new(
        resolver: Arc<dyn Resolve>,
        options: DnsCacheOptions,
        overrides: HashMap<String, Vec<IpAddr>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            resolver,
            overrides,
            cache: Mutex::new(Cache::new(options)),
            flights: Mutex::default(),
        })
    }

    /// Begins to resolve `host`. Must be called on a runtime.
    pub(crate) fn lookup(self: &Arc<Self>, host: &Host, families: Families) -> Lookup {
        let name = match host {
            Host::Ip(ip) => return Lookup::known(DnsSource::Literal, &[*ip], families),
            Host::Name(name) => name,
        };
        if let Some(addrs) = self.overrides.get(&**name) {
            return Lookup::known(DnsSource::Override, addrs, families);
        }
        // RFC 6761 §6.3: localhost is loopback and no name server hears of it.
        if **name == *"localhost" || name.ends_with(".localhost") {
            let loopback = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
            return Lookup::known(DnsSource::Literal, &loopback, families);
        }
        let mut source = DnsSource::Cache;
        let mut ask = |family, wanted: bool| {
            let (slot, from) = if wanted {
                self.ask(name, family)
            } else {
                (Slot::unwanted(), DnsSource::Cache)
            };
            source = match (source, from) {
                (DnsSource::Fresh, _) | (_, DnsSource::Fresh) => DnsSource::Fresh,
                (DnsSource::Shared, _) | (_, DnsSource::Shared) => DnsSource::Shared,
                _ => DnsSource::Cache,
            };
            slot
        };
        let v6 = ask(Family::V6, families.v6);
        let v4 = ask(Family::V4, families.v4);
        Lookup { source, v4, v6 }
    }

    fn ask(self: &Arc<Self>, name: &Arc<str>, family: Family) -> (Slot, DnsSource) {
        let runtime = Handle::current();
        let key = (runtime.id(), name.clone(), family);
        let mut flights = lock(&self.flights);
        if let Some(outcome) = lock(&self.cache).get(name, family, now()) {
            return (Slot::Known(outcome), DnsSource::Cache);
        }
        if let Some(flight) = flights.get(&key) {
            // A flight whose task is gone (its runtime was shut down) will never land.
            if flight.has_changed().is_ok() {
                return (Slot::Flying(flight.clone()), DnsSource::Shared);
            }
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let query = self.resolver.resolve(name, family);
        let landing = Landing {
            dns: self.clone(),
            key,
        };
        runtime.spawn(async move {
            let answer = query.await;
            let (_, name, family) = &landing.key;
            let outcome = lock(&landing.dns.cache).put(name, *family, answer, now());
            // Cached before the flight goes: who comes between finds one of them.
            drop(landing);
            sender.send_replace(Some(outcome));
        });
        (Slot::Flying(flight), DnsSource::Fresh)
    }
}

/// Takes a flight off the board when it is over, however it ended: answered, panicked, or dropped
/// with its runtime.
struct Landing {
    dns: Arc<Dns>,
    key: FlightKey,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.dns.flights).remove(&self.key);
    }
}

#[derive(Debug)]
enum Slot {
    Known(Outcome),
    Flying(Flight),
}

impl Slot {
    fn unwanted() -> Self {
        Self::Known(Err(ResolveError::new(ResolveErrorKind::NoAddress)))
    }

    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Known(outcome) => Some(outcome.clone()),
            Self::Flying(flight) => flight.borrow().clone(),
        }
    }

    /// Waits for the landing.
    async fn land(&mut self) -> Outcome {
        let outcome = match self {
            Self::Known(outcome) => return outcome.clone(),
            Self::Flying(flight) => match flight.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            },
        };
        let outcome = outcome.unwrap_or_else(|| {
            Err(ResolveError::new(ResolveErrorKind::Other)
                .with_source("the look-up was abandoned by its runtime"))
        });
        *self = Self::Known(outcome.clone());
        outcome
    }
}

/// A look-up under way. Dropping it changes nothing for others who wait for the same name.
#[derive(Debug)]
pub(crate) struct Lookup {
    source: DnsSource,
    v4: Slot,
    v6: Slot,
}

impl Lookup {
    fn known(source: DnsSource, addrs: &[IpAddr], families: Families) -> Self {
        let of = |family, wanted: bool| {
            let addrs: Vec<IpAddr> = addrs
                .iter()
                .copied()
                .filter(|ip| wanted && Family::of(ip) == family)
                .collect();
            Slot::Known(if addrs.is_empty() {
                Err(ResolveError::new(ResolveErrorKind::NoAddress))
            } else {
                Ok(Found {
                    addrs: addrs.into(),
                    ttl: Duration::ZERO,
                })
            })
        };
        Self {
            source,
            v4: of(Family::V4, families.v4),
            v6: of(Family::V6, families.v6),
        }
    }

    pub(crate) fn source(&self) -> DnsSource {
        self.source
    }

    /// What is known of a family by now.
    pub(crate) fn outcome(&self, family: Family) -> Option<Outcome> {
        match family {
            Family::V4 => self.v4.outcome(),
            Family::V6 => self.v6.outcome(),
        }
    }

    /// Waits for a family that has not arrived; never returns when both have.
    pub(crate) async fn next(&mut self, seen_v4: bool, seen_v6: bool) -> (Family, Outcome) {
        tokio::select! {
            outcome = self.v6.land(), if !seen_v6 => (Family::V6, outcome),
            outcome = self.v4.land(), if !seen_v4 => (Family::V4, outcome),
            else => std::future::pending().await,
        }
    }
}
