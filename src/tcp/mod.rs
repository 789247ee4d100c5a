//! TCP: sockets opened by socket2 with the options that matter for latency, and what the kernel knows
//! about them.

mod info;
mod options;
mod socket;
mod window;

pub(crate) use info::SocketWatch;
pub use info::TcpInfo;
pub use options::{Keepalive, TcpOptions};
pub(crate) use socket::{begin, established, is_local};
