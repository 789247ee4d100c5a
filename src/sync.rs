//! The primitives whose interleavings loom explores: std's in the product, loom's under
//! `--cfg firstbyte_loom`.

#[cfg(firstbyte_loom)]
pub(crate) use loom::sync::{
    Mutex as ModelMutex,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(firstbyte_loom))]
pub(crate) use std::sync::{
    Mutex as ModelMutex,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever a panicking thread left behind: every critical section of this crate leaves
/// its data whole, and a caller's panic must not take the pool with it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
