//! One dial: the phases in their order, each stamped where it happens.

use std::future::Future;
#[cfg(feature = "hyper-util")]
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
#[cfg(feature = "hyper-util")]
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use crate::clock::{deadline, now};
use crate::dns::{Dns, Families, Family, ResolveErrorKind};
use crate::error::{Error, ErrorKind};
use crate::event::{DialEvent, DialRecorder};
use crate::http1::{Forward, Http1};
use crate::http2::{self, Driver, Http2, Http2Options};
use crate::io::{BoxFuture, Carrier, Dial, DialTarget, PeerAddr, Transport, Wire, is_exhausted};
use crate::origin::Origin;
use crate::proxy::{self, ProxyScheme};
use crate::sync::lock;
use crate::tcp::{self, SocketWatch};
use crate::timing::{Phase, TcpFacts, TlsFacts};
use crate::tls::{Handshake, HandshakeError, RaceTickets};

use super::early::Early;
use super::info::{ConnectionInfo, OtherEnd};
use super::plan::{FirstHop, Plan, Protocols, ProxyHop, Security};
use super::race::{Answers, AttemptError, Progress, RaceError, RaceOptions, race};
use super::stream::{OpenHandshake, Stream};

/// Whether an address of a host may be connected to.
pub(crate) type AddressFilter = Arc<dyn Fn(&str, IpAddr) -> bool + Send + Sync>;

/// What every dial of a pool uses.
pub(crate) struct Deps {
    pub(crate) dns: Arc<Dns>,
    pub(crate) address_filter: Option<AddressFilter>,
    /// Opens transports instead of our TCP.
    pub(crate) dialer: Option<Arc<dyn Dial>>,
    pub(crate) race: RaceOptions,
    pub(crate) http2: Http2Options,
    /// Bounds a whole dial.
    pub(crate) connect_timeout: Duration,
    /// Who closes an idle connection when the system has no room for one more. Set by the pool.
    pub(crate) relief: OnceLock<Weak<dyn Relief>>,
}

/// Gives a descriptor and a port back to the system.
pub(crate) trait Relief: Send + Sync {
    /// Closes an idle connection; ready when it is closed. False if there was none.
    fn relieve(self: Arc<Self>) -> BoxFuture<'static, bool>;
}

impl Deps {
    /// The addresses of a host, IPv6 first.
    ///
    /// # Errors
    /// Dns: there are none, or none that may be connected to.
    pub(crate) async fn resolve(&self, origin: &Origin) -> Result<Vec<IpAddr>, Error> {
        let families = Families { v4: true, v6: true };
        let mut lookup = self.dns.lookup(origin.canonical_host(), families);
        let (_, v4) = lookup.next(false, true).await;
        let (_, v6) = lookup.next(true, false).await;
        let host = origin.host();
        let mut answers = Answers::new(|ip| match &self.address_filter {
            Some(allow) => allow(&host, ip),
            None => true,
        });
        answers.take(Family::V6, v6);
        answers.take(Family::V4, v4);
        answers.into_addrs().map_err(|why| {
            let message = format!("cannot resolve `{host}`");
            let error = Error::new(ErrorKind::Dns, message).at(Phase::Dns);
            error.with_source(why)
        })
    }

    async fn relieve(&self) -> bool {
        match self.relief.get().and_then(Weak::upgrade) {
            Some(relief) => relief.relieve().await,
            None => false,
        }
    }
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

/// What earlier connections to the origin taught.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Learned {
    /// The stream limit that the peer told last.
    pub(crate) stream_limit: Option<u32>,
    /// A request waits that may travel as early data, and this is what the origin speaks.
    pub(crate) early: Option<http::Version>,
}

/// Dials. Runs in a task of the pool; dropping the future closes whatever was opened.
///
/// With [`Learned::early`] and a ticket that allows it, the connection comes before its handshake
/// has ended ([`ConnectionInfo::early`]).
pub(crate) async fn connect(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
    learned: Learned,
) -> Result<Opened, Error> {
    let walk = walk(plan, deps, recorder, learned);
    bounded(walk, plan, deps, recorder).await
}

/// A byte stream to an origin, for whoever speaks HTTP over it by himself.
#[cfg(feature = "hyper-util")]
pub(crate) struct Dialled {
    pub(crate) info: ConnectionInfo,
    pub(crate) stream: Stream,
}

