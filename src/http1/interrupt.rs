//! Ending an exchange from outside the future that drives it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use crate::sync::lock;

/// Fails whatever waits for the peer, once it is raised.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    raised: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Interrupt {
    pub(super) fn check(&self) -> io::Result<()> {
        if self.raised.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the connection pool was shut down",
            ));
        }
        Ok(())
    }

    /// Pending, and woken when it is raised.
    pub(super) fn poll<T>(&self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        {
            let mut waiting = lock(&self.waiting);
            match &mut *waiting {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waiting = Some(cx.waker().clone()),
            }
        }
        // Raised before the waker was there: nobody woke it.
        match self.check() {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

/// Ends what a connection does now. Does not keep the connection alive.
#[derive(Clone, Debug)]
pub(crate) struct Killer(Weak<Interrupt>);

impl Killer {
    pub(super) fn new(interrupt: &Arc<Interrupt>) -> Self {
        Self(Arc::downgrade(interrupt))
    }

    pub(crate) fn kill(&self) {
        if let Some(interrupt) = self.0.upgrade() {
            interrupt.raised.store(true, Ordering::Release);
            let waiting = lock(&interrupt.waiting).take();
            if let Some(waker) = waiting {
                waker.wake();
            }
        }
    }
}
