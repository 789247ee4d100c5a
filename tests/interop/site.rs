//! A server under test, running: its process, its configuration, and the backend behind it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use firstbyte::tls::TlsOptions;
use firstbyte::{Client, ConnectionPool, ConnectionPoolBuilder, Protocols};
use http::{Method, Request};

use crate::process::{Process, Scratch, free_port, program};
use crate::support::gate::Gate;
use crate::support::pki::Pki;
use crate::support::server::{Reply, Server};

/// A product that the tests run against.
pub(crate) trait Software: Sync {
    /// Its program, and the Debian package that has it.
    fn program(&self) -> &'static str;
    fn package(&self) -> &'static str;

    /// Writes whatever it reads when it starts and when it reloads.
    fn configure(&self, scratch: &Scratch, settings: &Settings);

    /// Stays in the foreground.
    fn command(&self, program: &Path, scratch: &Scratch, settings: &Settings) -> Command;

    /// The signal at which it ends at once with all its workers; `None`: it has none and may be killed.
    fn end(&self) -> Option<&'static str>;

    /// What it writes into `x-tls-resumed` for a resumed session.
    fn resumed(&self) -> &'static str;

    /// The signal at which it answers what it has and ends; `None`: it has none.
    fn graceful(&self) -> Option<&'static str> {
        None
    }

    /// The signal at which it reads its configuration again; `None`: it has none.
    fn reload(&self) -> Option<&'static str> {
        None
    }
}

/// What the configuration depends on.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Goes into `x-generation` of every answer.
    pub(crate) generation: u32,
    /// How long an idle connection is kept.
    pub(crate) idle_ms: u32,
    /// How many requests a connection may serve.
    pub(crate) requests: u32,
    /// How many streams a connection may have.
    pub(crate) streams: u32,
    pub(crate) port: u16,
    /// Of the interface by which it is told to reload, if it has one.
    pub(crate) admin: u16,
    /// 0: the one of the site.
    pub(crate) backend: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            generation: 1,
            idle_ms: 60_000,
            requests: 1_000_000,
            streams: 100,
            port: 0,
            admin: 0,
            backend: 0,
        }
    }
}

impl Settings {
    /// Fills a template in.
    pub(crate) fn fill(&self, template: &str, scratch: &Scratch) -> String {
        template
            .replace("@DIR@", &scratch.path().display().to_string())
            .replace("@PORT@", &self.port.to_string())
            .replace("@ADMIN@", &self.admin.to_string())
            .replace("@BACKEND@", &format!("127.0.0.1:{}", self.backend))
            .replace("@GENERATION@", &self.generation.to_string())
            .replace("@IDLE_MS@", &self.idle_ms.to_string())
            .replace("@REQUESTS@", &self.requests.to_string())
    }
}

pub(crate) struct Site {
    software: &'static dyn Software,
    pub(crate) settings: Settings,
    // The fields end in this order: the server first.
    pub(crate) process: Process,
    /// What answers behind a proxy; its books say what was processed.
    pub(crate) backend: Server,
    /// Holds back the answers to `/held`.
    pub(crate) gate: Gate,
    pki: Pki,
    scratch: Scratch,
}

impl Site {
    /// `None`, and a word on stderr, if the program is not installed.
    ///
    /// # Panics
    ///
    /// If it is not and `FIRSTBYTE_INTEROP` is `required`; if it does not start.
    pub(crate) async fn start(
        software: &'static dyn Software,
        mut settings: Settings,
    ) -> Option<Self> {
        let Some(file) = program(software.program()) else {
            let (name, package) = (software.program(), software.package());
            let notice = format!("NOT RUN: {name} is not installed (Debian package {package})");
            let is_required =
                std::env::var_os("FIRSTBYTE_INTEROP").is_some_and(|v| v == "required");
            assert!(!is_required, "{notice}");
            eprintln!("{notice}");
            return None;
        };
        let (backend, gate) = backend().await;
        let (pki, scratch) = (Pki::new(), Scratch::new());
        scratch.write_identity(&pki);
        if settings.backend == 0 {
            settings.backend = backend.port();
        }
        let mut why = String::new();
        // Somebody else may take a port between its choice and its use.
        for _ in 0..5 {
            settings.port = free_port();
            settings.admin = free_port();
            software.configure(&scratch, &settings);
            match launch(software, &file, &scratch, &settings).await {
                Ok(process) => {
                    return Some(Self {
                        software,
                        settings,
                        process,
                        backend,
                        gate,
                        pki,
                        scratch,
                    });
                }
                Err(error) => why = error,
            }
        }
        panic!("{} does not start: {why}", software.program());
    }

