//! RFC 8305: which address to try, and when the next. [`HappyEyeballs`] decides (pure), [`race`]
//! acts, generic over what an attempt does.
//!
//! An attempt may do more than connect: then it says when TCP is established, which puts the next
//! attempt off, and the race goes on until one attempt is through with all of it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::clock::{deadline, now};
use crate::dns::{Family, Lookup, ResolveError, ResolveErrorKind};
use crate::error::Error;
use crate::event::{DialEvent, DialRecorder};
use crate::sync::lock;
use crate::timing::{AttemptOutcome, DnsFacts};

use super::memory::{Known, Memory};

/// How the addresses of an origin are raced (RFC 8305).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RaceOptions {
    /// How long an IPv4 answer waits for the IPv6 one. Default 25 ms: curl cut RFC 8305's 50 on
    /// telemetry.
    pub resolution_delay: Duration,
    /// Between the starts of two attempts, as long as the origin's round trip is not known: then it
    /// is 2.5 of them, between 100 ms and 1 s. Default 250 ms (RFC 8305 §5).
    pub attempt_delay: Duration,
    /// Attempts at the same time. Default 4.
    pub max_in_flight: usize,
    /// Whether an address has won only when TLS is through too, so that one that accepts and then
    /// stalls holds nobody up. An established TCP connection puts the next attempt off by 250 ms or
    /// 4 of its round trips, whichever is longer, so that a healthy far server is dialled once.
    /// Default on. Behind a proxy the race ends with TCP.
    pub through_tls: bool,
}

impl Default for RaceOptions {
    fn default() -> Self {
        Self {
            resolution_delay: Duration::from_millis(25),
            attempt_delay: Duration::from_millis(250),
            max_in_flight: 4,
            through_tls: true,
        }
    }
}

impl RaceOptions {
    /// Sets `resolution_delay`.
    pub fn resolution_delay(mut self, delay: Duration) -> Self {
        self.resolution_delay = delay;
        self
    }

    /// Sets `attempt_delay`.
    pub fn attempt_delay(mut self, delay: Duration) -> Self {
        self.attempt_delay = delay;
        self
    }

    /// Sets `max_in_flight`.
    pub fn max_in_flight(mut self, n: usize) -> Self {
        self.max_in_flight = n;
        self
    }

    /// Sets `through_tls`.
    pub fn through_tls(mut self, on: bool) -> Self {
        self.through_tls = on;
        self
    }

    /// # Errors
    /// Invalid: no attempt allowed.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.max_in_flight == 0 {
            return Err(Error::invalid(
                "race max_in_flight is 0: no address could be tried",
            ));
        }
        Ok(())
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
    known: Known,
    v4: Candidates,
    v6: Candidates,
    /// Addresses that failed lately, of both families: only when there is nothing else.
    doubtful: VecDeque<IpAddr>,
    last: Option<Family>,
    in_flight: usize,
    next_at: Option<Instant>,
}

impl HappyEyeballs {
    fn new(options: RaceOptions, known: Known) -> Self {
        Self {
            options,
            known,
            v4: Candidates::default(),
            v6: Candidates::default(),
            doubtful: VecDeque::new(),
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
        candidates.arrived = Some(now);
        for ip in addrs {
            if self.known.failed.contains(ip) {
                self.doubtful.push_back(*ip);
            } else if self.known.winner == Some(*ip) {
                candidates.left.push_front(*ip);
            } else {
                candidates.left.push_back(*ip);
            }
        }
    }

    fn failed(&mut self, now: Instant) {
        self.in_flight -= 1;
        // RFC 8305 §5: a failure is no reason to wait.
        self.next_at = Some(now);
    }

    /// TCP is established and took `rtt`; what is left of the attempt needs some round trips more.
    fn established(&mut self, rtt: Duration, now: Instant) {
        const LEAST: Duration = Duration::from_millis(250);
        // With Fast Open nothing was measured just now.
        let rtt = rtt.max(self.known.rtt.unwrap_or_default());
        let patience = now + LEAST.max(rtt * 4);
        self.next_at = Some(self.next_at.map_or(patience, |at| at.max(patience)));
    }

    fn attempt_delay(&self) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        const MOST: Duration = Duration::from_secs(1);
        match self.known.rtt {
            Some(rtt) => (rtt * 5 / 2).clamp(LEAST, MOST),
            None => self.options.attempt_delay,
        }
    }

