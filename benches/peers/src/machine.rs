//! What the machine tells: processor time, context switches, allocations; and which processor we are on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicI64 = AtomicI64::new(0);

/// Counts allocations and what is alive, for all clients alike.
pub struct Counting;

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        LIVE.fetch_add(size as i64 - layout.size() as i64, Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Bytes that are allocated now.
pub fn live() -> i64 {
    LIVE.load(Relaxed)
}

/// All that was spent until a moment.
#[derive(Clone, Copy)]
pub struct Spent {
    at: Instant,
    cpu: Duration,
    switches: u64,
    allocations: u64,
}

impl Spent {
    pub fn now() -> Self {
        // SAFETY: plain data, filled by the call.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &mut usage);
            usage
        };
        let time = |t: libc::timeval| {
            Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
        };
        Self {
            at: Instant::now(),
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            switches: (usage.ru_nvcsw + usage.ru_nivcsw) as u64,
            allocations: ALLOCATIONS.load(Relaxed),
        }
    }

    /// Since then, for each of `calls`.
    pub fn since(&self, calls: usize) -> Cost {
        let now = Self::now();
        let each = |n: f64| n / calls as f64;
        Cost {
            wall_us: each((now.at - self.at).as_secs_f64() * 1e6),
            cpu_us: each((now.cpu - self.cpu).as_secs_f64() * 1e6),
            switches: each((now.switches - self.switches) as f64),
            allocations: each((now.allocations - self.allocations) as f64),
        }
    }
}

/// For one call.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    pub wall_us: f64,
    pub cpu_us: f64,
    pub switches: f64,
    pub allocations: f64,
}

/// This process and the threads that it starts stay on one processor.
pub fn pin(processor: usize) {
    // SAFETY: plain data; a refusal leaves us where we are.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Of the machine, wherever we are pinned.
pub fn processors() -> usize {
    // SAFETY: asks for a number.
    let n = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(n).unwrap_or(1).max(1)
}

/// Nanoseconds of the clock that all processes share.
pub fn clock() -> u64 {
    // SAFETY: plain data, filled by the call.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now);
        now
    };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Of the processor.
pub fn model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split(": ").nth(1));
    name.unwrap_or("unknown processor").to_owned()
}
