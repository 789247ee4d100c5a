//! reqwest over rustls.

use std::sync::Arc;

use crate::calls::{CONNECTION_WINDOW, Call, Client, OnPiece, STREAM_WINDOW, Target, Worker};
use crate::world::{Protocol, World};

#[derive(Clone)]
pub struct Reqwest {
    client: reqwest::Client,
    base: Arc<str>,
}

impl Client for Reqwest {
    type Worker = Self;

    const NAME: &'static str = "reqwest";

    fn new(world: &Arc<World>, protocol: Protocol, target: Target) -> Self {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(world.tls(protocol))
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
        builder = match protocol {
            Protocol::H1 => builder.http1_only(),
            Protocol::H2 => builder,
        };
        if target.no_reuse {
            builder = builder.pool_max_idle_per_host(0);
        }
        Self {
            client: builder.build().expect("valid options"),
            base: format!("https://{}", target.address(world)).into(),
        }
    }

    fn elsewhere(&self, world: &World, target: Target) -> Self {
        Self {
            base: format!("https://{}", target.address(world)).into(),
            ..self.clone()
        }
    }

    async fn worker(&self) -> Self {
        self.clone()
    }

    async fn forget_connections(&self) {}
}

impl Worker for Reqwest {
    async fn call(&mut self, call: Call, on_piece: OnPiece<'_>) -> Result<(), String> {
        let request = match call {
            Call::Get(path) => self.client.get(format!("{}{path}", self.base)),
            Call::Post(body) => self.client.post(&*self.base).body(body),
        };
        let words = |e: reqwest::Error| format!("{e:?}");
        let mut response = request.send().await.map_err(words)?;
        while let Some(piece) = response.chunk().await.map_err(words)? {
            on_piece(&piece);
        }
        Ok(())
    }
}
