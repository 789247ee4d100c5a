//! DNS on the wire by hickory. Its own cache is off: ours stands above and is measured.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::OnceCell;

use crate::io::BoxFuture;
use crate::sync::lock;

use super::resolve::{Answer, Family, Resolve, ResolveError, ResolveErrorKind};

/// One query waits this long before it is repeated. hickory's own 5 s is longer than a caller's
/// whole connect timeout.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Queries of one name on one connection to a server; hickory's 32 refuses bursts.
const MAX_ACTIVE_QUERIES: usize = 1024;

/// Resolves by queries on the wire, the default: UDP, and TCP when an answer was truncated.
///
/// Configuration is read at the first look-up on each runtime, never while the pool is built.
/// `/etc/hosts` is respected.
#[derive(Clone)]
pub struct HickoryResolver {
    name_servers: Option<Vec<SocketAddr>>,
    // hickory's connections live in tasks of the runtime that opened them.
    resolvers: Arc<Mutex<HashMap<RuntimeId, Arc<OnceCell<TokioResolver>>>>>,
}

impl fmt::Debug for HickoryResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HickoryResolver")
            .field("name_servers", &self.name_servers)
            .finish_non_exhaustive()
    }
}

impl Default for HickoryResolver {
    fn default() -> Self {
        Self::system()
    }
}

impl HickoryResolver {
    /// The name servers of `/etc/resolv.conf`.
    pub fn system() -> Self {
        Self {
            name_servers: None,
            resolvers: Arc::default(),
        }
    }

    /// These name servers, in this order, by UDP and TCP.
    pub fn name_servers(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            name_servers: Some(servers.into_iter().collect()),
            resolvers: Arc::default(),
        }
    }

    fn resolver(&self) -> Arc<OnceCell<TokioResolver>> {
        /// Runtimes remembered; a program has few, a test binary one per test.
        const MAX_RUNTIMES: usize = 16;
        let mut resolvers = lock(&self.resolvers);
        let runtime = Handle::current().id();
        if resolvers.len() >= MAX_RUNTIMES && !resolvers.contains_key(&runtime) {
            resolvers.clear();
        }
        resolvers.entry(runtime).or_default().clone()
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
            let cell = this.resolver();
            let resolver = cell.get_or_try_init(|| build(this.name_servers)).await?;
            let record_type = match family {
                Family::V4 => RecordType::A,
                Family::V6 => RecordType::AAAA,
            };
            let lookup = resolver.lookup(name, record_type).await.map_err(classify)?;
            let ttl = lookup.answers().iter().map(|record| record.ttl).min();
            let addrs: Vec<_> = lookup
                .answers()
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(a) => Some(a.0.into()),
                    RData::AAAA(aaaa) => Some(aaaa.0.into()),
                    _ => None,
                })
                .collect();
            Ok(Answer::new(
                addrs,
                ttl.map(|s| Duration::from_secs(s.into())),
            ))
        })
    }
}

async fn build(name_servers: Option<Vec<SocketAddr>>) -> Result<TokioResolver, ResolveError> {
    let failed = |e: NetError| ResolveError::new(ResolveErrorKind::Other).with_source(e);
    // Reads files: never on a runtime's worker.
    let built = tokio::task::spawn_blocking(move || {
        let mut builder = match name_servers {
            None => TokioResolver::builder_tokio()?,
            Some(servers) => {
                let servers = servers.into_iter().map(name_server).collect();
                TokioResolver::builder_with_config(
                    ResolverConfig::from_name_servers(servers),
                    TokioRuntimeProvider::default(),
                )
            }
        };
        set_options(builder.options_mut());
        builder.build()
    });
    match built.await {
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
