//! The health service of gRPC, by tonic and hyper, over TLS and HTTP/2. `/echo` sends back what it gets, frame by frame,
//! which is a gRPC method, too.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use firstbyte::tls::TlsOptions;
use firstbyte::{ConnectionPool, ConnectionPoolBuilder};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic_health::server::{HealthReporter, health_reporter};

use super::pki::{self, Pki};

pub struct GrpcServer {
    pub port: u16,
    /// Says what the service says.
    pub reporter: HealthReporter,
    connections: Arc<AtomicUsize>,
    pki: Pki,
    task: tokio::task::JoinHandle<()>,
}

impl GrpcServer {
    pub async fn start() -> Self {
        let pki = Pki::new();
        let tls = pki::server_config(&pki.server(&["grpc.test"]), &["h2"]);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (reporter, health) = health_reporter();
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, SeqCst);
                let (acceptor, health) = (acceptor.clone(), health.clone());
                tokio::spawn(async move {
                    let Ok(io) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let mut health = health.clone();
                        async move {
                            match request.uri().path() {
                                "/echo" => Ok(echo(request)),
                                _ => health.call(request).await,
                            }
                        }
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Self {
            port,
            reporter,
            connections,
            pki,
            task,
        }
    }

    /// A pool that finds it and trusts it, to be configured further.
    pub fn pool(&self) -> ConnectionPoolBuilder {
        let tls = TlsOptions::new().builtin_roots(false);
        ConnectionPool::builder()
            .resolve_to("grpc.test", [IpAddr::from([127, 0, 0, 1])])
            .tls(tls.add_root(self.pki.ca_der()))
    }

    pub fn url(&self) -> String {
        format!("https://grpc.test:{}", self.port)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let body = request
        .into_body()
        .with_trailers(async { Some(Ok(trailers)) });
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(Body::new(body)).unwrap()
}
