//! What to connect to and how. Pure.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::dns::Families;
use crate::error::Error;
use crate::origin::{Host, Origin};
use crate::proxy::{Proxy, ProxyRules, ProxyScheme};
use crate::tcp::TcpOptions;
use crate::tls::{Alpn, Identities, OriginTickets, OriginTls, TlsOptions};

use super::memory::Memory;

/// Which HTTP versions to speak. A request's own `version` is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocols {
    /// By ALPN: HTTP/2 where the server has it, else HTTP/1.1. Plain `http` is HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone, by ALPN; `https` only.
    Http2,
    /// HTTP/2 without asking (RFC 9113 §3.3), over plain `http` too.
    Http2PriorKnowledge,
}

impl Protocols {
    /// What is spoken when ALPN has chosen this.
    pub(super) fn is_http2(self, alpn: Option<&str>) -> bool {
        match self {
            Self::Http2PriorKnowledge => true,
            Self::Http1 => false,
            Self::Auto | Self::Http2 => alpn == Some("h2"),
        }
    }
}

/// Which address families to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IpVersion {
    /// Both, raced (RFC 8305).
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// Everything a client may set that shapes a connection. Two clients share connections only if
/// all of it is equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ConnectOptions {
    pub(crate) protocols: Protocols,
    pub(crate) tls: TlsOptions,
    pub(crate) tcp: TcpOptions,
    pub(crate) ip_version: IpVersion,
    pub(crate) proxies: ProxyRules,
    /// The origin listens on this Unix socket: no DNS and no TCP.
    pub(crate) unix_socket: Option<Arc<Path>>,
    /// Connections of different tags are never shared.
    pub(crate) isolation: Option<Arc<str>>,
    /// Proxies are asked for a tunnel even where they could be asked for each request.
    pub(crate) tunnels: bool,
}

impl ConnectOptions {
    /// Whether a proxy is asked for each request to the origin, and not once for a tunnel.
    pub(crate) fn forwards(&self, origin: &Origin) -> bool {
        let proxy = self.proxies.proxy_for(origin);
        proxy.is_some_and(|proxy| proxy.scheme() != ProxyScheme::Socks5)
            && self.unix_socket.is_none()
            && !origin.is_https()
            && !self.tunnels
            // HTTP/2 on plain http has no absolute-form: it needs a tunnel.
            && self.protocols != Protocols::Http2PriorKnowledge
    }
}

/// What comes after TCP.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    Plain,
    Tls(OriginTls),
}

/// What the transport leads to.
#[derive(Clone, Debug)]
pub(crate) enum FirstHop {
    Origin,
    Unix(Arc<Path>),
    Proxy(ProxyHop),
}

/// The way through a proxy.
#[derive(Clone, Debug)]
pub(crate) struct ProxyHop {
    pub(crate) proxy: Proxy,
    /// TLS with the proxy itself.
    pub(crate) tls: Option<OriginTls>,
    /// The proxy is asked for each request in absolute-form and not once for a tunnel.
    pub(crate) forwards: bool,
}

/// How to set up a connection to one origin: made once per origin, read by every dial.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) origin: Origin,
    /// The origin as errors and targets name it.
    pub(crate) origin_text: Arc<str>,
    pub(crate) host_text: Arc<str>,
    pub(crate) first_hop: FirstHop,
    pub(crate) families: Families,
    pub(crate) tcp: TcpOptions,
    pub(crate) security: Security,
    pub(crate) protocols: Protocols,
    /// What dials to the origin taught so far.
    pub(crate) memory: Arc<Mutex<Memory>>,
}

/// What dials to an origin taught.
#[derive(Debug, Default)]
pub(crate) struct Taught {
    memory: Arc<Mutex<Memory>>,
    tickets: Option<Arc<OriginTickets>>,
    of_proxy: Option<Arc<OriginTickets>>,
}

impl Taught {
    /// Sessions that could be resumed now.
    pub(crate) fn tickets(&self) -> usize {
        self.tickets.as_ref().map_or(0, |tickets| tickets.len())
    }
}

