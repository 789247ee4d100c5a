//! The pool's one task per runtime: it expires what is due and looks at idle connections on which
//! something happened. It sleeps while there is nothing to expire. Between dials it has key shares made.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::Notify;

use crate::clock::{deadline, now};
use crate::sync::lock;
use crate::tls;

/// An origin as maintenance sees it.
pub(crate) trait Tended: Send + Sync {
    /// Looks at the idle connections that were woken.
    fn sweep(self: Arc<Self>);
    /// Closes what is due at `now`; returns when the next thing is.
    fn expire(self: Arc<Self>, now: Instant) -> Option<Instant>;
}

/// All origins of a pool.
pub(crate) trait Origins: Send + Sync {
    fn of_runtime(&self, runtime: RuntimeId) -> Vec<Arc<dyn Tended>>;
    /// The runtime is gone and everything of it with it.
    fn runtime_gone(&self, runtime: RuntimeId);
}

const NEVER: u64 = u64::MAX;
/// After a look at all origins it rests for as many times as long: with 100,000 origins that look takes
/// milliseconds, and what they have due is spread over time.
const REST: u32 = 20;

/// Key shares are made so long after a dial: the request for which it was made has left by then, and a dial that follows
/// soon finds one all the same.
const SHARES_AFTER: Duration = Duration::from_millis(5);

/// Keeps the origins of one runtime tidy.
pub(crate) struct Janitor {
    runtime: Handle,
    base: Instant,
    next: AtomicU64,
    /// When key shares are to be made.
    shares: AtomicU64,
    woken: Mutex<Vec<Weak<dyn Tended>>>,
    notify: Notify,
    started: AtomicBool,
    stopped: AtomicBool,
}

impl Janitor {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            base: now(),
            next: AtomicU64::new(NEVER),
            shares: AtomicU64::new(NEVER),
            woken: Mutex::default(),
            notify: Notify::new(),
            started: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        })
    }

    /// Something is due at `at`. Costs a load unless it is due before everything else.
    pub(crate) fn due_at(&self, at: Instant) {
        self.due(self.nanos(at));
    }

    /// The same, so long after a time of [its own](Self::nanos).
    pub(super) fn due_after(&self, since: u64, after: Duration) {
        let after = u64::try_from(after.as_nanos()).unwrap_or(NEVER);
        self.due(since.saturating_add(after).min(NEVER - 1));
    }

    fn due(&self, at: u64) {
        if at < self.next.load(Ordering::SeqCst) && at < self.next.fetch_min(at, Ordering::SeqCst) {
            self.notify.notify_one();
        }
    }

    /// A dial is over: what it took of the key shares is replaced soon.
    pub(super) fn replace_key_shares(&self) {
        if !tls::lacks_key_shares() {
            return;
        }
        let at = self.nanos(deadline(now(), SHARES_AFTER));
        let order = Ordering::SeqCst;
        if (self.shares.compare_exchange(NEVER, at, order, order)).is_ok() {
            self.notify.notify_one();
        }
    }

    /// Something happened on an idle connection of `origin`.
    pub(crate) fn wake_for(&self, origin: Weak<dyn Tended>) {
        lock(&self.woken).push(origin);
        self.notify.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }

    /// Starts the task, once.
    pub(crate) fn ensure_started(self: &Arc<Self>, origins: Weak<dyn Origins>) {
        if !self.started.swap(true, Ordering::SeqCst) {
            let gone = Gone {
                runtime: self.runtime.id(),
                origins: origins.clone(),
            };
            self.runtime.spawn(self.clone().run(origins, gone));
        }
    }

    async fn run(self: Arc<Self>, origins: Weak<dyn Origins>, gone: Gone) {
        let mut rest_until = now();
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                gone.forget();
                return;
            }
            let woken = std::mem::take(&mut *lock(&self.woken));
            for origin in woken.iter().filter_map(Weak::upgrade) {
                origin.sweep();
            }
            let at = now();
            if at >= rest_until && self.nanos(at) >= self.next.load(Ordering::SeqCst) {
                self.next.store(NEVER, Ordering::SeqCst);
                let Some(origins) = origins.upgrade() else {
                    gone.forget();
                    return;
                };
                let next = origins
                    .of_runtime(self.runtime.id())
                    .into_iter()
                    .filter_map(|origin| origin.expire(at))
                    .min();
                if let Some(next) = next {
                    self.next.fetch_min(self.nanos(next), Ordering::SeqCst);
                }
                let took = now().saturating_duration_since(at);
                rest_until = deadline(now(), took.saturating_mul(REST));
            }
            if self.nanos(now()) >= self.shares.load(Ordering::SeqCst) {
                self.shares.store(NEVER, Ordering::SeqCst);
                tls::make_key_shares();
            }
            let tend = self.at(&self.next).map(|at| at.max(rest_until));
            let next = tend.into_iter().chain(self.at(&self.shares)).min();
            tokio::select! {
                () = self.notify.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    fn at(&self, nanos: &AtomicU64) -> Option<Instant> {
        match nanos.load(Ordering::SeqCst) {
            NEVER => None,
            nanos => Some(self.base + Duration::from_nanos(nanos)),
        }
    }

    /// What its times are counted from.
    pub(super) fn base(&self) -> Instant {
        self.base
    }

    pub(super) fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.base);
        u64::try_from(since.as_nanos()).unwrap_or(NEVER - 1)
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Dropped with the task when its runtime is shut down.
struct Gone {
    runtime: RuntimeId,
    origins: Weak<dyn Origins>,
}

impl Gone {
    fn forget(mut self) {
        self.origins = Weak::<NoOrigins>::new();
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(origins) = self.origins.upgrade() {
            origins.runtime_gone(self.runtime);
        }
    }
}

struct NoOrigins;

impl Origins for NoOrigins {
    fn of_runtime(&self, _: RuntimeId) -> Vec<Arc<dyn Tended>> {
        Vec::new()
    }
    fn runtime_gone(&self, _: RuntimeId) {}
}
