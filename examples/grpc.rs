//! gRPC: a client that tonic generated, over a client of the pool.
//!
//! ```text
//! cargo run --release --features tower --example grpc
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use support::grpc::GrpcServer;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // On loopback; for a real one `ConnectionPool::new()` and its URL.
    let server = GrpcServer::start().await;
    let pool = server.pool().build()?;
    // Metadata that every call has is headers of the client.
    let client = pool
        .client("health", server.url())
        .bearer_auth("token")
        .build()?;
    let mut health = HealthClient::new(client);

    let everything = HealthCheckRequest::default();
    let answer = health.check(everything.clone()).await?.into_inner();
    println!("check: {:?}", answer.status());

    let mut watched = health.watch(everything).await?.into_inner();
    for status in [ServingStatus::NotServing, ServingStatus::Serving] {
        if let Some(answer) = watched.message().await? {
            println!("watch: {:?}", answer.status());
        }
        server.reporter.set_service_status("", status).await;
    }

    let unknown = HealthCheckRequest {
        service: "nobody".to_owned(),
    };
    let error = health
        .check(unknown)
        .await
        .expect_err("there is no such service");
    println!("unknown: {:?}", error.code());

    let stats = pool.stats();
    println!(
        "{} calls over {} connection",
        stats.total_requests, stats.connections_created
    );
    Ok(())
}
