//! An HTTP client connection pool over raw sockets: it gets you to the first byte sooner, and shows
//! where the time went.
//!
//! ```no_run
//! # async fn example() -> Result<(), firstbyte::Error> {
//! use firstbyte::ConnectionPool;
//!
//! let pool = ConnectionPool::new();
//! let deepseek = pool
//!     .client("deepseek", "https://api.deepseek.com")
//!     .bearer_auth("sk-...")
//!     .build()?;
//! let mut response = deepseek.get("/models").send().await?;
//! println!("{} {}", response.status(), response.text().await?);
//!
//! let timing = response.timing();
//! println!("tls {:?}, first byte {:?}", timing.tls(), timing.time_to_first_byte());
//! println!("{:?}", response.metrics());
//! # Ok(()) }
//! ```
//!
//! # The journey
//!
//! ```text
//!  http::Request
//!    |  client      origin, deadlines, headers of the provider, replay verdict
//!    v
//!  pool  --hit-->  lease on an idle (h1) or shared (h2) connection -----------------.
//!    |  miss: wait in line (queue) or dial                                           |
//!    v                                                                               v
//!  connection:  dns -> tcp -> [proxy] -> tls -> h2 preface or h1 by ALPN --> exchange: send -> wait -> receive
//!                                                                                    |
//!  Response + RequestTiming + ConnectionInfo  <-------------------------------------'
//!    end of body -> lease dropped -> reusable, or closed with a CloseReason -> stats, StepMetrics
//! ```
//!
//! One vocabulary, [`Phase`], is used by timings, timeouts, errors and benches.
//!
//! # Timing
//!
//! Two records that are never mixed. [`ConnectionTrace`] says what setting up a connection cost,
//! once; [`RequestTiming`] says what *this* request waited for. The phases of a request add up to
//! its total to the nanosecond; a phase that did not happen is `None` and not zero. Phases are
//! stamped where the thing happens: the first byte at the socket read that brought it, not when the
//! caller's task was polled. [`StepMetrics::network_overhead_ms`] is a sum of phases that were
//! waited for, never "total minus something", and `connection_reused` is a fact.
//!
//! # Connections
//!
//! * While the protocol of an origin is unknown, one dial finds it out. HTTP/2 is shared by all who
//!   wait, HTTP/1.1 fans out; the verdict is remembered.
//! * Dials belong to the pool. A request that goes away leaves its dial to finish and serve others.
//! * HTTP/1.1 has no task: the caller's own future writes and reads. HTTP/2 has one task per
//!   connection, which drives the `h2` crate.
//! * A connection is shared only by requests whose origin and options are equal in everything that
//!   shapes a connection, and only on the tokio runtime that opened it. A pool can be a `static` used
//!   by many runtimes; each dials its own.
//! * An idle connection on which the peer closes or says something unasked is dropped when that
//!   happens, not when it is next wanted; right before a request is written it is looked at once
//!   more. After bytes that nobody asked for, the origin's HTTP/1.1 connections serve one request each
//!   for a minute.
//! * A connection at the end of its term hands over before it ends: its successor is dialled while it
//!   still serves, so no request waits for the change where the limits have room for both. The term is [`Limits::max_lifetime`],
//!   [`Limits::max_requests_per_connection`], what the server announced (`Keep-Alive: timeout, max`), what
//!   it taught by closing twice at about the same idle time or number of requests
//!   ([`ConnectionInfo::limits`]), or its address leaving the DNS answers.
//! * [`ClientBuilder::min_idle`] and [`ClientBuilder::min_connections`] keep connections warm.
//! * An HTTP/2 peer that is silent for 10 s while a request waits, or when one comes, is asked with a PING;
//!   until it answers it gets no new streams, a late answer starts a spare dial, and without any within 1 to 5 s the
//!   connection is ended. Idle connections send nothing.
//! * At the total limit an idle connection of another origin makes room; an origin without any connection
//!   comes before those that have some. A connection that is idle on a runtime which nobody drives can
//!   make room only over HTTP/1.1.
//!
//! # Responses that are not read
//!
//! HTTP/2 responses share a connection, so what one of them leaves unread is bounded, counted with 256 bytes for
//! each frame: twice the window of a stream (4 MiB by default) for one, 60 MiB for all on a connection. Up to
//! that the connection's window grows by what is unread, so that the others go on. Beyond, the one that has not
//! read for longest is reset and told so ([`ErrorKind::SlowReader`]); beyond the bound of a stream, that one.
//! h2 keeps the room that frames took for the next ones, until the connection ends.
//!
//! # Processes and clocks
//!
//! A pool does not survive `fork`: both processes would write to the same sockets. Make it afterwards. All
//! timers are monotonic, so changes of the date do nothing; after a suspend, connections are looked at before
//! they are used again, and HTTP/2 peers are asked.
//!
//! # Cancel safety
//!
//! Dropping any future of this crate is safe and gives back what it held:
//!
//! | dropped | what happens |
//! |---|---|
//! | [`RequestBuilder::send`] while waiting | the place in line is left; a dial it started goes on |
//! | [`RequestBuilder::send`] after sending began | HTTP/1.1: the connection is closed. HTTP/2: the stream is reset, nobody else notices. At most 190 streams of a connection are reset in 30 seconds, since servers end connections that reset more; the others keep their place until they end |
//! | [`Response::chunk`] | nothing is lost, the next call goes on |
//! | [`Response::bytes`], `text`, `json` | what was read so far is lost |
//! | [`EventStream::next`], `next_item` | nothing is lost, the next call goes on |
//! | `WebSocket::next` | nothing is lost, the next call goes on |
//! | `WebSocket::send` | before there was room: nothing was sent; later: the message goes out with what comes next, and never half of it |
//! | [`Response`], [`ResponseBody`] | HTTP/2: the stream is reset. HTTP/1.1: the rest is read in the background, at most 64 KiB and 50 ms ([`Limits`]), or the connection is closed |
//! | [`Upgraded`], `WebSocket` | HTTP/1.1: the connection is closed. HTTP/2: the stream is reset unless both ways have ended |
//! | [`ConnectionPool::warm`] | the waiting ends, the dials that run do not |
//! | [`ConnectionPool::shutdown`] | the pool stays shut; requests that run are not ended at the deadline |
//!
//! A failed attempt is made again only if that is safe ([`RetryPolicy::Rfc`]); otherwise the error
//! says what is known ([`Error::replay_safety`]).
//!
//! # What it does not do
//!
//! Redirects, cookies, caches, decompression (tower-http's layers do these), retries on status codes, a
//! blocking API, HTTP/1.1 pipelining, server push, sharing connections across origins, key logs by
//! environment variable. Proxies are used only when told ([`proxy`]), never because of the environment
//! alone.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `aws-lc-rs` | yes | TLS by aws-lc-rs, with post-quantum key exchange; used if both providers are on |
//! | `ring` | | TLS by ring |
//! | `hickory` | yes | DNS on the wire; without it names go through `getaddrinfo` |
//! | `json` | yes | [`RequestBuilder`]`::json` and [`Response`]`::json` |
//! | `websocket` | | [`Client`]`::websocket` |
//! | `tower` | | `tower_service::Service` for [`ConnectionPool`] and [`Client`], and so for tonic's gRPC clients |
//! | `hyper-util` | | [`ConnectionPool`]`::hyper_connector`: connections for hyper-util's client |
//! | `platform-verifier` | | [`tls::TlsOptions`]`::platform_verifier`: the operating system decides whom to trust |
//!
//! Linux is supported and tested. macOS and Windows compile by `cfg` in [`tcp`] and are untested.
//!
//! `tracing`'s `log` feature slows HTTP/2 down considerably, because `h2` logs every frame; leave it
//! off, or compile with tracing's `release_max_level_off`.
//!
//! What a request costs beside other clients and beside no client at all, with the targets that are missed, is in
//! `benches/README.md` of the repository; `benches/peers` measures it.
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
mod histogram;
mod http1;
mod http2;
mod http_head;
pub mod io;
mod metrics;
mod origin;
mod pool;
pub mod proxy;
pub mod sse;
mod sync;
pub mod tcp;
mod text;
pub mod timing;
pub mod tls;
#[cfg(feature = "websocket")]
pub mod websocket;

