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

    /// A waker keeps its task's memory.
    pub(super) fn forget_waker(&self) {
        lock(&self.waiting).take();
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

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl std::task::Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn raised_once_it_wakes_who_waits_and_fails_who_comes_later() {
        let interrupt = Arc::new(Interrupt::default());
        let killer = Killer::new(&interrupt);
        let counting = Arc::new(Counting::default());
        let waker = Waker::from(counting.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(interrupt.poll::<()>(&mut cx).is_pending() && interrupt.check().is_ok());
        killer.kill();
        killer.kill();
        assert_eq!(counting.0.load(Ordering::SeqCst), 1);
        assert!(matches!(interrupt.poll::<()>(&mut cx), Poll::Ready(Err(_))));
        drop(interrupt);
        killer.kill();
    }

    #[test]
    fn no_task_is_kept_once_the_exchange_is_over() {
        let interrupt = Interrupt::default();
        let counting = Arc::new(Counting::default());
        {
            let waker = Waker::from(counting.clone());
            let polled = interrupt.poll::<()>(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        assert_eq!(Arc::strong_count(&counting), 2);
        interrupt.forget_waker();
        assert_eq!(Arc::strong_count(&counting), 1);
    }
}
