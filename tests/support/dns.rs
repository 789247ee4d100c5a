//! A name server on loopback, UDP and TCP on one port, with scripted answers per name and address family.
//!
//! hickory's server parses and encodes; the script decides. Names are matched without regard to case or a final dot. A
//! name that the script does not know is NXDOMAIN; a family that it does not know of a name that it does is NODATA; both
//! with a SOA in the authority section. Every answer waits in a task of its own, so that one that is held back holds up
//! no other, not even on the same TCP connection.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{
    Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode,
};
use hickory_server::proto::rr::rdata::{CNAME, SOA};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use super::gate::{Gate, Waiter};

/// Of which family a question asks for addresses: A or AAAA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

/// One scripted answer.
#[derive(Clone, Debug)]
pub enum Reply {
    Records {
        ips: Vec<IpAddr>,
        ttl: u32,
    },
    /// An alias and, if `ips` is not empty, the addresses of its target.
    Alias {
        target: String,
        ips: Vec<IpAddr>,
        ttl: u32,
    },
    NxDomain,
    NoData,
    ServFail,
    Refused,
    /// No answer at all.
    Silent,
    /// TC and nothing else by UDP; the inner answer by TCP.
    Truncated(Box<Self>),
}

/// A running name server. Dropping it closes its sockets soon, [`DnsServer::stop`] before it returns.
pub struct DnsServer {
    addr: SocketAddr,
    script: Arc<Script>,
    server: hickory_server::Server<Desk>,
}

