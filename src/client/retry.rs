//! Whether a failed attempt is made again. Pure. RFC 9110 §9.2.2, RFC 9112 §9.3.1, RFC 9113 §8.7.
//!
//! Beside this the origin's budget must have a retry left (`pool::budget`).

use crate::error::{Error, ErrorKind, ReplaySafety};

use super::options::RetryPolicy;

/// What is known about a failed attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) replay_safety: ReplaySafety,
    pub(crate) on_reused_connection: bool,
    pub(crate) http1: bool,
    pub(crate) idempotent: bool,
    /// The body can be sent once more.
    pub(crate) has_body: bool,
}

impl Failure {
    pub(crate) fn new(error: &Error, on_reused_connection: bool, http1: bool) -> Self {
        Self {
            kind: error.kind(),
            replay_safety: error.replay_safety(),
            on_reused_connection,
            http1,
            idempotent: false,
            has_body: false,
        }
    }
}

/// What was tried again so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    refused: u32,
    other: u32,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GiveUp,
    Again {
        /// On a connection of its own and not on one from the pool.
        fresh: bool,
        /// After a moment (10 to 50 ms).
        pause: bool,
    },
}

impl Tries {
    /// Decides, and counts what it decides.
    pub(crate) fn verdict(&mut self, policy: RetryPolicy, failure: Failure) -> Verdict {
        if policy == RetryPolicy::Never || !failure.has_body {
            return Verdict::GiveUp;
        }
        // The caller's own mistakes and limits do not get better by trying again.
        let transient = matches!(failure.kind, ErrorKind::ConnectionLost | ErrorKind::Refused);
        let first = self.refused + self.other == 0;
        match failure.replay_safety {
            // RFC 9113 §8.7: refused, or above GOAWAY's last stream: not processed, any method. The
            // same holds for a stream that could not be opened any more. A peer that refuses the whole
            // connection (kind ConnectionLost) would refuse the next one too.
            ReplaySafety::Unprocessed
                if failure.kind == ErrorKind::Refused && self.refused < 2 && self.other == 0 =>
            {
                self.refused += 1;
                Verdict::Again {
                    fresh: false,
                    pause: self.refused == 2,
                }
            }
            ReplaySafety::NotSent
                if transient && !failure.http1 && self.refused < 2 && self.other == 0 =>
            {
                self.refused += 1;
                Verdict::Again {
                    fresh: false,
                    pause: self.refused == 2,
                }
            }
            ReplaySafety::NotSent if transient && failure.on_reused_connection && first => {
                self.other += 1;
                Verdict::Again {
                    fresh: true,
                    pause: false,
                }
            }
            // RFC 9112 §9.3.1: the server closed an idle connection just as we wrote.
            ReplaySafety::MaybeProcessed
                if transient
                    && failure.http1
                    && failure.on_reused_connection
                    && failure.idempotent
                    && first =>
            {
                self.other += 1;
                Verdict::Again {
                    fresh: true,
                    pause: false,
                }
            }
            _ => Verdict::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and error, which is below.
    use super::*;

    const LOST: Failure = Failure {
        kind: ErrorKind::ConnectionLost,
        replay_safety: ReplaySafety::MaybeProcessed,
        on_reused_connection: true,
        http1: true,
        idempotent: true,
        has_body: true,
    };
    const AGAIN_FRESH: Verdict = Verdict::Again {
        fresh: true,
        pause: false,
    };

    fn first(failure: Failure) -> Verdict {
        Tries::default().verdict(RetryPolicy::Rfc, failure)
    }

    #[test]
    fn lost_reused_connection_is_replayed_once_if_idempotent() {
        let mut tries = Tries::default();
        assert_eq!(tries.verdict(RetryPolicy::Rfc, LOST), AGAIN_FRESH);
        assert_eq!(tries.verdict(RetryPolicy::Rfc, LOST), Verdict::GiveUp);
        assert_eq!(
            first(Failure {
                idempotent: false,
                ..LOST
            }),
            Verdict::GiveUp
        );
        assert_eq!(
            first(Failure {
                on_reused_connection: false,
                ..LOST
            }),
            Verdict::GiveUp
        );
        assert_eq!(
            first(Failure {
                http1: false,
                ..LOST
            }),
            Verdict::GiveUp
        );
        assert_eq!(
            first(Failure {
                has_body: false,
                ..LOST
            }),
            Verdict::GiveUp
        );
        assert_eq!(
            Tries::default().verdict(RetryPolicy::Never, LOST),
            Verdict::GiveUp
        );
    }

    #[test]
    fn unprocessed_is_replayed_twice_whatever_the_method() {
        let refused = Failure {
            kind: ErrorKind::Refused,
            replay_safety: ReplaySafety::Unprocessed,
            idempotent: false,
            on_reused_connection: false,
            http1: false,
            has_body: true,
        };
        let mut tries = Tries::default();
        let again = |pause| Verdict::Again {
            fresh: false,
            pause,
        };
        assert_eq!(tries.verdict(RetryPolicy::Rfc, refused), again(false));
        assert_eq!(tries.verdict(RetryPolicy::Rfc, refused), again(true));
        assert_eq!(tries.verdict(RetryPolicy::Rfc, refused), Verdict::GiveUp);
        let connection_refused = Failure {
            kind: ErrorKind::ConnectionLost,
            ..refused
        };
        assert_eq!(first(connection_refused), Verdict::GiveUp);
    }

    #[test]
    fn nothing_is_replayed_once_a_response_was_seen_or_when_waiting_is_over() {
        let seen = Failure {
            replay_safety: ReplaySafety::Processed,
            ..LOST
        };
        assert_eq!(first(seen), Verdict::GiveUp);
        let timeout = Failure {
            kind: ErrorKind::Timeout,
            ..LOST
        };
        assert_eq!(first(timeout), Verdict::GiveUp);
        let not_sent = Failure {
            replay_safety: ReplaySafety::NotSent,
            idempotent: false,
            ..LOST
        };
        assert_eq!(first(not_sent), AGAIN_FRESH);
        let fresh = Failure {
            on_reused_connection: false,
            ..not_sent
        };
        assert_eq!(first(fresh), Verdict::GiveUp);
    }
}
