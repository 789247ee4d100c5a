//! Look-ups in flight: one query per name and family, whoever asks, in a task of its own, which then
//! keeps the name fresh while it is used.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use crate::clock::now;
use crate::origin::Host;
use crate::sync::lock;
use crate::timing::DnsSource;

use super::cache::{Cache, Found, Outcome};
use super::keeper::{Due, Keeping, Presence, is_roomy};
use super::options::DnsOptions;
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
    lookup_timeout: Duration,
    cache: Mutex<Cache>,
    // Lock order: `flights` before `cache`.
    flights: Mutex<HashMap<FlightKey, Flight>>,
    /// Names that are kept fresh.
    keeping: Arc<Keeping>,
    uses: Mutex<Uses>,
}

/// Names that are in use, and those that have been until the next look.
#[derive(Default)]
struct Uses {
    names: HashMap<Arc<str>, Weak<NameUse>>,
    /// At so many names it is looked which are in use still: twice as many as were at the last look, so
    /// that a name costs the same however many there are.
    look_at: usize,
}

impl Uses {
    fn tidy(&mut self) {
        self.names.retain(|_, known| known.strong_count() > 0);
        self.look_at = 64 + 2 * self.names.len();
    }
}

/// Whether a name is in use by requests that need no look-up, because they go over connections that
/// exist: it is then kept fresh for the connection that comes after them.
#[derive(Debug, Default)]
pub(crate) struct NameUse {
    /// A bit for each family: each is kept fresh by a task of its own.
    unseen: AtomicU8,
}

impl NameUse {
    const V4: u8 = 1;
    const V6: u8 = 2;

    pub(crate) fn mark(&self) {
        // A load as a rule: the line is shared by all who use the name.
        let both = Self::V4 | Self::V6;
        if self.unseen.load(Ordering::Relaxed) != both {
            self.unseen.store(both, Ordering::Relaxed);
        }
    }

    fn take(&self, family: Family) -> bool {
        let bit = match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        };
        self.unseen.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").finish_non_exhaustive()
    }
}

