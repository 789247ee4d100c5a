//! What is remembered about a name, for how long, and when it is asked for again. Pure: `now` is
//! handed in.
//!
//! ```text
//! fetched          refresh     expires      + stale_while_revalidate         + stale_if_error
//!    |--- fresh -----|-- fresh ---|-- stale, asked anew in the background --|-- only if asking fails --|
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::deadline;

use super::options::DnsOptions;
use super::resolve::{Answer, Family, ResolveError, ResolveErrorKind};

/// What a family of a name resolved to.
pub(crate) type Outcome = Result<Found, ResolveError>;

/// Addresses with the time to live they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) addrs: Arc<[IpAddr]>,
    pub(crate) ttl: Duration,
    /// Their time is over.
    pub(crate) is_stale: bool,
}

/// An answer from the cache.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) outcome: Outcome,
    /// It should be asked for again, in the background.
    pub(crate) refresh: bool,
}

#[derive(Debug)]
enum Entry {
    Addresses(Addresses),
    /// No such name, no address, or a failure with nothing to fall back on.
    Nothing(Nothing),
}

#[derive(Debug)]
struct Nothing {
    error: ResolveError,
    fetched: Instant,
    ttl: Duration,
    used: bool,
}

impl Nothing {
    fn expires(&self) -> Instant {
        deadline(self.fetched, self.ttl)
    }
}

#[derive(Debug)]
struct Addresses {
    addrs: Arc<[IpAddr]>,
    ttl: Duration,
    fetched: Instant,
    /// Used since it was fetched, or since that was last asked.
    used: bool,
    /// Attempts to fetch it anew that failed, and when the next one is due.
    failures: u32,
    retry_at: Instant,
}

impl Addresses {
    fn expires(&self) -> Instant {
        deadline(self.fetched, self.ttl)
    }

    fn found(&self, now: Instant) -> Found {
        Found {
            addrs: self.addrs.clone(),
            ttl: self.ttl,
            is_stale: now >= self.expires(),
        }
    }
}

/// An address counts as one of its name for as long after the last answer with it: name servers hand
/// subsets out in turn.
const SEEN_AT_LEAST: Duration = Duration::from_secs(600);
const SEEN_TTLS: u32 = 5;
/// Addresses of a name that are remembered. Of one with more nothing is ever said to have gone.
const MAX_SEEN: usize = 256;

#[derive(Debug)]
struct Name {
    v4: Option<Entry>,
    v6: Option<Entry>,
    used: Instant,
    known_since: Instant,
    /// Every address of late, and until when it counts.
    seen: Vec<(IpAddr, Instant)>,
}

impl Name {
    fn see(&mut self, addrs: &[IpAddr], ttl: Duration, now: Instant) {
        let until = deadline(now, SEEN_AT_LEAST.max(ttl.saturating_mul(SEEN_TTLS)));
        self.seen
            .retain(|(ip, until)| *until > now && !addrs.contains(ip));
        let room = MAX_SEEN.saturating_sub(self.seen.len());
        self.seen
            .extend(addrs.iter().take(room).map(|ip| (*ip, until)));
    }

    fn entry(&mut self, family: Family) -> &mut Option<Entry> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// The cache of one pool.
#[derive(Debug)]
pub(crate) struct Cache {
    options: DnsOptions,
    names: HashMap<Arc<str>, Name>,
}

impl Cache {
    pub(crate) fn new(options: DnsOptions) -> Self {
        Self {
            options,
            names: HashMap::new(),
        }
    }

