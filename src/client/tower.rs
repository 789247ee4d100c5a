//! The pool and its clients as services of `tower`.
//!
//! They are always ready: what a request has to wait for it waits for in its own future, within its timeouts, where the
//! pool is fair to all who wait.
//!
//! Any [`http_body::Body`] will do, so that layers and whole clients of others (tonic's, for gRPC) sit on top as they are.
//! A [`Body`] stays what it is: one of bytes can be sent again.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tower_service::Service;

use crate::body::Body;
use crate::error::Error;

use super::connection_pool::ConnectionPool;
use super::options::RequestOptions;
use super::provider_client::Client;
use super::response_body::ResponseBody;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Result<http::Response<ResponseBody>, Error>;

/// The future of a request that was made through [`Service`]. Dropping it is dropping
/// [`ConnectionPool::send`].
pub struct ServiceFuture(Pin<Box<dyn Future<Output = Answer> + Send>>);

impl fmt::Debug for ServiceFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceFuture")
    }
}

impl Future for ServiceFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        self.0.as_mut().poll(cx)
    }
}

/// [`ConnectionPool::send`]: absolute URLs, settings as [`RequestOptions`] in the request's extensions.
impl<B> Service<http::Request<B>> for ConnectionPool
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<ResponseBody>;
    type Error = Error;
    type Future = ServiceFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> ServiceFuture {
        let pool = self.clone();
        let request = request.map(Body::wrap);
        ServiceFuture(Box::pin(async move { pool.send(request).await }))
    }
}

/// What [`Client::request`] does: the URI is a path under the base URL, or an absolute URL of the client's own origin;
/// the client's headers and options hold, with [`RequestOptions`] in the request's extensions.
impl<B> Service<http::Request<B>> for Client
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<ResponseBody>;
    type Error = Error;
    type Future = ServiceFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> ServiceFuture {
        let (mut parts, body) = request.into_parts();
        let options = parts.extensions.remove::<RequestOptions>();
        let request = self
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers)
            .options(options.unwrap_or_default())
            .body(Body::wrap(body));
        ServiceFuture(Box::pin(
            async move { Ok(request.send().await?.into_http()) },
        ))
    }
}