impl Dns {
    pub(crate) fn new(
        resolver: Arc<dyn Resolve>,
        options: DnsOptions,
        overrides: HashMap<String, Vec<IpAddr>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            resolver,
            overrides,
            lookup_timeout: options.lookup_timeout,
            cache: Mutex::new(Cache::new(options)),
            flights: Mutex::default(),
            keeping: Arc::default(),
            uses: Mutex::default(),
        })
    }

    /// Where an origin says that its name is in use; `None` if its host is never looked up.
    pub(crate) fn name_use(&self, host: &Host) -> Option<Arc<NameUse>> {
        let name = self.name_to_look_up(host)?;
        let mut uses = lock(&self.uses);
        if let Some(known) = uses.names.get(name).and_then(Weak::upgrade) {
            return Some(known);
        }
        if uses.names.len() >= uses.look_at {
            uses.tidy();
        }
        let known = Arc::new(NameUse::default());
        uses.names.insert(name.clone(), Arc::downgrade(&known));
        Some(known)
    }

    /// One of those who use the name of `host` goes; the last one takes it along.
    pub(crate) fn forget_use(&self, host: &Host) {
        let Some(name) = self.name_to_look_up(host) else {
            return;
        };
        let mut uses = lock(&self.uses);
        let is_last = |known: &Weak<NameUse>| known.strong_count() <= 1;
        let last = if uses.names.get(name).is_some_and(is_last) {
            uses.names.remove(name)
        } else {
            None
        };
        if is_roomy(uses.names.capacity(), uses.names.len()) {
            uses.names.shrink_to_fit();
        }
        drop(uses);
        // That it was in use is known to the cache from here on.
        if let Some(last) = last.and_then(|last| last.upgrade()) {
            for family in [Family::V4, Family::V6] {
                if last.take(family) {
                    lock(&self.cache).mark_used(name, family);
                }
            }
        }
    }

    fn name_to_look_up<'a>(&self, host: &'a Host) -> Option<&'a Arc<str>> {
        match host {
            Host::Name(name) if !self.overrides.contains_key(&**name) && !is_localhost(name) => {
                Some(name)
            }
            _ => None,
        }
    }

    /// Begins to resolve `host`. Must be called on a runtime.
    pub(crate) fn lookup(self: &Arc<Self>, host: &Host, families: Families) -> Lookup {
        if let Some(name) = self.name_to_look_up(host) {
            let v6 = self.ask(name, Family::V6, families.v6);
            let v4 = self.ask(name, Family::V4, families.v4);
            return Lookup {
                known: None,
                v4,
                v6,
            };
        }
        match host {
            Host::Ip(ip) => Lookup::known(DnsSource::Literal, &[*ip], families),
            Host::Name(name) => match self.overrides.get(&**name) {
                Some(addrs) => Lookup::known(DnsSource::Override, addrs, families),
                None => {
                    let loopback = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
                    Lookup::known(DnsSource::Literal, &loopback, families)
                }
            },
        }
    }

    fn ask(self: &Arc<Self>, name: &Arc<str>, family: Family, wanted: bool) -> Slot {
        if !wanted {
            return Slot::known(Err(ResolveError::new(ResolveErrorKind::NoAddress)), None);
        }
        let hit = {
            // Under the lock of the flights: what lands is in the cache before its flight is gone.
            let mut flights = lock(&self.flights);
            let hit = lock(&self.cache).get(name, family, now());
            match hit {
                Some(hit) => hit,
                None => {
                    let boarding = self.board(&mut flights, name, family);
                    drop(flights);
                    return boarding.take_off();
                }
            }
        };
        if hit.refresh {
            self.refresh(name, family);
        }
        Slot::known(hit.outcome, Some(DnsSource::Cache))
    }

    /// Asks, or joins who asks already.
    fn refresh(self: &Arc<Self>, name: &Arc<str>, family: Family) -> Slot {
        let boarding = self.board(&mut lock(&self.flights), name, family);
        boarding.take_off()
    }

    fn board(
        self: &Arc<Self>,
        flights: &mut HashMap<FlightKey, Flight>,
        name: &Arc<str>,
        family: Family,
    ) -> Boarding {
        let runtime = Handle::current();
        let key = (runtime.id(), name.clone(), family);
        if let Some(flight) = flights.get(&key) {
            // A flight whose task is gone (its runtime was shut down) will never land.
            if flight.has_changed().is_ok() {
                return Boarding::Joins(flight.clone());
            }
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        let landing = Landing {
            dns: self.clone(),
            key,
        };
        Boarding::TakesOff {
            landing,
            sender,
            flight,
            runtime,
        }
    }

    /// Whether `ip` is no address of `host` any more, as far as that is known.
    pub(crate) fn has_left(&self, host: &Host, ip: IpAddr, now: Instant) -> bool {
        let name = self.name_to_look_up(host);
        name.is_some_and(|name| lock(&self.cache).has_left(name, ip, now))
    }

    /// Sees to it that a name which has an answer is asked for anew before that expires.
    fn keep_fresh(self: &Arc<Self>, name: Arc<str>, family: Family) {
        let due = lock(&self.cache).next_refresh(&name, family);
        let presence = due.and_then(|at| self.keeping.keep((name, family), at, now()));
        if let Some(presence) = presence {
            tokio::spawn(keep_names_fresh(Arc::downgrade(self), presence));
        }
    }

    /// Asks for the names that are due and in use; of the others nobody thinks any more. When the next one is due.
    fn refresh_what_is_due(self: &Arc<Self>, task: &Presence) -> Option<Instant> {
        loop {
            let key = match self.keeping.next(task, now()) {
                Due::Now(key) => key,
                Due::At(at) => return Some(at),
                Due::Never => return None,
            };
            let (name, family) = &key;
            let due = lock(&self.cache).next_refresh(name, *family);
            match due {
                // It was asked for meanwhile.
                Some(at) if at > now() => self.keeping.put_off(key, at),
                due => {
                    // Its next answer brings it back.
                    self.keeping.forget(&key);
                    if due.is_some() && self.take_used(name, *family) {
                        // A resolver that panics must not take the other names with it.
                        let refresh = || drop(self.refresh(name, *family));
                        let _panicked = catch_unwind(AssertUnwindSafe(refresh));
                    }
                }
            }
        }
    }

    /// Whether anybody used the name since this was last asked.
    fn take_used(&self, name: &Arc<str>, family: Family) -> bool {
        let by_lookup = lock(&self.cache).take_used(name, family);
        let by_request = lock(&self.uses).names.get(name).and_then(Weak::upgrade);
        // Both are asked: each must be taken.
        by_request.is_some_and(|known| known.take(family)) || by_lookup
    }
}