    /// What may be used now without waiting.
    pub(crate) fn get(&mut self, name: &str, family: Family, now: Instant) -> Option<Hit> {
        let known = self.names.get_mut(name)?;
        known.used = now;
        match known.entry(family).as_mut()? {
            Entry::Nothing(nothing) if nothing.expires() > now => {
                nothing.used = true;
                Some(Hit {
                    outcome: Err(nothing.error.clone()),
                    refresh: false,
                })
            }
            Entry::Nothing(_) => None,
            Entry::Addresses(found) => {
                let expires = found.expires();
                // Of late: a failure long ago says nothing of the name servers now.
                let is_failing = found.failures > 0
                    && now < deadline(found.retry_at, self.options.stale_while_revalidate);
                let usable = now < expires
                    || now < deadline(expires, self.options.stale_while_revalidate)
                    || (is_failing && now < deadline(expires, self.options.stale_if_error));
                if !usable {
                    return None;
                }
                found.used = true;
                let due = if is_failing {
                    found.retry_at
                } else {
                    next_refresh(&self.options, found).unwrap_or(expires)
                };
                Some(Hit {
                    outcome: Ok(found.found(now)),
                    refresh: now >= due,
                })
            }
        }
    }

    /// Whether the name has a good answer, and this address is in none of the last
    /// max(10 min, 5 times to live).
    pub(crate) fn has_left(&self, name: &str, ip: IpAddr, now: Instant) -> bool {
        let Some(known) = self.names.get(name) else {
            return false;
        };
        let entry = match Family::of(&ip) {
            Family::V4 => &known.v4,
            Family::V6 => &known.v6,
        };
        // What is past its time says nothing of today.
        let Some(Entry::Addresses(found)) = entry else {
            return false;
        };
        found.failures == 0
            && now < found.expires()
            && now >= deadline(known.known_since, SEEN_AT_LEAST)
            && known.seen.len() < MAX_SEEN
            && !known
                .seen
                .iter()
                .any(|(seen, until)| *seen == ip && *until > now)
    }

    /// Keeps an answer as long as the rules allow, and gives it in the form in which it is handed
    /// on: without duplicates, bounded, of this family alone; or, if name servers failed, the answer
    /// before it.
    pub(crate) fn put(
        &mut self,
        name: &Arc<str>,
        family: Family,
        answer: Result<Answer, ResolveError>,
        now: Instant,
    ) -> Outcome {
        let error = match answer {
            Ok(answer) => {
                let ttl = self.clamp(answer.ttl);
                let all = answer.addrs.clone();
                let addrs = self.select(answer.addrs, family);
                if !addrs.is_empty() {
                    let found = self.put_addresses(name, family, addrs, ttl, now);
                    if let Some(known) = self.names.get_mut(name) {
                        // All of them, those that are one too many to be used as well.
                        known.see(&all, ttl, now);
                    }
                    return Ok(found);
                }
                ResolveError::new(ResolveErrorKind::NoAddress)
            }
            Err(error) => error,
        };
        let is_answer = matches!(
            error.kind(),
            ResolveErrorKind::NoSuchName | ResolveErrorKind::NoAddress
        );
        if !is_answer && let Some(found) = self.fall_back(name, family, now) {
            return Ok(found);
        }
        let keep = if is_answer {
            let most = self.options.negative_ttl;
            error.ttl().unwrap_or(most).min(most)
        } else if error.kind() == ResolveErrorKind::Exhausted {
            // It says nothing about the name.
            Duration::ZERO
        } else {
            self.options.failure_ttl
        };
        let nothing = Entry::Nothing(Nothing {
            error: error.clone(),
            fetched: now,
            ttl: keep,
            used: false,
        });
        self.keep(name, family, (!keep.is_zero()).then_some(nothing), now);
        Err(error)
    }

    fn put_addresses(
        &mut self,
        name: &Arc<str>,
        family: Family,
        addrs: Vec<IpAddr>,
        ttl: Duration,
        now: Instant,
    ) -> Found {
        let found = Addresses {
            addrs: addrs.into(),
            ttl,
            fetched: now,
            used: false,
            failures: 0,
            retry_at: now,
        };
        let handed_on = Found {
            addrs: found.addrs.clone(),
            ttl,
            is_stale: false,
        };
        let kept = (!ttl.is_zero()).then_some(Entry::Addresses(found));
        self.keep(name, family, kept, now);
        handed_on
    }

