//! HTTP/2, driven straight on the `h2` crate.
//!
//! One task per connection polls it ([`Driver`]) and nothing else is spawned: requests call h2 from
//! the caller's own future and wake that task. Below h2 the tap reads frame headers as they pass
//! and stamps; beside it we count streams ourselves, because h2 queues silently above the peer's
//! limit, and what is left unread, because h2 bounds it per connection and not per stream.

mod abandoned;
mod bell;
mod driver;
mod exchange;
mod fail;
mod frames;
mod health;
mod hold;
mod ledger;
mod readiness;
mod receive;
#[cfg(any(test, fuzzing))]
mod replay;
mod resets;
mod stream;
mod streams;
mod tap;
mod tunnel;
mod unread;
mod upload;

pub use driver::Http2Options;
pub(crate) use driver::{Doubter, Driver, Http2, Killer, Patience, Watch, connect};
pub(crate) use exchange::Outgoing;
pub(crate) use frames::GoAway;
#[cfg(any(test, fuzzing))]
pub(crate) use frames::check_splits as check_tap;
pub(crate) use receive::RecvBody;
#[cfg(any(test, fuzzing))]
pub(crate) use replay::{check_connection, check_reads};
pub(crate) use streams::{Released, Taken};
pub(crate) use tunnel::Tunnel;
#[cfg(any(test, fuzzing))]
pub(crate) use unread::check_operations as check_unread;
