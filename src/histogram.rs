//! A histogram of durations that takes 1.2 KiB however many are recorded: one for each stream of events that is
//! open. Pure.

use std::fmt;
use std::time::Duration;

/// Of each power of two there are so many buckets: a value is known to a sixteenth.
const SUB_BITS: u32 = 3;
const SUBS: u64 = 1 << SUB_BITS;
/// Up to 2^36 microseconds, some 19 hours.
const MOST: u64 = 1 << 36;
const BUCKETS: usize = bucket_of(MOST) + 1;

const fn bucket_of(micros: u64) -> usize {
    if micros < 2 * SUBS {
        return micros as usize;
    }
    let exponent = micros.ilog2() - SUB_BITS;
    ((exponent as u64) * SUBS + (micros >> exponent)) as usize
}

/// The middle of a bucket.
fn middle_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUBS {
        return bucket;
    }
    let exponent = bucket / SUBS - 1;
    let from = (bucket % SUBS + SUBS) << exponent;
    from + (1 << exponent) / 2
}

/// Durations, counted in buckets that are a sixteenth of their value wide to either side, from a microsecond to
/// 19 hours.
#[derive(Clone)]
pub struct DurationHistogram {
    counts: Box<[u32; BUCKETS]>,
    count: u64,
    sum: Duration,
    max: Duration,
}

impl DurationHistogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            count: 0,
            sum: Duration::ZERO,
            max: Duration::ZERO,
        }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(MOST).min(MOST);
        let bucket = &mut self.counts[bucket_of(micros)];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
        self.sum = self.sum.saturating_add(time);
        self.max = self.max.max(time);
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; `None` if there are none.
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| self.sum.div_f64(self.count as f64))
    }

    /// The longest; `None` if there are none.
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then_some(self.max)
    }

    /// What the share `q` of them, from 0 to 1, does not exceed, to a sixteenth; `None` if there are none.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let wanted = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return Some(Duration::from_micros(middle_of(bucket)).min(self.max));
            }
        }
        Some(self.max)
    }
}

impl fmt::Debug for DurationHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurationHistogram")
            .field("count", &self.count)
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn every_value_has_a_bucket_whose_middle_is_within_a_sixteenth() {
        let mut last = 0;
        let values = (0..100_000).chain((17..36).map(|n| (1u64 << n) + 12_345));
        for micros in values.chain([MOST]) {
            let bucket = bucket_of(micros);
            assert!(bucket >= last && bucket < BUCKETS, "{micros}");
            last = bucket;
            let off = middle_of(bucket).abs_diff(micros);
            assert!(
                off * 16 <= micros,
                "{micros} is taken for {}",
                middle_of(bucket)
            );
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut histogram = DurationHistogram::new();
        assert_eq!(
            (histogram.quantile(0.5), histogram.mean(), histogram.max()),
            (None, None, None)
        );
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis));
        }
        histogram.record(Duration::MAX);
        let about = |q: f64| histogram.quantile(q).unwrap().as_secs_f64() * 1e3;
        assert!((about(0.5) - 50.0).abs() < 4.0 && (about(0.9) - 90.0).abs() < 7.0);
        assert!(about(0.0) < 1.1 && histogram.count() == 101);
        assert_eq!(histogram.max(), Some(Duration::MAX));
        assert!(histogram.quantile(1.0).unwrap() > Duration::from_secs(36_000));
    }
}
