//! Whether the stream below may have something to read. A connection's task is woken for many reasons, most of them
//! requests, and a look through TLS down to the socket costs more than all else that such a turn does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use super::bell::{Bell, Listener};

/// The waker that the stream below gets: it remembers that it was called, and wakes the task.
#[derive(Debug)]
struct Call {
    was_called: AtomicBool,
    task: Bell,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // First this: whoever finds no call has left the waker that is called next.
        self.was_called.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// What a stream has said of itself.
#[derive(Debug)]
pub(super) struct Readiness {
    call: Arc<Call>,
    /// The same, as the stream gets it.
    waker: Waker,
    task: Listener,
    /// The last read found nothing and left the waker.
    is_awaited: bool,
}

impl Readiness {
    pub(super) fn new() -> Self {
        let call = Arc::new(Call {
            was_called: AtomicBool::new(false),
            task: Bell::new(),
        });
        Self {
            waker: Waker::from(call.clone()),
            call,
            task: Listener::new(),
            is_awaited: false,
        }
    }

    /// What the stream is to be polled with, for reads and writes alike: whoever polls it last has left the waker
    /// that it calls.
    pub(super) fn context(&mut self, cx: &Context<'_>) -> Context<'_> {
        self.task.listen(&self.call.task, cx.waker());
        Context::from_waker(&self.waker)
    }

    /// Whether a read may bring something; it has to be made then. The task's waker must have been left before, by
    /// [`context`](Self::context).
    pub(super) fn begin(&mut self) -> bool {
        if self.is_awaited && !self.call.was_called.load(Ordering::Acquire) {
            return false;
        }
        self.is_awaited = false;
        // A swap, for it must be done before the read looks: a call that comes between is not to be overwritten.
        self.call.was_called.swap(false, Ordering::AcqRel);
        true
    }

    /// The read found nothing.
    pub(super) fn found_nothing(&mut self) {
        self.is_awaited = true;
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module, over bell beside it.
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn nothing_is_read_until_the_stream_has_called_and_its_last_task_is_woken() {
        let mut readiness = Readiness::new();
        let tasks: [Arc<Task>; 2] = Default::default();
        let wakers = tasks.clone().map(Waker::from);
        let woken = || tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed));
        let [first, second] = wakers.each_ref().map(Context::from_waker);

        let left = readiness.context(&first).waker().clone();
        assert!(readiness.begin());
        readiness.found_nothing();
        readiness.context(&first);
        assert!(!readiness.begin(), "it was not called");
        readiness.context(&second);
        assert!(!readiness.begin(), "nor by another task");

        left.wake();
        assert_eq!(woken(), [0, 1], "the task that polled last");
        assert!(readiness.begin());
        assert!(readiness.begin(), "until nothing is found");
        readiness.found_nothing();
        assert!(!readiness.begin());
    }

    #[test]
    fn a_call_between_the_read_and_its_end_is_not_lost() {
        let mut readiness = Readiness::new();
        let cx = Context::from_waker(Waker::noop());
        assert!(readiness.begin());
        readiness.context(&cx).waker().wake_by_ref();
        readiness.found_nothing();
        assert!(readiness.begin());
    }
}
