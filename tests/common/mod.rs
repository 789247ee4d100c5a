//! A server, a name server and a pool that knows both: what most tests begin with.
// Each test binary uses its own part of it.
#![allow(dead_code, unreachable_pub)]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use firstbyte::{Client, ConnectionPool, ConnectionPoolBuilder, Protocols, tls::TlsOptions};

use crate::support::dns::DnsServer;
use crate::support::pki::Pki;
use crate::support::server::{Builder, Server};

pub struct World {
    pub server: Server,
    pub dns: DnsServer,
    pub pki: Pki,
    pub pool: ConnectionPool,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|server| server, |pool| pool).await
    }

    /// A world with a server and a pool of one's own making; the host is `api.test`.
    pub async fn with(
        server: impl FnOnce(Builder) -> Builder,
        pool: impl FnOnce(ConnectionPoolBuilder) -> ConnectionPoolBuilder,
    ) -> Self {
        let pki = Pki::new();
        let server = server(Server::builder().tls(&pki, &["api.test", "other.test"]));
        let server = server.start().await;
        let dns = DnsServer::start().await;
        for name in ["api.test", "other.test"] {
            dns.v4(name, &["127.0.0.1"]);
        }
        let builder = ConnectionPool::builder().name_servers([dns.addr()]).tls(
            TlsOptions::new()
                .builtin_roots(false)
                .add_root(pki.ca_der()),
        );
        let pool = pool(builder).build().expect("valid options");
        Self {
            server,
            dns,
            pki,
            pool,
        }
    }

    pub fn client(&self, protocols: Protocols) -> Client {
        self.client_of(&self.server.url("/"), protocols)
    }

    pub fn client_of(&self, url: &str, protocols: Protocols) -> Client {
        let builder = self.pool.client_builder(url).protocols(protocols);
        builder.build().expect("valid client")
    }

    /// The same server under another name: another origin.
    pub fn other_url(&self) -> String {
        self.server.url("/").replace("api.test", "other.test")
    }
}

pub const BOTH: [Protocols; 2] = [Protocols::Http1, Protocols::Http2];

/// Guards a test against hanging; never a measure of anything.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("the test hangs")
}

/// Polls a future `polls` times and drops it then; its output if it was faster.
pub struct DropAfter<F> {
    future: Option<Pin<Box<F>>>,
    polls: usize,
}

impl<F> DropAfter<F> {
    pub fn new(future: F, polls: usize) -> Self {
        Self {
            future: Some(Box::pin(future)),
            polls,
        }
    }
}

impl<F: Future> Future for DropAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            self.future = None;
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let Some(future) = &mut self.future else {
            return Poll::Ready(None);
        };
        let polled = future.as_mut().poll(cx).map(Some);
        if polled.is_pending() && self.polls == 0 {
            self.future = None;
            return Poll::Ready(None);
        }
        polled
    }
}

/// All outputs, polled together.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut all = true;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(done) => *output = Some(done),
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

/// Waits, turn by turn of the runtime, for something that has no event of its own.
pub async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(
            std::time::Instant::now() < patience,
            "never came true: {what}"
        );
        tokio::task::yield_now().await;
    }
}
