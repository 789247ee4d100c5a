//! Whether the peer of a connection still lives: when it is asked with a PING, and what follows from
//! silence. Pure: instants and counts.
//!
//! ```text
//! silent for 10 s, a stream opens or is open --- PING: suspect, no new streams
//!     answer                                   -> trusted again
//!     late (2 round trips)                     -> another connection takes its place
//!     dead (4 round trips, 1 to 5 s)           -> ended, with whatever it carries
//! ```
//!
//! Servers count PINGs and end connections that send many, so an idle connection sends none, and one
//! that waits for an answer two in a row at most: after 10 s and after 60 s of silence.

use std::time::{Duration, Instant};

use crate::clock::deadline;

/// Silence after which nobody knows whether the peer is there.
const SILENCE: Duration = Duration::from_secs(10);
/// From the first PING of a silence to the second.
const SECOND_AFTER: Duration = Duration::from_secs(50);
const MAX_PINGS: u8 = 2;
const DEAD_AT_LEAST: Duration = Duration::from_secs(1);
const DEAD_AT_MOST: Duration = Duration::from_secs(5);
const LATE_AT_LEAST: Duration = Duration::from_millis(100);

/// What the connection shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) now: Instant,
    /// The last read that brought anything.
    pub(super) heard: Instant,
    /// The last read that brought HEADERS or DATA.
    pub(super) progress: Instant,
    pub(super) has_streams: bool,
    /// A request ran out of time.
    pub(super) is_doubted: bool,
    /// The peer tolerates PINGs.
    pub(super) may_ping: bool,
    /// What we send waits for room, the PING perhaps too.
    pub(super) is_blocked: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Look again then; `None`: not before something happens.
    Wait(Option<Instant>),
    Ping,
    /// The answer is late.
    Late,
    /// It will not come.
    Dead,
}

/// The health of one connection.
#[derive(Debug)]
pub(super) struct Health {
    /// From PING to late, and to dead.
    late: Duration,
    dead: Duration,
    /// PINGs sent since the last progress.
    pings: u8,
    last_ping: Option<Instant>,
    /// The PING that is not answered yet.
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    is_late: bool,
}

impl Health {
    /// `rtt` is the shortest round trip that is known of the path.
    pub(super) fn new(rtt: Option<Duration>) -> Self {
        let dead = rtt.map_or(DEAD_AT_MOST, |rtt| {
            rtt.saturating_mul(4).clamp(DEAD_AT_LEAST, DEAD_AT_MOST)
        });
        let late = rtt.map_or(DEAD_AT_LEAST, |rtt| {
            rtt.saturating_mul(2).clamp(LATE_AT_LEAST, dead / 2)
        });
        Self {
            late,
            dead,
            pings: 0,
            last_ping: None,
            asked: None,
        }
    }

    /// A PING waits for its answer.
    pub(super) fn is_waiting(&self) -> bool {
        self.asked.is_some()
    }

    /// The PING was handed over.
    pub(super) fn pinged(&mut self, now: Instant) {
        self.pings += 1;
        self.last_ping = Some(now);
        self.asked = Some(Asked {
            at: now,
            is_late: false,
        });
    }

    /// Something was heard that the peer can only have sent after the PING had reached it, or nearly so:
    /// its answer stands behind other data.
    pub(super) fn is_proven(&self, heard: Instant) -> bool {
        let asked = self.asked.map(|asked| deadline(asked.at, self.late / 2));
        asked.is_some_and(|reached| heard > reached)
    }

    /// The peer has said something of a request since the last PING was sent, which is answered: the next one may be due
    /// earlier than that one allowed.
    pub(super) fn is_forgiven(&self, progress: Instant) -> bool {
        self.asked.is_none() && self.last_ping.is_some_and(|ping| progress >= ping)
    }

    /// The answer came.
    pub(super) fn answered(&mut self) {
        self.asked = None;
    }

