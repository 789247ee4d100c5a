//! One dial: the phases in their order, each stamped where it happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::dns::Dns;
use crate::error::{Error, ErrorKind};
use crate::event::{DialEvent, DialRecorder};
use crate::http1::Http1;
use crate::http2::{self, Driver, Http2, Http2Options};
use crate::io::{Carrier, Dial, DialTarget, Transport, Wire};
use crate::tcp;
use crate::timing::Phase;
use crate::tls;

use super::info::ConnectionInfo;
use super::plan::{Plan, Protocols, Security};
use super::race::{RaceError, RaceOptions, race};
use super::stream::Stream;

/// What every dial of a pool uses.
pub(crate) struct Deps {
    pub(crate) dns: Arc<Dns>,
    /// Opens transports instead of our TCP.
    pub(crate) dialer: Option<Arc<dyn Dial>>,
    pub(crate) race: RaceOptions,
    pub(crate) http2: Http2Options,
    /// Bounds a whole dial.
    pub(crate) connect_timeout: Duration,
}

/// A connection that is ready for its first request.
pub(crate) struct Opened {
    pub(crate) info: ConnectionInfo,
    pub(crate) link: Link,
}

/// The protocol that ALPN, or the caller, decided on.
pub(crate) enum Link {
    Http1(Box<Http1<Stream>>),
    Http2(Http2, Box<Driver<Stream>>),
}

/// Dials; `stream_limit` is what the peer allowed last. Runs in a task of the pool; dropping the future closes whatever was opened.
pub(crate) async fn connect(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
    stream_limit: Option<u32>,
) -> Result<Opened, Error> {
    let walk = walk(plan, deps, recorder, stream_limit);
    let result = match timeout(deps.connect_timeout, walk).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!("connecting took longer than {:?}", deps.connect_timeout),
        )
        .at(recorder.current_phase())),
    };
    result.map_err(|error| {
        recorder.emit(DialEvent::Failed);
        error.with_origin(plan.origin_text.clone())
    })
}

async fn walk(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
    stream_limit: Option<u32>,
) -> Result<Opened, Error> {
    let transport = reach(plan, deps, recorder).await?;
    let wire = Wire::new(transport);
    let (mut stream, alpn) = match &plan.security {
        Security::Plain => (Stream::Plain(wire), None),
        Security::Tls(tls) => {
            recorder.emit(DialEvent::TlsStart);
            let (stream, facts) = tls::handshake(tls, wire).await?;
            let alpn = facts.alpn.clone();
            recorder.emit(DialEvent::TlsEnd(facts));
            (Stream::Tls(Box::new(stream)), alpn)
        }
    };
    // From here until the first request nothing leaves: the end of the handshake, the preface and
    // the request go together.
    stream.hold();
    let remote_addr = stream.peer_addr();
    let (protocol, link) = if speaks_http2(plan, alpn.as_deref())? {
        recorder.emit(DialEvent::ProtocolStart);
        let (handle, driver) = http2::connect(stream, &deps.http2, stream_limit).await?;
        (http::Version::HTTP_2, Link::Http2(handle, Box::new(driver)))
    } else {
        (
            http::Version::HTTP_11,
            Link::Http1(Box::new(Http1::new(stream))),
        )
    };
    recorder.emit(DialEvent::Ready);
    let trace = recorder.trace();
    let info = ConnectionInfo::new(plan.origin_text.clone(), protocol, remote_addr, trace);
    Ok(Opened { info, link })
}

/// dns and tcp: from a name to a transport.
async fn reach(plan: &Plan, deps: &Deps, recorder: &Arc<DialRecorder>) -> Result<Transport, Error> {
    let lookup = deps.dns.lookup(plan.origin.canonical_host(), plan.families);
    if lookup.source().is_lookup() {
        recorder.emit(DialEvent::LookupStart);
    }
    let attempt = |addr: SocketAddr| {
        let target = DialTarget::new(addr, plan.host_text.clone());
        let dialer = deps.dialer.clone();
        async move {
            match dialer {
                Some(dialer) => dialer.dial(target).await,
                None => tcp::connect(addr, &plan.tcp).await.map(Transport::Tcp),
            }
        }
    };
    let won = race(lookup, plan.origin.port(), deps.race, recorder, attempt).await;
    let transport = won.map_err(|e| unreachable(&plan.host_text, e))?;
    recorder.emit(DialEvent::TcpEstablished);
    Ok(transport)
}

fn unreachable(host: &str, error: RaceError) -> Error {
    match error {
        RaceError::Unresolved(error) => {
            Error::new(ErrorKind::Dns, format!("cannot resolve `{host}`"))
                .at(Phase::Dns)
                .with_source(error)
        }
        RaceError::Unreachable { addr, tried, error } => {
            let others = match tried {
                0 | 1 => String::new(),
                n => format!(" nor to {} other address(es)", n - 1),
            };
            Error::new(
                ErrorKind::Connect,
                format!("cannot connect to {addr}{others}"),
            )
            .at(Phase::Tcp)
            .with_source(error)
        }
    }
}

fn speaks_http2(plan: &Plan, alpn: Option<&str>) -> Result<bool, Error> {
    match (plan.protocols, alpn) {
        (Protocols::Http2PriorKnowledge, _) => Ok(true),
        (Protocols::Http1, _) => Ok(false),
        (Protocols::Auto, alpn) => Ok(alpn == Some("h2")),
        (Protocols::Http2, Some("h2")) => Ok(true),
        // RFC 7301 allows a server to ignore ALPN; then it has not promised HTTP/2.
        (Protocols::Http2, _) => Err(Error::new(
            ErrorKind::Protocol,
            "the server does not offer HTTP/2 and no other protocol is allowed",
        )
        .at(Phase::Tls)),
    }
}
