//! DNS on the wire by hickory. Its own cache is off: ours stands above and is measured.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
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
use crate::io::BoxFuture;
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
/// several name servers two are asked at the same time, and the first answer counts.
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
    resolver: TokioResolver,
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
    /// `ndots`. Default no: an origin's name is complete, and each domain would cost a question.
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
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let mut hosts = Hosts::default();
        if let Ok(text) = std::fs::read(&self.hosts) {
            // A byte that is no text spoils its line and not the file.
            let text = String::from_utf8_lossy(&text);
            hosts.read_hosts_conf(text.as_bytes())?;
        }
        Ok(Asked {
            hosts,
            resolver: builder.build()?,
        })
    }

    #[cfg(unix)]
    fn read_resolv_conf(&self) -> Result<(ResolverConfig, ResolverOpts), NetError> {
        let mut text = match std::fs::read(&self.resolv_conf) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
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
        let dot = if self.config.search { "" } else { "." };
        let name = Name::from_ascii(format!("{name}{dot}"));
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
            let mut in_file = name.clone();
            in_file.set_fqdn(true);
            let of = |kind| {
                asked
                    .hosts
                    .lookup_static_host(&Query::query(in_file.clone(), kind))
            };
            // The file may change at any time: no time to live.
            if let Some(found) = of(record_type) {
                return Ok(Answer::new(
                    reachable(found.query(), found.answers()).0,
                    None,
                ));
            }
            // A name in the file is not asked for in its other family: that would go round the file.
            if of(RecordType::A).or_else(|| of(RecordType::AAAA)).is_some() {
                return Err(ResolveError::new(ResolveErrorKind::NoAddress));
            }
            let lookup = asked.resolver.lookup(name, record_type);
            let lookup = lookup.await.map_err(classify)?;
            let (addrs, ttl) = reachable(lookup.query(), lookup.answers());
            Ok(Answer::new(addrs, ttl))
        })
    }
}

/// The addresses that the name asked for leads to, by aliases if need be, and the shortest time to
/// live on the way. Whatever else stands in an answer may be somebody's wish (RFC 2181 §5.4.1).
fn reachable(query: &Query, records: &[Record]) -> (Vec<IpAddr>, Option<Duration>) {
    /// Aliases of aliases; hickory follows no more either.
    const MAX_ALIASES: usize = 16;
    let mut name = query.name();
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
    let failed = |e: NetError| ResolveError::new(ResolveErrorKind::Other).with_source(e);
    match tokio::task::spawn_blocking(move || config.build()).await {
        Ok(resolver) => resolver.map_err(failed),
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
        _ => ResolveErrorKind::Other,
    };
    ResolveError::new(kind).with_source(error)
}
