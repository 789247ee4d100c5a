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

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crate::error::{Error, ErrorKind, ReplaySafety};
use crate::sync::lock;
use crate::timing::{ConnectionTrace, EarlyData, Phase, TlsFacts};

use super::memory::Memory;
use super::plan::Protocols;

/// The open end of a handshake, shared by its stream and by whoever asks for its outcome.
#[derive(Debug)]
pub(crate) struct Early {
    protocols: Protocols,
    expects_http2: bool,
    /// The trace as it was when the request could be sent. Set before anything is.
    trace: OnceLock<ConnectionTrace>,
    outcome: OnceLock<Outcome>,
    /// The address that won before it had said a word, and who must hear if it never does.
    address: Option<(IpAddr, Arc<Mutex<Memory>>)>,
    /// Who hears how it ended, if it ended well.
    listener: OnceLock<Listener>,
}

struct Listener(Box<dyn Fn(&TlsFacts) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

#[derive(Debug)]
struct Outcome {
    at: Instant,
    result: Result<Arc<ConnectionTrace>, Error>,
}

impl Early {
    pub(super) fn new(
        protocols: Protocols,
        expects_http2: bool,
        address: Option<(IpAddr, Arc<Mutex<Memory>>)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            protocols,
            expects_http2,
            listener: OnceLock::new(),
            address,
            trace: OnceLock::new(),
            outcome: OnceLock::new(),
        })
    }

    /// Calls `listener` with what the handshake agreed on, once it has ended well. Before anything is
    /// sent.
    pub(crate) fn when_ended(&self, listener: impl Fn(&TlsFacts) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(listener)));
    }

    /// The request may be sent.
    pub(super) fn opened(&self, trace: ConnectionTrace) {
        let _ = self.trace.set(trace);
    }

    /// The handshake is over. Fails if the server chose another protocol than the one in which the
    /// request was written.
    pub(super) fn ended(&self, facts: TlsFacts, at: Instant) -> Result<(), Error> {
        if self.protocols.is_http2(facts.alpn.as_deref()) != self.expects_http2 {
            // A peer that did not take the early data got the rest in a protocol that it does not
            // speak. One that did take it has its own idea of what that was.
            let safety = if facts.early_data == EarlyData::Accepted {
                ReplaySafety::MaybeProcessed
            } else {
                ReplaySafety::Unprocessed
            };
            let error = Error::new(
                ErrorKind::Refused,
                "the server changed its protocol under early data",
            )
            .at(Phase::Tls)
            .with_replay(safety);
            self.failed(error.clone(), at);
            return Err(error);
        }
        if let Some(Listener(listener)) = self.listener.get() {
            listener(&facts);
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
