//! The provider inside the process: a name server and an HTTPS server on loopback. They hold their
//! answers back for a while, as a network and a model would, and say so.
//!
//! They run on threads of their own, so that the measured side does not wait for them more than it
//! must.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use firstbyte::tls::TlsOptions;
use rustls::server::ServerSessionMemoryCache;

use crate::Trouble;
use crate::support::dns::{DnsServer, Family};
use crate::support::half_rtt::HalfRtt;
use crate::support::pki::{self, Pki};
use crate::support::port;
use crate::support::server::{Counts, Reply, Server};

/// How long each DNS answer is held back.
pub(crate) const DNS_DELAY: Duration = Duration::from_millis(12);
/// How long each response is held back.
pub(crate) const RESPONSE_DELAY: Duration = Duration::from_millis(25);
/// The provider's name.
pub(crate) const HOST: &str = "api.waterfall.test";
/// The path to ask for.
pub(crate) const PATH: &str = "/v1/models";

const BODY: &str = r#"{"object":"list","data":[{"id":"loopback-1","object":"model"}]}"#;

/// The running servers.
pub(crate) struct Provider {
    dns: DnsServer,
    server: Server,
    pki: Pki,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Provider {
    /// Starts both on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// No threads for it.
    pub(crate) async fn start() -> Result<Self, Trouble> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("provider")
            .enable_all()
            .build()
            .map_err(|e| Trouble::Failed(format!("no runtime for the provider: {e}")))?;
        let started = runtime.spawn(async {
            let pki = Pki::new();
            let server = Server::builder()
                .tls(&pki, &[HOST])
                .handler(|_request| {
                    let reply = Reply::ok().header("content-type", "application/json");
                    reply.body(BODY).delay(RESPONSE_DELAY)
                })
                .start()
                .await;
            let dns = DnsServer::start().await;
            dns.v4(HOST, &["127.0.0.1"]);
            dns.delay(HOST, Family::V4, DNS_DELAY);
            dns.delay(HOST, Family::V6, DNS_DELAY);
            (pki, server, dns)
        });
        let started = started.await;
        let (pki, server, dns) =
            started.map_err(|e| Trouble::Failed(format!("the provider did not start: {e}")))?;
        Ok(Self {
            dns,
            server,
            pki,
            runtime: Some(runtime),
        })
    }

    /// `https://api.waterfall.test:PORT` and the path.
    pub(crate) fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// Where the name server listens.
    pub(crate) fn dns_addr(&self) -> SocketAddr {
        self.dns.addr()
    }

    /// Trusts the provider's authority and nobody else.
    pub(crate) fn tls(&self) -> TlsOptions {
        TlsOptions::new()
            .builtin_roots(false)
            .add_root(self.pki.ca_der())
    }

    /// What the server saw.
    pub(crate) fn counts(&self) -> Counts {
        self.server.counts()
    }

    /// Questions the name server saw.
    pub(crate) fn dns_queries(&self) -> usize {
        self.dns.total_queries()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // A runtime must not be waited for inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where a provider of its own process listens, for runs over a network of one's own.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) ca: PathBuf,
    /// Where the HTTPS server listens; a free port of 127.0.0.1 unless told.
    pub(crate) listen: Option<SocketAddr>,
    /// Where the name server listens; likewise.
    pub(crate) name_server: Option<SocketAddr>,
    /// What the name leads to.
    pub(crate) answers: Vec<IpAddr>,
    pub(crate) ttl: u32,
    /// Answer early data with the first flight, over HTTP/1.1.
    pub(crate) half_rtt: bool,
    /// How long AAAA answers are held back.
    pub(crate) delay_v6: Duration,
}

/// Runs only the provider until interrupted, and says how to reach it. It holds nothing back but what
/// the site says.
///
/// # Errors
/// The certificate could not be written.
pub(crate) async fn serve(site: Site) -> Result<(), Trouble> {
    let pki = Pki::new();
    let listen = site.listen.unwrap_or_else(port::any);
    let config = pki::server_config(&pki.server(&[HOST]), &["h2", "http/1.1"]);
    let config = pki::with_early_data(config, ServerSessionMemoryCache::new(1024));
    // Kept until the end: a server that is dropped stops.
    let mut _server = None;
    let addr = if site.half_rtt {
        HalfRtt::start(listen, config).addr()
    } else {
        let server = Server::builder()
            .tls_config(config)
            .host(HOST)
            .handler(|_request| Reply::ok().body(BODY))
            .bind(listen)
            .start()
            .await;
        let addr = server.addr();
        _server = Some(server);
        addr
    };
    let dns = match site.name_server {
        Some(addr) => DnsServer::start_at(addr).await,
        None => DnsServer::start().await,
    };
    let answers = match site.answers {
        none if none.is_empty() => vec![IpAddr::from([127, 0, 0, 1])],
        some => some,
    };
    for family in [Family::V4, Family::V6] {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == (family == Family::V4);
        let ips: Vec<IpAddr> = answers.iter().filter(of_family).copied().collect();
        if !ips.is_empty() {
            dns.records(HOST, family, &ips, site.ttl);
        }
    }
    dns.delay(HOST, Family::V6, site.delay_v6);
    std::fs::write(&site.ca, pki.ca_pem())
        .map_err(|e| Trouble::Failed(format!("{}: {e}", site.ca.display())))?;
    println!(
        "https://{HOST}:{}{PATH} --dns {} --ca {}",
        addr.port(),
        dns.addr(),
        site.ca.display()
    );
    tokio::signal::ctrl_c()
        .await
        .map_err(|e| Trouble::Failed(format!("no signals: {e}")))
}