    fn step(&mut self, now: Instant) -> Step {
        let all_arrived = self.v4.arrived.is_some() && self.v6.arrived.is_some();
        let is_empty = self.v4.left.is_empty() && self.v6.left.is_empty();
        if is_empty && self.doubtful.is_empty() {
            return if all_arrived && self.in_flight == 0 {
                Step::Exhausted
            } else {
                Step::Wait(None)
            };
        }
        if is_empty && !all_arrived {
            // The other family may have something better, but is not waited for any longer than else.
            let arrived = self.v4.arrived.or(self.v6.arrived).unwrap_or(now);
            let until = deadline(arrived, self.options.resolution_delay);
            if until > now {
                return Step::Wait(Some(until));
            }
        }
        if self.in_flight >= self.options.max_in_flight {
            return Step::Wait(None);
        }
        let won_before = |candidates: &Candidates| {
            candidates.left.front().copied() == self.known.winner && self.known.winner.is_some()
        };
        let wait_until = match (self.last, self.v4.arrived) {
            // RFC 8305 §3: IPv4 alone waits a moment for IPv6 before the first attempt, unless it is
            // known to be the one.
            (None, Some(at)) if self.v6.arrived.is_none() && !won_before(&self.v4) => {
                Some(deadline(at, self.options.resolution_delay))
            }
            (None, _) => None,
            (Some(_), _) => self.next_at,
        };
        if let Some(at) =
            wait_until.filter(|at| *at > now && (self.in_flight > 0 || self.last.is_none()))
        {
            return Step::Wait(Some(at));
        }
        let prefer_v6 = match self.last {
            None => !won_before(&self.v4),
            Some(last) => last != Family::V6,
        };
        let (first, second) = if prefer_v6 {
            (&mut self.v6, &mut self.v4)
        } else {
            (&mut self.v4, &mut self.v6)
        };
        let next = first.left.pop_front().or_else(|| second.left.pop_front());
        let Some(ip) = next.or_else(|| self.doubtful.pop_front()) else {
            return Step::Wait(None);
        };
        self.last = Some(Family::of(&ip));
        self.in_flight += 1;
        self.next_at = Some(deadline(now, self.attempt_delay()));
        Step::Start(ip)
    }
}

/// How an attempt says that TCP is established, while it goes on.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    addr: SocketAddr,
    recorder: Arc<DialRecorder>,
    established: Arc<AtomicBool>,
}

impl Progress {
    pub(crate) fn established(&self, fast_open: bool) {
        let addr = self.addr;
        let event = DialEvent::Established { addr, fast_open };
        self.recorder.emit(event);
        self.established.store(true, Ordering::Release);
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// The transport: another address may do better.
    Transport(io::Error),
    /// This machine, and not the address, is in the way.
    Local(io::Error),
    /// The handshake broke off: another address may do better.
    HandshakeLost(Error),
    /// The peer was understood, and no address will help.
    Final(Error),
}

impl AttemptError {
    fn outcome(&self) -> AttemptOutcome {
        match self {
            Self::Transport(error) | Self::Local(error) => AttemptOutcome::Failed(error.kind()),
            Self::HandshakeLost(_) | Self::Final(_) => AttemptOutcome::HandshakeFailed,
        }
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
    /// A handshake failed.
    Handshake(Error),
}

/// One attempt under way.
struct Running<F> {
    addr: SocketAddr,
    began: Instant,
    established: Arc<AtomicBool>,
    /// What the race has heard of it.
    told: bool,
    future: Pin<Box<F>>,
}

/// The attempts of a race. Given up before its end (its time was over), it was the running ones that
/// took the time.
struct Field<'a, F> {
    running: Vec<Running<F>>,
    memory: &'a Mutex<Memory>,
    is_over: bool,
}

impl<F> Drop for Field<'_, F> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut memory = lock(self.memory);
        for unfinished in &self.running {
            memory.failed(unfinished.addr.ip(), now());
        }
    }
}

/// Something that an attempt did.
enum Happened<T> {
    Established(usize),
    Ended(usize, Result<T, AttemptError>),
}