/// A flight that is on the board. It takes off without any lock: the resolver is the user's, and a
/// runtime that is shutting down drops what is spawned at once, which takes the flight off the board.
enum Boarding {
    Joins(Flight),
    TakesOff {
        landing: Landing,
        sender: watch::Sender<Option<Outcome>>,
        flight: Flight,
        runtime: Handle,
    },
}

impl Drop for Dns {
    fn drop(&mut self) {
        // The task that kept names fresh finds it gone.
        self.keeping.changed.notify_one();
    }
}

impl Boarding {
    fn take_off(self) -> Slot {
        let (landing, sender, flight, runtime) = match self {
            Self::Joins(flight) => return Slot::flying(flight, DnsSource::Shared),
            Self::TakesOff {
                landing,
                sender,
                flight,
                runtime,
            } => (landing, sender, flight, runtime),
        };
        let dns = &landing.dns;
        let (_, name, family) = landing.key.clone();
        let query = timeout(dns.lookup_timeout, dns.resolver.resolve(&name, family));
        let keeps = Arc::downgrade(dns);
        runtime.spawn(async move {
            let late = |_| ResolveError::new(ResolveErrorKind::Timeout);
            let answer = query.await.map_err(late).flatten();
            let outcome = lock(&landing.dns.cache).put(&name, family, answer, now());
            // Cached before the flight goes: who comes between finds one of them.
            drop(landing);
            sender.send_replace(Some(outcome));
            if let Some(dns) = keeps.upgrade() {
                dns.keep_fresh(name, family);
            }
        });
        Slot::flying(flight, DnsSource::Fresh)
    }
}

/// RFC 6761 §6.3: localhost is loopback and no name server hears of it.
fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// Asks for names anew shortly before their answers expire, as long as they are used. It ends with the pool, with its
/// runtime, and when no name is kept.
async fn keep_names_fresh(dns: Weak<Dns>, presence: Presence) {
    let keeping = &presence.keeping;
    loop {
        let next = match dns.upgrade() {
            Some(dns) => dns.refresh_what_is_due(&presence),
            None => return,
        };
        let Some(at) = next else { return };
        tokio::select! {
            () = sleep_until(at.into()) => {}
            () = keeping.changed.notified() => {}
        }
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
        let mut flights = lock(&self.dns.flights);
        flights.remove(&self.key);
        if is_roomy(flights.capacity(), flights.len()) {
            flights.shrink_to_fit();
        }
    }
}

/// One family of a look-up.
#[derive(Debug)]
struct Slot {
    state: SlotState,
    /// How its answer was come by; `None` if this family was not wanted.
    source: Option<DnsSource>,
}

#[derive(Debug)]
enum SlotState {
    Known(Outcome),
    Flying(Flight),
}

impl Slot {
    fn known(outcome: Outcome, source: Option<DnsSource>) -> Self {
        Self {
            state: SlotState::Known(outcome),
            source,
        }
    }

    fn flying(flight: Flight, source: DnsSource) -> Self {
        Self {
            state: SlotState::Flying(flight),
            source: Some(source),
        }
    }

    fn outcome(&self) -> Option<Outcome> {
        match &self.state {
            SlotState::Known(outcome) => Some(outcome.clone()),
            SlotState::Flying(flight) => flight.borrow().clone(),
        }
    }