impl Plan {
    /// # Errors
    /// Invalid: HTTP/2 by ALPN on plain `http`, a host that TLS cannot name.
    pub(crate) fn new(
        origin: &Origin,
        options: &ConnectOptions,
        identities: &Identities,
    ) -> Result<Self, Error> {
        let ConnectOptions {
            protocols,
            tls,
            tcp,
            ip_version,
            proxies,
            unix_socket,
            isolation: _,
            tunnels: _,
        } = options;
        let security = if origin.is_https() {
            let alpn = match protocols {
                Protocols::Auto => Alpn::H2AndHttp1,
                Protocols::Http1 => Alpn::Http1,
                Protocols::Http2 | Protocols::Http2PriorKnowledge => Alpn::H2,
            };
            Security::Tls(identities.for_origin(tls, origin.canonical_host(), alpn)?)
        } else {
            check_plain(origin, *protocols)?;
            Security::Plain
        };
        let first_hop = match (unix_socket, proxies.proxy_for(origin)) {
            (Some(path), _) => FirstHop::Unix(path.clone()),
            (None, None) => FirstHop::Origin,
            (None, Some(proxy)) => {
                let tls = (proxy.scheme() == ProxyScheme::Https)
                    .then(|| identities.for_proxy(tls, proxy.host()))
                    .transpose()?;
                FirstHop::Proxy(ProxyHop {
                    proxy: proxy.clone(),
                    tls,
                    forwards: options.forwards(origin),
                })
            }
        };
        Ok(Self {
            origin_text: origin.to_string().into(),
            host_text: origin.host().into(),
            origin: origin.clone(),
            first_hop,
            families: Families {
                v4: *ip_version != IpVersion::V6,
                v6: *ip_version != IpVersion::V4,
            },
            tcp: tcp.clone(),
            security,
            protocols: *protocols,
            memory: Arc::default(),
        })
    }

    /// The host whose name is looked up, and the port to connect to: those of the proxy if there is
    /// one.
    pub(crate) fn target(&self) -> (&Host, u16) {
        match &self.first_hop {
            FirstHop::Proxy(hop) => (hop.proxy.host(), hop.proxy.port()),
            FirstHop::Origin | FirstHop::Unix(_) => {
                (self.origin.canonical_host(), self.origin.port())
            }
        }
    }

    /// Sessions that a dial could resume now.
    pub(crate) fn tickets(&self) -> usize {
        match &self.security {
            Security::Tls(tls) => tls.tickets.as_ref().map_or(0, |tickets| tickets.len()),
            Security::Plain => 0,
        }
    }

    /// What dials taught, for a later plan to the same origin.
    pub(crate) fn taught(&self) -> Taught {
        // Somebody may dial for himself and write into them still.
        let is_blank =
            |tickets: &Arc<OriginTickets>| tickets.is_blank() && Arc::strong_count(tickets) <= 2;
        let tickets = |tls: &OriginTls| tls.tickets.clone().filter(|tickets| !is_blank(tickets));
        let of_proxy = match &self.first_hop {
            FirstHop::Proxy(hop) => hop.tls.as_ref().and_then(tickets),
            FirstHop::Origin | FirstHop::Unix(_) => None,
        };
        Taught {
            memory: self.memory.clone(),
            tickets: match &self.security {
                Security::Tls(tls) => tickets(tls),
                Security::Plain => None,
            },
            of_proxy,
        }
    }

    pub(crate) fn recall(&mut self, taught: Taught) {
        self.memory = taught.memory;
        if let (Some(tickets), Security::Tls(tls)) = (taught.tickets, &mut self.security) {
            tls.tickets = Some(tickets);
        }
        if let (Some(tickets), FirstHop::Proxy(hop)) = (taught.of_proxy, &mut self.first_hop)
            && let Some(tls) = &mut hop.tls
        {
            tls.tickets = Some(tickets);
        }
    }

    /// Requests may travel as early data, if there is a ticket that allows it.
    pub(crate) fn allows_early_data(&self) -> bool {
        matches!(&self.security, Security::Tls(tls) if tls.early_data)
    }

    /// The protocol, where it is known before the connection is.
    pub(crate) fn known_protocol(&self) -> Option<http::Version> {
        match (self.protocols, &self.security) {
            (Protocols::Http1, _) | (Protocols::Auto, Security::Plain) => {
                Some(http::Version::HTTP_11)
            }
            (Protocols::Http2 | Protocols::Http2PriorKnowledge, _) => Some(http::Version::HTTP_2),
            (Protocols::Auto, Security::Tls(_)) => None,
        }
    }
}

/// HTTP/2 on plain `http` needs prior knowledge: there is no ALPN to ask.
pub(crate) fn check_plain(origin: &Origin, protocols: Protocols) -> Result<(), Error> {
    if !origin.is_https() && protocols == Protocols::Http2 {
        return Err(Error::invalid(
            "protocols Http2 needs https; use Http2PriorKnowledge for plain http",
        )
        .with_origin(origin.to_string()));
    }
    Ok(())
}
