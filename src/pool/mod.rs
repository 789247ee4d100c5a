//! Connections and who may use them: reuse, dialling, waiting, limits, expiry.
//!
//! What is decided is pure (`state`, `line`, `term`, `habits`, over ids and instants); what acts takes the lock,
//! asks, lets go, and then does the I/O. Guards own every slot: a [`Lease`] its connection or
//! stream, a `Permit` its place under the total limit, a place in line its waiter.
//!
//! ```text
//!  registry  key -> Host           one lookup without a lock
//!  asleep    what origins without connections taught (pure)
//!  acquire   checkout, or a place in line
//!  host      HostState under its own lock: idle h1 (last in, first out), shared h2, dials, line
//!  arrivals, departures, upkeep   the same host: dials end, requests end, time passes
//!  renewal   the same host: successors of connections at the end of their term, minimums kept warm
//!  term, habits   how long a connection serves; what the origin taught about that (pure)
//!  dial      a task per dial; belongs to the pool, not to who asked
//!  lease     gives back on drop, at whatever await
//!  maintenance  one task per runtime: expiry, closes noticed while idle
//! ```
//!
//! Lock order: a host's lock is never held together with another lock of the pool.

mod acquire;
mod arrivals;
mod asleep;
mod budget;
mod capacity;
mod departures;
mod dial;
mod habits;
mod host;
mod key;
mod lease;
mod limits;
mod line;
mod maintenance;
mod registry;
mod renewal;
mod shared;
mod state;
mod term;
mod upkeep;
mod warm;

pub(crate) use acquire::{Found, WaitLimits, acquire, acquire_fresh, check_out, wait_for};
pub(crate) use host::Host;
pub(crate) use lease::{H1Lease, H2Lease, Lease, UpgradedLease, UpgradedParts};
pub use limits::Limits;
pub(crate) use registry::{Pool, PoolConfig};
pub(crate) use state::Minimum;
#[cfg(any(test, fuzzing))]
pub(crate) use state::check_operations;
pub(crate) use warm::warm;
pub use warm::{WarmConnection, WarmReport};
