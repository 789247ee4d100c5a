//! The one clock. Every instant of the crate comes from here, so that a test can pause time and
//! so that instants of different parts can be compared.

use std::time::Instant;

/// The current instant, as tokio sees it: real time, or the paused clock of a test.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// `at + after` for a timer; a deadline too far for the clock is as good as thirty years.
pub(crate) fn deadline(at: Instant, after: std::time::Duration) -> Instant {
    const FAR: std::time::Duration = std::time::Duration::from_secs(30 * 365 * 24 * 3600);
    at.checked_add(after.min(FAR)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use std::time::Duration;

    #[test]
    fn an_endless_deadline_does_not_overflow() {
        let now = super::now();
        assert!(super::deadline(now, Duration::MAX) > now);
        assert_eq!(super::deadline(now, Duration::ZERO), now);
    }
}
