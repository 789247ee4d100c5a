//! The run against a URL of the user's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use firstbyte::tcp::TcpOptions;
use firstbyte::tls::TlsOptions;
use firstbyte::{Client, ConnectionPool, Error, Limits, Protocols, WarmReport};

use crate::Trouble;
use crate::args::Live;
use crate::line::{Line, Tone};
use crate::record::{Record, millis};
use crate::render::{Kind, Shape};
use crate::report::{Page, Report};
use crate::run::{Course, Job, course};

/// More requests than that are shown as a crowd.
const MAX_ROWS: usize = 24;

/// Runs it.
///
/// # Errors
/// Usage: a file or option that cannot be used. Failed: a request.
pub(crate) async fn run(live: Live, report: Report) -> Result<(), Trouble> {
    let tls = tls(&live)?;
    let pool = pool(&live, tls).map_err(usage)?;
    let clients = clients(&live, &pool).map_err(usage)?;
    let job = Job {
        url: live.url.clone(),
        method: live.method.clone(),
        body: live.body.clone(),
    };

    let mut intro = intro(&live);
    if live.warm > 0 {
        let warmed = clients[0].warm(live.warm).await.map_err(usage)?;
        if let Some(error) = &warmed.error {
            eprintln!("waterfall: warming failed: {error}");
        }
        intro.push(warm_line(&warmed));
    }
    let order = Course {
        count: live.count,
        gap: live.gap,
        close_idle: live.new_connections.then(|| pool.clone()),
    };
    let started = Instant::now();
    let records = course(clients, &job, order, |record| report.seen(record)).await;
    let took = started.elapsed();

    let longest = records.iter().map(Record::total).max().unwrap_or_default();
    let kind = |title: &str, about: &str, records: Vec<Record>, shape| Kind {
        title: title.into(),
        about: about.into(),
        records,
        took,
        shape,
        longest,
    };
    let shape = if records.len() > MAX_ROWS {
        Shape::Crowd
    } else {
        Shape::Rows
    };
    let mut kinds = Vec::new();
    let mut rest = records;
    let follows = rest.split_off(rest.len().min(1));
    kinds.push(kind("first", "phase by phase", rest, Shape::Phases));
    if !follows.is_empty() {
        kinds.push(kind("then", &about(&live, follows.len()), follows, shape));
    }
    report.finish(&Page {
        intro,
        kinds,
        stats: pool.stats(),
        outro: Vec::new(),
    })
}

fn usage(error: Error) -> Trouble {
    Trouble::Usage(error.to_string())
}

fn tls(live: &Live) -> Result<TlsOptions, Trouble> {
    let mut tls = TlsOptions::new();
    if let Some(path) = &live.ca {
        let told = |what: String| Trouble::Usage(format!("--ca {}: {what}", path.display()));
        let pem = std::fs::read(path).map_err(|e| told(e.to_string()))?;
        tls = tls.add_root_pem(&pem).map_err(|e| told(e.to_string()))?;
    }
    if let Some(path) = &live.keylog {
        // The library does not fail a handshake over it; we can say so before.
        let mut options = std::fs::OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options
            .open(path)
            .map_err(|e| Trouble::Usage(format!("--keylog {}: {e}", path.display())))?;
        tls = tls.key_log_file(path);
    }
    if live.no_pq {
        tls = tls.post_quantum(false);
    }
    Ok(tls.early_data(live.early_data))
}

fn pool(live: &Live, tls: TlsOptions) -> Result<ConnectionPool, Error> {
    let defaults = Limits::gateway();
    let connections = live
        .concurrency
        .max(live.warm)
        .max(defaults.max_connections);
    let limits = defaults
        .max_connections(connections)
        .max_keepalive_connections(connections);
    let tcp = TcpOptions::default().fast_open(live.fast_open);
    let mut builder = ConnectionPool::builder().limits(limits).tls(tls).tcp(tcp);
    if live.http1 {
        builder = builder.protocols(Protocols::Http1);
    }
    let mut overrides: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for (host, addr) in &live.resolve {
        overrides.entry(host).or_default().push(*addr);
    }
    for (host, addrs) in overrides {
        builder = builder.resolve_to(host, addrs);
    }
    if let Some(server) = live.dns {
        builder = ask(builder, server);
    }
    builder.build()
}

#[cfg(feature = "hickory")]
fn ask(
    builder: firstbyte::ConnectionPoolBuilder,
    server: std::net::SocketAddr,
) -> firstbyte::ConnectionPoolBuilder {
    builder.name_servers([server])
}

/// getaddrinfo cannot be told whom to ask.
#[cfg(not(feature = "hickory"))]
fn ask(
    builder: firstbyte::ConnectionPoolBuilder,
    server: std::net::SocketAddr,
) -> firstbyte::ConnectionPoolBuilder {
    eprintln!("waterfall: --dns {server} does nothing without the feature `hickory`");
    builder
}

/// A client per worker. For new connections each has some to itself (and tickets), because only
/// what is idle can be closed before a request: never what another worker is using.
fn clients(live: &Live, pool: &ConnectionPool) -> Result<Vec<Client>, Error> {
    let workers = live.concurrency.min(live.count);
    let build = |worker: usize| {
        let mut builder = pool
            .client_builder(live.origin.to_string())
            .headers(live.headers.clone());
        if let Some(timeout) = live.timeout {
            builder = builder.timeout(timeout);
        }
        if live.new_connections {
            builder = builder.isolate(format!("worker {worker}"));
        }
        builder.build()
    };
    (0..workers).map(build).collect()
}

fn intro(live: &Live) -> Vec<Line> {
    let mut facts = vec![format!("{} requests", live.count)];
    if live.count == 1 {
        facts = vec!["1 request".into()];
    }
    if live.concurrency > 1 {
        facts.push(format!("{} at a time", live.concurrency));
    }
    if !live.gap.is_zero() {
        facts.push(format!("{} ms apart", live.gap.as_millis()));
    }
    if live.new_connections {
        facts.push("a new connection each".into());
    }
    if live.http1 {
        facts.push("HTTP/1.1 only".into());
    }
    vec![
        Line::of(Tone::Bold, " firstbyte")
            .and(Tone::Plain, format!(": {} {}", live.method, live.origin)),
        Line::of(Tone::Dim, format!("   {}", facts.join(" · "))),
    ]
}

fn warm_line(warmed: &WarmReport) -> Line {
    let phases = warmed
        .connections
        .iter()
        .filter(|warm| warm.opened)
        .map(|warm| {
            let trace = warm.connection.trace();
            let phases = trace
                .spans()
                .filter_map(|(phase, _)| Some(format!("{phase} {:.2}", millis(trace.get(phase)?))));
            format!(
                "{} in ms: {}",
                warm.connection.id(),
                phases.collect::<Vec<_>>().join(", ")
            )
        });
    let first: Vec<String> = phases.take(1).collect();
    let text = format!(
        "   warmed: {} ready, {} opened",
        warmed.ready(),
        warmed.opened()
    );
    Line::of(Tone::Dim, text).and(
        Tone::Dim,
        first.iter().map(|f| format!(", {f}")).collect::<String>(),
    )
}

fn about(live: &Live, rest: usize) -> String {
    let how = match (live.concurrency, live.new_connections) {
        (1, false) => "one after another",
        (1, true) => "one after another, each on a connection of its own",
        (_, false) => "side by side",
        (_, true) => "side by side, each on a connection of its own",
    };
    format!("the other {rest}, {how}")
}
