//! Errors of h2 turned into ours: whose fault, and what is known about the request (RFC 9113 §6.8, §8.7).

use h2::Reason;

use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::timing::Phase;

use super::frames::GoAway;
use super::tap::TapState;

/// The id of the first request on a connection (RFC 9113 §5.1.1).
const FIRST_STREAM: u32 = 1;

/// What is told of a connection that was given up because nothing was heard any more.
pub(super) const UNRESPONSIVE: &str =
    "the peer fell silent: it did not answer a PING, and the connection was given up";

/// What is told of one that ends with its pool.
pub(super) const SHUT_DOWN: &str = "the connection pool was shut down";

/// A peer that ends a new connection with an error before it took the first request refuses the
/// connection and not the request.
pub(super) fn is_connection_refused(error: &h2::Error, stream: u32) -> bool {
    stream == FIRST_STREAM
        && error.is_go_away()
        && error.is_remote()
        && !matches!(
            error.reason(),
            Some(Reason::NO_ERROR | Reason::HTTP_1_1_REQUIRED)
        )
}

pub(super) fn connection_refused(tap: &TapState, phase: Phase) -> Error {
    Error::new(
        ErrorKind::ConnectionLost,
        format!("the peer refused the connection with {}", goaway(tap)),
    )
    .at(phase)
    .with_replay(ReplaySafety::Unprocessed)
}

/// `unknown` is what is known of the request if the error says nothing about it.
pub(super) fn describe(
    error: h2::Error,
    tap: &TapState,
    phase: Phase,
    unknown: ReplaySafety,
) -> Error {
    let is_seen = unknown == ReplaySafety::Processed;
    let unprocessed = if is_seen {
        unknown
    } else {
        ReplaySafety::Unprocessed
    };
    let reason = error.reason();
    let (kind, message, replay) = if unknown == ReplaySafety::NotSent {
        let message = match tap.goaway() {
            Some(_) => format!(
                "the HTTP/2 connection takes no new streams: {}",
                goaway(tap)
            ),
            None => "the HTTP/2 connection takes no new streams".into(),
        };
        (ErrorKind::ConnectionLost, message, unknown)
    } else if reason == Some(Reason::HTTP_1_1_REQUIRED) && error.is_remote() {
        let message = "the peer wants HTTP/1.1 for this request (HTTP_1_1_REQUIRED)";
        (ErrorKind::Http1Required, message.into(), unprocessed)
    } else if error.is_go_away() && error.is_remote() {
        // RFC 9113 §6.8: streams above the last stream id were not processed.
        let message = format!("the peer did not process the request: {}", goaway(tap));
        (ErrorKind::Refused, message, unprocessed)
    } else if error.is_reset() && error.is_remote() {
        match reason {
            // RFC 9113 §8.7.
            Some(Reason::REFUSED_STREAM) => (
                ErrorKind::Refused,
                "the peer refused the stream (REFUSED_STREAM)".into(),
                unprocessed,
            ),
            reason => {
                let message = format!("the peer reset the stream ({})", name(reason));
                (ErrorKind::Refused, message, unknown)
            }
        }
    } else if error.is_io() {
        return lost(error, tap).at(phase).with_replay(unknown);
    } else {
        let message = format!("the peer broke HTTP/2 ({})", name(reason));
        (ErrorKind::Protocol, message, unknown)
    };
    let described = Error::new(kind, message).at(phase).with_replay(replay);
    // A peer that took nothing at all on a connection may refuse the next one too.
    let took_some = |goaway: GoAway| goaway.is_graceful() && goaway.last_stream > 0;
    if error.is_go_away() && error.is_remote() && tap.goaway().is_some_and(took_some) {
        described.of_connection().orderly()
    } else if error.is_go_away() {
        described.of_connection()
    } else {
        described
    }
}

/// The task took the stream away.
pub(super) fn cut_off(phase: Phase) -> Error {
    Error::new(
        ErrorKind::SlowReader,
        "the response was not read while more of it came than may be kept; its stream was reset",
    )
    .at(phase)
    .with_replay(ReplaySafety::Processed)
}

/// The connection ended below HTTP/2.
fn lost(error: h2::Error, tap: &TapState) -> Error {
    if tap.is_flooded() {
        return Error::new(
            ErrorKind::Protocol,
            "the peer floods the connection with empty DATA frames",
        );
    }
    let message = match tap.goaway() {
        Some(_) => format!("the HTTP/2 connection was lost after {}", goaway(tap)),
        None => "the HTTP/2 connection was lost".into(),
    };
    let lost = Error::new(ErrorKind::ConnectionLost, message);
    match error.into_io() {
        Some(io) => lost.with_source(io),
        None => lost,
    }
}

/// The peer's GOAWAY in words, its text escaped and cut.
fn goaway(tap: &TapState) -> String {
    let code = tap.goaway().map(|goaway| Reason::from(goaway.code));
    let text = tap.goaway_text();
    if text.is_empty() {
        format!("GOAWAY ({})", name(code))
    } else {
        format!("GOAWAY ({}, `{text}`)", name(code))
    }
}

/// The name of an error code (RFC 9113 §7).
fn name(reason: Option<Reason>) -> String {
    match reason {
        // Its Debug is the name in the RFC.
        Some(reason) => format!("{reason:?}"),
        None => "no code".into(),
    }
}