impl DnsServer {
    /// UDP and TCP on one free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_on(true).await
    }

    /// UDP only: TCP to the same port is refused.
    pub async fn start_udp_only() -> Self {
        Self::start_on(false).await
    }

    /// UDP and TCP on this address.
    pub async fn start_at(addr: SocketAddr) -> Self {
        let udp = UdpSocket::bind(addr).await.expect("the address is free");
        let tcp = TcpListener::bind(addr).await.expect("the address is free");
        Self::run(udp, tcp, true)
    }

    async fn start_on(has_tcp: bool) -> Self {
        let (udp, tcp) = bind_both().await;
        Self::run(udp, tcp, has_tcp)
    }

    fn run(udp: UdpSocket, tcp: TcpListener, has_tcp: bool) -> Self {
        let addr = udp.local_addr().expect("bound");
        let script = Arc::new(Script::new());
        let desk = Desk(Arc::clone(&script));
        let mut server = hickory_server::Server::new(desk);
        server.register_socket(udp);
        if has_tcp {
            // Longer than any test: an idle connection is closed by the client or not at all.
            server.register_listener(tcp, Duration::from_secs(3600), 64);
        }
        Self {
            addr,
            script,
            server,
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes the sockets: afterwards UDP to the port is unreachable and TCP refused. The counts stay readable.
    pub async fn stop(&mut self) {
        let stopped = self.server.shutdown_gracefully().await;
        stopped.expect("hickory's tasks end when told to");
    }

    /// A records with a TTL of 60 s.
    pub fn v4(&self, name: &str, ips: &[&str]) {
        self.records(name, Family::V4, &parse(ips), 60);
    }

    /// AAAA records with a TTL of 60 s.
    pub fn v6(&self, name: &str, ips: &[&str]) {
        self.records(name, Family::V6, &parse(ips), 60);
    }

    /// # Panics
    ///
    /// If an address is of the other family.
    pub fn records(&self, name: &str, family: Family, ips: &[IpAddr], ttl: u32) {
        let is_of_family = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
        assert!(
            ips.iter().all(is_of_family),
            "{ips:?} are not all {family:?}"
        );
        let ips = ips.to_vec();
        self.reply(name, family, Reply::Records { ips, ttl });
    }

    /// Replaces the answer from the next one on, those held back included.
    pub fn reply(&self, name: &str, family: Family, reply: Reply) {
        self.script
            .edit(name, family, |entry| entry.reply = Some(reply));
    }

    /// Each answer is held back that long.
    pub fn delay(&self, name: &str, family: Family, delay: Duration) {
        self.script.edit(name, family, |entry| entry.delay = delay);
    }

    /// Answers to questions from now on wait until the gate is open (or dropped).
    #[must_use = "the gate opens when it is dropped"]
    pub fn hold(&self, name: &str, family: Family) -> Gate {
        let gate = Gate::new();
        let waiter = gate.waiter();
        self.script
            .edit(name, family, |entry| entry.hold = Some(waiter));
        gate
    }

    /// TTL and minimum of the SOA in negative answers, in seconds; 60 unless told otherwise.
    pub fn negative_ttl(&self, seconds: u32) {
        self.script.entries().negative_ttl = seconds;
    }

    /// Questions seen about this name and family, by UDP and TCP.
    pub fn queries(&self, name: &str, family: Family) -> usize {
        self.script.tally.borrow().of(&(canonical(name), family))
    }

    /// Questions of any name and type.
    pub fn total_queries(&self) -> usize {
        self.script.tally.borrow().total
    }

    /// Those of them that came by TCP.
    pub fn tcp_queries(&self) -> usize {
        self.script.tally.borrow().tcp
    }

    /// Resolves once `n` questions about this name and family were seen.
    pub async fn wait_queries(&self, name: &str, family: Family, n: usize) {
        let key = (canonical(name), family);
        let mut tally = self.script.tally.subscribe();
        let reached = tally.wait_for(|tally| tally.of(&key) >= n).await;
        reached.expect("the script is ours and still there");
    }
}

/// Both sockets on one port: TCP picks it, and another one if UDP has it already.
async fn bind_both() -> (UdpSocket, TcpListener) {
    for _ in 0..64 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let addr = tcp.local_addr().expect("bound");
        if let Ok(udp) = UdpSocket::bind(addr).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for UDP and TCP");
}

fn parse(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter()
        .map(|ip| ip.parse().expect("an IP address"))
        .collect()
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

type Key = (String, Family);

/// What to answer, and what was asked.
struct Script {
    entries: Mutex<Entries>,
    tally: watch::Sender<Tally>,
}

struct Entries {
    by_key: HashMap<Key, Entry>,
    negative_ttl: u32,
}

#[derive(Clone, Default)]
struct Entry {
    reply: Option<Reply>,
    delay: Duration,
    hold: Option<Waiter>,
}

#[derive(Default)]
struct Tally {
    by_key: HashMap<Key, usize>,
    total: usize,
    tcp: usize,
}

impl Tally {
    fn of(&self, key: &Key) -> usize {
        self.by_key.get(key).copied().unwrap_or(0)
    }
}

impl Script {
    fn new() -> Self {
        Self {
            entries: Mutex::new(Entries {
                by_key: HashMap::new(),
                negative_ttl: 60,
            }),
            tally: watch::Sender::new(Tally::default()),
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().expect("no panic under this lock")
    }

    fn edit(&self, name: &str, family: Family, edit: impl FnOnce(&mut Entry)) {
        edit(
            self.entries()
                .by_key
                .entry((canonical(name), family))
                .or_default(),
        );
    }

    fn entry(&self, name: &str, family: Option<Family>) -> Entry {
        let key = family.map(|family| (name.to_owned(), family));
        key.and_then(|key| self.entries().by_key.get(&key).cloned())
            .unwrap_or_default()
    }

    fn note(&self, name: &str, family: Option<Family>, protocol: Protocol) {
        self.tally.send_modify(|tally| {
            tally.total += 1;
            tally.tcp += usize::from(protocol == Protocol::Tcp);
            if let Some(family) = family {
                *tally.by_key.entry((name.to_owned(), family)).or_default() += 1;
            }
        });
    }

    /// What the script says at this moment.
    fn decide(&self, name: &str, family: Option<Family>, protocol: Protocol) -> Reply {
        let is_known = [Family::V4, Family::V6]
            .into_iter()
            .any(|family| self.entry(name, Some(family)).reply.is_some());
        match self.entry(name, family).reply {
            Some(Reply::Truncated(inner)) if protocol == Protocol::Tcp => *inner,
            Some(reply) => reply,
            None if is_known => Reply::NoData,
            None => Reply::NxDomain,
        }
    }
}

/// hickory's way in.
struct Desk(Arc<Script>);

impl RequestHandler for Desk {
    // `async_trait` by hand, to spare the crate a dependency.
    fn handle_request<'s, 'r, 'a, R, T>(
        &'s self,
        request: &'r Request,
        response: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'a>>
    where
        's: 'a,
        'r: 'a,
        Self: 'a,
        R: ResponseHandler + 'a,
        T: Time + 'a,
    {
        let copy = Request::from_bytes(
            request.as_slice().to_vec(),
            request.src(),
            request.protocol(),
        );
        let copy = copy.expect("it was parsed once already");
        tokio::spawn(answer(Arc::clone(&self.0), copy, response));
        // hickory only logs what is returned here.
        let metadata = Metadata::new(request.metadata.id, MessageType::Response, OpCode::Query);
        let counts = HeaderCounts::default();
        Box::pin(std::future::ready(ResponseInfo::from(Header {
            metadata,
            counts,
        })))
    }
}

async fn answer<R: ResponseHandler>(script: Arc<Script>, request: Request, mut response: R) {
    let Some(query) = request.queries.queries().first() else {
        return;
    };
    let asked = query.original().name().clone();
    let name = canonical(&asked.to_ascii());
    let family = match query.query_type() {
        RecordType::A => Some(Family::V4),
        RecordType::AAAA => Some(Family::V6),
        _ => None,
    };
    let entry = script.entry(&name, family);
    script.note(&name, family, request.protocol());
    if !entry.delay.is_zero() {
        tokio::time::sleep(entry.delay).await;
    }
    if let Some(gate) = entry.hold {
        gate.opened().await;
    }

    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.authoritative = true;
    metadata.recursion_available = true;
    let mut answers = Vec::new();
    let mut authority = Vec::new();
    match script.decide(&name, family, request.protocol()) {
        Reply::Records { ips, ttl } => answers = addresses(&asked, &ips, ttl),
        Reply::Alias { target, ips, ttl } => {
            let target = Name::from_ascii(format!("{}.", canonical(&target))).expect("a host name");
            let alias = RData::CNAME(CNAME(target.clone()));
            answers.push(Record::from_rdata(asked, ttl, alias));
            answers.extend(addresses(&target, &ips, ttl));
        }
        Reply::NxDomain => {
            metadata.response_code = ResponseCode::NXDomain;
            authority.push(soa(&asked, script.entries().negative_ttl));
        }
        Reply::NoData => authority.push(soa(&asked, script.entries().negative_ttl)),
        Reply::ServFail => metadata.response_code = ResponseCode::ServFail,
        Reply::Refused => metadata.response_code = ResponseCode::Refused,
        Reply::Silent => return,
        Reply::Truncated(_) => metadata.truncation = true,
    }

    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    let edns = request.edns.as_ref().map(|_| &edns);
    let builder = MessageResponseBuilder::new(&request.queries, edns);
    let message = builder.build(metadata, &answers, &authority, [], []);
    // A client that is gone needs no answer.
    let _sent = response.send_response(message).await;
}

fn addresses(name: &Name, ips: &[IpAddr], ttl: u32) -> Vec<Record> {
    let record = |ip: &IpAddr| Record::from_rdata(name.clone(), ttl, RData::from(*ip));
    ips.iter().map(record).collect()
}

/// The start of authority of the name's top-level domain, which makes a negative answer cacheable (RFC 2308 §5).
fn soa(name: &Name, ttl: u32) -> Record {
    let zone = name.trim_to(1);
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86400, ttl);
    Record::from_rdata(zone, ttl, RData::SOA(soa))
}