    /// Name servers failed: what was known before, if it is not too old.
    fn fall_back(&mut self, name: &str, family: Family, now: Instant) -> Option<Found> {
        /// The pause between attempts doubles up to 2^5 times `failure_ttl`.
        const MAX_DOUBLINGS: u32 = 5;
        let options = &self.options;
        let entry = self.names.get_mut(name)?.entry(family).as_mut()?;
        let Entry::Addresses(found) = entry else {
            return None;
        };
        if now >= deadline(found.expires(), options.stale_if_error) {
            return None;
        }
        let doubled = 1 << found.failures.min(MAX_DOUBLINGS);
        let pause = options.failure_ttl.saturating_mul(doubled);
        found.failures = found.failures.saturating_add(1);
        found.retry_at = deadline(now, pause);
        Some(found.found(now))
    }

    /// When the name should be asked for anew, used or not; `None` if never.
    pub(crate) fn next_refresh(&mut self, name: &str, family: Family) -> Option<Instant> {
        match self.names.get_mut(name)?.entry(family) {
            Some(Entry::Addresses(found)) => next_refresh(&self.options, found),
            // A host without addresses of one family is as warm as any other.
            Some(Entry::Nothing(nothing))
                if nothing.error.kind() == ResolveErrorKind::NoAddress =>
            {
                ahead(&self.options, nothing.fetched, nothing.ttl)
            }
            _ => None,
        }
    }

    /// Whether the name was used since it was fetched or since this was last asked.
    pub(crate) fn take_used(&mut self, name: &str, family: Family) -> bool {
        let Some(known) = self.names.get_mut(name) else {
            return false;
        };
        match known.entry(family) {
            Some(Entry::Addresses(found)) => std::mem::take(&mut found.used),
            Some(Entry::Nothing(nothing)) => std::mem::take(&mut nothing.used),
            None => false,
        }
    }

    /// The name was used.
    pub(crate) fn mark_used(&mut self, name: &str, family: Family) {
        let known = self.names.get_mut(name);
        match known.and_then(|known| known.entry(family).as_mut()) {
            Some(Entry::Addresses(found)) => found.used = true,
            Some(Entry::Nothing(nothing)) => nothing.used = true,
            None => {}
        }
    }

    fn clamp(&self, ttl: Option<Duration>) -> Duration {
        // RFC 2181 §8: a time to live with the top bit set counts as zero.
        const TOP_BIT: Duration = Duration::from_secs(1 << 31);
        match ttl {
            None => self.options.min_ttl,
            Some(ttl) if ttl.is_zero() || ttl >= TOP_BIT => Duration::ZERO,
            Some(ttl) => ttl.max(self.options.min_ttl).min(self.options.max_ttl),
        }
    }

    fn select(&self, all: Vec<IpAddr>, family: Family) -> Vec<IpAddr> {
        let mut addrs: Vec<IpAddr> = Vec::new();
        for ip in all {
            if addrs.len() == self.options.max_addresses {
                break;
            }
            if Family::of(&ip) == family && !addrs.contains(&ip) {
                addrs.push(ip);
            }
        }
        addrs
    }

