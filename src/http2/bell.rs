//! The waker of a connection's task. The task stays the same, so the waker is left once and not at every turn.

use std::sync::Mutex;
use std::task::Waker;

use crate::sync::lock;

/// Wakes a task, as often as it is rung.
#[derive(Debug)]
pub(super) struct Bell(Mutex<Waker>);

impl Bell {
    /// Nobody hears it yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Waker::noop().clone()))
    }

    /// Whoever changed something before is answered by the look that must follow.
    pub(super) fn register(&self, task: &Waker) {
        let task = task.clone();
        let before = std::mem::replace(&mut *lock(&self.0), task);
        // Not under the lock: it may be the last that is left of its task.
        drop(before);
    }

    pub(super) fn wake(&self) {
        lock(&self.0).wake_by_ref();
    }

    /// Nobody hears it any more.
    pub(super) fn forget(&self) {
        self.register(Waker::noop());
    }
}

/// What a task keeps to see that it is still the same.
#[derive(Debug)]
pub(super) struct Listener(Waker);

impl Listener {
    pub(super) fn new() -> Self {
        Self(Waker::noop().clone())
    }

    /// Registers `task` if the bell does not have it.
    pub(super) fn listen(&mut self, bell: &Bell, task: &Waker) {
        if !self.0.will_wake(task) {
            self.0 = task.clone();
            bell.register(task);
        }
    }
}