/// Tries the addresses of a look-up as they arrive until one attempt succeeds. The losers are
/// dropped.
pub(crate) async fn race<T, F>(
    mut lookup: Lookup,
    port: u16,
    options: RaceOptions,
    memory: &Mutex<Memory>,
    recorder: &Arc<DialRecorder>,
    allow: impl Fn(IpAddr) -> bool,
    attempt: impl Fn(SocketAddr, Progress) -> F,
) -> Result<T, RaceError>
where
    F: Future<Output = Result<T, AttemptError>>,
{
    let known = lock(memory).known(now());
    let mut eyeballs = HappyEyeballs::new(options, known);
    let mut field = Field {
        running: Vec::new(),
        memory,
        is_over: false,
    };
    let mut answers = Answers::new(allow);
    let mut first_error = None;
    let mut tried = 0;
    let mut waited = false;
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
                let progress = Progress {
                    addr,
                    recorder: recorder.clone(),
                    established: Arc::default(),
                };
                field.running.push(Running {
                    addr,
                    began: now(),
                    established: progress.established.clone(),
                    told: false,
                    future: Box::pin(attempt(addr, progress)),
                });
                tried += 1;
                continue;
            }
            Step::Exhausted => {
                break Err(match first_error {
                    Some((addr, AttemptError::Transport(error) | AttemptError::Local(error))) => {
                        RaceError::Unreachable { addr, tried, error }
                    }
                    Some((_, AttemptError::HandshakeLost(error) | AttemptError::Final(error))) => {
                        RaceError::Handshake(error)
                    }
                    None => RaceError::Unresolved(answers.error()),
                });
            }
            Step::Wait(until) => until,
        };
        waited |= tried == 0;
        tokio::select! {
            biased;
            happened = any(&mut field.running) => match happened {
                Happened::Established(index) => {
                    let at = now();
                    eyeballs.established(at.saturating_duration_since(field.running[index].began), at);
                }
                Happened::Ended(index, result) => {
                    let ended = field.running.swap_remove(index);
                    match result {
                        Ok(won) => {
                            recorder.emit(DialEvent::ConnectEnd(ended.addr, AttemptOutcome::Won));
                            remember(memory, &ended, &field.running, recorder);
                            break Ok(won);
                        }
                        Err(error) => {
                            recorder.emit(DialEvent::ConnectEnd(ended.addr, error.outcome()));
                            if !matches!(error, AttemptError::Local(_)) {
                                lock(memory).failed(ended.addr.ip(), now());
                            }
                            if let AttemptError::Final(error) = error {
                                break Err(RaceError::Handshake(error));
                            }
                            first_error.get_or_insert((ended.addr, error));
                            eyeballs.failed(now());
                        }
                    }
                }
            },
            (family, outcome) = lookup.next(answers.v4, answers.v6) => {
                eyeballs.arrived(family, answers.take(family, outcome), now());
            }
            () = sleep_until(wait) => {}
        }
    };
    field.is_over = true;
    for lost in &field.running {
        recorder.emit(DialEvent::ConnectEnd(lost.addr, AttemptOutcome::Lost));
    }
    recorder.emit(DialEvent::LookupEnd(DnsFacts {
        source: lookup.source(),
        queried: waited && lookup.is_query(),
        ttl: answers.ttl,
        answers: answers.addrs,
    }));
    result
}

/// Learns from the end of a race: an address that began before the winner and was overtaken is as
/// good as failed.
fn remember<F>(
    memory: &Mutex<Memory>,
    winner: &Running<F>,
    losers: &[Running<F>],
    recorder: &DialRecorder,
) {
    let at = now();
    let mut memory = lock(memory);
    memory.won(winner.addr.ip(), recorder.tcp_rtt(), at);
    for overtaken in losers.iter().filter(|loser| loser.began < winner.began) {
        memory.failed(overtaken.addr.ip(), at);
    }
}

/// What the look-up gave so far.
pub(super) struct Answers<A> {
    allow: A,
    v4: bool,
    v6: bool,
    addrs: Vec<IpAddr>,
    ttl: Option<Duration>,
    error: Option<ResolveError>,
}

