//! Whether an attempt is made again. Pure. RFC 9110 §9.2.2 and §15.5.20, RFC 9112 §9.3.1, RFC 9113 §8.7,
//! RFC 8470 §5.2.
//!
//! Beside this the origin's budget must have a retry left (`pool::budget`), but for those that
//! [are free](Again::is_free).

use http::StatusCode;

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
    /// The peer's limits were not known yet.
    pub(crate) unsettled: bool,
    /// The peer ended the connection in good order (GOAWAY with NO_ERROR), and had taken requests on it.
    pub(crate) is_orderly: bool,
    /// The client's options allow HTTP/1.1 as well.
    pub(crate) may_use_http1: bool,
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
            unsettled: false,
            is_orderly: error.is_orderly(),
            may_use_http1: false,
        }
    }
}

/// What is known about an attempt that was answered with a status which asks for another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// It travelled as early data.
    pub(crate) was_early: bool,
    /// Its connection was not opened for it.
    pub(crate) was_shared: bool,
    /// The body can be sent once more.
    pub(crate) has_body: bool,
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
    Again(Again),
}

/// How it is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Again {
    /// On a connection of its own and not on one from the pool.
    pub(crate) fresh: bool,
    /// After a moment (10 to 50 ms).
    pub(crate) pause: bool,
    pub(crate) over_http1: bool,
    /// Not charged to the budget: it is no sign of a server in trouble.
    pub(crate) is_free: bool,
}

impl Tries {
    /// Decides about a failure, and counts what it decides.
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
                Verdict::Again(Again {
                    pause: self.refused == 2,
                    // SETTINGS had not come: the limit could not be known. Or the peer has had its number of
                    // requests, which it need not say before (nginx's keepalive_requests).
                    is_free: failure.unsettled || failure.is_orderly,
                    ..Again::default()
                })
            }
            ReplaySafety::NotSent
                if transient && !failure.http1 && self.refused < 2 && self.other == 0 =>
            {
                self.refused += 1;
                Verdict::Again(Again {
                    pause: self.refused == 2,
                    // The server saw nothing of it.
                    is_free: true,
                    ..Again::default()
                })
            }
            ReplaySafety::NotSent if transient && failure.on_reused_connection && first => {
                self.other += 1;
                Verdict::Again(Again {
                    fresh: true,
                    is_free: true,
                    ..Again::default()
                })
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
                Verdict::Again(Again {
                    fresh: true,
                    ..Again::default()
                })
            }
            // RFC 9113 §7: not processed over HTTP/2.
            ReplaySafety::Unprocessed
                if failure.kind == ErrorKind::Http1Required && failure.may_use_http1 && first =>
            {
                self.other += 1;
                Verdict::Again(Again {
                    over_http1: true,
                    ..Again::default()
                })
            }
            _ => Verdict::GiveUp,
        }
    }

    /// Decides about an answer, and counts what it decides. To give up is to deliver it.
    pub(crate) fn answered(&mut self, policy: RetryPolicy, answer: Answer) -> Verdict {
        if policy == RetryPolicy::Never || !answer.has_body || self.other > 0 {
            return Verdict::GiveUp;
        }
        let again = match answer.status {
            // RFC 8470 §5.2: it was not processed, because it was early.
            StatusCode::TOO_EARLY if answer.was_early => Again {
                is_free: true,
                ..Again::default()
            },
            // RFC 9110 §15.5.20: the connection is not one for this origin.
            StatusCode::MISDIRECTED_REQUEST if answer.was_shared => Again {
                fresh: true,
                ..Again::default()
            },
            _ => return Verdict::GiveUp,
        };
        self.other += 1;
        Verdict::Again(again)
    }
}

