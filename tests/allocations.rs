//! A warm connection is taken and given back without allocating. A test alone in its process, so that what is allocated is
//! its own.
#![allow(unsafe_code, reason = "a counting allocator")]

mod common;
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::BOTH;
use support::sim::{self, Sim, plain};

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends allocates too; nobody counts that.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[tokio::test]
async fn checkout_of_a_warm_connection_allocates_nothing() {
    for protocols in BOTH {
        let sim = Sim::silent(protocols);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        assert_eq!(client.warm(1).await.unwrap().ready(), 1);
        let at = std::time::Instant::now();
        // The first ones find the origin and fill caches.
        for _ in 0..10 {
            assert!(client.__check_out(at).unwrap());
        }
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..1_000 {
            assert!(client.__check_out(at).unwrap());
        }
        let allocations = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(allocations, 0, "{protocols:?}, in 1,000");
        assert_eq!(sim.dials(), 1);
    }
}