    /// Starts it once more, on the same port, after its end.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.ended().is_some(), "it has ended");
        let file = program(self.software.program()).expect("it was there");
        let again = launch(self.software, &file, &self.scratch, &self.settings).await;
        self.process = again.expect("the port is free again");
    }

    /// Writes the next generation of its configuration; who calls this has it read.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.settings.generation += 1;
        self.software.configure(&self.scratch, &self.settings);
        self.settings.generation
    }

    pub(crate) fn software(&self) -> &'static dyn Software {
        self.software
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub(crate) fn url(&self) -> String {
        format!("https://api.test:{}", self.settings.port)
    }

    /// A pool that trusts this server and finds it.
    pub(crate) fn pool(&self) -> ConnectionPool {
        self.pool_with(|pool| pool)
    }

    pub(crate) fn pool_with(
        &self,
        options: impl FnOnce(ConnectionPoolBuilder) -> ConnectionPoolBuilder,
    ) -> ConnectionPool {
        let builder = ConnectionPool::builder()
            .resolve_to("api.test", [IpAddr::V4(Ipv4Addr::LOCALHOST)])
            .tls(self.trust());
        options(builder).build().expect("valid options")
    }

    pub(crate) fn trust(&self) -> TlsOptions {
        TlsOptions::new()
            .builtin_roots(false)
            .add_root(self.pki.ca_der())
    }

    pub(crate) fn client(&self, pool: &ConnectionPool, protocols: Protocols) -> Client {
        let builder = pool.client_builder(self.url()).protocols(protocols);
        builder.build().expect("valid client")
    }
}

async fn launch(
    software: &dyn Software,
    file: &Path,
    scratch: &Scratch,
    settings: &Settings,
) -> Result<Process, String> {
    let command = software.command(file, scratch, settings);
    let log = scratch.path().join("output.log");
    Process::start(command, log, software.end(), settings.port).await
}

/// hyper behind the server under test.
///
/// | path | answer |
/// |---|---|
/// | `/` | `hello` |
/// | `/echo` | the request's body, with its length |
/// | `/stream` | the same in pieces, without a length |
/// | `/held` | the request's body, once the gate is open |
async fn backend() -> (Server, Gate) {
    let gate = Gate::new();
    let waiter = gate.waiter();
    let builder = Server::builder()
        .plain()
        .handler_async(move |request: Request<Bytes>| {
            let waiter = waiter.clone();
            async move {
                let is_held = request.uri().path() == "/held";
                if is_held {
                    waiter.opened().await;
                }
                answer(request)
            }
        });
    (builder.start().await, gate)
}

fn answer(request: Request<Bytes>) -> Reply {
    let is_get = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/" if is_get => Reply::ok().body("hello"),
        "/echo" | "/held" => Reply::ok().body(request.into_body()),
        "/stream" => Reply::ok().chunks(pieces(&request.into_body()), std::time::Duration::ZERO),
        _ => Reply::status(404),
    }
}

/// Cut into pieces of uneven size.
pub(crate) fn pieces(whole: &Bytes) -> Vec<Bytes> {
    let (mut pieces, mut from) = (Vec::new(), 0);
    for size in [1, 16_384, 100, 40_000, 7].into_iter().cycle() {
        if from == whole.len() {
            break;
        }
        let to = whole.len().min(from + size);
        pieces.push(whole.slice(from..to));
        from = to;
    }
    pieces
}