/// The property that the fuzz target asserts, over failures and answers in any order: what may have been
/// processed is sent again only if that is harmless, nothing is after a byte of the response, and there
/// is an end.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_verdicts(data: &[u8]) {
    let mut tries = Tries::default();
    let mut again = 0;
    for step in data.chunks_exact(2) {
        let bit = |n: u8| step[1] >> n & 1 == 1;
        let policy = if step[0] & 0x80 == 0 {
            RetryPolicy::Rfc
        } else {
            RetryPolicy::Never
        };
        let (verdict, has_body) = if step[0] & 0x40 != 0 {
            let statuses = [421, 425, 200, 503];
            let status = StatusCode::from_u16(statuses[usize::from(step[0] % 4)]);
            let answer = Answer {
                status: status.expect("a status"),
                was_early: bit(0),
                was_shared: bit(1),
                has_body: bit(2),
            };
            let verdict = tries.answered(policy, answer);
            if let Verdict::Again(again) = verdict {
                let is_421 = answer.status == StatusCode::MISDIRECTED_REQUEST;
                assert_eq!(again.fresh, is_421);
                assert!(if is_421 {
                    answer.was_shared
                } else {
                    answer.was_early
                });
            }
            (verdict, answer.has_body)
        } else {
            let kinds = [
                ErrorKind::ConnectionLost,
                ErrorKind::Refused,
                ErrorKind::Http1Required,
                ErrorKind::Timeout,
                ErrorKind::Protocol,
            ];
            let safeties = [
                ReplaySafety::NotSent,
                ReplaySafety::Unprocessed,
                ReplaySafety::MaybeProcessed,
                ReplaySafety::Processed,
            ];
            let failure = Failure {
                kind: kinds[usize::from(step[0] % 5)],
                replay_safety: safeties[usize::from(step[0] / 5 % 4)],
                on_reused_connection: bit(0),
                http1: bit(1),
                idempotent: bit(2),
                has_body: bit(3),
                unsettled: bit(4),
                is_orderly: bit(6),
                may_use_http1: bit(5),
            };
            let verdict = tries.verdict(policy, failure);
            if let Verdict::Again(again) = verdict {
                match failure.replay_safety {
                    ReplaySafety::Processed => panic!("sent again after a response: {failure:?}"),
                    ReplaySafety::MaybeProcessed => {
                        assert!(
                            failure.idempotent && failure.on_reused_connection && failure.http1
                        );
                    }
                    ReplaySafety::NotSent | ReplaySafety::Unprocessed => {}
                }
                assert!(!again.over_http1 || failure.may_use_http1);
                assert!(!matches!(
                    failure.kind,
                    ErrorKind::Timeout | ErrorKind::Protocol
                ));
            }
            (verdict, failure.has_body)
        };
        if verdict != Verdict::GiveUp {
            again += 1;
            assert!(policy == RetryPolicy::Rfc && has_body);
        }
    }
    assert!(again <= 3, "{again} retries");
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
        unsettled: false,
        is_orderly: false,
        may_use_http1: false,
    };
    const AGAIN_FRESH: Verdict = Verdict::Again(Again {
        fresh: true,
        pause: false,
        over_http1: false,
        is_free: false,
    });

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
            ..LOST
        };
        let mut tries = Tries::default();
        let again = |pause| {
            Verdict::Again(Again {
                pause,
                ..Again::default()
            })
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
        let free = Verdict::Again(Again {
            fresh: true,
            is_free: true,
            ..Again::default()
        });
        assert_eq!(first(not_sent), free);
        let fresh = Failure {
            on_reused_connection: false,
            ..not_sent
        };
        assert_eq!(first(fresh), Verdict::GiveUp);
    }

    #[test]
    fn peer_that_wants_http1_gets_it_once() {
        let required = Failure {
            kind: ErrorKind::Http1Required,
            replay_safety: ReplaySafety::Unprocessed,
            idempotent: false,
            http1: false,
            may_use_http1: true,
            ..LOST
        };
        let again = Verdict::Again(Again {
            over_http1: true,
            ..Again::default()
        });
        let mut tries = Tries::default();
        assert_eq!(tries.verdict(RetryPolicy::Rfc, required), again);
        assert_eq!(tries.verdict(RetryPolicy::Rfc, required), Verdict::GiveUp);
        let forbidden = Failure {
            may_use_http1: false,
            ..required
        };
        assert_eq!(first(forbidden), Verdict::GiveUp);
    }

    #[test]
    fn misdirected_and_too_early_requests_are_tried_again_once_where_that_can_help() {
        let misdirected = Answer {
            status: StatusCode::MISDIRECTED_REQUEST,
            was_early: false,
            was_shared: true,
            has_body: true,
        };
        let first = |answer| Tries::default().answered(RetryPolicy::Rfc, answer);
        let mut tries = Tries::default();
        assert_eq!(tries.answered(RetryPolicy::Rfc, misdirected), AGAIN_FRESH);
        assert_eq!(
            tries.answered(RetryPolicy::Rfc, misdirected),
            Verdict::GiveUp
        );
        for hopeless in [
            Answer {
                was_shared: false,
                ..misdirected
            },
            Answer {
                has_body: false,
                ..misdirected
            },
            Answer {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..misdirected
            },
            Answer {
                status: StatusCode::TOO_EARLY,
                ..misdirected
            },
        ] {
            assert_eq!(first(hopeless), Verdict::GiveUp, "{hopeless:?}");
        }
        let early = Answer {
            status: StatusCode::TOO_EARLY,
            was_early: true,
            ..misdirected
        };
        assert_ne!(first(early), Verdict::GiveUp);
        let never = Tries::default().answered(RetryPolicy::Never, early);
        assert_eq!(never, Verdict::GiveUp);
    }
}
