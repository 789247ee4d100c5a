//! How fast streams are reset. Pure: `now` is handed in.
//!
//! Servers end connections whose client resets many streams, since that is what an attack looks like
//! (CVE-2023-44487): Netty after 200 in 30 seconds, nghttp2 when a store of 1,000 that refills by 33 a second
//! is empty. So resets are paid from a store of [`BURST`] that refills by one each [`REFILL`]: at most 190 in
//! any 30 seconds. What cannot be paid waits: the response may end by itself meanwhile.

use std::time::{Duration, Instant};

/// Resets that may follow at once.
const BURST: u32 = 100;
/// One more after each of these.
const REFILL: Duration = Duration::from_millis(333);

/// The store of one connection.
#[derive(Debug)]
pub(crate) struct Resets {
    left: u32,
    /// Since when the next one grows; `None` while it is full.
    since: Option<Instant>,
}

impl Default for Resets {
    fn default() -> Self {
        Self {
            left: BURST,
            since: None,
        }
    }
}

impl Resets {
    /// Pays for one reset, or says when the next one can be paid.
    pub(crate) fn pay(&mut self, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            self.since.get_or_insert(now);
            return Ok(());
        }
        Err(self.since.map_or(now, |since| since + REFILL))
    }

    fn refill(&mut self, now: Instant) {
        let Some(since) = &mut self.since else { return };
        let grown = now.saturating_duration_since(*since).as_nanos() / REFILL.as_nanos();
        let grown = u32::try_from(grown).unwrap_or(u32::MAX);
        if grown >= BURST - self.left {
            *self = Self::default();
        } else {
            self.left += grown;
            *since += REFILL * grown;
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and clock, which is below.
    use super::*;
    use crate::clock::now;

    #[test]
    fn never_more_than_190_resets_in_30_seconds() {
        let start = now();
        let mut resets = Resets::default();
        let mut paid = Vec::new();
        let mut at = start;
        while at < start + Duration::from_secs(120) {
            match resets.pay(at) {
                Ok(()) => paid.push(at),
                Err(next) => {
                    assert!(next > at && next <= at + REFILL);
                    at = next;
                }
            }
        }
        assert_eq!(paid.iter().filter(|p| **p == start).count(), BURST as usize);
        let most = paid.iter().enumerate().map(|(n, first)| {
            let end = *first + Duration::from_secs(30);
            paid[n..].iter().take_while(|p| **p < end).count()
        });
        assert_eq!(most.max(), Some(190));
    }

    #[test]
    fn store_fills_up_again_and_no_further() {
        let start = now();
        let mut resets = Resets::default();
        for _ in 0..BURST {
            assert_eq!(resets.pay(start), Ok(()));
        }
        assert_eq!(resets.pay(start), Err(start + REFILL));
        let much_later = start + Duration::from_secs(3600);
        let paid = (0..=BURST).filter(|_| resets.pay(much_later).is_ok());
        assert_eq!(paid.count(), BURST as usize);
    }
}
