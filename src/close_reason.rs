//! Every way a connection ends, named: a connection never just disappears.

use std::fmt;

macro_rules! close_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a connection was closed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum CloseReason { $($(#[doc = $doc])+ $name,)+ }

        impl CloseReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason in a few words.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

close_reasons! {
    /// It had been idle for longer than its keep-alive expiry.
    IdleExpired = "idle expired",
    /// More connections were idle than `max_keepalive_connections` allows.
    IdleLimit = "idle limit",
    /// It was idle and another origin needed its place under `max_connections`.
    MadeRoom = "made room for another origin",
    /// It reached `max_lifetime`.
    Lifetime = "lifetime reached",
    /// It reached `max_requests_per_connection`.
    RequestLimit = "request limit reached",
    /// The peer announced, or its earlier connections taught, that it would end it soon.
    LearnedLimit = "limit of the peer",
    /// It came near a limit that HTTP/2 connections have in their life: resets, late frames, stream ids.
    WornOut = "worn out",
    /// Its address is in no DNS answer any more.
    AddressGone = "address left the DNS answers",
    /// The peer had sent unsolicited bytes on some connection: none is used again for a while.
    Distrusted = "peer sent unsolicited bytes before",
    /// The peer closed it instead of answering a request.
    ClosedUnanswered = "peer closed it unanswered",
    /// The peer did not answer a PING in time.
    Unresponsive = "peer did not answer a PING",
    /// The peer closed it while it was idle.
    PeerClosedIdle = "peer closed it while idle",
    /// The peer sent bytes nobody had asked for, while it was idle or after a complete response.
    UnsolicitedBytes = "unsolicited bytes",
    /// The peer said `Connection: close`, or speaks HTTP/1.0 without keep-alive.
    PeerAskedToClose = "peer asked to close",
    /// The request said `Connection: close`.
    RequestAskedToClose = "request asked to close",
    /// The response ended with the connection, or its framing forbids reuse.
    ResponseEnded = "response ended with the connection",
    /// The request or its response body was dropped before the end.
    Cancelled = "cancelled",
    /// The request ended before all of its body was sent.
    UploadUnfinished = "upload unfinished",
    /// The exchange failed.
    Failed = "failed",
    /// The peer sent GOAWAY.
    GoAway = "GOAWAY",
    /// The transport failed or ended.
    TransportLost = "transport lost",
    /// The connection was upgraded and handed to the caller, who closed it.
    Upgraded = "upgraded",
    /// The pool was asked to close idle connections.
    CloseIdle = "close_idle",
    /// The pool was shut down or dropped.
    PoolClosed = "pool closed",
    /// Its runtime ended.
    RuntimeGone = "runtime gone",
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