impl<A: Fn(IpAddr) -> bool> Answers<A> {
    pub(super) fn new(allow: A) -> Self {
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
    pub(super) fn take(&mut self, family: Family, outcome: crate::dns::Outcome) -> &[IpAddr] {
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

    /// All that may be connected to.
    pub(super) fn into_addrs(mut self) -> Result<Vec<IpAddr>, ResolveError> {
        if self.addrs.is_empty() {
            return Err(self.error());
        }
        Ok(self.addrs)
    }

    fn error(&mut self) -> ResolveError {
        self.error
            .take()
            .unwrap_or_else(|| ResolveError::new(ResolveErrorKind::NoAddress))
    }
}

/// The next thing that an attempt does; never if there is none.
async fn any<T, F>(running: &mut [Running<F>]) -> Happened<T>
where
    F: Future<Output = Result<T, AttemptError>>,
{
    poll_fn(|cx| {
        for (index, attempt) in running.iter_mut().enumerate() {
            if let Poll::Ready(result) = attempt.future.as_mut().poll(cx) {
                return Poll::Ready(Happened::Ended(index, result));
            }
            if !attempt.told && attempt.established.load(Ordering::Acquire) {
                attempt.told = true;
                return Poll::Ready(Happened::Established(index));
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
    // layering: uses this module and what is below it.
    use super::*;
    use crate::dns::{Dns, DnsOptions, Families, SystemResolver};
    use crate::origin::Origin;
    use std::collections::HashMap;

    /// What attempts to an address do, in milliseconds.
    #[derive(Clone, Copy)]
    struct Peer {
        /// The TCP handshake.
        rtt: u64,
        /// What comes after it; `None`: nothing, ever.
        tls: Option<u64>,
    }

    const STALLS: Peer = Peer { rtt: 1, tls: None };

    fn far(rtt: u64, round_trips: u64) -> Peer {
        Peer {
            rtt,
            tls: Some(rtt * round_trips),
        }
    }

    /// Races over these peers; how long it took, and the attempts with their ends.
    async fn run(
        peers: &[(&str, Peer)],
        memory: &Mutex<Memory>,
    ) -> (u64, Vec<(IpAddr, u64, Option<AttemptOutcome>)>) {
        let addrs = peers.iter().map(|(addr, _)| ip(addr)).collect();
        let overrides = HashMap::from([("a.test".to_owned(), addrs)]);
        let dns = Dns::new(
            Arc::new(SystemResolver::new()),
            DnsOptions::default(),
            overrides,
        );
        let origin = Origin::parse("https://a.test").unwrap();
        let families = Families { v4: true, v6: true };
        let lookup = dns.lookup(origin.canonical_host(), families);
        let recorder = DialRecorder::new();
        let began = now();
        let attempt = |addr: SocketAddr, progress: Progress| {
            let (_, peer) = peers.iter().find(|(a, _)| ip(a) == addr.ip()).unwrap();
            let peer = *peer;
            async move {
                tokio::time::sleep(Duration::from_millis(peer.rtt)).await;
                progress.established(false);
                match peer.tls {
                    Some(tls) => tokio::time::sleep(Duration::from_millis(tls)).await,
                    None => std::future::pending().await,
                }
                Ok(())
            }
        };
        let options = RaceOptions::default();
        race(lookup, 443, options, memory, &recorder, |_| true, attempt)
            .await
            .unwrap();
        let ms = |at: Instant| (at - began).as_millis() as u64;
        let attempts = recorder.trace().attempts;
        let attempts = attempts
            .into_iter()
            .map(|a| (a.addr.ip(), ms(a.start), a.outcome))
            .collect();
        (ms(now()), attempts)
    }

    #[tokio::test(start_paused = true)]
    async fn healthy_far_server_is_dialled_once_however_many_round_trips_tls_takes() {
        for rtt in [1, 60, 150, 240, 400] {
            // TLS 1.3, TLS 1.2 or HelloRetryRequest, and one lost flight's worth more.
            for round_trips in [1, 2, 3] {
                let peers = [
                    ("::1", far(rtt, round_trips)),
                    ("10.0.0.1", far(rtt, round_trips)),
                ];
                let memory = Mutex::default();
                let (took, attempts) = run(&peers, &memory).await;
                // TCP itself may take longer than the attempt delay: that is RFC 8305's price.
                let expected = if rtt < 250 { 1 } else { 2 };
                assert_eq!(attempts.len(), expected, "{rtt} ms, {round_trips}");
                assert_eq!(took, rtt * (1 + round_trips));
                // The second dial knows the way, and how far it is.
                let (_, attempts) = run(&peers, &memory).await;
                assert_eq!(attempts.len(), 1, "{rtt} ms, {round_trips}, known");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn address_that_stalls_after_accepting_costs_a_quarter_of_a_second_once() {
        let peers = [
            ("::1", STALLS),
            ("10.0.0.1", STALLS),
            ("::2", far(30, 2)),
            ("10.0.0.2", far(30, 2)),
        ];
        let memory = Mutex::default();
        let (took, attempts) = run(&peers, &memory).await;
        let starts: Vec<_> = attempts.iter().map(|(ip, at, _)| (*ip, *at)).collect();
        assert_eq!(
            starts,
            [(ip("::1"), 0), (ip("10.0.0.1"), 251), (ip("::2"), 502)]
        );
        assert_eq!(took, 502 + 90);
        let (took, attempts) = run(&peers, &memory).await;
        assert_eq!((took, attempts.len()), (90, 1));
        assert_eq!(attempts[0].2, Some(AttemptOutcome::Won));
    }

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
                eyeballs: HappyEyeballs::new(RaceOptions::default(), Known::default()),
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

    fn known(winner: Option<&str>, failed: &[&str], rtt_ms: Option<u64>) -> Known {
        Known {
            winner: winner.map(ip),
            failed: failed.iter().map(|a| ip(a)).collect(),
            rtt: rtt_ms.map(Duration::from_millis),
        }
    }

    #[test]
    fn last_winner_goes_first_without_waiting_for_the_other_family() {
        let mut sim = Sim::new();
        sim.eyeballs.known = known(Some("10.0.0.2"), &[], Some(20));
        sim.answer(3, Family::V4, &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(sim.step(3), Step::Start(ip("10.0.0.2")));
        sim.answer(4, Family::V6, &["::1"]);
        assert_eq!(
            sim.step(4),
            sim.wait(103),
            "2.5 round trips, at least 100 ms"
        );
        assert_eq!(sim.step(103), Step::Start(ip("::1")));
        // A winner that the name does not lead to any more changes nothing.
        let mut sim = Sim::new();
        sim.eyeballs.known = known(Some("10.0.0.9"), &[], None);
        sim.answer(3, Family::V4, &["10.0.0.1"]);
        assert_eq!(sim.step(3), sim.wait(28));
    }

    #[test]
    fn addresses_that_failed_lately_come_last_and_wait_no_longer_than_the_resolution_delay() {
        let mut sim = Sim::new();
        sim.eyeballs.known = known(None, &["::1", "10.0.0.1"], None);
        sim.answer(0, Family::V6, &["::1"]);
        assert_eq!(sim.step(0), sim.wait(25));
        sim.answer(1, Family::V4, &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(sim.step(1), Step::Start(ip("10.0.0.2")));
        assert_eq!(sim.step(251), Step::Start(ip("::1")));
        assert_eq!(sim.step(501), Step::Start(ip("10.0.0.1")));
        // The other family's answer does not come.
        let mut sim = Sim::new();
        sim.eyeballs.known = known(None, &["10.0.0.1"], None);
        sim.answer(0, Family::V4, &["10.0.0.1"]);
        assert_eq!(sim.step(0), sim.wait(25));
        assert_eq!(sim.step(25), Step::Start(ip("10.0.0.1")));
    }

    #[test]
    fn endless_delays_do_not_overflow() {
        let options = RaceOptions::default()
            .attempt_delay(Duration::MAX)
            .resolution_delay(Duration::MAX);
        let mut eyeballs = HappyEyeballs::new(options, Known::default());
        let now = Instant::now();
        eyeballs.arrived(Family::V4, &[ip("10.0.0.1"), ip("10.0.0.2")], now);
        assert!(matches!(eyeballs.step(now), Step::Wait(Some(_))));
        eyeballs.arrived(Family::V6, &[], now);
        assert!(matches!(eyeballs.step(now), Step::Start(_)));
        assert!(matches!(eyeballs.step(now), Step::Wait(Some(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn race_that_runs_out_of_time_holds_it_against_those_that_took_it() {
        let black = Peer {
            rtt: 60_000,
            tls: None,
        };
        let peers = [
            ("10.0.0.1", black),
            ("10.0.0.2", black),
            ("10.0.0.3", black),
            ("10.0.0.4", black),
            ("10.0.0.5", far(30, 2)),
        ];
        let memory = Mutex::default();
        let race = tokio::time::timeout(Duration::from_secs(5), run(&peers, &memory));
        assert!(race.await.is_err(), "four in flight, and none ends");
        let (took, attempts) = run(&peers, &memory).await;
        assert_eq!((took, attempts.len()), (90, 1));
    }

    #[test]
    fn established_connection_puts_the_next_attempt_off_by_four_round_trips() {
        for (rtt, patience) in [(10, 250), (100, 400), (300, 1200)] {
            let mut sim = Sim::new();
            sim.answer(0, Family::V6, &["::1"]);
            sim.answer(0, Family::V4, &["10.0.0.1"]);
            assert_eq!(sim.step(0), Step::Start(ip("::1")));
            let at = sim.at(rtt);
            sim.eyeballs.established(Duration::from_millis(rtt), at);
            assert_eq!(sim.step(rtt), sim.wait(rtt + patience));
            assert_eq!(sim.step(rtt + patience), Step::Start(ip("10.0.0.1")));
        }
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
