//! What is remembered about a name, and for how long. Pure: `now` is handed in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::resolve::{Answer, Family, ResolveError, ResolveErrorKind};

/// How long answers are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DnsCacheOptions {
    /// Shorter times to live are raised to this. Default 5 s: a warm host should not pay a query
    /// per request; a TTL of 0 is exempt and never kept.
    pub min_ttl: Duration,
    /// Longer times to live are cut to this. Default 300 s: a moved service is found again.
    pub max_ttl: Duration,
    /// "No such name" and "no address" are kept at most this long. Default 10 s.
    pub negative_ttl: Duration,
    /// Failures and timeouts are kept this long (RFC 9520 §3.2 asks for it). Default 1 s.
    pub failure_ttl: Duration,
    /// Names kept; the least recently used leaves. Default 1024.
    pub max_names: usize,
}

impl Default for DnsCacheOptions {
    fn default() -> Self {
        Self {
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_secs(300),
            negative_ttl: Duration::from_secs(10),
            failure_ttl: Duration::from_secs(1),
            max_names: 1024,
        }
    }
}

/// Addresses kept of one answer: more would only feed a race that tries four at a time.
pub(crate) const MAX_ADDRS: usize = 16;

/// What a family of a name resolved to.
pub(crate) type Outcome = Result<Found, ResolveError>;

/// Addresses with the time to live they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) addrs: Arc<[IpAddr]>,
    pub(crate) ttl: Duration,
}

#[derive(Debug)]
struct Entry {
    outcome: Outcome,
    expires: Instant,
    used: Instant,
}

/// The cache of one resolver.
#[derive(Debug)]
pub(crate) struct Cache {
    options: DnsCacheOptions,
    entries: HashMap<(Arc<str>, Family), Entry>,
}

impl Cache {
    pub(crate) fn new(options: DnsCacheOptions) -> Self {
        Self {
            options,
            entries: HashMap::new(),
        }
    }

    /// What is known and still valid.
    pub(crate) fn get(&mut self, name: &Arc<str>, family: Family, now: Instant) -> Option<Outcome> {
        let key = (name.clone(), family);
        let entry = self.entries.get_mut(&key)?;
        if entry.expires <= now {
            self.entries.remove(&key);
            return None;
        }
        entry.used = now;
        Some(entry.outcome.clone())
    }

