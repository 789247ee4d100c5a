//! How many retries an origin may be asked to bear: a server that fails every request must not get each one
//! twice. Pure: `now` is handed in.

use std::time::{Duration, Instant};

/// Retries are weighed against the requests of about this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Retries for each hundred requests.
const PERCENT: u64 = 20;
/// And whatever happens for each second, so that a client that asks seldom is served too.
const PER_SECOND: u64 = 10;

/// The books of one origin.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    since: Instant,
    /// Requests before the window began.
    requests_before: u64,
    spent: u64,
}

impl RetryBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            requests_before: 0,
            spent: 0,
        }
    }

    /// Takes one retry out of the budget; `requests` is how many the origin was asked so far. False if
    /// nothing is left.
    pub(crate) fn try_spend(&mut self, requests: u64, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        if age >= WINDOW {
            *self = Self {
                since: now,
                requests_before: requests,
                spent: 0,
            };
        }
        let seconds = now.saturating_duration_since(self.since).as_secs() + 1;
        let asked = requests.saturating_sub(self.requests_before);
        let allowed = asked * PERCENT / 100 + seconds * PER_SECOND;
        let may = self.spent < allowed;
        self.spent += u64::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_ten_a_second() {
        let t0 = Instant::now();
        let mut budget = RetryBudget::new(t0);
        let mut spend = |requests, at| {
            let at = t0 + Duration::from_millis(at);
            std::iter::from_fn(|| budget.try_spend(requests, at).then_some(())).count()
        };
        assert_eq!(spend(1, 0), 10, "the first second's");
        assert_eq!(spend(1000, 10), 200);
        assert_eq!(spend(1000, 999), 0);
        assert_eq!(spend(1000, 1000), 10, "the second one's");
        assert_eq!(spend(1005, 1500), 1);
        // A new window: what was asked before does not count.
        assert_eq!(spend(1005, 11_500), 10);
        assert_eq!(spend(1105, 11_600), 20);
    }
}
