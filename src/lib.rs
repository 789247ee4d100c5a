//! firstbyte
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod client;
mod clock;
mod close_reason;
mod connection;
pub mod dns;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod http1;
mod http2;
mod http_head;
pub mod io;
mod metrics;
mod origin;
mod pool;
mod sync;
pub mod tcp;
pub mod timing;
pub mod tls;

pub use body::Body;
pub use client::{
    Client, ClientBuilder, ConnectionPool, ConnectionPoolBuilder, RequestBuilder, RequestOptions,
    Response, ResponseBody, RetryPolicy, TimingHandle, Timeouts, Upgraded,
};
pub use close_reason::CloseReason;
pub use connection::{ConnectionId, ConnectionInfo, IpVersion, Protocols};
pub use error::{Error, ErrorKind, ReplaySafety};
pub use http2::Http2Options;
pub use io::PeerAddr;
pub use metrics::{ConnectionPoolStats, StepMetrics};
pub use origin::{Origin, Scheme};
pub use pool::{Limits, WarmConnection, WarmReport};
pub use timing::{ConnectionTrace, ConnectionUse, Phase, RequestTiming};