pub use body::Body;
#[cfg(feature = "tower")]
pub use client::ServiceFuture;
pub use client::{
    Client, ClientBuilder, ConnectionPool, ConnectionPoolBuilder, EventStream, EventTiming,
    KeyPlace, Provider, RequestBuilder, RequestOptions, Response, ResponseBody, RetryPolicy,
    Timeouts, TimingHandle, Upgraded,
};
#[cfg(feature = "hyper-util")]
pub use client::{HyperConnecting, HyperConnector, HyperStream};
#[cfg(feature = "websocket")]
pub use client::{WebSocket, WebSocketBuilder, WebSocketReceiver, WebSocketSender};
pub use close_reason::CloseReason;
pub use connection::{
    ConnectionId, ConnectionInfo, ConnectionLimits, IpVersion, Protocols, RaceOptions,
};
pub use error::{Error, ErrorKind, ReplaySafety};
pub use event::{EventListener, Progress};
pub use histogram::DurationHistogram;
pub use http2::Http2Options;
pub use io::PeerAddr;
pub use metrics::{ConnectionPoolStats, StepMetrics};
pub use origin::{Origin, Scheme};
pub use pool::{Limits, WarmConnection, WarmReport};
pub use text::Text;
pub use timing::{ConnectionTrace, ConnectionUse, Phase, RequestTiming};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