    /// Waits for the landing.
    async fn land(&mut self) -> Outcome {
        let outcome = match &mut self.state {
            SlotState::Known(outcome) => return outcome.clone(),
            SlotState::Flying(flight) => match flight.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            },
        };
        let outcome = outcome.unwrap_or_else(|| {
            Err(ResolveError::new(ResolveErrorKind::Other)
                .with_source("the look-up was abandoned by its runtime"))
        });
        self.state = SlotState::Known(outcome.clone());
        outcome
    }
}

/// A look-up under way. Dropping it changes nothing for others who wait for the same name.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// Nothing had to be looked up.
    known: Option<DnsSource>,
    v4: Slot,
    v6: Slot,
}

impl Lookup {
    fn known(source: DnsSource, addrs: &[IpAddr], families: Families) -> Self {
        let of = |family, wanted: bool| {
            let mut of_family: Vec<IpAddr> = Vec::new();
            for ip in addrs {
                if wanted && Family::of(ip) == family && !of_family.contains(ip) {
                    of_family.push(*ip);
                }
            }
            let addrs = of_family;
            let outcome = if addrs.is_empty() {
                Err(ResolveError::new(ResolveErrorKind::NoAddress))
            } else {
                Ok(Found {
                    addrs: addrs.into(),
                    ttl: Duration::ZERO,
                    is_stale: false,
                })
            };
            Slot::known(outcome, Some(source))
        };
        Self {
            known: Some(source),
            v4: of(Family::V4, families.v4),
            v6: of(Family::V6, families.v6),
        }
    }

    /// How the answers were come by so far.
    pub(crate) fn source(&self) -> DnsSource {
        if let Some(source) = self.known {
            return source;
        }
        let slots = [&self.v6, &self.v4];
        let is_stale = |slot: &&Slot| matches!(slot.outcome(), Some(Ok(found)) if found.is_stale);
        let has = |source| slots.iter().any(|slot| slot.source == Some(source));
        if slots.iter().any(is_stale) {
            DnsSource::Stale
        } else if has(DnsSource::Fresh) {
            DnsSource::Fresh
        } else if has(DnsSource::Shared) {
            DnsSource::Shared
        } else {
            DnsSource::Cache
        }
    }