    pub(super) fn advise(&mut self, sight: Sight) -> Advice {
        let Sight {
            now,
            heard,
            progress,
            has_streams,
            is_doubted,
            may_ping,
            is_blocked,
        } = sight;
        if let Some(asked) = &mut self.asked {
            // While anything comes the peer lives, whatever stands before its answer.
            let silent_since = asked.at.max(heard);
            let (late, dead) = if is_blocked {
                // A full path is slow, and a round trip on it longer than it was.
                (DEAD_AT_MOST / 2, DEAD_AT_MOST)
            } else {
                (self.late, self.dead)
            };
            let dead_at = deadline(silent_since, dead);
            let late_at = deadline(silent_since, late);
            return if now >= dead_at {
                Advice::Dead
            } else if asked.is_late {
                Advice::Wait(Some(dead_at))
            } else if now >= late_at {
                asked.is_late = true;
                Advice::Late
            } else {
                Advice::Wait(Some(late_at))
            };
        }
        if self.is_forgiven(progress) {
            self.pings = 0;
            self.last_ping = None;
        }
        if !may_ping || self.pings >= MAX_PINGS {
            return Advice::Wait(None);
        }
        // Behind what has no room it would not leave, and h2 reads nothing while it has one to send: a peer that was heard
        // of would seem silent.
        if is_doubted && !(is_blocked && now < deadline(heard, SILENCE)) {
            return Advice::Ping;
        }
        if !has_streams {
            return Advice::Wait(None);
        }
        let due = match self.last_ping {
            None => deadline(heard, SILENCE),
            Some(ping) => deadline(ping, SECOND_AFTER),
        };
        if now >= due {
            Advice::Ping
        } else {
            Advice::Wait(Some(due))
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn sight(t0: Instant, now: Duration, heard: Duration) -> Sight {
        Sight {
            now: t0 + now,
            heard: t0 + heard,
            progress: t0 + heard,
            has_streams: true,
            is_doubted: false,
            may_ping: true,
            is_blocked: false,
        }
    }

    #[test]
    fn idle_connection_is_never_asked_and_the_first_request_after_silence_is() {
        let t0 = Instant::now();
        let mut health = Health::new(Some(MS(50)));
        let idle = Sight {
            has_streams: false,
            ..sight(t0, S(3600), S(0))
        };
        assert_eq!(health.advise(idle), Advice::Wait(None));
        assert_eq!(
            health.advise(sight(t0, S(9), S(0))),
            Advice::Wait(Some(t0 + S(10)))
        );
        assert_eq!(health.advise(sight(t0, S(3600), S(0))), Advice::Ping);
        let lively = sight(t0, S(3600), S(3599));
        assert_eq!(health.advise(lively), Advice::Wait(Some(t0 + S(3609))));
    }

    #[test]
    fn doubt_asks_nobody_who_is_heard_of_while_nothing_can_be_sent() {
        let t0 = Instant::now();
        let mut health = Health::new(Some(MS(50)));
        let doubted = |now, heard, is_blocked| Sight {
            is_doubted: true,
            is_blocked,
            ..sight(t0, S(now), S(heard))
        };
        assert_eq!(
            health.advise(doubted(3, 2, true)),
            Advice::Wait(Some(t0 + S(12)))
        );
        assert_eq!(health.advise(doubted(3, 2, false)), Advice::Ping);
        assert_eq!(health.advise(doubted(12, 2, true)), Advice::Ping);
    }

    #[test]
    fn silence_is_asked_into_twice_and_then_not_before_the_peer_sends() {
        let t0 = Instant::now();
        let mut health = Health::new(Some(MS(50)));
        assert_eq!(health.advise(sight(t0, S(10), S(0))), Advice::Ping);
        health.pinged(t0 + S(10));
        health.answered();
        // Its answer was heard, and is no progress.
        let silent = |now, heard| Sight {
            progress: t0,
            ..sight(t0, now, heard)
        };
        assert_eq!(
            health.advise(silent(S(20), S(10))),
            Advice::Wait(Some(t0 + S(60)))
        );
        assert_eq!(health.advise(silent(S(60), S(10))), Advice::Ping);
        health.pinged(t0 + S(60));
        health.answered();
        assert_eq!(health.advise(silent(S(9000), S(60))), Advice::Wait(None));
        let doubted = Sight {
            is_doubted: true,
            ..silent(S(9000), S(60))
        };
        assert_eq!(health.advise(doubted), Advice::Wait(None), "nor then");
        // It goes on, and is silent again.
        assert_eq!(
            health.advise(sight(t0, S(9001), S(9001))),
            Advice::Wait(Some(t0 + S(9011)))
        );
        assert_eq!(health.advise(sight(t0, S(9011), S(9001))), Advice::Ping);
    }

    #[test]
    fn unanswered_ping_makes_late_and_then_dead_in_proportion_to_the_round_trip() {
        let t0 = Instant::now();
        for (rtt, late, dead) in [
            (Some(MS(1)), MS(100), S(1)),
            (Some(MS(150)), MS(300), S(1)),
            (Some(MS(400)), MS(800), MS(1600)),
            (Some(S(9)), MS(2500), S(5)),
            (None, S(1), S(5)),
        ] {
            let mut health = Health::new(rtt);
            health.pinged(t0);
            let mut at = |now| health.advise(sight(t0, now, S(0)));
            assert_eq!(at(MS(1)), Advice::Wait(Some(t0 + late)));
            assert_eq!(at(late), Advice::Late);
            assert_eq!(at(late), Advice::Wait(Some(t0 + dead)), "told once");
            assert_eq!(at(dead), Advice::Dead);
        }
    }

    #[test]
    fn request_that_ran_out_of_time_asks_at_once_and_a_calm_peer_is_never_asked() {
        let t0 = Instant::now();
        let doubted = Sight {
            is_doubted: true,
            has_streams: false,
            ..sight(t0, S(1), S(0))
        };
        assert_eq!(Health::new(None).advise(doubted), Advice::Ping);
        let silent = sight(t0, S(70), S(0));
        assert_eq!(Health::new(None).advise(silent), Advice::Ping);
        for sight in [doubted, silent] {
            let calm = Sight {
                may_ping: false,
                ..sight
            };
            assert_eq!(Health::new(None).advise(calm), Advice::Wait(None));
        }
    }

    #[test]
    fn peer_that_is_heard_is_not_dead_though_its_answer_stands_behind_other_data() {
        let t0 = Instant::now();
        let mut health = Health::new(Some(MS(50)));
        health.pinged(t0);
        assert!(!health.is_proven(t0 + MS(50)), "it may have been under way");
        assert!(health.is_proven(t0 + MS(51)));
        for now in 1..50 {
            let advice = health.advise(sight(t0, MS(now * 100), MS(now * 100 - 50)));
            assert_eq!(advice, Advice::Wait(Some(t0 + MS(now * 100 + 50))));
        }
        assert_eq!(health.advise(sight(t0, MS(5100), MS(5000))), Advice::Late);
        let blocked = Sight {
            is_blocked: true,
            ..sight(t0, MS(6000), MS(5000))
        };
        assert_eq!(health.advise(blocked), Advice::Wait(Some(t0 + MS(10_000))));
        assert_eq!(health.advise(sight(t0, MS(6000), MS(5000))), Advice::Dead);
    }
}
