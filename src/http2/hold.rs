//! A request's hold on its stream, and what becomes of the stream when the request lets go.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};

use crate::clock::now;
use crate::error::{Error, ReplaySafety};
use crate::timing::Phase;

use super::abandoned::Orphan;
use super::driver::Shared;
use super::fail;
use super::stream::Stream;
use super::unread::End;

/// Held from the moment when the request was given to h2. `L` is its slot under the peer's limit, given
/// back when the stream is over: if it has to be reset, after that.
#[derive(Debug)]
pub(super) struct Hold<L: Send + 'static> {
    pub(super) stream: Arc<Stream>,
    pub(super) shared: Arc<Shared>,
    /// All of the request has been handed over.
    pub(super) is_sent: bool,
    /// What h2 was handed of its body.
    handed: u64,
    /// Bytes that the connection had written when it was opened.
    written_before: u64,
    // `None` only while it is being dropped.
    lease: Option<L>,
}

impl<L: Send + 'static> Hold<L> {
    /// Opens a stream and enters it in the books, before anything of it can be answered: the lock of the
    /// books is taken before that of h2.
    ///
    /// # Errors
    /// Kind ConnectionLost, Refused or Protocol: the connection has ended, or is about to, and nothing was sent.
    pub(super) fn open(
        open: impl FnOnce() -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error>,
        shared: Arc<Shared>,
        lease: L,
        at: Instant,
    ) -> Result<Self, Error> {
        let written_before = shared.tap.written();
        let opened = {
            let mut accounts = shared.ledger.enter();
            open().map(|(response, send)| {
                let stream = Arc::new(Stream::new(response, send));
                accounts.unread.open(stream.id(), stream.clone(), at);
                stream
            })
        };
        let stream = opened.map_err(|error| {
            shared.refuse();
            fail::describe(error, &shared.tap, Phase::Send, ReplaySafety::NotSent)
        })?;
        Ok(Self {
            stream,
            shared,
            is_sent: false,
            handed: 0,
            written_before,
            lease: Some(lease),
        })
    }

    /// h2 was handed so much of its body, all in all.
    pub(super) fn handed(&mut self, bytes: u64) {
        if bytes > self.handed {
            self.shared.tap.handed(bytes - self.handed);
            self.handed = bytes;
        }
    }

    pub(super) fn lease(&self) -> &L {
        self.lease.as_ref().expect("taken only when dropped")
    }

    /// Nothing has been written since: not this request either.
    pub(super) fn is_unwritten(&self) -> bool {
        self.shared.tap.written() == self.written_before
    }

    /// The peer has said all that it had to say, and all of it was taken: the tap tells of a frame at its head.
    pub(super) fn is_answered(&self) -> bool {
        let stream = self.stream.id();
        let is_cut = self.shared.tap.is_cut_in(stream);
        !is_cut && self.shared.ledger.enter().unread.is_complete(stream)
    }

    /// The content of a frame was handed to the caller.
    pub(super) fn taken(&self, bytes: usize, at: Instant) {
        if bytes > 0 {
            let mut accounts = self.shared.ledger.enter();
            accounts.unread.taken(self.stream.id(), bytes as u64, at);
        }
    }
}

impl<L: Send + 'static> Drop for Hold<L> {
    fn drop(&mut self) {
        let id = self.stream.id();
        let parts = self.stream.take();
        let (is_over, is_gone) = {
            let mut accounts = self.shared.ledger.enter();
            let is_gone = match accounts.unread.abandoned(id) {
                End::Reset => true,
                End::Complete | End::Ended => self.is_sent,
                // In the bench of what the tap costs it tells of no ends.
                End::Open => self.is_sent && cfg!(firstbyte_bare),
            };
            let is_over = is_gone || parts.is_none() || accounts.resets.pay(now()).is_ok();
            if is_over {
                accounts.unread.closed(id);
            }
            (is_over, is_gone)
        };
        // The stream ends before its slot is given back.
        let lease = self.lease.take();
        match (parts, lease) {
            (Some(parts), Some(lease)) if !is_over => self.shared.inbox.leave(Orphan {
                id,
                parts,
                is_sent: self.is_sent,
                _lease: Box::new(lease),
            }),
            (parts, lease) => {
                let mut parts = parts;
                if let Some(parts) = &mut parts
                    && is_gone
                    && self.handed > 0
                    && self.shared.tap.may_hold(self.handed)
                {
                    // It would keep the stream open there. Of others no reset is wanted: h2 remembers each of them for a
                    // while, and only so many.
                    parts.send.send_reset(Reason::NO_ERROR);
                }
                drop(parts);
                drop(lease);
            }
        }
    }
}
