//! RFC 8305: which address to try, and when the next. [`HappyEyeballs`] decides (pure), [`race`]
//! acts, generic over what an attempt does.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::clock::now;
use crate::dns::{Family, Lookup, ResolveError, ResolveErrorKind};
use crate::event::{DialEvent, DialRecorder};
use crate::timing::{AttemptOutcome, DnsFacts};

/// Timing of the race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RaceOptions {
    /// How long an IPv4 answer waits for the IPv6 one. 25 ms: curl cut RFC 8305's 50 on
    /// telemetry.
    pub(crate) resolution_delay: Duration,
    /// Between the starts of two attempts (RFC 8305 §5).
    pub(crate) attempt_delay: Duration,
    pub(crate) max_in_flight: usize,
}

impl Default for RaceOptions {
    fn default() -> Self {
        Self {
            resolution_delay: Duration::from_millis(25),
            attempt_delay: Duration::from_millis(250),
            max_in_flight: 4,
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Start(IpAddr),
    /// Nothing until an event, or this instant.
    Wait(Option<Instant>),
    /// Every address was tried and failed, or there was none.
    Exhausted,
}

/// The addresses of one family.
#[derive(Debug, Default)]
struct Candidates {
    left: VecDeque<IpAddr>,
    /// The answer has arrived, with addresses or without.
    arrived: Option<Instant>,
}

/// The decision part: addresses and instants in, steps out.
#[derive(Debug)]
struct HappyEyeballs {
    options: RaceOptions,
    v4: Candidates,
    v6: Candidates,
    last: Option<Family>,
    in_flight: usize,
    next_at: Option<Instant>,
}

impl HappyEyeballs {
    fn new(options: RaceOptions) -> Self {
        Self {
            options,
            v4: Candidates::default(),
            v6: Candidates::default(),
            last: None,
            in_flight: 0,
            next_at: None,
        }
    }

    fn arrived(&mut self, family: Family, addrs: &[IpAddr], now: Instant) {
        let candidates = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        candidates.left.extend(addrs);
        candidates.arrived = Some(now);
    }

    fn failed(&mut self, now: Instant) {
        self.in_flight -= 1;
        // RFC 8305 §5: a failure is no reason to wait.
        self.next_at = Some(now);
    }

    fn step(&mut self, now: Instant) -> Step {
        let all_arrived = self.v4.arrived.is_some() && self.v6.arrived.is_some();
        if self.v4.left.is_empty() && self.v6.left.is_empty() {
            return if all_arrived && self.in_flight == 0 {
                Step::Exhausted
            } else {
                Step::Wait(None)
            };
        }
        if self.in_flight >= self.options.max_in_flight {
            return Step::Wait(None);
        }
        let wait_until = match (self.last, self.v4.arrived) {
            // RFC 8305 §3: IPv4 alone waits a moment for IPv6 before the first attempt.
            (None, Some(at)) if self.v6.arrived.is_none() => {
                Some(at + self.options.resolution_delay)
            }
            (None, _) => None,
            (Some(_), _) => self.next_at,
        };
        if let Some(at) =
            wait_until.filter(|at| *at > now && (self.in_flight > 0 || self.last.is_none()))
        {
            return Step::Wait(Some(at));
        }
        let prefer_v6 = self.last != Some(Family::V6);
        let (first, second) = if prefer_v6 {
            (&mut self.v6, &mut self.v4)
        } else {
            (&mut self.v4, &mut self.v6)
        };
        let Some(ip) = first.left.pop_front().or_else(|| second.left.pop_front()) else {
            return Step::Wait(None);
        };
        self.last = Some(Family::of(&ip));
        self.in_flight += 1;
        self.next_at = Some(now + self.options.attempt_delay);
        Step::Start(ip)
    }
}

/// Why no address could be reached.
#[derive(Debug)]
pub(crate) enum RaceError {
    /// There was no address to try.
    Unresolved(ResolveError),
    /// Every address failed; the first one's error.
    Unreachable {
        addr: SocketAddr,
        tried: usize,
        error: io::Error,
    },
}

/// Tries the addresses of a look-up as they arrive until one attempt succeeds. The losers are
/// dropped.
pub(crate) async fn race<T, F>(
    mut lookup: Lookup,
    port: u16,
    options: RaceOptions,
    recorder: &DialRecorder,
    allow: impl Fn(IpAddr) -> bool,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, RaceError>
where
    F: Future<Output = io::Result<T>>,
{
    let mut eyeballs = HappyEyeballs::new(options);
    let mut attempts: Vec<(SocketAddr, Pin<Box<F>>)> = Vec::new();
    let mut answers = Answers::new(allow);
    let mut first_error = None;
    let mut tried = 0;
    for family in [Family::V6, Family::V4] {
        if let Some(outcome) = lookup.outcome(family) {
            eyeballs.arrived(family, answers.take(family, outcome), now());
        }
    }
    let result = loop {
        let wait = match eyeballs.step(now()) {
            Step::Start(ip) => {
                let addr = SocketAddr::new(ip, port);
                recorder.emit(DialEvent::ConnectStart(addr));
                attempts.push((addr, Box::pin(attempt(addr))));
                tried += 1;
                continue;
            }
            Step::Exhausted => {
                break Err(match first_error {
                    Some((addr, error)) => RaceError::Unreachable { addr, tried, error },
                    None => RaceError::Unresolved(answers.error()),
                });
            }
            Step::Wait(until) => until,
        };
        tokio::select! {
            biased;
            (index, result) = any(&mut attempts) => {
                let (addr, _) = attempts.swap_remove(index);
                match result {
                    Ok(won) => {
                        recorder.emit(DialEvent::ConnectEnd(addr, AttemptOutcome::Won));
                        break Ok(won);
                    }
                    Err(error) => {
                        let outcome = AttemptOutcome::Failed(error.kind());
                        recorder.emit(DialEvent::ConnectEnd(addr, outcome));
                        first_error.get_or_insert((addr, error));
                        eyeballs.failed(now());
                    }
                }
            }
            (family, outcome) = lookup.next(answers.v4, answers.v6) => {
                eyeballs.arrived(family, answers.take(family, outcome), now());
            }
            () = sleep_until(wait) => {}
        }
    };
    for (addr, _) in &attempts {
        recorder.emit(DialEvent::ConnectEnd(*addr, AttemptOutcome::Lost));
    }
    recorder.emit(DialEvent::LookupEnd(DnsFacts {
        source: lookup.source(),
        queried: lookup.is_query(),
        ttl: answers.ttl,
        answers: answers.addrs,
    }));
    result
}

/// What the look-up gave so far.
struct Answers<A> {
    allow: A,
    v4: bool,
    v6: bool,
    addrs: Vec<IpAddr>,
    ttl: Option<Duration>,
    error: Option<ResolveError>,
}

impl<A: Fn(IpAddr) -> bool> Answers<A> {
    fn new(allow: A) -> Self {
        Self {
            allow,
            v4: false,
            v6: false,
            addrs: Vec::new(),
            ttl: None,
            error: None,
        }
    }

    /// Notes an answer and gives back its addresses, those that may be connected to.
    fn take(&mut self, family: Family, outcome: crate::dns::Outcome) -> &[IpAddr] {
        match family {
            Family::V4 => self.v4 = true,
            Family::V6 => self.v6 = true,
        }
        let before = self.addrs.len();
        match outcome {
            Ok(found) => {
                let allowed = found.addrs.iter().filter(|ip| (self.allow)(**ip));
                self.addrs.extend(allowed);
                if self.addrs.len() == before {
                    self.failed(ResolveError::new(ResolveErrorKind::Forbidden));
                }
                if !found.ttl.is_zero() {
                    self.ttl = Some(self.ttl.map_or(found.ttl, |ttl| ttl.min(found.ttl)));
                }
            }
            Err(error) => self.failed(error),
        }
        &self.addrs[before..]
    }

    fn failed(&mut self, error: ResolveError) {
        // "No address of this family" says less than what befell the other family.
        let says_more = self
            .error
            .as_ref()
            .is_none_or(|e| e.kind() == ResolveErrorKind::NoAddress);
        if says_more {
            self.error = Some(error);
        }
    }

    fn error(&mut self) -> ResolveError {
        self.error
            .take()
            .unwrap_or_else(|| ResolveError::new(ResolveErrorKind::NoAddress))
    }
}

/// The first attempt that is over; never if there is none.
async fn any<T, F: Future<Output = T>>(attempts: &mut [(SocketAddr, Pin<Box<F>>)]) -> (usize, T) {
    poll_fn(|cx| {
        for (index, (_, attempt)) in attempts.iter_mut().enumerate() {
            if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                return Poll::Ready((index, result));
            }
        }
        Poll::Pending
    })
    .await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    struct Sim {
        eyeballs: HappyEyeballs,
        t0: Instant,
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    impl Sim {
        fn new() -> Self {
            Self {
                eyeballs: HappyEyeballs::new(RaceOptions::default()),
                t0: Instant::now(),
            }
        }
        fn at(&self, ms: u64) -> Instant {
            self.t0 + Duration::from_millis(ms)
        }
        fn answer(&mut self, ms: u64, family: Family, addrs: &[&str]) {
            let addrs: Vec<_> = addrs.iter().map(|a| ip(a)).collect();
            let at = self.at(ms);
            self.eyeballs.arrived(family, &addrs, at);
        }
        fn step(&mut self, ms: u64) -> Step {
            let at = self.at(ms);
            self.eyeballs.step(at)
        }
        fn wait(&self, ms: u64) -> Step {
            Step::Wait(Some(self.at(ms)))
        }
    }

    #[test]
    fn ipv4_alone_waits_the_resolution_delay_and_no_longer() {
        let mut sim = Sim::new();
        assert_eq!(sim.step(0), Step::Wait(None));
        sim.answer(10, Family::V4, &["10.0.0.1"]);
        assert_eq!(sim.step(10), sim.wait(35));
        assert_eq!(sim.step(35), Step::Start(ip("10.0.0.1")));
        assert_eq!(sim.step(35), Step::Wait(None));
        sim.answer(50, Family::V6, &["::1"]);
        assert_eq!(sim.step(50), sim.wait(285));
        assert_eq!(sim.step(285), Step::Start(ip("::1")));
    }

    #[test]
    fn ipv6_starts_at_once_and_no_ipv6_ends_the_delay() {
        let mut sim = Sim::new();
        sim.answer(5, Family::V6, &["::1"]);
        assert_eq!(sim.step(5), Step::Start(ip("::1")));
        let mut sim = Sim::new();
        sim.answer(5, Family::V4, &["10.0.0.1"]);
        sim.answer(6, Family::V6, &[]);
        assert_eq!(sim.step(6), Step::Start(ip("10.0.0.1")));
    }

    #[test]
    fn families_alternate_and_a_failure_starts_the_next_at_once() {
        let mut sim = Sim::new();
        sim.answer(0, Family::V6, &["::1", "::2"]);
        sim.answer(0, Family::V4, &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(sim.step(0), Step::Start(ip("::1")));
        assert_eq!(sim.step(0), sim.wait(250));
        let failed_at = sim.at(10);
        sim.eyeballs.failed(failed_at);
        assert_eq!(sim.step(10), Step::Start(ip("10.0.0.1")));
        assert_eq!(sim.step(260), Step::Start(ip("::2")));
        assert_eq!(sim.step(510), Step::Start(ip("10.0.0.2")));
        for _ in 0..3 {
            let at = sim.at(520);
            sim.eyeballs.failed(at);
        }
        assert_eq!(sim.step(520), Step::Exhausted);
    }

    #[test]
    fn at_most_four_are_in_flight() {
        let mut sim = Sim::new();
        let many: Vec<String> = (1..=6).map(|n| format!("10.0.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        sim.answer(0, Family::V6, &[]);
        sim.answer(0, Family::V4, &many);
        for n in 0..4 {
            assert!(matches!(sim.step(n * 250), Step::Start(_)));
        }
        assert_eq!(sim.step(5000), Step::Wait(None));
    }

    #[test]
    fn no_address_at_all_is_exhausted_only_when_both_families_said_so() {
        let mut sim = Sim::new();
        sim.answer(0, Family::V4, &[]);
        assert_eq!(sim.step(0), Step::Wait(None));
        sim.answer(1, Family::V6, &[]);
        assert_eq!(sim.step(1), Step::Exhausted);
    }
}