    /// Keeps an answer as long as the rules allow, and gives it in the form in which it is
    /// handed on: without duplicates, at most [`MAX_ADDRS`] addresses, of this family alone.
    pub(crate) fn put(
        &mut self,
        name: &Arc<str>,
        family: Family,
        answer: Result<Answer, ResolveError>,
        now: Instant,
    ) -> Outcome {
        let outcome = answer.and_then(|answer| {
            let ttl = self.clamp(answer.ttl);
            let mut addrs: Vec<IpAddr> = Vec::new();
            for ip in answer.addrs {
                if addrs.len() < MAX_ADDRS && Family::of(&ip) == family && !addrs.contains(&ip) {
                    addrs.push(ip);
                }
            }
            if addrs.is_empty() {
                return Err(ResolveError::new(ResolveErrorKind::NoAddress));
            }
            Ok(Found {
                addrs: addrs.into(),
                ttl,
            })
        });
        let keep = match &outcome {
            Ok(found) => found.ttl,
            Err(error) => match error.kind() {
                ResolveErrorKind::NoSuchName | ResolveErrorKind::NoAddress => error
                    .ttl()
                    .unwrap_or(self.options.negative_ttl)
                    .min(self.options.negative_ttl),
                _ => self.options.failure_ttl,
            },
        };
        if !keep.is_zero() && self.options.max_names > 0 {
            self.make_room(name, family, now);
            let entry = Entry {
                outcome: outcome.clone(),
                expires: now + keep,
                used: now,
            };
            self.entries.insert((name.clone(), family), entry);
        }
        outcome
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

    /// Both families of a name count as two entries.
    fn make_room(&mut self, name: &Arc<str>, family: Family, now: Instant) {
        let most = self.options.max_names.saturating_mul(2);
        if self.entries.len() < most || self.entries.contains_key(&(name.clone(), family)) {
            return;
        }
        self.entries.retain(|_, entry| entry.expires > now);
        while self.entries.len() >= most {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and its sibling resolve.
    use super::*;

    fn answer(ttl: u64) -> Result<Answer, ResolveError> {
        Ok(Answer::new(
            vec!["127.0.0.1".parse().unwrap()],
            Some(Duration::from_secs(ttl)),
        ))
    }

    fn lives(ttl: u64) -> u64 {
        let mut cache = Cache::new(DnsCacheOptions::default());
        let (name, now) = (Arc::from("a.test"), Instant::now());
        cache.put(&name, Family::V4, answer(ttl), now).unwrap();
        (0..400)
            .take_while(|s| {
                let later = now + Duration::from_secs(*s);
                cache.get(&name, Family::V4, later).is_some()
            })
            .count() as u64
    }

    #[test]
    fn time_to_live_is_clamped_and_zero_is_not_kept() {
        assert_eq!(lives(0), 0);
        assert_eq!(lives(1), 5);
        assert_eq!(lives(60), 60);
        assert_eq!(lives(86_400), 300);
        assert_eq!(lives(1 << 31), 0);
    }

    #[test]
    fn negative_answers_are_kept_shortly() {
        let mut cache = Cache::new(DnsCacheOptions::default());
        let (name, now) = (Arc::from("a.test"), Instant::now());
        for (kind, seconds) in [
            (ResolveErrorKind::NoSuchName, 10),
            (ResolveErrorKind::ServerFailure, 1),
            (ResolveErrorKind::Timeout, 1),
        ] {
            let error = ResolveError::new(kind).with_ttl(Some(Duration::from_secs(3600)));
            let _ = cache.put(&name, Family::V4, Err(error), now);
            let just_before = now + Duration::from_millis(seconds * 1000 - 1);
            assert!(
                cache.get(&name, Family::V4, just_before).is_some(),
                "{kind:?}"
            );
            assert!(
                cache
                    .get(&name, Family::V4, now + Duration::from_secs(seconds))
                    .is_none()
            );
        }
    }

    #[test]
    fn answers_are_bounded_deduplicated_and_of_their_family() {
        let mut cache = Cache::new(DnsCacheOptions::default());
        let mut addrs: Vec<IpAddr> = (0..=255).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        addrs.insert(1, addrs[0]);
        addrs.insert(0, "::1".parse().unwrap());
        let found = cache
            .put(
                &Arc::from("a"),
                Family::V4,
                Ok(Answer::new(addrs, None)),
                Instant::now(),
            )
            .unwrap();
        assert_eq!(found.addrs.len(), MAX_ADDRS);
        assert_eq!(found.addrs[1], IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn least_recently_used_name_leaves_first() {
        let options = DnsCacheOptions {
            max_names: 1,
            ..DnsCacheOptions::default()
        };
        let mut cache = Cache::new(options);
        let names: [Arc<str>; 3] = [Arc::from("a"), Arc::from("b"), Arc::from("c")];
        let now = Instant::now();
        let later = |s| now + Duration::from_secs(s);
        cache.put(&names[0], Family::V4, answer(60), now).unwrap();
        cache
            .put(&names[1], Family::V4, answer(60), later(1))
            .unwrap();
        assert!(cache.get(&names[0], Family::V4, later(2)).is_some());
        cache
            .put(&names[2], Family::V4, answer(60), later(3))
            .unwrap();
        assert!(cache.get(&names[1], Family::V4, later(4)).is_none());
        assert!(cache.get(&names[0], Family::V4, later(4)).is_some());
    }
}
