//! A gate that holds answers back until the test opens it.
//!
//! The test keeps the [`Gate`]; a peer keeps a [`Waiter`]. When the last clone of the gate is gone the waiters are let
//! through as if it had been opened, so that a failing test cannot leave a peer waiting for ever.

use std::sync::Arc;

use tokio::sync::watch;

/// Keeps its waiters waiting until [`Gate::open`], or until every clone of it is dropped.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Lets through everyone who waits now and everyone who comes later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// What a peer waits with. It does not keep the gate closed: only a [`Gate`] does.
    pub fn waiter(&self) -> Waiter {
        Waiter {
            open: self.open.subscribe(),
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// The waiting side of a [`Gate`].
#[derive(Clone, Debug)]
pub struct Waiter {
    open: watch::Receiver<bool>,
}

impl Waiter {
    /// Resolves once the gate is open or gone.
    pub async fn opened(mut self) {
        // An error means that the last gate is gone, which counts as open.
        let _gone = self.open.wait_for(|open| *open).await;
    }
}
