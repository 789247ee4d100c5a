//! A handshake that still runs under the first request (0-RTT, RFC 8446 §2.3): what is not known
//! yet, and who learns it when.
//!
//! ```text
//! Open --the peer's Finished--> Ended(facts: accepted or rejected)
//!   '---failed, other protocol--> Ended(error)
//! ```
//!
//! While it is open the connection belongs to one request alone: whatever is written to it may be
//! replayed by an attacker.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::sync::lock;
use crate::timing::{ConnectionTrace, EarlyData, Phase, TlsFacts};

use super::memory::Memory;

/// The open end of a handshake, shared by its stream and by whoever asks for its outcome.
#[derive(Debug)]
pub(crate) struct Early {
    expects_http2: bool,
    /// The trace as it was when the request could be sent. Set before anything is.
    trace: OnceLock<ConnectionTrace>,
    outcome: OnceLock<Outcome>,
    /// The address that won before it had said a word, and who must hear if it never does.
    address: Option<(IpAddr, Arc<Mutex<Memory>>)>,
}

#[derive(Debug)]
struct Outcome {
    at: Instant,
    result: Result<Arc<ConnectionTrace>, Error>,
}

impl Early {
    pub(super) fn new(
        expects_http2: bool,
        address: Option<(IpAddr, Arc<Mutex<Memory>>)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            expects_http2,
            address,
            trace: OnceLock::new(),
            outcome: OnceLock::new(),
        })
    }

    /// The request may be sent.
    pub(super) fn opened(&self, trace: ConnectionTrace) {
        let _ = self.trace.set(trace);
    }

    /// The handshake is over. Fails if the server chose another protocol than the one in which the
    /// request was written.
    pub(super) fn ended(&self, facts: TlsFacts, at: Instant) -> Result<(), Error> {
        let is_http2 = facts.alpn.as_deref() == Some("h2");
        if is_http2 != self.expects_http2 {
            // The peer cannot have taken the one for the other: nothing was processed.
            let error = Error::new(
                ErrorKind::Refused,
                "the server changed its protocol under early data",
            )
            .at(Phase::Tls)
            .with_replay(ReplaySafety::Unprocessed);
            self.failed(error.clone(), at);
            return Err(error);
        }
        let trace = self.trace.get().expect("nothing is sent before it is set");
        let _ = self.outcome.set(Outcome {
            at,
            result: Ok(Arc::new(trace.with_late_handshake(facts, at))),
        });
        Ok(())
    }

    pub(super) fn failed(&self, error: Error, at: Instant) {
        if let Some((ip, memory)) = &self.address
            && error.kind() != ErrorKind::Refused
        {
            lock(memory).failed(*ip, at);
        }
        let _ = self.outcome.set(Outcome {
            at,
            result: Err(error),
        });
    }

    /// Whether the handshake still runs.
    pub(crate) fn is_open(&self) -> bool {
        self.outcome.get().is_none()
    }

    /// The whole trace, once the handshake has ended well.
    pub(crate) fn trace(&self) -> Option<&Arc<ConnectionTrace>> {
        self.outcome.get()?.result.as_ref().ok()
    }

    /// The end of the handshake and its trace, if early data was rejected.
    pub(crate) fn rejected(&self) -> Option<(Instant, Arc<ConnectionTrace>)> {
        let at = self.outcome.get()?.at;
        let trace = self.trace()?;
        let facts = trace.tls_facts.as_ref()?;
        (facts.early_data == EarlyData::Rejected).then(|| (at, trace.clone()))
    }

    /// Why the handshake failed.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.outcome.get()?.result.as_ref().err()
    }
}
