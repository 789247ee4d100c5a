//! DNS on the wire by hickory. Its own cache is off: ours stands above and is measured.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
#[cfg(unix)]
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::OnceCell;

use crate::clock::now;
use crate::io::{BoxFuture, is_exhausted};
use crate::sync::lock;

use super::resolve::{Answer, Family, Resolve, ResolveError, ResolveErrorKind};

/// One query waits this long before it is repeated. hickory's own 5 s is longer than a caller's
/// whole connect timeout.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Queries of one name on one connection to a server; hickory's 32 refuses bursts.
const MAX_ACTIVE_QUERIES: usize = 1024;

/// The files are looked at for changes at most this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Resolves by queries on the wire, the default: UDP, and TCP when an answer was truncated. With
/// several name servers two are asked at the same time, and the first answer counts; that one refuses or fails is
/// none.
///
/// The configuration is read at the first look-up on each runtime, never while the pool is built, and
/// again when its files have changed (a VPN, a new network). Without a name server in
/// `/etc/resolv.conf`, or without that file, 127.0.0.1 is asked, as by the C library. `/etc/hosts` comes
/// before name servers.
#[derive(Clone, Debug)]
pub struct HickoryResolver {
    config: Arc<Config>,
    // hickory's connections live in tasks of the runtime that opened them.
    resolvers: Arc<Mutex<HashMap<RuntimeId, Slot>>>,
}

#[derive(Clone, Debug)]
struct Config {
    /// Given by hand; otherwise those of `resolv_conf`.
    name_servers: Option<Vec<SocketAddr>>,
    resolv_conf: PathBuf,
    hosts: PathBuf,
    search: bool,
}

/// The resolver of one runtime.
#[derive(Clone, Default)]
struct Slot {
    resolver: Arc<OnceCell<Asked>>,
    /// What the files were when it was built, and when they were looked at last.
    stamps: Option<[Stamp; 2]>,
    looked: Option<Instant>,
}

/// Who is asked: the file first.
struct Asked {
    hosts: Hosts,
    /// All name servers.
    resolver: TokioResolver,
    /// Each of them by itself, if there are several.
    each: Vec<TokioResolver>,
    /// What is appended to names with fewer dots than `ndots`.
    search: Vec<Name>,
    ndots: usize,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

/// Changes when a file does; `None` if there is none.
type Stamp = Option<(SystemTime, u64)>;

impl Default for HickoryResolver {
    fn default() -> Self {
        Self::system()
    }
}

impl HickoryResolver {
    /// The name servers of `/etc/resolv.conf`.
    pub fn system() -> Self {
        Self {
            config: Arc::new(Config {
                name_servers: None,
                resolv_conf: "/etc/resolv.conf".into(),
                hosts: "/etc/hosts".into(),
                search: false,
            }),
            resolvers: Arc::default(),
        }
    }

    /// These name servers, by UDP and TCP.
    pub fn name_servers(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::system().with(|config| config.name_servers = Some(servers.into_iter().collect()))
    }

    /// Reads this file instead of `/etc/resolv.conf`.
    pub fn resolv_conf(self, path: impl Into<PathBuf>) -> Self {
        self.with(|config| config.resolv_conf = path.into())
    }

    /// Reads this file instead of `/etc/hosts`.
    pub fn hosts(self, path: impl Into<PathBuf>) -> Self {
        self.with(|config| config.hosts = path.into())
    }

    /// Whether the search domains of `resolv.conf` are appended to names with fewer dots than its
    /// `ndots`. Default no: an origin's name is complete, and each domain would cost a question. The first name that has an
    /// address of either family is it; one that cannot be asked fails the look-up, since it may be the one that is meant.
    pub fn search_domains(self, on: bool) -> Self {
        self.with(|config| config.search = on)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self.resolvers = Arc::default();
        self
    }

