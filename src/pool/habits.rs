//! What the connections of an origin taught about it: how long it keeps them, how many requests it
//! takes on one, whether it says what nobody asked for. Pure: `now` is handed in.
//!
//! A limit is believed when two endings agree about it: one alone may be a restart or a crash. It is
//! used up to [80 %](USED_PERCENT), so that we end a connection before the peer does: a request that
//! meets a closing connection is lost or sent twice. Ten minutes after it was last confirmed a limit
//! doubles, and again after every further ten: a peer that became more patient is found out, at the
//! price of meeting its limit again.

use std::time::{Duration, Instant};

/// How much of a limit is used.
const USED_PERCENT: u64 = 80;
/// A limit that is not confirmed for so long doubles.
const DOUBLES_AFTER: Duration = Duration::from_secs(600);
/// Two endings agree when they differ by at most this part of the smaller.
const AGREE_PART: u64 = 4;
/// Idle times below teach nothing: a peer that closes at once has failed, and cannot be met by waiting less.
const SHORTEST_IDLE: Duration = Duration::from_millis(1);
/// Fewer requests on a connection than this teach nothing: renewing so often costs more handshakes
/// than it saves waiting.
const FEWEST_REQUESTS: u64 = 5;
/// How long an origin that sent bytes nobody asked for gets no HTTP/1.1 connection reused: they could be
/// taken for the answer to the next request.
const DISTRUST_FOR: Duration = Duration::from_secs(60);

/// A limit as it was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lesson {
    /// Met once and not yet again, and when.
    doubtful: Option<(u64, Instant)>,
    believed: Option<(u64, Instant)>,
}

impl Lesson {
    /// `began` is when the connection set out towards that end: what one restart ends within moments counts
    /// once.
    fn met(&mut self, value: u64, began: Instant, now: Instant) {
        match self.believed {
            Some((limit, _)) if agree(limit, value) => {
                self.believed = Some((limit.min(value), now));
                self.doubtful = None;
            }
            _ => match self.doubtful {
                Some((before, at)) if agree(before, value) => {
                    if began >= at {
                        self.believed = Some((before.min(value), now));
                        self.doubtful = None;
                    }
                }
                _ => self.doubtful = Some((value, now)),
            },
        }
    }

    fn limit(&self, now: Instant) -> Option<u64> {
        let (value, confirmed) = self.believed?;
        let age = now.saturating_duration_since(confirmed).as_secs();
        let doublings = u32::try_from(age / DOUBLES_AFTER.as_secs()).unwrap_or(u32::MAX);
        // Beyond 2^20 times what was seen it says nothing any more.
        (doublings <= 20).then(|| value.saturating_mul(1 << doublings))
    }
}

fn agree(a: u64, b: u64) -> bool {
    a.abs_diff(b) <= a.min(b) / AGREE_PART
}

/// What one origin taught.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Habits {
    /// In nanoseconds.
    idle: Lesson,
    requests: Lesson,
    distrusted_until: Option<Instant>,
}

impl Habits {
    /// The peer closed connections that had been idle for so long, all noticed at once.
    pub(crate) fn closed_idle(&mut self, ages: &[Duration], now: Instant) {
        let nanos = |age: &Duration| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let shortest = ages.iter().map(nanos).min();
        let longest = ages.iter().map(nanos).max();
        if let (Some(shortest), Some(longest)) = (shortest, longest)
            // Old and young ones together: it was restarted.
            && agree(shortest, longest)
            && shortest >= nanos(&SHORTEST_IDLE)
        {
            let began = now
                .checked_sub(Duration::from_nanos(shortest))
                .unwrap_or(now);
            self.idle.met(shortest, began, now);
        }
    }

    /// The peer ended a connection, which was `opened` then, in good order after so many requests.
    pub(crate) fn ended_after(&mut self, requests: u64, opened: Instant, now: Instant) {
        if requests >= FEWEST_REQUESTS {
            self.requests.met(requests, opened, now);
        }
    }

    /// The peer sent bytes that belong to no request.
    pub(crate) fn sent_excess(&mut self, now: Instant) {
        self.distrusted_until = Some(now + DISTRUST_FOR);
    }

    /// The idle time at which it closes connections.
    pub(crate) fn idle_limit(&self, now: Instant) -> Option<Duration> {
        self.idle.limit(now).map(Duration::from_nanos)
    }

    /// The requests after which it ends a connection.
    pub(crate) fn request_limit(&self, now: Instant) -> Option<u64> {
        self.requests.limit(now)
    }

    /// How long a connection may be idle, at most `most`.
    pub(crate) fn idle_expiry(&self, most: Duration, now: Instant) -> Duration {
        match self.idle.limit(now) {
            Some(limit) => most.min(Duration::from_nanos(used(limit))),
            None => most,
        }
    }

