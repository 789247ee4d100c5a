//! HAProxy: reload by SIGUSR2 to a master that hands the listening sockets to its next worker, and an end that begins
//! with GOAWAY of 2^31-1 (SIGUSR1).

use std::path::Path;
use std::process::Command;

use firstbyte::Protocols;

use crate::facts::{self, facts_of};
use crate::process::Scratch;
use crate::site::{Settings, Software};

/// The master misses signals that come in its first moments, so it is there only where it is wanted.
pub(crate) struct Haproxy {
    has_master: bool,
}

pub(crate) static ALONE: Haproxy = Haproxy { has_master: false };
static WITH_MASTER: Haproxy = Haproxy { has_master: true };

impl Software for Haproxy {
    fn program(&self) -> &'static str {
        "haproxy"
    }

    fn package(&self) -> &'static str {
        "haproxy"
    }

    fn configure(&self, scratch: &Scratch, settings: &Settings) {
        scratch.write(
            "haproxy.cfg",
            settings.fill(include_str!("haproxy.cfg"), scratch),
        );
    }

    fn command(&self, program: &Path, scratch: &Scratch, _: &Settings) -> Command {
        let mut command = Command::new(program);
        command.arg(if self.has_master { "-W" } else { "-db" });
        command.arg("-f").arg(scratch.path().join("haproxy.cfg"));
        command
    }

    fn end(&self) -> Option<&'static str> {
        self.has_master.then_some("TERM")
    }

    fn resumed(&self) -> &'static str {
        "1"
    }

    fn graceful(&self) -> Option<&'static str> {
        Some("USR1")
    }

    fn reload(&self) -> Option<&'static str> {
        Some("USR2")
    }
}

facts_of!(
    &ALONE,
    [
        sequential_requests_share_one_connection,
        concurrent_requests_are_all_answered,
        reconnect_resumes_the_tls_session,
        large_bodies_arrive_whole_both_ways,
        idle_close_costs_no_error,
        graceful_stop_answers_what_is_in_flight,
    ]
);

facts_of!(&WITH_MASTER, [reload_loses_no_request]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_arrive() {
    facts::trailers_arrive(&ALONE, &[Protocols::Http1, Protocols::Http2]).await;
}
