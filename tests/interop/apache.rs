//! Apache httpd with mod_http2 and the event MPM: graceful restart by SIGUSR1, graceful stop by SIGWINCH.

use std::path::{Path, PathBuf};
use std::process::Command;

use firstbyte::Protocols;

use crate::common::in_time;
use crate::facts::{self, Loads, facts_of};
use crate::load::Failure;
use crate::process::Scratch;
use crate::site::{Settings, Site, Software};

pub(crate) struct Apache;

impl Software for Apache {
    fn program(&self) -> &'static str {
        "apache2"
    }

    fn package(&self) -> &'static str {
        "apache2-bin"
    }

    fn configure(&self, scratch: &Scratch, settings: &Settings) {
        let modules = PathBuf::from("/usr/lib/apache2/modules");
        let text = settings.fill(include_str!("apache2.conf"), scratch);
        scratch.write(
            "apache2.conf",
            text.replace("@MODULES@", &modules.display().to_string()),
        );
    }

    fn command(&self, program: &Path, scratch: &Scratch, _: &Settings) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-DFOREGROUND")
            .arg("-f")
            .arg(scratch.path().join("apache2.conf"));
        command
    }

    fn end(&self) -> Option<&'static str> {
        Some("TERM")
    }

    fn resumed(&self) -> &'static str {
        "Resumed"
    }

    fn graceful(&self) -> Option<&'static str> {
        Some("WINCH")
    }

    fn reload(&self) -> Option<&'static str> {
        Some("USR1")
    }
}

facts_of!(
    &Apache,
    [
        sequential_requests_share_one_connection,
        concurrent_requests_are_all_answered,
        reconnect_resumes_the_tls_session,
        large_bodies_arrive_whole_both_ways,
        idle_close_costs_no_error,
        graceful_stop_answers_what_is_in_flight,
    ]
);

/// Over h2 it loses some by itself: it fails the whole connection, unsent answers included, if a new stream arrives
/// behind its GOAWAY of 2^31-1, though streams that were under way by then are no fault (RFC 9113 §6.8). All others are
/// answered, nothing is processed twice, and the errors say that nobody knows more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_loses_no_request_but_those_on_connections_that_it_fails() {
    let Some(mut site) = Site::start(&Apache, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let loads = Loads::start(&site, &pool);
    in_time(async {
        loads.across_reloads(&mut site).await;
        let [keyed, plain, h2] = loads.finish(&site).await;
        keyed.expect_spotless();
        plain.expect_lost_only(Failure::is_post);
        let log = std::fs::read_to_string(site.scratch().path().join("apache2.log")).unwrap();
        let has_failed_one = log.contains("The user callback function failed");
        h2.expect_lost_only(|_| has_failed_one);
        assert!(h2.repeated.is_empty(), "{h2:#?}");
    })
    .await;
}

/// Over h1 it leaves them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_arrive_over_h2() {
    facts::trailers_arrive(&Apache, &[Protocols::Http2]).await;
}
