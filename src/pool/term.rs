//! How long one connection serves: until when, for how many requests, and when its successor is
//! dialled. Pure: `now` is handed in.
//!
//! ```text
//! ready ------------- serves ------------- renew -- successor is ready, or the limit -- over
//!                                          (dial)
//! ```

use std::time::{Duration, Instant};

use crate::clock::deadline;
use crate::close_reason::CloseReason;

use super::habits::used;

/// Before the end of its life, at most: a dial, one that failed, and one more.
const RENEW_AHEAD: Duration = Duration::from_secs(30);

/// The bounds of one connection. What the peer teaches or announces narrows them later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Term {
    renew_at: Option<Instant>,
    retire_at: Option<Instant>,
    renew_after: Option<u64>,
    retire_after: Option<(u64, CloseReason)>,
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Serves,
    /// It goes on until its successor is ready.
    Renew(CloseReason),
    /// It takes no new requests.
    Over(CloseReason),
}

impl Term {
    /// `spread` in 0..=10 makes the life shorter by as many percent, so that connections opened together
    /// do not end together.
    pub(crate) fn new(
        ready: Instant,
        max_lifetime: Option<Duration>,
        spread: u32,
        max_requests: Option<u64>,
    ) -> Self {
        let life = max_lifetime.map(|life| life.saturating_sub(life / 100 * spread.min(10)));
        let ahead = |life: Duration| life.saturating_sub(RENEW_AHEAD.min(life / 5));
        Self {
            renew_at: life.map(|life| deadline(ready, ahead(life))),
            retire_at: life.map(|life| deadline(ready, life)),
            renew_after: max_requests.map(used),
            retire_after: max_requests.map(|n| (n, CloseReason::RequestLimit)),
        }
    }

    /// The peer ends connections after so many requests, as it taught.
    pub(crate) fn learned(mut self, limit: Option<u64>) -> Self {
        if let Some(limit) = limit {
            self.at_most(used(limit), limit, CloseReason::LearnedLimit);
        }
        self
    }

    /// The peer announced that it takes `more` requests after the `requests` it had.
    pub(crate) fn announced(&mut self, requests: u64, more: u64) {
        let last = requests.saturating_add(more);
        // One ahead, so that the last request is under way while the successor is dialled.
        self.at_most(last.saturating_sub(1), last, CloseReason::LearnedLimit);
    }

    fn at_most(&mut self, renew: u64, retire: u64, why: CloseReason) {
        if self.retire_after.is_none_or(|(most, _)| retire < most) {
            self.retire_after = Some((retire, why));
        }
        self.renew_after = Some(self.renew_after.map_or(renew, |most| most.min(renew)));
    }

    /// How it stands after `requests`.
    pub(crate) fn standing(&self, requests: u64, now: Instant) -> Standing {
        if self.retire_at.is_some_and(|at| now >= at) {
            return Standing::Over(CloseReason::Lifetime);
        }
        if let Some((most, why)) = self.retire_after
            && requests >= most
        {
            return Standing::Over(why);
        }
        if self.renew_at.is_some_and(|at| now >= at) {
            return Standing::Renew(CloseReason::Lifetime);
        }
        if self.renew_after.is_some_and(|most| requests >= most) {
            let why = self.retire_after.map(|(_, why)| why);
            return Standing::Renew(why.unwrap_or(CloseReason::RequestLimit));
        }
        Standing::Serves
    }

    /// When time alone changes how it stands.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        let changes = self.renew_at.into_iter().chain(self.retire_at);
        changes.filter(|at| *at > now).min()
    }

    /// When it takes no new requests, whatever comes.
    pub(crate) fn retire_at(&self) -> Option<Instant> {
        self.retire_at
    }

    /// Requests after which its successor is dialled.
    pub(crate) fn renew_after(&self) -> u64 {
        self.renew_after.unwrap_or(u64::MAX)
    }

    /// Requests it takes at most.
    pub(crate) fn max_requests(&self) -> Option<u64> {
        self.retire_after.map(|(most, _)| most)
    }
}

/// How long an idle connection is used of the time that `Keep-Alive: timeout` announced: the peer
/// counts from when it sent, we from when we read.
pub(crate) fn announced_idle(timeout: Duration) -> Duration {
    /// Clocks and paths differ by less than that.
    const MARGIN: Duration = Duration::from_secs(2);
    timeout.saturating_sub(MARGIN.min(timeout / 5))
}

#[cfg(test)]
mod tests {
    // layering: uses this module, and close_reason, which is below.
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn life_ends_with_up_to_10_percent_of_spread_and_is_renewed_before() {
        let t0 = Instant::now();
        let term = |spread| Term::new(t0, Some(S(100)), spread, None);
        assert_eq!(term(0).standing(9, t0 + S(79)), Standing::Serves);
        assert_eq!(term(0).next_change(t0), Some(t0 + S(80)));
        let renew = Standing::Renew(CloseReason::Lifetime);
        assert_eq!(term(0).standing(9, t0 + S(80)), renew);
        assert_eq!(term(0).next_change(t0 + S(80)), Some(t0 + S(100)));
        let over = Standing::Over(CloseReason::Lifetime);
        assert_eq!(term(0).standing(0, t0 + S(100)), over);
        assert_eq!(term(0).next_change(t0 + S(100)), None);
        assert_eq!(term(10).retire_at(), Some(t0 + S(90)));
        assert_eq!(term(11).retire_at(), Some(t0 + S(90)));
        let long = Term::new(t0, Some(S(3600)), 0, None);
        assert_eq!(long.next_change(t0), Some(t0 + S(3570)));
        let endless = Term::new(t0, Some(Duration::MAX), 0, None);
        assert_eq!(endless.standing(1, t0 + S(1_000_000)), Standing::Serves);
    }

    #[test]
    fn requests_are_counted_against_the_smallest_of_all_limits() {
        let t0 = Instant::now();
        let term = Term::new(t0, None, 0, Some(100));
        assert_eq!(term.standing(79, t0), Standing::Serves);
        let renew = |why| Standing::Renew(why);
        assert_eq!(term.standing(80, t0), renew(CloseReason::RequestLimit));
        assert_eq!(
            term.standing(100, t0),
            Standing::Over(CloseReason::RequestLimit)
        );
        let mut taught = term.learned(Some(10));
        assert_eq!(taught.standing(8, t0), renew(CloseReason::LearnedLimit));
        assert_eq!(taught.max_requests(), Some(10));
        taught.announced(3, 2);
        assert_eq!(taught.standing(4, t0), renew(CloseReason::LearnedLimit));
        assert_eq!(
            taught.standing(5, t0),
            Standing::Over(CloseReason::LearnedLimit)
        );
        taught.announced(4, 50);
        assert_eq!(taught.max_requests(), Some(5), "what was said once holds");
        assert_eq!(term.learned(None), term);
        let free = Term::new(t0, None, 0, None);
        assert_eq!(free.standing(u64::MAX, t0), Standing::Serves);
        assert_eq!((free.renew_after(), free.max_requests()), (u64::MAX, None));
    }

    #[test]
    fn a_connection_for_one_request_is_renewed_while_that_one_runs() {
        let t0 = Instant::now();
        let term = Term::new(t0, None, 0, Some(1));
        assert_eq!(term.standing(0, t0), Standing::Serves);
        assert_eq!(term.renew_after(), 1);
    }

    #[test]
    fn announced_idle_time_is_used_up_to_a_margin() {
        assert_eq!(announced_idle(S(60)), S(58));
        assert_eq!(announced_idle(S(5)), S(4));
        assert_eq!(announced_idle(S(0)), S(0));
    }
}
