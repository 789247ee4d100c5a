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
    /// The peer did not answer.
    Dead,
    Never,
}

/// A peer that was silent for `interval` is asked with a ping, and is dead if `patience` later nothing has come.
#[derive(Debug)]
pub(super) struct Liveness {
    interval: Option<Duration>,
    patience: Duration,
    asked: Option<Heard>,
}

impl Liveness {
    pub(super) fn new(interval: Option<Duration>, patience: Duration) -> Self {
        Self {
            interval,
            patience,
            asked: None,
        }
    }

    pub(super) fn due(&mut self, heard: Heard, now: Instant) -> Due {
        let Some(interval) = self.interval else {
            return Due::Never;
        };
        if let Some(asked) = self.asked {
            if asked.reads == heard.reads {
                let until = deadline(asked.at, self.patience);
                return if now < until {
                    Due::At(until)
                } else {
                    Due::Dead
                };
            }
            self.asked = None;
        }
        let at = deadline(heard.at, interval);
        if now < at {
            return Due::At(at);
        }
        self.asked = Some(Heard { at: now, ..heard });
        Due::Ask
    }

    /// When the ping was asked for that is not answered yet.
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
        assert_eq!(liveness.due(heard(0, 0), at(0)), Due::At(at(20)));
        assert_eq!(liveness.due(heard(1, 10), at(20)), Due::At(at(30)));
        assert_eq!(liveness.due(heard(1, 10), at(33)), Due::Ask);
        assert_eq!(liveness.asked_at(), Some(at(33)));
        assert_eq!(liveness.due(heard(1, 10), at(33)), Due::At(at(38)));
        // The answer may come at the very instant of the question.
        assert_eq!(liveness.due(heard(2, 33), at(33)), Due::At(at(53)));
        assert_eq!(liveness.due(heard(2, 33), at(53)), Due::Ask);
        assert_eq!(liveness.due(heard(2, 33), at(58)), Due::Dead);
        let mut never = Liveness::new(None, Duration::ZERO);
        assert_eq!(never.due(heard(0, 0), at(1_000_000)), Due::Never);
    }
}
