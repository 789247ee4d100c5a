//! What the requests of a connection and its task must agree on: what is unread, and how many resets can
//! be paid. The books are pure; here is the lock around them.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::lock;

use super::resets::Resets;
use super::stream::Stream;
use super::unread::{Bounds, Unread};

/// The books of one connection.
#[derive(Debug)]
pub(super) struct Accounts {
    pub(super) unread: Unread<Arc<Stream>>,
    pub(super) resets: Resets,
}

/// The books and their lock. Under it a stream of h2 is opened, and nothing else is done; whoever holds h2's
/// own lock does not take it.
#[derive(Debug)]
pub(super) struct Ledger {
    bounds: Bounds,
    accounts: Mutex<Accounts>,
    /// Copies for whoever only looks.
    unread: AtomicU64,
    is_over: AtomicBool,
}

impl Ledger {
    pub(super) fn new(stream_window: u32, connection_window: u32) -> Self {
        let bounds = Bounds::new(stream_window, connection_window);
        Self {
            bounds,
            accounts: Mutex::new(Accounts {
                unread: Unread::new(bounds),
                resets: Resets::default(),
            }),
            unread: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Opens the books.
    pub(super) fn enter(&self) -> Entry<'_> {
        Entry {
            accounts: lock(&self.accounts),
            ledger: self,
        }
    }

    /// More is unread than may be.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// How large the window of the connection should be.
    pub(super) fn window(&self) -> u32 {
        self.bounds.window(self.unread.load(Ordering::Relaxed))
    }
}

/// The open books.
pub(super) struct Entry<'a> {
    accounts: MutexGuard<'a, Accounts>,
    ledger: &'a Ledger,
}

impl Deref for Entry<'_> {
    type Target = Accounts;

    fn deref(&self) -> &Accounts {
        &self.accounts
    }
}

impl DerefMut for Entry<'_> {
    fn deref_mut(&mut self) -> &mut Accounts {
        &mut self.accounts
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let unread = &self.accounts.unread;
        self.ledger.unread.store(unread.bytes(), Ordering::Relaxed);
        self.ledger
            .is_over
            .store(unread.is_over(), Ordering::Relaxed);
    }
}