    /// The resolver of the current runtime, a new one if the files have changed.
    async fn resolver(&self) -> Arc<OnceCell<Asked>> {
        /// Runtimes remembered; a program has few, a test binary one per test.
        const MAX_RUNTIMES: usize = 16;
        let runtime = Handle::current().id();
        let at = now();
        let slot = {
            let mut slots = lock(&self.resolvers);
            if slots.len() >= MAX_RUNTIMES && !slots.contains_key(&runtime) {
                slots.clear();
            }
            let slot = slots.entry(runtime).or_default();
            if slot.looked.is_some_and(|looked| at < looked + LOOK_AGAIN) {
                return slot.resolver.clone();
            }
            slot.clone()
        };
        let config = self.config.clone();
        let stamps = tokio::task::spawn_blocking(move || config.stamps()).await;
        let Ok(stamps) = stamps else {
            return slot.resolver;
        };
        let mut slots = lock(&self.resolvers);
        let slot = slots.entry(runtime).or_default();
        // Not before: who looks meanwhile must not be told what was true before the files changed.
        slot.looked = Some(at);
        if slot.stamps != Some(stamps) {
            slot.stamps = Some(stamps);
            slot.resolver = Arc::default();
        }
        slot.resolver.clone()
    }
}

impl Config {
    fn stamps(&self) -> [Stamp; 2] {
        [&self.resolv_conf, &self.hosts].map(|path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len()))
        })
    }

    /// Reads the files: never on a runtime's worker.
    fn build(&self) -> Result<Asked, NetError> {
        let (mut config, mut options) = match &self.name_servers {
            Some(_) if !self.search => (ResolverConfig::default(), ResolverOpts::default()),
            _ => self.read_resolv_conf()?,
        };
        if let Some(servers) = &self.name_servers {
            let servers = servers.iter().copied().map(name_server).collect();
            let search = config.search().to_vec();
            config = ResolverConfig::from_parts(config.domain().cloned(), search, servers);
        }
        set_options(&mut options);
        let ask = |servers: Vec<NameServerConfig>| {
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options.clone();
            builder.build()
        };
        let servers = config.name_servers();
        let each = servers.iter().filter(|_| servers.len() > 1);
        let search = config.domain().into_iter().chain(config.search());
        Ok(Asked {
            hosts: self.read_hosts()?,
            resolver: ask(servers.to_vec())?,
            each: each
                .map(|server| ask(vec![server.clone()]))
                .collect::<Result<_, _>>()?,
            search: search.filter(|_| self.search).cloned().collect(),
            ndots: options.ndots,
        })
    }

    fn read_hosts(&self) -> Result<Hosts, NetError> {
        let mut hosts = Hosts::default();
        match std::fs::read(&self.hosts) {
            Ok(text) => {
                // A byte that is no text spoils its line and not the file.
                let text = String::from_utf8_lossy(&text);
                hosts.read_hosts_conf(text.as_bytes())?;
            }
            // Any other failure may be gone at the next look-up, and a name of the file is not for name servers.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(hosts)
    }

    #[cfg(unix)]
    fn read_resolv_conf(&self) -> Result<(ResolverConfig, ResolverOpts), NetError> {
        let mut text = match std::fs::read(&self.resolv_conf) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e.into()),
        };
        let names_a_server = text
            .split(|byte| *byte == b'\n')
            .any(|line| line.trim_ascii_start().starts_with(b"nameserver"));
        if !names_a_server {
            text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
        }
        parse_resolv_conf(text)
    }

    #[cfg(not(unix))]
    fn read_resolv_conf(&self) -> Result<(ResolverConfig, ResolverOpts), NetError> {
        hickory_resolver::system_conf::read_system_conf()
    }
}

impl Resolve for HickoryResolver {
    fn resolve(
        &self,
        name: &str,
        family: Family,
    ) -> BoxFuture<'static, Result<Answer, ResolveError>> {
        let name = Name::from_ascii(format!("{name}."));
        let this = self.clone();
        Box::pin(async move {
            let name =
                name.map_err(|e| ResolveError::new(ResolveErrorKind::NoSuchName).with_source(e))?;
            let cell = this.resolver().await;
            let asked = cell.get_or_try_init(|| build(this.config)).await?;
            let record_type = match family {
                Family::V4 => RecordType::A,
                Family::V6 => RecordType::AAAA,
            };
            let of = |kind| {
                asked
                    .hosts
                    .lookup_static_host(&Query::query(name.clone(), kind))
            };
            // The file may change at any time: no time to live.
            if let Some(found) = of(record_type) {
                return Ok(Answer::new(reachable(&name, found.answers()).0, None));
            }
            // A name in the file is not asked for in its other family: that would go round the file.
            if of(RecordType::A).or_else(|| of(RecordType::AAAA)).is_some() {
                return Err(ResolveError::new(ResolveErrorKind::NoAddress));
            }
            let (candidates, last) = asked.names(name);
            for candidate in candidates {
                match asked.ask(&candidate, record_type).await {
                    Err(error) if error.kind() == ResolveErrorKind::NoSuchName => {}
                    // Both families have to be those of one host: the name is found if it has the other.
                    Err(error) if error.kind() == ResolveErrorKind::NoAddress => {
                        let other = match record_type {
                            RecordType::A => RecordType::AAAA,
                            _ => RecordType::A,
                        };
                        match asked.ask(&candidate, other).await {
                            Err(error) if is_nothing(&error) => {}
                            Err(failure) => return Err(failure),
                            Ok(_) => return Err(error),
                        }
                    }
                    // One that cannot be asked may be the one that is meant.
                    done => return done,
                }
            }
            asked.ask(&last, record_type).await
        })
    }
}

impl Asked {
    /// The names that may be meant, the last one apart, as hickory and the C library order them.
    fn names(&self, name: Name) -> (Vec<Name>, Name) {
        let mut relative = name.clone();
        relative.set_fqdn(false);
        let appended = self.search.iter().filter_map(|domain| {
            let mut candidate = relative.clone().append_domain(domain).ok()?;
            candidate.set_fqdn(true);
            Some(candidate)
        });
        let mut names: Vec<_> = appended.collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        if dots < self.ndots {
            return (names, name);
        }
        let Some(last) = names.pop() else {
            return (names, name);
        };
        names.insert(0, name);
        (names, last)
    }