    fn keep(&mut self, name: &Arc<str>, family: Family, entry: Option<Entry>, now: Instant) {
        if entry.is_some() && !self.names.contains_key(name) {
            self.make_room(now);
            if self.names.len() < self.options.max_names {
                let known = Name {
                    v4: None,
                    v6: None,
                    used: now,
                    known_since: now,
                    seen: Vec::new(),
                };
                self.names.insert(name.clone(), known);
            }
        }
        if let Some(known) = self.names.get_mut(name) {
            *known.entry(family) = entry;
            if known.v4.is_none() && known.v6.is_none() {
                self.names.remove(name);
            }
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.names.len() < self.options.max_names {
            return;
        }
        let stale = self.options.stale_if_error;
        let is_kept = |entry: &Entry| match entry {
            Entry::Nothing(nothing) => nothing.expires() > now,
            Entry::Addresses(found) => deadline(found.expires(), stale) > now,
        };
        let has_any = |name: &Name| name.v4.iter().chain(&name.v6).any(is_kept);
        self.names.retain(|_, name| has_any(name));
        if self.names.len() < self.options.max_names {
            return;
        }
        // Several at once, so that a look at all of them is rare.
        let too_many = self.names.len() + 1 - self.options.max_names;
        let room = too_many.max(self.options.max_names / 16);
        let mut by_use: Vec<_> = self
            .names
            .iter()
            .map(|(n, known)| (known.used, n))
            .collect();
        by_use.sort_unstable();
        let oldest: Vec<_> = by_use
            .iter()
            .take(room)
            .map(|(_, n)| (*n).clone())
            .collect();
        for name in oldest {
            self.names.remove(&name);
        }
    }
}

fn next_refresh(options: &DnsOptions, found: &Addresses) -> Option<Instant> {
    if found.failures > 0 {
        return options.refresh_at_percent.map(|_| found.retry_at);
    }
    ahead(options, found.fetched, found.ttl)
}

fn ahead(options: &DnsOptions, fetched: Instant, ttl: Duration) -> Option<Instant> {
    let percent = options.refresh_at_percent?;
    Some(deadline(fetched, ttl / 100 * u32::from(percent)))
}

/// The properties that the fuzz target asserts while it drives the cache with operations made of its
/// input, two bytes each.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_operations(input: &[u8]) {
    let options = DnsOptions::default().max_names(4).max_addresses(3);
    let mut cache = Cache::new(options.clone());
    let names: Vec<Arc<str>> = (0..8).map(|n| Arc::from(format!("{n}.test"))).collect();
    let base = Instant::now();
    let mut now = base;
    // The truth: the last answer of each name, and whether name servers have said "none" since.
    let mut last: HashMap<(usize, Family), (Instant, Duration, bool)> = HashMap::new();
    for operation in input.chunks_exact(2) {
        let [what, argument] = [operation[0], operation[1]];
        let n = usize::from(what >> 5);
        let family = if what & 16 == 0 {
            Family::V4
        } else {
            Family::V6
        };
        let ip = |n: u8| -> IpAddr {
            match family {
                Family::V4 => [10, 0, 0, n].into(),
                Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, n.into()].into(),
            }
        };
        match what & 15 {
            0..=3 => now += Duration::from_millis(u64::from(argument) * u64::from(argument) * 50),
            4..=6 => {
                let ttl = Duration::from_secs(u64::from(argument) * 4);
                let addrs = (0..=argument % 5).map(ip).collect();
                let outcome = cache.put(&names[n], family, Ok(Answer::new(addrs, Some(ttl))), now);
                let found = outcome.expect("there are addresses");
                assert!((1..=3).contains(&found.addrs.len()) && !found.is_stale);
                assert!(found.ttl.is_zero() || (5..=300).contains(&found.ttl.as_secs()));
                last.insert((n, family), (now, found.ttl, true));
            }
            7 => {
                let none = ResolveError::new(ResolveErrorKind::NoSuchName);
                let outcome = cache.put(&names[n], family, Err(none), now);
                assert!(outcome.is_err(), "no such name is never papered over");
                last.insert((n, family), (now, Duration::ZERO, false));
            }
            8..=9 => {
                let failed = ResolveError::new(ResolveErrorKind::Timeout);
                if let Ok(found) = cache.put(&names[n], family, Err(failed), now) {
                    let (fetched, ttl, ok) = last[&(n, family)];
                    assert!(ok && now < fetched + ttl + options.stale_if_error);
                    assert_eq!(found.is_stale, now >= fetched + ttl);
                }
            }
            10 => {
                let used = cache.take_used(&names[n], family);
                assert!(!cache.take_used(&names[n], family), "asked twice: {used}");
            }
            _ => {
                let hit = cache.get(&names[n], family, now);
                if let Some(Hit {
                    outcome: Ok(found),
                    refresh,
                }) = hit
                {
                    let (fetched, ttl, ok) = last[&(n, family)];
                    assert!(ok, "an address after the name was said to have none");
                    let expires = fetched + ttl;
                    assert!(now < expires + options.stale_if_error);
                    assert_eq!(found.is_stale, now >= expires);
                    if refresh && options.refresh_at_percent.is_some() {
                        let next = cache.next_refresh(&names[n], family);
                        assert!(next.is_some_and(|at| at <= now));
                    }
                    assert!(cache.take_used(&names[n], family), "it was just used");
                }
            }
        }
        assert!(cache.names.len() <= options.max_names);
        for name in cache.names.values() {
            assert!(
                name.v4.is_some() || name.v6.is_some(),
                "an empty name is kept"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and its siblings resolve and options.
    use super::*;

    struct Sim {
        cache: Cache,
        t0: Instant,
        name: Arc<str>,
    }

    fn answer(ttl: u64) -> Result<Answer, ResolveError> {
        Ok(Answer::new(
            vec!["127.0.0.1".parse().unwrap()],
            Some(Duration::from_secs(ttl)),
        ))
    }

    fn failed() -> Result<Answer, ResolveError> {
        Err(ResolveError::new(ResolveErrorKind::ServerFailure))
    }

    impl Sim {
        fn new(options: DnsOptions) -> Self {
            Self {
                cache: Cache::new(options),
                t0: Instant::now(),
                name: Arc::from("a.test"),
            }
        }
        fn put(&mut self, ms: u64, answer: Result<Answer, ResolveError>) -> Outcome {
            let at = self.t0 + Duration::from_millis(ms);
            self.cache.put(&self.name, Family::V4, answer, at)
        }
        fn get(&mut self, ms: u64) -> Option<Hit> {
            let at = self.t0 + Duration::from_millis(ms);
            self.cache.get(&self.name, Family::V4, at)
        }
        /// Stale or not, and whether it is to be asked for again.
        fn look(&mut self, ms: u64) -> Option<(bool, bool)> {
            let hit = self.get(ms)?;
            Some((hit.outcome.ok()?.is_stale, hit.refresh))
        }
        fn next_refresh(&mut self) -> Option<u64> {
            let at = self.cache.next_refresh(&self.name, Family::V4)?;
            Some((at - self.t0).as_millis() as u64)
        }
    }

    #[test]
    fn time_to_live_is_clamped_and_zero_is_not_kept() {
        for (ttl, lives) in [(0, 0), (1, 5), (60, 60), (86_400, 300), (1 << 31, 0)] {
            let options = DnsOptions::default().stale_while_revalidate(Duration::ZERO);
            let mut sim = Sim::new(options);
            sim.put(0, answer(ttl)).unwrap();
            let seconds = (0..400).take_while(|s| sim.get(s * 1000).is_some()).count();
            assert_eq!(seconds, lives, "ttl {ttl}");
        }
    }

    #[test]
    fn answer_is_refreshed_ahead_then_stale_for_a_minute_then_gone() {
        let mut sim = Sim::new(DnsOptions::default());
        sim.put(0, answer(100)).unwrap();
        assert_eq!(sim.next_refresh(), Some(80_000));
        assert_eq!(sim.look(79_999), Some((false, false)));
        assert_eq!(sim.look(80_000), Some((false, true)));
        assert_eq!(sim.look(100_000), Some((true, true)));
        assert_eq!(sim.look(159_999), Some((true, true)));
        assert_eq!(sim.look(160_000), None, "nobody asked: now somebody waits");
        let found = sim.put(161_000, failed()).unwrap();
        assert!(found.is_stale, "asking failed: better the old one");
    }

    #[test]
    fn failing_name_servers_leave_a_used_name_its_addresses_for_an_hour_without_waiting() {
        let mut sim = Sim::new(DnsOptions::default());
        sim.put(0, answer(100)).unwrap();
        // Pauses double up to 32 times.
        let mut at = 80_000;
        for pause in [1, 2, 4, 8, 16, 32, 32] {
            assert!(sim.put(at, failed()).is_ok());
            assert_eq!(sim.next_refresh(), Some(at + pause * 1000));
            assert!(!sim.look(at + 1).unwrap().1);
            at += pause * 1000;
            assert!(sim.look(at).unwrap().1);
        }
        assert_eq!(
            sim.look(3_690_000),
            None,
            "who knows whether they fail still"
        );
        assert!(sim.put(3_690_000, failed()).is_ok());
        assert_eq!(
            sim.look(3_699_000),
            Some((true, false)),
            "past the minute, but failing"
        );
        assert_eq!(sim.look(3_700_000), None);
        assert!(sim.put(3_700_000, failed()).is_err(), "too old");
        // A success ends it.
        sim.put(3_701_500, answer(100)).unwrap();
        assert_eq!(sim.look(3_701_500), Some((false, false)));
    }

    #[test]
    fn failures_are_spaced_without_refresh_ahead_too_and_endless_times_do_not_overflow() {
        let mut sim = Sim::new(DnsOptions::default().refresh_at_percent(None));
        sim.put(0, answer(100)).unwrap();
        assert_eq!(sim.look(90_000), Some((false, false)));
        assert_eq!(sim.look(100_000), Some((true, true)));
        assert!(sim.put(100_000, failed()).is_ok());
        assert_eq!(sim.look(100_500), Some((true, false)));
        assert_eq!(sim.look(101_000), Some((true, true)));
        let endless = DnsOptions::default()
            .min_ttl(Duration::MAX)
            .max_ttl(Duration::MAX)
            .failure_ttl(Duration::MAX)
            .negative_ttl(Duration::MAX)
            .stale_if_error(Duration::MAX)
            .stale_while_revalidate(Duration::MAX);
        let mut sim = Sim::new(endless);
        sim.put(0, answer(100)).unwrap();
        assert_eq!(sim.look(1000), Some((false, false)));
        for _ in 0..3 {
            assert!(sim.put(2000, failed()).is_ok());
        }
        sim.look(3000).unwrap();
        let none = ResolveError::new(ResolveErrorKind::NoAddress);
        assert!(sim.put(4000, Err(none)).is_err());
        assert!(sim.get(5000).is_some() && sim.next_refresh().is_some());
    }

    #[test]
    fn address_has_left_when_no_answer_of_ten_minutes_had_it_and_the_last_one_is_good() {
        let mut sim = Sim::new(DnsOptions::default());
        let [a, b, c]: [IpAddr; 3] =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().unwrap());
        let of =
            |ips: &[IpAddr], ttl| Ok(Answer::new(ips.to_vec(), Some(Duration::from_secs(ttl))));
        let minute = 60_000;
        let left = |sim: &Sim, ip, ms| {
            let at = sim.t0 + Duration::from_millis(ms);
            sim.cache.has_left(&sim.name, ip, at)
        };
        sim.put(0, of(&[a], 100)).unwrap();
        // Subsets in turn.
        for turn in 1..=20u64 {
            let ips = if turn % 2 == 0 { [a, c] } else { [b, c] };
            sim.put(turn * minute, of(&ips, 100)).unwrap();
            assert!(!left(&sim, a, turn * minute) && !left(&sim, b, turn * minute));
        }
        // From minute 20 on without `a`.
        for turn in 21..=29 {
            sim.put(turn * minute, of(&[b, c], 100)).unwrap();
            assert!(!left(&sim, a, turn * minute), "it may come back");
        }
        sim.put(30 * minute, of(&[b, c], 100)).unwrap();
        assert!(left(&sim, a, 30 * minute) && !left(&sim, b, 30 * minute));
        assert!(
            !left(&sim, a, 32 * minute),
            "that answer is too old to tell"
        );
        sim.put(32 * minute, failed()).unwrap();
        assert!(!left(&sim, a, 32 * minute), "nor does a failure");
        // Long-lived answers count for longer.
        let mut sim = Sim::new(DnsOptions::default());
        sim.put(0, of(&[a], 300)).unwrap();
        sim.put(5 * minute, of(&[b], 300)).unwrap();
        sim.put(24 * minute, of(&[b], 300)).unwrap();
        assert!(!left(&sim, a, 24 * minute) && left(&sim, a, 25 * minute));
        let fresh = sim.put(0, answer(100));
        assert!(fresh.is_ok());
        let unknown = sim.cache.has_left("other.test", a, sim.t0);
        assert!(!unknown);
    }

    #[test]
    fn no_such_name_is_believed_whatever_was_known_before() {
        let mut sim = Sim::new(DnsOptions::default());
        for kind in [ResolveErrorKind::NoSuchName, ResolveErrorKind::NoAddress] {
            sim.put(0, answer(100)).unwrap();
            assert!(sim.put(1000, Err(ResolveError::new(kind))).is_err());
            assert!(sim.get(1001).unwrap().outcome.is_err());
            assert!(sim.put(2000, failed()).is_err(), "there is no older one");
        }
    }

    #[test]
    fn negative_answers_are_kept_shortly() {
        for (kind, soa, seconds) in [
            (ResolveErrorKind::NoSuchName, 3600, 10),
            (ResolveErrorKind::NoAddress, 3, 3),
            (ResolveErrorKind::ServerFailure, 3600, 1),
            (ResolveErrorKind::Timeout, 3600, 1),
        ] {
            let mut sim = Sim::new(DnsOptions::default());
            let error = ResolveError::new(kind).with_ttl(Some(Duration::from_secs(soa)));
            assert!(sim.put(0, Err(error)).is_err());
            assert!(sim.get(seconds * 1000 - 1).is_some(), "{kind:?}");
            assert!(sim.get(seconds * 1000).is_none(), "{kind:?}");
        }
    }

    #[test]
    fn use_is_noted_once() {
        let mut sim = Sim::new(DnsOptions::default());
        sim.put(0, answer(100)).unwrap();
        let used = |sim: &mut Sim| sim.cache.take_used(&sim.name, Family::V4);
        assert!(!used(&mut sim), "who asked first is no further use");
        sim.get(1);
        assert!(used(&mut sim) && !used(&mut sim));
    }

    #[test]
    fn answers_are_bounded_deduplicated_and_of_their_family() {
        let mut sim = Sim::new(DnsOptions::default());
        let mut addrs: Vec<IpAddr> = (0..=255).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        addrs.insert(1, addrs[0]);
        addrs.insert(0, "::1".parse().unwrap());
        let found = sim.put(0, Ok(Answer::new(addrs, None))).unwrap();
        assert_eq!(found.addrs.len(), 16);
        assert_eq!(found.addrs[1], IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn least_recently_used_name_leaves_first() {
        let mut cache = Cache::new(DnsOptions::default().max_names(2));
        let names: [Arc<str>; 3] = [Arc::from("a"), Arc::from("b"), Arc::from("c")];
        let now = Instant::now();
        let later = |s| now + Duration::from_secs(s);
        for (n, name) in names[..2].iter().enumerate() {
            for family in [Family::V4, Family::V6] {
                let addrs = vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
                let answer = Answer::new(addrs, Some(Duration::from_secs(60)));
                cache
                    .put(name, family, Ok(answer), later(n as u64))
                    .unwrap();
            }
        }
        assert!(cache.get(&names[0], Family::V4, later(2)).is_some());
        cache
            .put(&names[2], Family::V4, answer(60), later(3))
            .unwrap();
        assert!(cache.get(&names[1], Family::V4, later(4)).is_none());
        assert!(cache.get(&names[1], Family::V6, later(4)).is_none());
        assert!(cache.get(&names[0], Family::V6, later(4)).is_some());
    }
}
