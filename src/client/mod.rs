//! What callers hold: the pool, a client per provider, requests and responses; and the journey of
//! one call through all layers (`send`).
//!
//! `prepare` and `retry` decide (pure), `send` acts.

mod base_url;
mod builder;
mod call;
mod client_core;
mod connection_pool;
#[cfg(feature = "hyper-util")]
mod connector;
mod events;
mod options;
mod prepare;
mod provider;
mod provider_client;
mod request;
mod response;
mod response_body;
mod retry;
mod routes;
mod send;
mod targets;
#[cfg(feature = "tower")]
mod tower;
mod upgraded;
#[cfg(feature = "websocket")]
mod websocket;

pub use builder::ClientBuilder;
pub use connection_pool::{ConnectionPool, ConnectionPoolBuilder};
#[cfg(feature = "hyper-util")]
pub use connector::{HyperConnecting, HyperConnector, HyperStream};
pub use events::{EventStream, EventTiming};
pub use options::{RequestOptions, RetryPolicy, Timeouts};
pub use provider::{KeyPlace, Provider};
pub use provider_client::Client;
pub use request::RequestBuilder;
pub use response::Response;
pub use response_body::{ResponseBody, TimingHandle};
#[cfg(any(test, fuzzing))]
pub(crate) use retry::check_verdicts;
#[cfg(feature = "tower")]
pub use tower::ServiceFuture;
pub use upgraded::Upgraded;
#[cfg(feature = "websocket")]
pub use websocket::{WebSocket, WebSocketBuilder, WebSocketReceiver, WebSocketSender};