    async fn ask(&self, name: &Name, record_type: RecordType) -> Result<Answer, ResolveError> {
        let lookup = match self.resolver.lookup(name.clone(), record_type).await {
            Err(error) => match classify(error) {
                // hickory takes what the first of them says for what all would say.
                failed if failed.kind() == ResolveErrorKind::ServerFailure => {
                    let each = self.each.iter();
                    let each = each.map(|one| Box::pin(one.lookup(name.clone(), record_type)));
                    first_answer(each.collect()).await.ok_or(failed)??
                }
                error => return Err(error),
            },
            Ok(lookup) => lookup,
        };
        // From the name that was asked for: an alias that came in an answer of its own counts.
        let mut found = reachable(name, lookup.answers());
        if found.0.is_empty() {
            found = reachable(lookup.query().name(), lookup.answers());
        }
        Ok(Answer::new(found.0, found.1))
    }
}

/// The first that is an answer, if only that there is nothing; `None` if none is.
async fn first_answer<F>(mut asked: Vec<Pin<Box<F>>>) -> Option<Result<Lookup, ResolveError>>
where
    F: Future<Output = Result<Lookup, NetError>>,
{
    poll_fn(|cx| {
        let mut first = None;
        asked.retain_mut(|one| match one.as_mut().poll(cx).map_err(classify) {
            Poll::Pending => true,
            Poll::Ready(Err(error)) if !is_nothing(&error) => false,
            Poll::Ready(answer) => {
                if !matches!(first, Some(Ok(_))) {
                    first = Some(answer);
                }
                false
            }
        });
        if first.is_some() || asked.is_empty() {
            return Poll::Ready(first);
        }
        Poll::Pending
    })
    .await
}

fn is_nothing(error: &ResolveError) -> bool {
    matches!(
        error.kind(),
        ResolveErrorKind::NoSuchName | ResolveErrorKind::NoAddress
    )
}

/// The addresses that the name asked for leads to, by aliases if need be, and the shortest time to
/// live on the way. Whatever else stands in an answer may be somebody's wish (RFC 2181 §5.4.1).
fn reachable(name: &Name, records: &[Record]) -> (Vec<IpAddr>, Option<Duration>) {
    /// Aliases of aliases; hickory follows no more either.
    const MAX_ALIASES: usize = 16;
    let mut name = name;
    let mut ttl = None;
    for _ in 0..=MAX_ALIASES {
        let mut own = records.iter().filter(|record| record.name == *name);
        let addrs: Vec<IpAddr> = own.clone().filter_map(address).collect();
        let shortest = own.clone().map(|record| record.ttl).min();
        ttl = ttl.into_iter().chain(shortest).min();
        if !addrs.is_empty() {
            return (addrs, ttl.map(|s| Duration::from_secs(s.into())));
        }
        let alias = own.find_map(|record| match &record.data {
            RData::CNAME(target) => Some(&target.0),
            _ => None,
        });
        match alias {
            Some(target) => name = target,
            None => break,
        }
    }
    (Vec::new(), None)
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

async fn build(config: Arc<Config>) -> Result<Asked, ResolveError> {
    match tokio::task::spawn_blocking(move || config.build()).await {
        Ok(resolver) => resolver.map_err(classify),
        Err(e) => Err(ResolveError::new(ResolveErrorKind::Other).with_source(e)),
    }
}

fn name_server(addr: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(addr.ip());
    for connection in &mut config.connections {
        connection.port = addr.port();
    }
    config
}

fn set_options(options: &mut ResolverOpts) {
    options.cache_size = 0;
    // Ours comes first, and is read again when it has changed.
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = QUERY_TIMEOUT;
    options.attempts = 2;
    options.max_active_requests = MAX_ACTIVE_QUERIES;
}

/// hickory does not say why it has no connection.
fn has_no_socket() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_err_and(|error| is_exhausted(&error))
}

fn classify(error: NetError) -> ResolveError {
    let kind = match &error {
        NetError::Timeout => ResolveErrorKind::Timeout,
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let ttl = none.negative_ttl.map(|s| Duration::from_secs(s.into()));
            let kind = match none.response_code {
                ResponseCode::NXDomain => ResolveErrorKind::NoSuchName,
                ResponseCode::NoError => ResolveErrorKind::NoAddress,
                _ => ResolveErrorKind::ServerFailure,
            };
            // The answer itself is the whole cause; hickory's text would only repeat the query.
            return ResolveError::new(kind).with_ttl(ttl);
        }
        NetError::Dns(DnsError::ResponseCode(_)) => ResolveErrorKind::ServerFailure,
        NetError::Io(error) if is_exhausted(error) => ResolveErrorKind::Exhausted,
        NetError::NoConnections if has_no_socket() => ResolveErrorKind::Exhausted,
        _ => ResolveErrorKind::Other,
    };
    ResolveError::new(kind).with_source(error)
}
