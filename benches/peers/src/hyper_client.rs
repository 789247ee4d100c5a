//! hyper-util's legacy client over hyper-rustls.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::calls::{CONNECTION_WINDOW, Call, Client, OnPiece, STREAM_WINDOW, Target, Worker};
use crate::world::{Protocol, World};

#[derive(Clone)]
pub struct Hyper {
    client: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: Arc<str>,
}

impl Client for Hyper {
    type Worker = Self;

    const NAME: &'static str = "hyper-util";

    fn new(world: &Arc<World>, protocol: Protocol, target: Target) -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        let mut tls = world.tls(protocol);
        tls.alpn_protocols.clear();
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only();
        let https = match protocol {
            Protocol::H1 => https.enable_http1().wrap_connector(http),
            Protocol::H2 => https.enable_http2().wrap_connector(http),
        };
        let mut builder = HyperClient::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_only(protocol == Protocol::H2)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
        if target.no_reuse {
            builder.pool_max_idle_per_host(0);
        }
        Self {
            client: builder.build(https),
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

impl Worker for Hyper {
    async fn call(&mut self, call: Call, on_piece: OnPiece<'_>) -> Result<(), String> {
        let (method, path, body) = match call {
            Call::Get(path) => (Method::GET, path, Bytes::new()),
            Call::Post(body) => (Method::POST, "/", body),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        let response = self.client.request(request).await;
        let mut body = response.map_err(|e| format!("{e:?}"))?.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(piece) = frame.map_err(|e| e.to_string())?.into_data() {
                on_piece(&piece);
            }
        }
        Ok(())
    }
}
