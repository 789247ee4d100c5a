//! Proxies: which one an origin goes through, and the tunnel through it.
//!
//! ```text
//! ProxyRules (pure) -- origin --> Proxy
//!    http origin,  HTTP proxy    no tunnel: absolute-form requests (RFC 9112 §3.2.2)
//!    https origin, HTTP proxy    CONNECT host:port (RFC 9110 §9.3.6), then TLS with the origin
//!    any origin,   SOCKS5 proxy  CONNECT by name (RFC 1928), then what the origin speaks
//! ```
//!
//! The proxy resolves the origin's name; here only the proxy's own name is looked up. Credentials go
//! to the proxy alone and never show in Debug, errors or events.

mod http;
mod rules;
mod server;
mod socks;

pub(crate) use http::connect as http_connect;
pub use rules::ProxyRules;
pub use server::{Proxy, ProxyScheme};
pub(crate) use socks::connect as socks_connect;
