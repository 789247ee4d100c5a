//! All origins of a pool.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::time::timeout_at;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::{ConnectOptions, ConnectionInfo, Deps, Plan, Relief};
use crate::error::Error;
use crate::io::BoxFuture;
use crate::metrics::{ConnectionPoolStats, Counters};
use crate::origin::Origin;
use crate::sync::lock;
use crate::tls::{Identities, TlsOptions, warm_provider};

use super::asleep::{Asleep, SLEEPS_AFTER};
use super::capacity::GaveUp;
use super::host::Host;
use super::key::Key;
use super::limits::Limits;
use super::maintenance::{Janitor, Origins, Tended};
use super::shared::{MakeRoom, Shared};

/// What a pool is made of.
pub(crate) struct PoolConfig {
    pub(crate) limits: Limits,
    pub(crate) deps: Deps,
}

/// The pool. Dropped, it closes what is idle and lets running requests finish.
pub(crate) struct Pool {
    registry: Arc<Registry>,
}

struct Registry {
    shared: Arc<Shared>,
    hosts: papaya::HashMap<Key, Arc<Host>>,
    /// Origins that were among them. Whoever moves one holds this lock, so that it is in one of both.
    asleep: Mutex<Asleep>,
    /// Origins with connections: of all that are known, those that could make room. Locked before the
    /// books of an origin, never after.
    populated: Mutex<HashSet<Key>>,
    janitors: Mutex<HashMap<RuntimeId, Arc<Janitor>>>,
    identities: Identities,
}

impl fmt::Debug for Pool {
    /// One line per origin.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.registry.shared;
        let asleep = lock(&self.registry.asleep).len();
        write!(
            f,
            "ConnectionPool({} of {} open, {} idle, {} waiting, {} origins asleep)",
            shared.capacity.open(),
            shared.limits.max_connections,
            shared.idle(),
            shared.waiting.load(Ordering::SeqCst),
            asleep,
        )?;
        for host in self.registry.all() {
            write!(f, "\n  {host:?}")?;
        }
        Ok(())
    }
}

impl Pool {
    /// Works outside a runtime and does no I/O.
    pub(crate) fn new(config: PoolConfig) -> Arc<Self> {
        let registry = Arc::new(Registry {
            shared: Arc::new(Shared::new(config.limits, Arc::new(config.deps))),
            hosts: papaya::HashMap::new(),
            asleep: Mutex::default(),
            populated: Mutex::default(),
            janitors: Mutex::default(),
            identities: Identities::default(),
        });
        let room: Weak<Registry> = Arc::downgrade(&registry);
        let _ = registry.shared.room.set(room);
        let relief: Weak<Registry> = Arc::downgrade(&registry);
        let _ = registry.shared.deps.relief.set(relief);
        warm_provider();
        Arc::new(Self { registry })
    }

    /// Builds the TLS configuration of an identity now, so that a mistake in it is found early.
    pub(crate) fn prepare_tls(&self, options: &TlsOptions) -> Result<(), Error> {
        self.registry.identities.prepare(options).map(drop)
    }

    /// Transports are opened by the user's dialer.
    pub(crate) fn has_dialer(&self) -> bool {
        self.registry.shared.deps.dialer.is_some()
    }

    /// The origin with these options on this runtime.
    ///
    /// # Errors
    /// Invalid: options that do not fit the origin.
    pub(crate) fn host(
        &self,
        origin: &Origin,
        options: &Arc<ConnectOptions>,
        runtime: Handle,
    ) -> Result<Arc<Host>, Error> {
        let key = Key::new(origin.clone(), options.clone(), runtime.id());
        self.registry.host(key, runtime)
    }

    /// The addresses of a host.
    ///
    /// # Errors
    /// Dns: there are none.
    pub(crate) async fn resolve(&self, origin: &Origin) -> Result<Vec<IpAddr>, Error> {
        self.registry.shared.deps.resolve(origin).await
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.registry.shared.counters
    }

