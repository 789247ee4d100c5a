//! Against servers that others wrote: nginx, HAProxy, Caddy, Apache, nghttpd and Node, each a child process on loopback.
//!
//! ```sh
//! cargo test --test interop     # those that are installed; the others are named on stderr
//! tests/interop/run             # installs what is missing (Debian), and then nothing may be
//! ```
//!
//! What is shown with which server, over TLS, h1 and h2 unless told otherwise:
//!
//! | | nginx | HAProxy | Caddy | Apache | nghttpd | Node |
//! |---|---|---|---|---|---|---|
//! | requests in sequence and in bursts, reuse by its own count | yes | yes | yes | yes | h2 | yes |
//! | TLS 1.2 and 1.3 resumed, by its own word | yes | yes | yes | yes | h2, by ours | yes |
//! | 8 MiB there and back, with and without a length | yes | yes | yes (1) | yes | h2 | yes |
//! | answer streams while the upload goes on (h1 ends the upload) | - | - | - | - | - | h2 |
//! | trailers of the answer | drops them | yes | yes | h2; drops them on h1 | h2 | yes |
//! | trailers of the request | - | - | - | - | - | yes |
//! | idle connection closed by it | yes | yes | yes | yes | never | yes |
//! | reload under load | SIGHUP | SIGUSR2 to the master | admin interface | SIGUSR1 (2) | none | none |
//! | graceful end with requests in flight | SIGQUIT | SIGUSR1 | SIGTERM | SIGWINCH | none | none |
//! | limit of requests: close, or GOAWAY ahead of the last answer | yes | none | none | - | none | with an answer |
//! | 413 to an upload that has hardly begun | yes | none | - | - | none | - |
//! | end without GOAWAY, idle and in flight; then a new start | - | - | - | - | h2 | yes |
//! | h2 without TLS, by prior knowledge | - | - | - | - | yes | - |
//! | WebSockets (feature `websocket`) | h1 | h1, h2 | h1 | h1, h2 | - | h2 (3) |
//! | padded frames, pushes that were refused in SETTINGS | - | - | - | - | yes | - |
//!
//! `-`: not tried; `none`: the server has no such thing.
//!
//! 1. Go's reverse proxy sometimes gives its backend up behind a large request body and cuts the answer; its log says so,
//!    and the test asks again.
//! 2. mod_http2 says GOAWAY with 2^31-1 and then fails the whole connection if a stream that was under way arrives. The
//!    requests whose answers it has not sent by then are lost, and the client says ConnectionLost, MaybeProcessed.
//! 3. A tunnel alone: extended CONNECT, and bytes.
//!
//! Seen with nginx 1.22.1, HAProxy 2.6.12, Caddy 2.6.2, Apache 2.4.71, nghttpd 1.52.0 (Debian 12) and Node 20.20.2.
//!
//! Behind the first four stands a backend of our own, whose books say what was processed and how often. Nothing here
//! sleeps to synchronise; the sleeps that are here make a connection idle or lie between two looks at a condition.

#[path = "../common/mod.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;

mod apache;
mod bodies;
mod caddy;
mod facts;
mod haproxy;
mod load;
mod nghttpd;
mod nginx;
mod node;
mod process;
mod site;
mod websockets;
