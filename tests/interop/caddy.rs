//! Caddy, and with it the HTTP of Go: reload through its admin interface, GOAWAY in two steps at a graceful end.

use std::path::Path;
use std::process::Command;

use firstbyte::{ConnectionPool, Protocols};

use crate::common::in_time;
use crate::facts::{self, Loads, facts_of};
use crate::load::Failure;
use crate::process::Scratch;
use crate::site::{Settings, Site, Software};

pub(crate) struct Caddy;

impl Software for Caddy {
    fn program(&self) -> &'static str {
        "caddy"
    }

    fn package(&self) -> &'static str {
        "caddy"
    }

    fn configure(&self, scratch: &Scratch, settings: &Settings) {
        scratch.write(
            "Caddyfile",
            settings.fill(include_str!("Caddyfile"), scratch),
        );
    }

    fn command(&self, program: &Path, scratch: &Scratch, _: &Settings) -> Command {
        let mut command = Command::new(program);
        command.args(["run", "--adapter", "caddyfile", "--config"]);
        command.arg(scratch.path().join("Caddyfile"));
        for home in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env(home, scratch.path());
        }
        command
    }

    fn end(&self) -> Option<&'static str> {
        None
    }

    fn resumed(&self) -> &'static str {
        "true"
    }

    fn graceful(&self) -> Option<&'static str> {
        Some("TERM")
    }
}

facts_of!(
    &Caddy,
    [
        sequential_requests_share_one_connection,
        concurrent_requests_are_all_answered,
        reconnect_resumes_the_tls_session,
        large_bodies_arrive_whole_both_ways,
        idle_close_costs_no_error,
        graceful_stop_answers_what_is_in_flight,
    ]
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_arrive() {
    facts::trailers_arrive(&Caddy, &[Protocols::Http1, Protocols::Http2]).await;
}

/// Go closes connections that it holds for idle while a request on them is being taken up, and goes on with the request:
/// the answer is lost, and over h1 the client sends what may be repeated once more. That is processed twice then; what
/// may not be repeated never is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_loses_no_request() {
    let Some(mut site) = Site::start(&Caddy, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let admin = ConnectionPool::new();
    let admin = admin.client_builder(format!("http://127.0.0.1:{}", site.settings.admin));
    let admin = admin.build().unwrap();
    let loads = Loads::start(&site, &pool);
    in_time(async {
        for _ in 0..3 {
            loads.more().await;
            let generation = site.next_generation();
            let text = site
                .settings
                .fill(include_str!("Caddyfile"), site.scratch());
            let request = admin.post("/load").header("content-type", "text/caddyfile");
            let response = request.body(text).send().await.unwrap();
            assert_eq!(response.status(), 200);
            loads.generation(generation).await;
        }
        let [keyed, plain, h2] = loads.finish(&site).await;
        keyed.expect_lost_only(|_| false);
        plain.expect_lost_only(Failure::is_post);
        h2.expect_spotless();
    })
    .await;
}