    pub(crate) fn stats(&self) -> ConnectionPoolStats {
        let shared = &self.registry.shared;
        let idle = shared.idle();
        let upgraded = shared.upgraded.load(Ordering::SeqCst);
        let hosts = self.registry.all();
        let live: usize = hosts.iter().map(|host| host.live()).sum();
        let tickets: usize = hosts.iter().map(|host| host.plan.tickets()).sum();
        ConnectionPoolStats {
            open: shared.capacity.open(),
            idle,
            active: live.saturating_sub(idle).saturating_sub(upgraded),
            upgraded,
            waiting: shared.waiting.load(Ordering::SeqCst),
            tls_tickets: tickets + lock(&self.registry.asleep).tickets(),
            ..shared.counters.snapshot()
        }
    }

    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        let at = now();
        self.registry
            .all()
            .iter()
            .flat_map(|host| host.connections(at))
            .collect()
    }

    pub(crate) fn close_idle(&self) {
        for host in self.registry.all() {
            host.close_idle(CloseReason::CloseIdle);
        }
    }

    /// Refuses new requests, lets running ones finish until the deadline, then ends connections with
    /// what they carry. Returns how many are still open.
    pub(crate) async fn shutdown(&self, within: Duration) -> usize {
        let shared = &self.registry.shared;
        let until = deadline(now(), within);
        self.registry.close();
        loop {
            let changed = shared.capacity.changed.notified();
            if shared.capacity.open() == 0 {
                return 0;
            }
            if timeout_at(until.into(), changed).await.is_err() {
                break;
            }
        }
        for host in self.registry.all() {
            host.kill();
        }
        // The killed ones end at the next turn of their tasks.
        let grace = deadline(now(), Duration::from_millis(100));
        loop {
            let changed = shared.capacity.changed.notified();
            let open = shared.capacity.open();
            if open == 0 || timeout_at(grace.into(), changed).await.is_err() {
                return open;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.registry.close();
        for janitor in lock(&self.registry.janitors).values() {
            janitor.stop();
        }
    }
}

impl Registry {
    fn all(&self) -> Vec<Arc<Host>> {
        self.hosts.pin().values().cloned().collect()
    }

    fn host(self: &Arc<Self>, key: Key, runtime: Handle) -> Result<Arc<Host>, Error> {
        let hosts = self.hosts.pin();
        if let Some(host) = hosts.get(&key) {
            return Ok(host.clone());
        }
        let plan = Plan::new(key.origin(), key.options(), &self.identities)?;
        let janitor = self.janitor(&runtime);
        let mut asleep = lock(&self.asleep);
        // Another may have been faster.
        if let Some(host) = hosts.get(&key) {
            return Ok(host.clone());
        }
        let lessons = asleep.wake(&key);
        let shared = self.shared.clone();
        let host = Host::new(key.clone(), plan, shared, janitor.clone(), runtime, lessons);
        let host = hosts.get_or_insert(key, host).clone();
        drop(asleep);
        // It may have been looked up for nothing.
        janitor.due_at(deadline(now(), SLEEPS_AFTER));
        Ok(host)
    }

    fn janitor(self: &Arc<Self>, runtime: &Handle) -> Arc<Janitor> {
        let janitor = lock(&self.janitors)
            .entry(runtime.id())
            .or_insert_with(|| Janitor::new(runtime.clone()))
            .clone();
        let origins: Weak<Self> = Arc::downgrade(self);
        janitor.ensure_started(origins);
        janitor
    }

    /// The origin is taken off.
    fn forget(&self, host: &Host) {
        let (name, _) = host.plan.target();
        self.shared.deps.dns.forget_use(name);
    }

    fn close(&self) {
        let why = CloseReason::PoolClosed;
        self.shared.close();
        for host in self.all() {
            host.shut_down(why);
        }
    }
}

impl Origins for Registry {
    fn of_runtime(&self, runtime: RuntimeId) -> Vec<Arc<dyn Tended>> {
        let hosts = self.hosts.pin();
        let at = now();
        let mut tended: Vec<Arc<dyn Tended>> = Vec::new();
        for (key, host) in &hosts {
            if key.runtime() != runtime {
                continue;
            }
            if let Some((lessons, last_used)) = host.fall_asleep(at) {
                self.forget(host);
                let mut asleep = lock(&self.asleep);
                asleep.put(key.clone(), lessons, last_used);
                hosts.remove(key);
            } else {
                tended.push(host.clone());
            }
        }
        let forgotten = lock(&self.asleep).forget(at);
        let janitor = lock(&self.janitors).get(&runtime).cloned();
        if let (Some(next), Some(janitor)) = (forgotten, janitor) {
            janitor.due_at(next);
        }
        tended
    }

    fn runtime_gone(&self, runtime: RuntimeId) {
        lock(&self.janitors).remove(&runtime);
        lock(&self.asleep).forget_runtime(runtime);
        let hosts = self.hosts.pin();
        for (key, host) in &hosts {
            if key.runtime() == runtime {
                host.remove();
                host.shut_down(CloseReason::RuntimeGone);
                self.forget(host);
                hosts.remove(key);
                lock(&self.populated).remove(key);
            }
        }
    }
}

impl Registry {
    /// Gives an idle connection up, the longest idle first; of this runtime before others, since one of
    /// a runtime that is parked may never close.
    fn give_up_idle(&self, except: Option<&Key>, at_least: Duration) -> GaveUp {
        let here = Handle::try_current().map(|runtime| runtime.id()).ok();
        let populated: Vec<_> = lock(&self.populated).iter().cloned().collect();
        let hosts = self.hosts.pin();
        let mut idle: Vec<_> = populated
            .iter()
            .filter(|key| except != Some(key))
            .filter_map(|key| hosts.get(key).cloned())
            .filter_map(|host| Some((Some(host.key.runtime()) != here, host.idle_since()?, host)))
            .collect();
        idle.sort_by_key(|(is_elsewhere, since, _): &(bool, Instant, _)| (*is_elsewhere, *since));
        for (_, _, host) in idle {
            match host.give_up_idle(at_least) {
                // It was taken in this very moment.
                GaveUp::Nothing => {}
                gave => return gave,
            }
        }
        GaveUp::Nothing
    }
}

impl Registry {
    /// How many connections may be idle, with those that do not count; and the origins that have some that do, with
    /// the instant since when the oldest is.
    fn idle_beyond(&self) -> (usize, Vec<(Instant, Arc<Host>)>) {
        let populated: Vec<_> = lock(&self.populated).iter().cloned().collect();
        let hosts = self.hosts.pin();
        let mut most = self.shared.limits.max_keepalive_connections;
        let mut idle = Vec::new();
        for host in populated.iter().filter_map(|key| hosts.get(key)) {
            let (kept, oldest) = host.idle_beyond();
            most = most.saturating_add(kept);
            idle.extend(oldest.map(|since| (since, host.clone())));
        }
        (most, idle)
    }
}

impl Relief for Registry {
    fn relieve(self: Arc<Self>) -> BoxFuture<'static, bool> {
        /// An HTTP/2 connection closes at the next turn of its task.
        const PATIENCE: Duration = Duration::from_millis(100);
        Box::pin(async move {
            let closed = self.shared.capacity.changed.notified();
            match self.give_up_idle(None, Duration::ZERO) {
                GaveUp::Nothing => return false,
                GaveUp::Permit(_) => {}
                GaveUp::Soon => {
                    let until = deadline(now(), PATIENCE);
                    let _ = timeout_at(until.into(), closed).await;
                }
            }
            true
        })
    }
}

impl MakeRoom for Registry {
    fn populated(&self, origin: &Key) {
        let mut populated = lock(&self.populated);
        // Looked at here, so that two who come in the wrong order find the same.
        let host = self.hosts.pin().get(origin).cloned();
        if host.is_some_and(|host| host.live() > 0) {
            populated.insert(origin.clone());
        } else {
            populated.remove(origin);
        }
    }

    fn shed_idle(&self) -> usize {
        let (most, mut idle) = self.idle_beyond();
        idle.sort_by_key(|(since, _)| *since);
        for (_, host) in idle {
            if self.shared.idle() <= most {
                break;
            }
            host.shed_idle(most);
        }
        most
    }

    fn idle_limit(&self) -> usize {
        self.idle_beyond().0
    }

    fn make_room(&self, for_whom: &Key, at_least: Duration) -> GaveUp {
        // At the limit only, so a look at every origin is affordable.
        self.give_up_idle(Some(for_whom), at_least)
    }
}
