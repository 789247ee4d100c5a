//! The only place where the phases meet: from a plan to a connection that speaks HTTP.
//!
//! ```text
//! plan -- race (dns -> tcp, happy eyeballs) -- [proxy] -- tls -- h2 preface, or h1, by ALPN --> Opened
//! ```
//!
//! `plan` says what to connect to and how (pure), `race` tries the addresses, by what `memory` knows
//! of them, `connect` walks the phases and stamps them, `stream` is what comes out below HTTP, `early` a handshake that has not
//! ended when it does, `info` what is known about it.

mod connect;
mod early;
mod info;
mod memory;
mod plan;
mod race;
mod stream;

pub(crate) use connect::{AddressFilter, Deps, Learned, Link, Opened, Relief, connect};
#[cfg(feature = "hyper-util")]
pub(crate) use connect::{Dialled, dial};
pub(crate) use early::Early;
pub use info::{ConnectionId, ConnectionInfo, ConnectionLimits};
pub(crate) use plan::{ConnectOptions, Plan, Taught, check_plain};
pub use plan::{IpVersion, Protocols};
pub use race::RaceOptions;
pub(crate) use stream::Stream;