    /// Whether a name server was asked for it, by this look-up or by one that it joined.
    pub(crate) fn is_query(&self) -> bool {
        [&self.v6, &self.v4]
            .into_iter()
            .any(|slot| slot.source.is_some_and(DnsSource::is_query))
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

#[cfg(test)]
mod tests {
    // layering: uses this module, its siblings and origin, which is below.
    use super::super::resolve::Answer;
    use super::*;
    use crate::io::BoxFuture;
    use crate::origin::Origin;
    use std::future::Future;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

    const BOTH: Families = Families { v4: true, v6: true };

    /// Answers after a delay, or not at all, and counts.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Script>);

    #[derive(Default)]
    struct Script {
        asked: AtomicUsize,
        dead: AtomicBool,
        /// Over every name but one.
        panics: AtomicBool,
        delay: Duration,
        ttl: AtomicU64,
    }

    impl Scripted {
        fn new(ttl: u64) -> Self {
            Self(Arc::new(Script {
                delay: Duration::from_millis(30),
                ttl: ttl.into(),
                ..Script::default()
            }))
        }
        fn asked(&self) -> usize {
            self.0.asked.load(Ordering::SeqCst)
        }
        fn die(&self) {
            self.0.dead.store(true, Ordering::SeqCst);
        }
        fn revive(&self) {
            self.0.dead.store(false, Ordering::SeqCst);
        }
    }

    impl Resolve for Scripted {
        fn resolve(
            &self,
            name: &str,
            family: Family,
        ) -> BoxFuture<'static, Result<Answer, ResolveError>> {
            let script = self.0.clone();
            assert!(name == "api.test" || !script.panics.load(Ordering::SeqCst));
            Box::pin(async move {
                script.asked.fetch_add(1, Ordering::SeqCst);
                if script.dead.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(script.delay).await;
                let ip = match family {
                    Family::V4 => "10.0.0.1".parse().unwrap(),
                    Family::V6 => "fd00::1".parse().unwrap(),
                };
                let ttl = Duration::from_secs(script.ttl.load(Ordering::SeqCst));
                Ok(Answer::new(vec![ip], Some(ttl)))
            })
        }
    }

    fn dns(resolver: &Scripted) -> Arc<Dns> {
        let resolver = Arc::new(resolver.clone());
        Dns::new(resolver, DnsOptions::default(), HashMap::new())
    }

    fn host() -> Host {
        let origin = Origin::parse("https://api.test").unwrap();
        origin.canonical_host().clone()
    }

    /// How long a look-up waited for both families, and what they were.
    async fn look(dns: &Arc<Dns>) -> (Duration, [Outcome; 2], DnsSource) {
        look_up(dns, &host()).await
    }

    async fn look_up(dns: &Arc<Dns>, host: &Host) -> (Duration, [Outcome; 2], DnsSource) {
        let began = now();
        let mut lookup = dns.lookup(host, BOTH);
        let (first, one) = lookup.next(false, false).await;
        let (_, other) = lookup.next(first == Family::V4, first == Family::V6).await;
        (now() - began, [one, other], lookup.source())
    }

    fn paused(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn ten_thousand_callers_of_a_cold_name_cost_one_question_per_family() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            let callers: Vec<_> = (0..10_000)
                .map(|_| {
                    let dns = dns.clone();
                    tokio::spawn(async move { look(&dns).await })
                })
                .collect();
            // Half of them go away.
            for caller in callers.iter().step_by(2) {
                caller.abort();
            }
            for caller in callers.into_iter().skip(1).step_by(2) {
                let (waited, outcomes, _) = caller.await.unwrap();
                assert_eq!(waited, Duration::from_millis(30));
                assert!(outcomes.iter().all(Result::is_ok));
            }
            assert_eq!(resolver.asked(), 2);
            assert!(lock(&dns.flights).is_empty());
        });
    }

    #[test]
    fn name_in_use_is_asked_for_ahead_and_nobody_waits() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            assert_eq!(look(&dns).await.0, Duration::from_millis(30));
            for _ in 0..360 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                let (waited, outcomes, source) = look(&dns).await;
                assert_eq!((waited, source), (Duration::ZERO, DnsSource::Cache));
                assert!(outcomes.iter().all(Result::is_ok));
            }
            // An hour, one question per 48 s and family.
            let asked = resolver.asked();
            assert!((2 * 74..=2 * 76).contains(&asked), "{asked}");
        });
    }

    #[test]
    fn name_with_a_short_life_is_kept_fresh_beside_one_with_a_long_one() {
        paused(async {
            let resolver = Scripted::new(300);
            let dns = dns(&resolver);
            let other = Origin::parse("https://other.test").unwrap();
            let other = other.canonical_host();
            let _ = look(&dns).await;
            let _ = look(&dns).await;
            resolver.0.ttl.store(20, Ordering::SeqCst);
            let _ = look_up(&dns, other).await;
            for _ in 0..60 {
                let (waited, _, source) = look_up(&dns, other).await;
                assert_eq!((waited, source), (Duration::ZERO, DnsSource::Cache));
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }

    #[test]
    fn requests_over_open_connections_keep_the_name_fresh_too() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            let in_use = dns.name_use(&host()).unwrap();
            assert!(Arc::ptr_eq(&in_use, &dns.name_use(&host()).unwrap()));
            let _ = look(&dns).await;
            for _ in 0..100 {
                in_use.mark();
                tokio::time::sleep(Duration::from_secs(47)).await;
            }
            let (waited, _, source) = look(&dns).await;
            assert_eq!((waited, source), (Duration::ZERO, DnsSource::Cache));
        });
    }

    #[test]
    fn name_was_used_though_its_origin_sleeps_by_now() {
        paused(async {
            let resolver = Scripted::new(300);
            let dns = dns(&resolver);
            let in_use = dns.name_use(&host()).unwrap();
            let _ = look(&dns).await;
            in_use.mark();
            dns.forget_use(&host());
            drop(in_use);
            tokio::time::sleep(Duration::from_secs(400)).await;
            let (waited, _, source) = look(&dns).await;
            assert_eq!((waited, source), (Duration::ZERO, DnsSource::Cache));
        });
    }

    #[test]
    fn resolver_that_panics_over_one_name_leaves_the_others_fresh() {
        paused(async {
            let resolver = Scripted::new(20);
            let dns = dns(&resolver);
            let other = Origin::parse("https://other.test").unwrap();
            let other = other.canonical_host();
            let _ = look_up(&dns, other).await;
            let _ = look_up(&dns, other).await;
            let _ = look(&dns).await;
            resolver.0.panics.store(true, Ordering::SeqCst);
            for _ in 0..20 {
                let (waited, _, source) = look(&dns).await;
                assert_eq!((waited, source), (Duration::ZERO, DnsSource::Cache));
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }

    #[test]
    fn unused_name_is_asked_for_once_and_leaves_no_task() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            let _ = look(&dns).await;
            let tasks = tokio::runtime::Handle::current().metrics();
            assert_eq!((dns.keeping.len(), tasks.num_alive_tasks()), (2, 1));
            tokio::time::sleep(Duration::from_secs(49)).await;
            assert_eq!((resolver.asked(), tasks.num_alive_tasks()), (2, 0));
            assert_eq!(dns.keeping.len(), 0);
            // Past its time by less than a minute: at once, and asked anew behind it.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let (waited, _, source) = look(&dns).await;
            assert_eq!((waited, source), (Duration::ZERO, DnsSource::Stale));
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (waited, _, source) = look(&dns).await;
            assert_eq!((waited, source), (Duration::ZERO, DnsSource::Cache));
            assert_eq!(resolver.asked(), 4);
        });
    }

    #[test]
    fn keepers_end_with_the_pool() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            let _ = look(&dns).await;
            let _ = look(&dns).await;
            drop(dns);
            tokio::time::sleep(Duration::from_secs(49)).await;
            let tasks = tokio::runtime::Handle::current().metrics();
            assert_eq!((resolver.asked(), tasks.num_alive_tasks()), (2, 0));
        });
    }

    #[test]
    fn dead_resolver_costs_a_name_in_use_neither_a_failure_nor_a_wait() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            let _ = look(&dns).await;
            let _ = look(&dns).await;
            resolver.die();
            let died = now();
            while now() - died < Duration::from_secs(3600) {
                let (waited, outcomes, _) = look(&dns).await;
                assert_eq!(waited, Duration::ZERO, "{:?} later", now() - died);
                assert!(outcomes.iter().all(Result::is_ok));
                tokio::time::sleep(Duration::from_secs(7)).await;
            }
            let asked = resolver.asked();
            assert!(asked < 2 * 150, "it is not hammered: {asked} questions");
        });
    }

    #[test]
    fn failure_long_ago_does_not_make_an_old_answer_good_without_asking() {
        paused(async {
            let resolver = Scripted::new(60);
            let dns = dns(&resolver);
            let _ = look(&dns).await;
            let _ = look(&dns).await;
            // The refresh ahead of its time fails, once, and nobody wants the name for a while.
            tokio::time::sleep(Duration::from_secs(40)).await;
            resolver.die();
            tokio::time::sleep(Duration::from_secs(20)).await;
            resolver.revive();
            tokio::time::sleep(Duration::from_secs(40 * 60)).await;
            let (waited, outcomes, _) = look(&dns).await;
            assert!(waited > Duration::ZERO, "it was asked for");
            assert!(outcomes.iter().all(Result::is_ok));
        });
    }

    #[test]
    fn cold_name_fails_at_its_own_deadline() {
        paused(async {
            let resolver = Scripted::new(60);
            resolver.die();
            let (waited, outcomes, _) = look(&dns(&resolver)).await;
            assert_eq!(waited, Duration::from_secs(2));
            for outcome in outcomes {
                assert_eq!(outcome.unwrap_err().kind(), ResolveErrorKind::Timeout);
            }
        });
    }
}
