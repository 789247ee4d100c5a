//! nginx: reload by SIGHUP, a limit of requests per connection with GOAWAY ahead of the last answer, idle closes to the
//! millisecond.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::bodies::noise;
use crate::common::{BOTH, in_time, join_all};
use crate::facts::facts_of;
use crate::load::{Failure, Posts, one, processed};
use crate::process::Scratch;
use crate::site::{Settings, Site, Software};

pub(crate) struct Nginx;

impl Software for Nginx {
    fn program(&self) -> &'static str {
        "nginx"
    }

    fn package(&self) -> &'static str {
        "nginx"
    }

    fn configure(&self, scratch: &Scratch, settings: &Settings) {
        scratch.write(
            "nginx.conf",
            settings.fill(include_str!("nginx.conf"), scratch),
        );
    }

    fn command(&self, program: &Path, scratch: &Scratch, _: &Settings) -> Command {
        let mut command = Command::new(program);
        command.arg("-p").arg(scratch.path());
        command.arg("-c").arg(scratch.path().join("nginx.conf"));
        // Until it has read where its log goes.
        command.args(["-e", "stderr"]);
        command
    }

    fn end(&self) -> Option<&'static str> {
        Some("TERM")
    }

    fn resumed(&self) -> &'static str {
        "r"
    }

    fn graceful(&self) -> Option<&'static str> {
        Some("QUIT")
    }

    fn reload(&self) -> Option<&'static str> {
        Some("HUP")
    }
}

facts_of!(
    &Nginx,
    [
        sequential_requests_share_one_connection,
        concurrent_requests_are_all_answered,
        reconnect_resumes_the_tls_session,
        large_bodies_arrive_whole_both_ways,
        idle_close_costs_no_error,
        reload_loses_no_request,
        graceful_stop_answers_what_is_in_flight,
    ]
);

/// It answers the last request that it allows, and says so before: `Connection: close` on h1, GOAWAY on h2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_requests_loses_none_in_sequence() {
    let settings = Settings {
        requests: 20,
        ..Settings::default()
    };
    let Some(site) = Site::start(&Nginx, settings).await else {
        return;
    };
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            for nth in 0..300 {
                let id = format!("{protocols:?}-{nth}");
                if let Err(error) = one(&client, &id, nth % 2 == 1, Posts::Plain).await {
                    panic!("{id}: {}", error.text);
                }
            }
        })
        .await;
        let stats = pool.stats();
        assert!(stats.connections_created >= 15, "{protocols:?}: {stats:?}");
        assert!(stats.connections_created <= 40, "{protocols:?}: {stats:?}");
    }
    let times = processed(&site.backend);
    assert_eq!(times.len(), 600);
    assert!(times.values().all(|n| *n == 1), "{times:?}");
}

/// GOAWAY comes while streams above it are on their way: they are sent again, and nothing is processed twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_requests_loses_none_under_load() {
    let settings = Settings {
        requests: 20,
        ..Settings::default()
    };
    let Some(site) = Site::start(&Nginx, settings).await else {
        return;
    };
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        let (client, site) = (&client, &site);
        let failed = in_time(async {
            let workers = join_all((0..32).map(|worker| async move {
                let mut failed = Vec::new();
                for nth in 0..20 {
                    let id = format!("{protocols:?}-{worker}-{nth}");
                    if let Err(error) = one(client, &id, nth % 2 == 1, Posts::Plain).await {
                        let times = processed(&site.backend).get(&id).copied().unwrap_or(0);
                        failed.push(format!("{id}, processed {times} times: {}", error.text));
                    }
                }
                failed
            }))
            .await;
            workers.concat()
        })
        .await;
        let stats = pool.stats();
        assert!(
            failed.is_empty(),
            "{} failed: {:#?}, {stats:?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        assert!(stats.connections_created >= 32, "{protocols:?}: {stats:?}");
    }
    let times = processed(&site.backend);
    assert_eq!(times.len(), 1_280);
    assert!(times.values().all(|n| *n == 1), "{times:?}");
}

/// Requests that come just when the server gives the connection up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_at_the_moment_of_the_idle_close_is_answered() {
    let settings = Settings {
        idle_ms: 100,
        ..Settings::default()
    };
    let Some(site) = Site::start(&Nginx, settings).await else {
        return;
    };
    for protocols in BOTH {
        // A pool for each gap: what one learns of the server's habit must not spare the next the race.
        let gaps = (95..105).flat_map(|gap| [gap; 2]);
        let outcomes = in_time(join_all(gaps.map(|gap| {
            let pool = site.pool();
            let client = site.client(&pool, protocols);
            async move {
                for nth in 0..5 {
                    one(&client, &format!("{nth}"), false, Posts::Plain).await?;
                    tokio::time::sleep(Duration::from_millis(gap)).await;
                }
                Ok::<_, Failure>(())
            }
        })))
        .await;
        for outcome in outcomes {
            outcome.unwrap_or_else(|error| panic!("{protocols:?}: {}", error.text));
        }
    }
}

/// 413 comes while the upload has hardly begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_above_the_servers_limit_gets_its_answer() {
    let Some(site) = Site::start(&Nginx, Settings::default()).await else {
        return;
    };
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            for _ in 0..5 {
                let request = client.post("/small/echo").body(noise(8 << 20));
                let mut response = request.send().await.unwrap();
                assert_eq!(response.status(), 413, "{protocols:?}");
                assert!(response.text().await.unwrap().contains("413"));
                let mut response = client.get("/").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "hello");
            }
        })
        .await;
    }
    assert!(
        site.backend
            .seen()
            .iter()
            .all(|seen| seen.uri.path() == "/")
    );
}
