//! The pool and its clients as services: under the layers that do what this crate does not.
#![cfg(feature = "tower")]

mod common;
mod support;

use std::future::{Ready, ready};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::eventually;
use firstbyte::{Body, Client, ConnectionPool, ErrorKind, RequestOptions, ResponseBody};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use support::gate::Gate;
use support::server::{Reply, Server};
use tower::retry::{Policy, RetryLayer};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::decompression::DecompressionLayer;
use tower_http::follow_redirect::FollowRedirectLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

async fn plain(
    answer: impl Fn(Request<Bytes>) -> Reply + Send + Sync + 'static,
) -> (Server, Client) {
    let server = Server::builder().plain().handler(answer).start().await;
    let pool = ConnectionPool::new();
    let client = pool.client_builder(server.url("/")).build().unwrap();
    (server, client)
}

fn get(uri: impl AsRef<str>) -> Request<Body> {
    Request::get(uri.as_ref()).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn decompression_asks_for_gzip_and_reads_it() {
    let (_server, client) = plain(|request| {
        let accepts = request.headers()[header::ACCEPT_ENCODING].to_str().unwrap();
        assert!(accepts.contains("gzip"));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(b"hello").unwrap();
        Reply::ok()
            .header("content-encoding", "gzip")
            .body(gzip.finish().unwrap())
    })
    .await;
    let service = ServiceBuilder::new()
        .layer(DecompressionLayer::new())
        .service(client);
    let response = service.oneshot(get("/")).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "hello");
}

#[tokio::test]
async fn redirects_are_followed_over_the_same_connection() {
    let (server, _) = plain(|request| match request.uri().path() {
        "/a" => Reply::status(302).header("location", "/b"),
        path => Reply::ok().body(path.to_owned()),
    })
    .await;
    let pool = ConnectionPool::new();
    let service = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .service(pool.clone());
    let response = service.oneshot(get(server.url("/a"))).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        (&body[..], pool.stats().connections_created),
        (&b"/b"[..], 1)
    );
}

#[tokio::test]
async fn trace_sees_requests_and_responses() {
    let (_server, client) = plain(|_| Reply::ok().body("hello")).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let layer = TraceLayer::new_for_http().on_response(
        move |response: &Response<ResponseBody>, _: Duration, _: &tracing::Span| {
            assert_eq!(response.status(), 200);
            count.fetch_add(1, Ordering::SeqCst);
        },
    );
    let service = ServiceBuilder::new().layer(layer).service(client);
    let response = service.oneshot(get("/")).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((&body[..], seen.load(Ordering::SeqCst)), (&b"hello"[..], 1));
}

#[tokio::test]
async fn timeout_gives_back_what_the_request_held() {
    let gate = Gate::new();
    let held = gate.clone();
    let (_server, client) = plain(move |_| Reply::ok().hold(held.clone())).await;
    let status = StatusCode::GATEWAY_TIMEOUT;
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::with_status_code(
            status,
            Duration::from_millis(20),
        ))
        .map_response(|response: Response<ResponseBody>| response.map(UnsyncBoxBody::new))
        .service(client.clone());
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), status);
    eventually("the request is over for its client, too", || {
        client.stats().total_requests == 1
    })
    .await;
    gate.open();
}

/// Again while the server has no room.
#[derive(Clone)]
struct Patient;

impl<E> Policy<Request<Body>, Response<ResponseBody>, E> for Patient {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<ResponseBody>, E>,
    ) -> Option<Ready<()>> {
        let status = result.as_ref().ok()?.status();
        (status == StatusCode::SERVICE_UNAVAILABLE).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        let mut clone = Request::new(request.body().try_clone()?);
        clone.method_mut().clone_from(request.method());
        clone.uri_mut().clone_from(request.uri());
        clone.headers_mut().clone_from(request.headers());
        Some(clone)
    }
}

#[tokio::test]
async fn retry_sends_the_body_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let (_server, client) = plain(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Reply::status(503),
        _ => Reply::ok().body(request.into_body()),
    })
    .await;
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Patient))
        .service(client);
    let request = Request::post("/").body(Body::from("again")).unwrap();
    let response = service.oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        (body, asked.load(Ordering::SeqCst)),
        (Bytes::from("again"), 3)
    );
}

#[tokio::test]
async fn client_takes_paths_and_options_and_no_other_origin() {
    let gate = Gate::new();
    let held = gate.clone();
    let (server, client) = plain(move |request| {
        let reply = Reply::ok().body(request.uri().path().to_owned());
        match request.uri().path() {
            "/late" => reply.hold(held.clone()),
            _ => reply,
        }
    })
    .await;
    let mut service = client.clone();
    let text = async |response: Response<ResponseBody>| {
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let response = Service::call(&mut service, get("/v1/chat")).await.unwrap();
    assert_eq!(text(response).await, "/v1/chat");
    let response = Service::call(&mut service, get(server.url("/abs")))
        .await
        .unwrap();
    assert_eq!(text(response).await, "/abs");
    let error = Service::call(&mut service, get("http://other.test/"))
        .await
        .unwrap_err();
    assert!(error.is_invalid());
    let mut late = get("/late");
    late.extensions_mut()
        .insert(RequestOptions::default().timeout(Duration::from_millis(5)));
    let error = Service::call(&mut service, late).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    gate.open();
}