/// Dials as [`connect`] does, up to and with TLS; without early data.
#[cfg(feature = "hyper-util")]
pub(crate) async fn dial(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
) -> Result<Dialled, Error> {
    let walk = async {
        let opened = open_stream(plan, deps, recorder, Learned::default()).await?;
        let (mut stream, is_http2, end) = opened;
        // Whoever gets it may keep it idle: the end of the handshake does not wait for a request.
        stream.uncork();
        let flushed = poll_fn(|cx| Pin::new(&mut stream).poll_flush(cx)).await;
        flushed.map_err(|e| {
            let message = "the connection was lost at the end of its handshake";
            let error = Error::new(ErrorKind::ConnectionLost, message).with_source(e);
            error.at(recorder.current_phase())
        })?;
        recorder.emit(DialEvent::Ready);
        let protocol = protocol(is_http2);
        let info = ConnectionInfo::new(plan, protocol, end, recorder.trace(), None);
        Ok(Dialled { info, stream })
    };
    bounded(walk, plan, deps, recorder).await
}

/// A dial within its time; what it fails with has everything that is known.
async fn bounded<T>(
    walk: impl Future<Output = Result<T, Error>>,
    plan: &Plan,
    deps: &Deps,
    recorder: &DialRecorder,
) -> Result<T, Error> {
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

fn protocol(is_http2: bool) -> http::Version {
    if is_http2 {
        http::Version::HTTP_2
    } else {
        http::Version::HTTP_11
    }
}

/// dns, tcp, the proxy and tls: the stream, whether HTTP/2 is spoken over it, and where it leads.
async fn open_stream(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
    learned: Learned,
) -> Result<(Stream, bool, OtherEnd), Error> {
    let reached = reach(plan, deps, recorder, learned).await?;
    let remote = reached.end.addr.as_ref();
    let (stream, is_http2) = match reached.what {
        ReachedWhat::Secured(tls, facts) => {
            let until = deadline(recorder.start(), deps.connect_timeout);
            secured(plan, remote, tls, facts, learned, recorder, until)?
        }
        ReachedWhat::Wire(wire) => {
            let wire = match &plan.first_hop {
                FirstHop::Proxy(hop) => pass(hop, plan, wire, recorder).await?,
                FirstHop::Origin | FirstHop::Unix(_) => wire,
            };
            match &plan.security {
                Security::Plain => (Stream::Plain(wire), speaks_http2(plan, None)?),
                Security::Tls(tls) => {
                    recorder.emit(DialEvent::TlsStart);
                    let tickets = RaceTickets::default();
                    let early = learned.early.is_some();
                    let (tls, facts) = Handshake::new(tls, &tickets, wire, early).run().await?;
                    let until = deadline(recorder.start(), deps.connect_timeout);
                    secured(plan, remote, Box::new(tls), facts, learned, recorder, until)?
                }
            }
        }
    };
    Ok((stream, is_http2, reached.end))
}

async fn walk(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
    learned: Learned,
) -> Result<Opened, Error> {
    let (mut stream, is_http2, end) = open_stream(plan, deps, recorder, learned).await?;
    // From here until the first request nothing leaves: the end of the handshake, the preface and
    // the request go together.
    stream.hold();
    let early = stream.early();
    let link = if is_http2 {
        recorder.emit(DialEvent::ProtocolStart);
        let (handle, driver) = http2::connect(stream, &deps.http2, learned.stream_limit).await?;
        Link::Http2(handle, Box::new(driver))
    } else {
        let attendant = (end.socket.clone()).map(|socket| Box::new(socket) as _);
        let http1 = Http1::new(stream, attendant, recorder.tcp_rtt(), forward(plan));
        Link::Http1(Box::new(http1))
    };
    recorder.emit(DialEvent::Ready);
    let trace = recorder.trace();
    if let Some(early) = &early {
        early.opened(trace.clone());
    }
    let info = ConnectionInfo::new(plan, protocol(is_http2), end, trace, early);
    Ok(Opened { info, link })
}

type Tls = TlsStream<Wire<Transport>>;

/// The stream, and whether HTTP/2 is spoken over it.
fn secured(
    plan: &Plan,
    remote: Option<&PeerAddr>,
    tls: Box<Tls>,
    facts: Option<TlsFacts>,
    learned: Learned,
    recorder: &DialRecorder,
    until: Instant,
) -> Result<(Stream, bool), Error> {
    let Some(facts) = facts else {
        recorder.emit(DialEvent::TlsEarly);
        let is_http2 = learned.early == Some(http::Version::HTTP_2);
        let address = match remote {
            Some(PeerAddr::Ip(addr)) => Some((addr.ip(), plan.memory.clone())),
            _ => None,
        };
        let early = Early::new(plan.protocols, is_http2, address);
        let left = until.saturating_duration_since(now());
        let early = Some(OpenHandshake::new(early, left));
        return Ok((Stream::Tls { tls, early }, is_http2));
    };
    let is_http2 = speaks_http2(plan, facts.alpn.as_deref());
    recorder.emit(DialEvent::TlsEnd(facts));
    Ok((Stream::Tls { tls, early: None }, is_http2?))
}

/// From an established transport to a proxy to a byte stream that leads to the origin.
async fn pass(
    hop: &ProxyHop,
    plan: &Plan,
    mut wire: Wire<Transport>,
    recorder: &Arc<DialRecorder>,
) -> Result<Wire<Transport>, Error> {
    if hop.forwards && hop.tls.is_none() {
        return Ok(wire);
    }
    recorder.emit(DialEvent::ProxyStart);
    let tunnelled = async {
        let Some(tls) = &hop.tls else {
            tunnel(hop, plan, &mut wire).await?;
            return Ok(wire);
        };
        let handshake = Handshake::new(tls, &RaceTickets::default(), wire, false);
        let (mut outer, _) = handshake.run().await.map_err(|e| {
            let cause = Error::from(e).without_phase();
            Error::new(ErrorKind::Proxy, "TLS with the proxy").with_source(cause)
        })?;
        if !hop.forwards {
            tunnel(hop, plan, &mut outer).await?;
        }
        // The wire above corks; this one passes each record on, since nobody flushes it.
        outer.get_mut().0.write_through();
        Ok(Wire::new(Transport::custom(outer)))
    };
    let wire = tunnelled.await.map_err(|e: Error| e.at(Phase::Proxy))?;
    recorder.emit(DialEvent::ProxyEnd);
    Ok(wire)
}

async fn tunnel<S>(hop: &ProxyHop, plan: &Plan, stream: &mut S) -> Result<(), Error>
where
    S: AsyncBufRead + AsyncWrite + Unpin,
{
    match hop.proxy.scheme() {
        ProxyScheme::Socks5 => {
            proxy::socks_connect(stream, &plan.origin, hop.proxy.credentials()).await
        }
        ProxyScheme::Http | ProxyScheme::Https => {
            let authority = plan.origin.authority_with_port();
            let authorization = hop.proxy.authorization();
            proxy::http_connect(stream, &authority, authorization.as_ref()).await
        }
    }
}

/// How HTTP/1.1 addresses a proxy that is asked for each request.
fn forward(plan: &Plan) -> Option<Forward> {
    match &plan.first_hop {
        FirstHop::Proxy(hop) if hop.forwards => Some(Forward {
            prefix: plan.origin_text.clone(),
            authorization: hop.proxy.authorization(),
        }),
        _ => None,
    }
}

/// What a race brought.
struct Reached {
    end: OtherEnd,
    tcp: Option<TcpFacts>,
    what: ReachedWhat,
}

enum ReachedWhat {
    /// The first hop.
    Wire(Wire<Transport>),
    /// The race went on through TLS.
    Secured(Box<Tls>, Option<TlsFacts>),
}

/// The wire over a transport, and what can be said about its other end.
fn wired(transport: Transport, addr: Option<PeerAddr>) -> (OtherEnd, Wire<Transport>) {
    let addr = addr.or_else(|| transport.peer_addr());
    let (socket, guard) = match &transport {
        Transport::Tcp(stream) => Some(SocketWatch::new(stream)).unzip(),
        _ => (None, None),
    };
    let wire = Wire::new(transport).with_guard(guard);
    (OtherEnd { addr, socket }, wire)
}

/// dns and tcp, and tls if the race goes through it: from a name to a transport.
async fn reach(
    plan: &Plan,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
    learned: Learned,
) -> Result<Reached, Error> {
    if let FirstHop::Unix(path) = &plan.first_hop {
        let (end, wire) = wired(reach_unix(path, deps, recorder).await?, None);
        return Ok(Reached {
            end,
            tcp: None,
            what: ReachedWhat::Wire(wire),
        });
    }
    let (host, port) = plan.target();
    let host_text: Arc<str> = host.to_string().into();
    let lookup = deps.dns.lookup(host, plan.families);
    if lookup.source().is_lookup() {
        recorder.emit(DialEvent::LookupStart);
    }
    let through = match (&plan.first_hop, &plan.security) {
        (FirstHop::Origin, Security::Tls(tls)) if deps.race.through_tls => Some(tls),
        _ => None,
    };
    let tickets = RaceTickets::default();
    let attempt = |addr: SocketAddr, progress: Progress| {
        let target = DialTarget::new(addr, host_text.clone());
        let tickets = tickets.clone();
        async move {
            // Without the handshake in the race an unsent SYN would win it.
            let fast_open = through.is_some();
            let transport = match open(plan, deps, target.clone(), fast_open).await {
                // No port or descriptor is left: a connection that nobody uses makes room, once.
                Err(error) if is_exhausted(&error) && deps.relieve().await => {
                    open(plan, deps, target, fast_open).await
                }
                opened => opened,
            };
            let (transport, mut tcp) = transport.map_err(failed_to_open)?;
            // The socket may not know its peer yet.
            let ours = tcp.is_some().then_some(PeerAddr::Ip(addr));
            let (end, mut wire) = wired(transport, ours);
            let what = match through {
                None => {
                    established(plan, &mut wire, &mut tcp).await?;
                    ReachedWhat::Wire(wire)
                }
                Some(tls) => {
                    let fast_open = tcp.as_ref().is_some_and(|facts| facts.fast_open);
                    let is_winner = lock(&plan.memory).known(now()).winner == Some(addr.ip());
                    // Nothing at all would have come from an address before it had won.
                    let early = learned.early.is_some() && (is_winner || !fast_open);
                    // A ClientHello is made while the SYN is on its way, unless it would take a ticket to an
                    // address that may never answer.
                    let is_ahead = !tls.has_tickets() && is_on_its_way(&mut wire);
                    if !is_ahead {
                        established(plan, &mut wire, &mut tcp).await?;
                        progress.established(fast_open);
                    }
                    let mut handshake = Handshake::new(tls, &tickets, wire, early);
                    if is_ahead {
                        established(plan, handshake.get_mut(), &mut tcp).await?;
                        progress.established(fast_open);
                    }
                    let secured = handshake.run().await;
                    if fast_open && !end.is_syn_data_acked() {
                        lock(&plan.memory).fast_open_failed(now());
                    }
                    let (stream, facts) = secured.map_err(|e| match e {
                        HandshakeError::Lost(error) => AttemptError::HandshakeLost(error),
                        HandshakeError::Refused(error) => AttemptError::Final(error),
                    })?;
                    ReachedWhat::Secured(Box::new(stream), facts)
                }
            };
            Ok(Reached { end, tcp, what })
        }
    };
    let allow = |ip: IpAddr| match &deps.address_filter {
        Some(filter) => filter(&host_text, ip),
        None => true,
    };
    let run = async |lookup| {
        let options = deps.race.clone();
        let memory = &plan.memory;
        race(lookup, port, options, memory, recorder, &allow, &attempt).await
    };
    let won = match run(lookup).await {
        // No descriptor was left to ask with: the same, for the questions of both families.
        Err(RaceError::Unresolved(error))
            if error.kind() == ResolveErrorKind::Exhausted && deps.relieve().await =>
        {
            let _for_one_only = deps.relieve().await;
            run(deps.dns.lookup(host, plan.families)).await
        }
        won => won,
    };
    let reached = won.map_err(|e| unreachable(plan, e))?;
    if let Some(facts) = &reached.tcp {
        recorder.emit(DialEvent::TcpFacts(facts.clone()));
    }
    Ok(reached)
}

/// A transport to one address: by the user's dialer, or a socket that may not be [`established`] yet.
async fn open(
    plan: &Plan,
    deps: &Deps,
    target: DialTarget,
    may_fast_open: bool,
) -> io::Result<(Transport, Option<TcpFacts>)> {
    if let Some(dialer) = &deps.dialer {
        return Ok((dialer.dial(target).await?, None));
    }
    // The first bytes are then those of a handshake: plain http would begin with a request, which must
    // not be delivered twice.
    let fast_open = may_fast_open && plan.tcp.fast_open && lock(&plan.memory).may_fast_open(now());
    let (stream, facts) = tcp::begin(target.addr, &plan.tcp, fast_open)?;
    Ok((Transport::Tcp(stream), Some(facts)))
}

/// Waits until a socket of ours is connected; the user's dialer has done so.
async fn established(
    plan: &Plan,
    wire: &mut Wire<Transport>,
    tcp: &mut Option<TcpFacts>,
) -> Result<(), AttemptError> {
    match (wire.get_mut(), tcp) {
        (Transport::Tcp(stream), Some(facts)) => {
            let established = tcp::established(stream, &plan.tcp, facts).await;
            established.map_err(failed_to_open)
        }
        _ => Ok(()),
    }
}

/// Whether it is a socket whose peer has not answered yet.
fn is_on_its_way(wire: &mut Wire<Transport>) -> bool {
    matches!(wire.get_mut(), Transport::Tcp(stream) if stream.peer_addr().is_err())
}

fn failed_to_open(error: io::Error) -> AttemptError {
    if is_exhausted(&error) || tcp::is_local(&error) {
        AttemptError::Local(error)
    } else {
        AttemptError::Transport(error)
    }
}

#[cfg(unix)]
async fn reach_unix(
    path: &Path,
    deps: &Deps,
    recorder: &Arc<DialRecorder>,
) -> Result<Transport, Error> {
    use tokio::net::UnixStream;

    recorder.emit(DialEvent::UnixConnectStart);
    let mut is_relieved = false;
    let mut pause = Duration::from_millis(1);
    let stream = loop {
        match UnixStream::connect(path).await {
            // The listener's queue is full (connect(2), EAGAIN). TCP would send its SYN again; of a Unix socket nobody
            // is told when there is room. Until the time to connect is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(error) if !is_relieved && is_exhausted(&error) && deps.relieve().await => {
                is_relieved = true;
            }
            stream => break stream,
        }
    };
    let stream = stream.map_err(|e| {
        let message = format!("cannot connect to the Unix socket {}", path.display());
        Error::new(kind_of_unreachable(&e), message)
            .at(Phase::Tcp)
            .with_source(e)
    })?;
    recorder.emit(DialEvent::UnixConnectEnd);
    Ok(Transport::Unix(stream))
}

