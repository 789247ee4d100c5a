//! Whether a silent peer is still there: when to ask it, and when to give it up. Pure.

use std::time::{Duration, Instant};

use crate::clock::deadline;

/// What was heard of the peer, whatever it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// Reads that brought something.
    pub(super) reads: u64,
    /// When the last one was.
    pub(super) at: Instant,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing before this instant.
    At(Instant),
    /// A ping, now.
    Ask,
    /// The peer has not answered, and should have by this instant.
    Dead(Instant),
    Never,
}

/// A peer that was silent for `interval` is asked with a ping, and is dead if nothing has come for `patience` behind it.
#[derive(Debug)]
pub(super) struct Liveness {
    interval: Option<Duration>,
    patience: Duration,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// When the ping was sent; until it is, when it was wanted.
    at: Instant,
    is_sent: bool,
    /// What had been heard by then.
    reads: u64,
}

impl Liveness {
    pub(super) fn new(interval: Option<Duration>, patience: Duration) -> Self {
        Self {
            interval,
            patience,
            asked: None,
        }
    }

    /// `wrote` is when the connection took something last: a ping that stands behind a long message has time while that
    /// moves.
    pub(super) fn due(&mut self, heard: Heard, wrote: Option<Instant>, now: Instant) -> Due {
        let Some(interval) = self.interval else {
            return Due::Never;
        };
        if let Some(asked) = self.asked {
            if asked.reads == heard.reads {
                let moved = wrote.filter(|_| !asked.is_sent);
                let from = moved.map_or(asked.at, |wrote| wrote.max(asked.at));
                let until = deadline(from, self.patience);
                return if now < until {
                    Due::At(until)
                } else {
                    Due::Dead(until)
                };
            }
            self.asked = None;
        }
        let at = deadline(heard.at, interval);
        if now < at {
            return Due::At(at);
        }
        self.asked = Some(Asked {
            at: now,
            is_sent: false,
            reads: heard.reads,
        });
        Due::Ask
    }

    /// Everything that was written has left, the ping included.
    pub(super) fn sent(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(asked) = self.asked.as_mut().filter(|asked| !asked.is_sent) {
            asked.is_sent = true;
            asked.at = now();
        }
    }

    /// When the ping was sent that is not answered yet.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.asked.map(|asked| asked.at)
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn silent_peer_is_asked_once_and_given_up_if_it_stays_silent() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let heard = |reads, ms| Heard { reads, at: at(ms) };
        let mut liveness = Liveness::new(Some(Duration::from_millis(20)), Duration::from_millis(5));
        let mut due = |heard, wrote: Option<u64>, now| liveness.due(heard, wrote.map(at), at(now));
        assert_eq!(due(heard(0, 0), None, 0), Due::At(at(20)));
        assert_eq!(due(heard(1, 10), None, 20), Due::At(at(30)));
        assert_eq!(due(heard(1, 10), None, 33), Due::Ask);
        // Behind a message that moves, and then does not.
        assert_eq!(due(heard(1, 10), Some(30), 33), Due::At(at(38)));
        assert_eq!(due(heard(1, 10), Some(37), 38), Due::At(at(42)));
        assert_eq!(due(heard(1, 10), Some(37), 43), Due::Dead(at(42)));
        liveness.sent(|| at(40));
        liveness.sent(|| at(41));
        assert_eq!(liveness.asked_at(), Some(at(40)));
        let mut due = |heard, wrote: Option<u64>, now| liveness.due(heard, wrote.map(at), at(now));
        // What is written behind it gives no time.
        assert_eq!(due(heard(1, 10), Some(44), 44), Due::At(at(45)));
        // The answer may come at the very instant of the question.
        assert_eq!(due(heard(2, 40), None, 45), Due::At(at(60)));
        assert_eq!(due(heard(2, 40), None, 60), Due::Ask);
        assert_eq!(due(heard(2, 40), None, 65), Due::Dead(at(65)));
        let mut never = Liveness::new(None, Duration::ZERO);
        assert_eq!(never.due(heard(0, 0), None, at(1_000_000)), Due::Never);
    }
}
