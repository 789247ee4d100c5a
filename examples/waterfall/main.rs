//! Where the time of a request goes: a waterfall of its phases.
//!
//! ```text
//! cargo run --release --example waterfall                          a provider inside the process
//! cargo run --release --example waterfall -- https://host/path     a URL of yours; see --help
//! ```
//!
//! # The shape of `--json`
//!
//! One object per line: one per request, in the order in which they end, then one with the pool's
//! statistics. Times are milliseconds. A field that is not known, and a phase that did not happen,
//! is `null`, never 0. The ten phases (`retry` to `receive`, without the three parts of `queue`)
//! add up to `total_ms`.
//!
//! ```json
//! {"type":"request","url":"https://host/path","method":"GET","status":200,
//!  "version":"h2|http/1.1","connection":1,"use":"new|joined|idle|multiplexed|prewarmed",
//!  "reused":false,"tls_resumed":true,"remote_addr":"192.0.2.1:443","attempts":1,
//!  "timing":{"retry_ms":null,"queue_ms":0.1,"queue_dial_ms":null,"queue_limit_ms":null,
//!            "queue_local_ms":0.1,"dns_ms":12.5,"tcp_ms":0.1,"proxy_ms":null,"tls_ms":2.5,
//!            "protocol_ms":0.1,"send_ms":0.1,"wait_ms":25.5,"receive_ms":0.1,"total_ms":41.0},
//!  "network_overhead_ms":15.2,"body_bytes":5,
//!  "error":null|{"kind":"connection_lost","phase":"wait","replay_safety":"maybe_processed",
//!                "message":"one line"}}
//! {"type":"stats", every field of ConnectionPoolStats, "closed":{"close_idle":1}}
//! ```
//!
//! `kind`, `replay_safety` and the reasons in `closed` are the names of `ErrorKind`,
//! `ReplaySafety` and `CloseReason` in snake case.
//!
//! | module | what it does |
//! |---|---|
//! | `args` | the command line, parsed once |
//! | `provider` | the servers inside the process |
//! | `demo`, `live` | which requests are sent: to our provider, to your URL |
//! | `run`, `record` | sends one; keeps what was measured |
//! | `render`, `one`, `table`, `summary`, `bars`, `line` | from records to lines of text; pure |
//! | `json` | from records to JSON |
//! | `report` | out to the terminal or the pipe |

mod args;
mod bars;
mod demo;
mod json;
mod line;
mod live;
mod one;
mod provider;
mod record;
mod render;
mod report;
mod run;
mod summary;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use std::process::ExitCode;

use args::Command;
use report::Report;

/// The requests, or some of them, failed.
const FAILED: u8 = 1;
/// The arguments make no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = match args::parse(lexopt::Parser::from_env()) {
        Ok(command) => command,
        Err(message) => {
            eprintln!("waterfall: {message}\nTry `waterfall --help`.");
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("waterfall: no runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let outcome = match command {
        Command::Help => {
            print!("{}", args::HELP);
            Ok(())
        }
        Command::Demo { json } => runtime.block_on(demo::run(Report::new(json))),
        Command::Live(live) => {
            let report = Report::new(live.json);
            runtime.block_on(live::run(*live, report))
        }
        Command::Serve(site) => runtime.block_on(provider::serve(site)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Usage(message)) => {
            eprintln!("waterfall: {message}\nTry `waterfall --help`.");
            ExitCode::from(USAGE)
        }
        Err(Trouble::Failed(message)) => {
            eprintln!("waterfall: {message}");
            ExitCode::from(FAILED)
        }
    }
}

/// Why the exit code is not zero.
enum Trouble {
    /// An argument cannot be used; seen only when it was used.
    Usage(String),
    /// Something failed.
    Failed(String),
}
