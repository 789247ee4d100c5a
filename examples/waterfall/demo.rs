//! The run against our own provider: cold, resumed, warm, and fifty at once over each protocol.

use std::time::{Duration, Instant};

use firstbyte::{Client, ConnectionPool, Error, Limits, Protocols};
use http::Method;

use crate::Trouble;
use crate::line::{Line, Tone};
use crate::provider::{self, DNS_DELAY, Provider, RESPONSE_DELAY};
use crate::record::Record;
use crate::render::{Kind, Shape};
use crate::report::{Page, Report};
use crate::run::{Course, Job, course};
use crate::summary::labelled;

const WARM: usize = 10;
const AT_ONCE: usize = 50;

/// Runs all of it.
///
/// # Errors
/// Failed, if anything did.
pub(crate) async fn run(report: Report) -> Result<(), Trouble> {
    let provider = Provider::start().await?;
    let (pool, h2, h1) = clients(&provider).map_err(|e| Trouble::Failed(e.to_string()))?;
    let job = Job {
        url: provider.url(provider::PATH),
        method: Method::GET,
        body: None,
    };

    let mut kinds = Vec::new();
    let mut send = async |title: &str, about: &str, shape, clients: Vec<Client>, count| {
        let started = Instant::now();
        let course_of = Course {
            count,
            gap: Duration::ZERO,
            close_idle: None,
        };
        let records = course(clients, &job, course_of, |record| report.seen(record)).await;
        kinds.push(Kind {
            title: title.into(),
            about: about.into(),
            took: started.elapsed(),
            longest: Duration::ZERO,
            records,
            shape,
        });
    };
    let one = |client: &Client| vec![client.clone()];
    let all = |client: &Client| vec![client.clone(); AT_ONCE];
    send(
        "cold",
        "nothing is known yet: a look-up, TCP, a full TLS handshake",
        Shape::Phases,
        one(&h2),
        1,
    )
    .await;
    pool.close_idle();
    send(
        "resumed",
        "a new connection takes up the first one's TLS session",
        Shape::Phases,
        one(&h2),
        1,
    )
    .await;
    send(
        "warm",
        "ten, one after another",
        Shape::Rows,
        one(&h2),
        WARM,
    )
    .await;
    send(
        "50 over h2",
        "all at once, on the connection that is open",
        Shape::Crowd,
        all(&h2),
        AT_ONCE,
    )
    .await;
    send(
        "50 over http/1.1",
        "all at once, by a client of that protocol: a connection each",
        Shape::Crowd,
        all(&h1),
        AT_ONCE,
    )
    .await;

    set_scales(&mut kinds);
    let stats = pool.stats();
    let page = Page {
        intro: intro(&provider),
        kinds,
        stats,
        outro: labelled("the servers saw", seen_by(&provider), report.view),
    };
    report.finish(&page)
}

/// The pool, a client that lets ALPN decide, and one for HTTP/1.1.
fn clients(provider: &Provider) -> Result<(ConnectionPool, Client, Client), Error> {
    let builder = ConnectionPool::builder()
        .limits(Limits::gateway())
        .tls(provider.tls());
    #[cfg(feature = "hickory")]
    let builder = builder.name_servers([provider.dns_addr()]);
    #[cfg(not(feature = "hickory"))]
    let builder = builder.resolve_to(provider::HOST, [std::net::Ipv4Addr::LOCALHOST.into()]);
    let pool = builder.build()?;
    let h2 = pool.client("provider", provider.url("")).build()?;
    let h1 = pool
        .client("provider over http/1.1", provider.url(""))
        .protocols(Protocols::Http1)
        .build()?;
    Ok((pool, h2, h1))
}

/// One scale for those who go alone, another for the crowds.
fn set_scales(kinds: &mut [Kind]) {
    let longest = |kinds: &[Kind], is_crowd: bool| {
        let kinds = kinds
            .iter()
            .filter(|kind| (kind.shape == Shape::Crowd) == is_crowd);
        kinds
            .flat_map(|kind| &kind.records)
            .map(Record::total)
            .max()
            .unwrap_or_default()
    };
    let (alone, crowds) = (longest(kinds, false), longest(kinds, true));
    for kind in kinds {
        kind.longest = if kind.shape == Shape::Crowd {
            crowds
        } else {
            alone
        };
    }
}

fn intro(provider: &Provider) -> Vec<Line> {
    let line = |label: &str, text: String| {
        let label = Line::of(Tone::Dim, format!("   {label}"));
        label.pad_to(16).and(Tone::Plain, text)
    };
    let has_dns = cfg!(feature = "hickory");
    let held_back = match has_dns {
        true => format!("each DNS answer for {} ms, ", DNS_DELAY.as_millis()),
        false => String::new(),
    };
    let mut lines = vec![
        Line::of(Tone::Bold, " firstbyte").and(Tone::Plain, ": where the time of a request goes"),
        Line::new(),
        line("provider", format!("{}, in this process", provider.url(""))),
    ];
    lines.push(match has_dns {
        true => line(
            "name server",
            format!("{}, in this process", provider.dns_addr()),
        ),
        false => line(
            "name server",
            "none: built without the feature `hickory`".into(),
        ),
    });
    lines.push(line(
        "held back",
        format!(
            "on purpose: {held_back}each response for {} ms",
            RESPONSE_DELAY.as_millis()
        ),
    ));
    lines.push(line(
        "all else",
        "is real, over loopback: queries, sockets, TLS, HTTP".into(),
    ));
    lines
}

fn seen_by(provider: &Provider) -> Vec<Line> {
    let counts = provider.counts();
    let seen = [
        (counts.requests, "requests"),
        (counts.connections_accepted, "connections"),
        (counts.tls_full, "full handshakes"),
        (counts.tls_resumed, "resumed"),
        (provider.dns_queries(), "DNS questions"),
    ];
    seen.map(|(n, what)| Line::of(Tone::Plain, format!("{n} {what}")))
        .to_vec()
}
