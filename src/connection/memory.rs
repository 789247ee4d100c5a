//! What earlier dials to an origin taught about its addresses. Pure: `now` is handed in.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// For how long an address that failed comes last.
const FAILED_FOR: Duration = Duration::from_secs(60);
/// For how long the last winner comes first. Then the others get their chance again: a family that
/// was broken may work by now.
const WINNER_FOR: Duration = Duration::from_secs(600);
/// For how long Fast Open is left alone after it failed.
const NO_FAST_OPEN_FOR: Duration = Duration::from_secs(600);
/// Failed addresses remembered; an answer has no more than that.
const MAX_FAILED: usize = 16;

/// The addresses of one origin.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    winner: Option<(IpAddr, Instant)>,
    rtt: Option<Duration>,
    failed: Vec<(IpAddr, Instant)>,
    /// A SYN with data got lost or was not taken.
    no_fast_open: Option<Instant>,
}

/// What a race should know when it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) winner: Option<IpAddr>,
    pub(crate) failed: Vec<IpAddr>,
    pub(crate) rtt: Option<Duration>,
}

impl Memory {
    /// The connection is there; `rtt` is what its TCP handshake took, if it was waited for.
    pub(crate) fn won(&mut self, ip: IpAddr, rtt: Option<Duration>, now: Instant) {
        self.failed.retain(|(failed, _)| *failed != ip);
        if self.winner.is_none_or(|(winner, _)| winner != ip) {
            self.rtt = None;
        }
        self.winner = Some((ip, now));
        // The shortest seen counts: a longer one has waited for something else too.
        self.rtt = self.rtt.into_iter().chain(rtt).min();
    }

    /// Data in a SYN was not acknowledged: on this path it costs a retransmission and gains nothing.
    pub(crate) fn fast_open_failed(&mut self, now: Instant) {
        self.no_fast_open = Some(now);
    }

    pub(crate) fn may_fast_open(&self, now: Instant) -> bool {
        self.no_fast_open
            .is_none_or(|failed| now >= failed + NO_FAST_OPEN_FOR)
    }

    /// The address refused, did not answer, or was overtaken by one that was tried later.
    pub(crate) fn failed(&mut self, ip: IpAddr, now: Instant) {
        if self.winner.is_some_and(|(winner, _)| winner == ip) {
            self.winner = None;
            self.rtt = None;
        }
        self.failed
            .retain(|(failed, at)| *failed != ip && now < *at + FAILED_FOR);
        if self.failed.len() == MAX_FAILED {
            self.failed.remove(0);
        }
        self.failed.push((ip, now));
    }

    pub(crate) fn known(&self, now: Instant) -> Known {
        let winner = self.winner.filter(|(_, at)| now < *at + WINNER_FOR);
        let failed = self.failed.iter().filter(|(_, at)| now < *at + FAILED_FOR);
        Known {
            winner: winner.map(|(ip, _)| ip),
            failed: failed.map(|(ip, _)| *ip).collect(),
            rtt: self.rtt,
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn failure_is_held_against_an_address_for_a_minute_and_a_win_for_ten() {
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        let [a, b]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let ms = Duration::from_millis;
        let mut memory = Memory::default();
        memory.failed(a, at(0));
        memory.won(b, Some(ms(30)), at(1));
        memory.won(b, Some(ms(50)), at(2));
        let known = memory.known(at(59));
        assert_eq!((known.winner, known.rtt), (Some(b), Some(ms(30))));
        assert_eq!(known.failed, [a]);
        assert!(memory.known(at(60)).failed.is_empty());
        assert_eq!(memory.known(at(601)).winner, Some(b));
        assert_eq!(memory.known(at(602)).winner, None);
        memory.won(a, None, at(603));
        memory.failed(a, at(604));
        let known = memory.known(at(604));
        assert_eq!(
            (known.winner, known.rtt, known.failed),
            (None, None, vec![a])
        );
        memory.won(a, Some(ms(9)), at(605));
        assert!(memory.known(at(606)).failed.is_empty(), "a win forgives");
        assert!(memory.may_fast_open(at(0)));
        memory.fast_open_failed(at(10));
        assert!(!memory.may_fast_open(at(609)) && memory.may_fast_open(at(610)));
        for n in 0..=255 {
            memory.failed(IpAddr::from([10, 1, 0, n]), at(700));
        }
        assert_eq!(memory.known(at(700)).failed.len(), MAX_FAILED);
    }
}