    /// Whether an HTTP/1.1 connection may serve a second request.
    pub(crate) fn allows_reuse(&self, now: Instant) -> bool {
        self.distrusted_until.is_none_or(|until| now >= until)
    }
}

/// 80 % of a limit, and at least one of whatever it counts.
pub(crate) fn used(limit: u64) -> u64 {
    let part = u128::from(limit) * u128::from(USED_PERCENT) / 100;
    u64::try_from(part).unwrap_or(limit).max(1)
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn idle_limit_is_believed_when_two_closes_agree_and_used_to_80_percent() {
        let t0 = Instant::now();
        let at = |ms| t0 + MS(ms);
        let mut habits = Habits::default();
        habits.closed_idle(&[MS(52)], at(0));
        assert_eq!(habits.idle_limit(at(0)), None, "one may be a restart");
        habits.closed_idle(&[MS(7000)], at(8000));
        assert_eq!(habits.idle_limit(at(8000)), None, "they do not agree");
        habits.closed_idle(&[MS(50)], at(9000));
        habits.closed_idle(&[MS(51)], at(9010));
        assert_eq!(habits.idle_limit(at(9010)), None, "the same restart");
        habits.closed_idle(&[MS(51)], at(9051));
        assert_eq!(habits.idle_limit(at(9051)), Some(MS(50)), "the shorter one");
        assert_eq!(habits.idle_expiry(MINUTE, at(9051)), MS(40));
        assert_eq!(habits.idle_expiry(MS(3), at(9051)), MS(3));
    }

    #[test]
    fn restart_teaches_nothing_nor_does_a_close_at_once() {
        let t0 = Instant::now();
        let mut habits = Habits::default();
        for round in 1..=3 {
            let at = t0 + MINUTE * round;
            habits.closed_idle(&[MS(100), MS(3000), MS(900)], at);
            habits.closed_idle(&[], at);
            habits.closed_idle(&[Duration::from_micros(999)], at);
            assert_eq!(habits.idle_limit(at), None);
        }
    }

    #[test]
    fn limit_doubles_every_ten_minutes_until_it_is_confirmed_or_corrected() {
        let t0 = Instant::now();
        let mut habits = Habits::default();
        let at = |minutes| t0 + MINUTE * minutes;
        for ms in [1, 200] {
            habits.closed_idle(&[MS(100)], t0 + MS(ms));
        }
        assert_eq!(habits.idle_limit(at(9)), Some(MS(100)));
        assert_eq!(habits.idle_limit(at(11)), Some(MS(200)));
        assert_eq!(habits.idle_limit(at(25)), Some(MS(400)));
        habits.closed_idle(&[MS(105)], at(25));
        assert_eq!(habits.idle_limit(at(26)), Some(MS(100)), "confirmed");
        for minute in [60, 61] {
            habits.closed_idle(&[MS(900)], at(minute));
        }
        assert_eq!(habits.idle_limit(at(61)), Some(MS(900)), "more patient");
        for minute in [62, 63] {
            habits.closed_idle(&[MS(20)], at(minute));
        }
        assert_eq!(habits.idle_limit(at(63)), Some(MS(20)), "less patient");
        assert_eq!(habits.idle_limit(at(100_000)), None, "forgotten in the end");
    }

    #[test]
    fn request_limit_is_learned_from_two_connections_in_succession_and_never_from_a_handful() {
        let t0 = Instant::now();
        let at = |ms| t0 + MS(ms);
        let mut habits = Habits::default();
        let mut end = |requests, opened, ended| {
            habits.ended_after(requests, at(opened), at(ended));
            habits.request_limit(at(ended))
        };
        assert_eq!(end(1, 0, 1), None);
        assert_eq!(end(1, 2, 3), None);
        assert_eq!(end(1000, 4, 5), None);
        assert_eq!(end(37, 6, 7), None);
        assert_eq!(end(1000, 8, 9), None);
        assert_eq!(end(1000, 8, 10), None, "beside each other: a deployment");
        assert_eq!(end(1000, 10, 11), Some(1000));
        assert_eq!((used(1000), used(5), used(1), used(0)), (800, 4, 1, 1));
        assert_eq!(used(u64::MAX), u64::MAX / 5 * 4);
    }

    #[test]
    fn excess_bytes_end_reuse_for_a_minute() {
        let t0 = Instant::now();
        let mut habits = Habits::default();
        assert!(habits.allows_reuse(t0));
        habits.sent_excess(t0);
        assert!(!habits.allows_reuse(t0 + MS(59_999)));
        assert!(habits.allows_reuse(t0 + MINUTE));
    }
}
