//! gRPC: tonic's clients over a client of ours, against tonic's server.
#![cfg(feature = "tower")]

mod common;
mod support;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut};
use common::{eventually, in_time, join_all};
use firstbyte::{Client, ConnectionPool};
use support::grpc::GrpcServer;
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::tokio_stream::Stream;
use tonic::{Code, Request, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Said;
use tonic_health::pb::health_client::HealthClient;

struct World {
    server: GrpcServer,
    pool: ConnectionPool,
    client: Client,
}

impl World {
    async fn new() -> Self {
        let server = GrpcServer::start().await;
        let pool = server.pool().build().unwrap();
        let client = pool.client_builder(server.url()).build().unwrap();
        Self {
            server,
            pool,
            client,
        }
    }
}

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn unary_calls_share_one_connection_and_their_errors_are_statuses() {
    in_time(async {
        let World {
            server,
            pool,
            client,
        } = World::new().await;
        let health = HealthClient::new(client);
        let check = async || {
            let answer = health.clone().check(ask("")).await.unwrap();
            assert_eq!(answer.into_inner().status(), Said::Serving);
        };
        join_all((0..50).map(|_| check())).await;
        let unknown = health.clone().check(ask("nobody")).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
        let stats = pool.stats();
        assert_eq!((stats.total_requests, server.connections()), (51, 1));
        // Given back, trailers and all.
        eventually("all are given back", || pool.stats().active == 0).await;
    })
    .await;
}

#[tokio::test]
async fn streams_are_read_as_they_come_and_dropped_alone() {
    in_time(async {
        let World {
            server,
            pool,
            client,
        } = World::new().await;
        let mut health = HealthClient::new(client.clone());
        let mut watched = health.watch(ask("")).await.unwrap().into_inner();
        let first = watched.message().await.unwrap().unwrap();
        assert_eq!(first.status(), Said::Serving);
        let not = ServingStatus::NotServing;
        server.reporter.set_service_status("", not).await;
        let second = watched.message().await.unwrap().unwrap();
        assert_eq!(second.status(), Said::NotServing);
        drop(watched);
        eventually("the stream is given back", || pool.stats().active == 0).await;
        let answer = health.check(ask("")).await.unwrap();
        assert_eq!(answer.into_inner().status(), Said::NotServing);
        assert_eq!(server.connections(), 1);
    })
    .await;
}

/// Messages that are text.
struct Plain;

impl Codec for Plain {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let text = String::from_utf8(bytes.into());
        text.map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}

struct Received(mpsc::Receiver<String>);

impl Stream for Received {
    type Item = String;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<String>> {
        self.0.poll_recv(cx)
    }
}

/// Each message is sent once the answer to the one before is there: neither way waits for the other to end.
#[tokio::test]
async fn both_ways_stream_at_once() {
    in_time(async {
        let World { client, .. } = &World::new().await;
        let mut grpc = Grpc::new(client.clone());
        grpc.ready().await.unwrap();
        let (sender, receiver) = mpsc::channel(1);
        sender.send("0".to_owned()).await.unwrap();
        let request = Request::new(Received(receiver));
        let path = http::uri::PathAndQuery::from_static("/echo");
        let answer = grpc.streaming(request, path, Plain).await.unwrap();
        let mut answers = answer.into_inner();
        for n in 0..50 {
            assert_eq!(answers.message().await.unwrap().unwrap(), n.to_string());
            sender.send((n + 1).to_string()).await.unwrap();
        }
        drop(sender);
        assert_eq!(answers.message().await.unwrap().as_deref(), Some("50"));
        assert_eq!(answers.message().await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn failures_have_our_error_as_their_cause() {
    in_time(async {
        let pool = ConnectionPool::new();
        let nobody = support::stall::Stall::refused_addr();
        let client = pool.client_builder(format!("http://{nobody}"));
        let mut health = HealthClient::new(client.build().unwrap());
        let status = health.check(ask("")).await.unwrap_err();
        let cause = std::error::Error::source(&status).expect("a cause");
        let cause = cause.downcast_ref::<firstbyte::Error>().expect("ours");
        assert!(cause.is_connect(), "{cause}");
    })
    .await;
}
