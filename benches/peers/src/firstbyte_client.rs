//! firstbyte, through its public API; its defaults, but for as many idle connections as the others keep.

use std::sync::Arc;

use firstbyte::tls::TlsOptions;
use firstbyte::{Client as FirstbyteClient, ConnectionPool, Http2Options, Limits, Protocols};

use crate::calls::{Call, Client, OnPiece, Target, Worker};
use crate::world::{Protocol, World};

#[derive(Clone)]
pub struct Firstbyte {
    pool: ConnectionPool,
    client: FirstbyteClient,
    protocol: Protocol,
}

fn client_of(
    pool: &ConnectionPool,
    world: &World,
    protocol: Protocol,
    target: Target,
) -> FirstbyteClient {
    pool.client_builder(format!("https://{}", target.address(world)))
        .protocols(match protocol {
            Protocol::H1 => Protocols::Http1,
            Protocol::H2 => Protocols::Http2,
        })
        .build()
        .expect("valid options")
}

impl Client for Firstbyte {
    type Worker = Self;

    const NAME: &'static str = "firstbyte";

    fn new(world: &Arc<World>, protocol: Protocol, target: Target) -> Self {
        let tls = TlsOptions::new().builtin_roots(false);
        let mut http2 = Http2Options::default();
        if let Some(connections) = target.connections {
            http2 = http2.max_connections_per_origin(connections);
        }
        let pool = ConnectionPool::builder()
            .tls(tls.add_root(world.certificate.clone()))
            // What the documentation says for bursts: 20 idle connections are the default.
            .limits(Limits::gateway())
            .http2(http2)
            .build()
            .expect("valid options");
        Self {
            client: client_of(&pool, world, protocol, target),
            pool,
            protocol,
        }
    }

    fn elsewhere(&self, world: &World, target: Target) -> Self {
        Self {
            client: client_of(&self.pool, world, self.protocol, target),
            ..self.clone()
        }
    }

    async fn worker(&self) -> Self {
        self.clone()
    }

    async fn forget_connections(&self) {
        self.pool.close_idle();
    }
}

impl Worker for Firstbyte {
    async fn call(&mut self, call: Call, on_piece: OnPiece<'_>) -> Result<(), String> {
        let request = match call {
            Call::Get(path) => self.client.get(path),
            Call::Post(body) => self.client.post("/").body(body),
        };
        let words = |e: firstbyte::Error| e.to_string();
        let mut response = request.send().await.map_err(words)?;
        while let Some(piece) = response.chunk().await.map_err(words)? {
            on_piece(&piece);
        }
        Ok(())
    }
}
