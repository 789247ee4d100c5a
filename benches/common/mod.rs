//! What the benches share: peers on a thread of their own, the client's side, and how criterion is
//! set.

// Each bench includes this module whole and uses a part of it.
#![allow(dead_code)]

pub(crate) mod memory;
#[path = "../../tests/support/mod.rs"]
pub(crate) mod support;

use std::future::Future;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use criterion::Criterion;
use firstbyte::tls::TlsOptions;
use firstbyte::{Client, ConnectionPool, ConnectionPoolBuilder, Protocols, Response};
use tokio::runtime::{Builder, Runtime};

use support::pki::Pki;
use support::server::{Reply, Server};

/// The host of the TLS servers.
pub(crate) const HOST: &str = "api.test";

/// The settings of every bench: short, since the whole run is to stay under three minutes.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(2500))
        .configure_from_args()
}

/// A runtime on the calling thread alone.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system has threads and sockets left")
}

/// Starts a peer on a thread with a runtime of its own, where it lives as long as the process.
pub(crate) fn on_own_thread<T, F>(start: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async {
            sender.send(start().await).expect("the bench waits for it");
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().expect("the peer starts")
}

/// A server that answers everything with 200 and `hello`, and a pool that reaches it.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) pool: ConnectionPool,
}

impl World {
    /// Over TLS. Nothing is looked up.
    pub(crate) fn tls() -> Self {
        Self::tls_with(TlsOptions::new())
    }

    pub(crate) fn tls_with(options: TlsOptions) -> Self {
        let pki = Pki::new();
        let root = pki.ca_der();
        let server = on_own_thread(move || {
            let server = Server::builder().tls(&pki, &[HOST]);
            server.handler(|_| Reply::ok().body("hello")).start()
        });
        let pool = loopback(HOST).tls(options.builtin_roots(false).add_root(root));
        Self {
            server,
            pool: pool.build().expect("valid options"),
        }
    }

    /// Without TLS; `pool` says how the name is resolved.
    pub(crate) fn plain(pool: ConnectionPoolBuilder) -> Self {
        let server = on_own_thread(|| {
            let server = Server::builder().plain().host(HOST);
            server.handler(|_| Reply::ok().body("hello")).start()
        });
        Self {
            server,
            pool: pool.build().expect("valid options"),
        }
    }

    pub(crate) fn client(&self, protocols: Protocols) -> Client {
        let client = self
            .pool
            .client_builder(self.server.url("/"))
            .protocols(protocols);
        client.build().expect("a valid URL")
    }
}

/// A pool that knows where this host is and asks nobody.
pub(crate) fn loopback(host: &str) -> ConnectionPoolBuilder {
    ConnectionPool::builder().resolve_to(host, ["127.0.0.1".parse().expect("an address")])
}

/// A GET, read to its end.
pub(crate) async fn get(client: &Client) -> Response {
    let mut response = client.get("/").send().await.expect("the peer is sound");
    response.bytes().await.expect("the peer is sound");
    response
}