#[cfg(not(unix))]
async fn reach_unix(_: &Path, _: &Deps, _: &Arc<DialRecorder>) -> Result<Transport, Error> {
    Err(Error::invalid("there are no Unix sockets on this system"))
}

fn unreachable(plan: &Plan, error: RaceError) -> Error {
    let proxy = match &plan.first_hop {
        FirstHop::Proxy(hop) => Some(&hop.proxy),
        FirstHop::Origin | FirstHop::Unix(_) => None,
    };
    match error {
        RaceError::Unresolved(error) => {
            let message = match proxy {
                Some(proxy) => format!("cannot resolve the proxy {proxy}"),
                None => format!("cannot resolve `{}`", plan.host_text),
            };
            let kind = match error.kind() {
                ResolveErrorKind::Exhausted => ErrorKind::Exhausted,
                _ => ErrorKind::Dns,
            };
            Error::new(kind, message).at(Phase::Dns).with_source(error)
        }
        RaceError::Unreachable { addr, tried, error } => {
            let of = proxy.map_or_else(String::new, |proxy| format!(" of the proxy {proxy}"));
            let others = match tried {
                0 | 1 => String::new(),
                n => format!(" nor to {} other address(es)", n - 1),
            };
            let message = format!("cannot connect to {addr}{of}{others}");
            Error::new(kind_of_unreachable(&error), message)
                .at(Phase::Tcp)
                .with_source(error)
        }
        RaceError::Handshake(error) => error,
    }
}

fn kind_of_unreachable(error: &io::Error) -> ErrorKind {
    if is_exhausted(error) {
        ErrorKind::Exhausted
    } else {
        ErrorKind::Connect
    }
}

fn speaks_http2(plan: &Plan, alpn: Option<&str>) -> Result<bool, Error> {
    let is_http2 = plan.protocols.is_http2(alpn);
    if plan.protocols == Protocols::Http2 && !is_http2 {
        // RFC 7301 allows a server to ignore ALPN; then it has not promised HTTP/2.
        return Err(Error::new(
            ErrorKind::Protocol,
            "the server does not offer HTTP/2 and no other protocol is allowed",
        )
        .at(Phase::Tls));
    }
    Ok(is_http2)
}
