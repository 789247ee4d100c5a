//! TCP: sockets opened by socket2 with the options that matter for latency.

mod socket;

pub(crate) use socket::connect;
pub use socket::{Keepalive, TcpOptions};
