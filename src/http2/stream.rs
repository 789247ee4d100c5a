//! One stream of h2, as its request and the connection's task share it: the task must be able to take it
//! away from a reader that does not read.

use std::sync::Mutex;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use crate::sync::lock;

/// The halves of a stream.
pub(super) struct Parts {
    pub(super) send: SendStream<Bytes>,
    pub(super) recv: Recv,
}

/// How far the response is.
pub(super) enum Recv {
    Head(ResponseFuture),
    Body(RecvStream),
    /// Nobody wants it; h2 throws away what still comes.
    Unwanted,
}

/// A stream; its parts are gone once it has been cut off or is over.
pub(super) struct Stream {
    id: u32,
    parts: Mutex<Option<Parts>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.id).finish()
    }
}

impl Stream {
    pub(super) fn new(response: ResponseFuture, send: SendStream<Bytes>) -> Self {
        let id = response.stream_id().as_u32();
        let recv = Recv::Head(response);
        Self {
            id,
            parts: Mutex::new(Some(Parts { send, recv })),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Does something with its parts; `None` if they are gone. Nothing of the caller's runs in here.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Parts) -> T) -> Option<T> {
        lock(&self.parts).as_mut().map(act)
    }

    pub(super) fn take(&self) -> Option<Parts> {
        lock(&self.parts).take()
    }

    /// Resets it and forgets what is unread. Its request finds the parts gone.
    pub(super) fn cut(&self) {
        if let Some(mut parts) = self.take() {
            // Wakes whoever waits for it.
            parts.send.send_reset(Reason::CANCEL);
        }
    }
}
