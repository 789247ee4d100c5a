//! One socket: created non-blocking, tuned, connected.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use crate::timing::{TcpFacts, UnappliedOption};

use super::options::TcpOptions;

/// Starts to connect to one address; [`established`] says how it went. Dropping the stream closes the socket.
///
/// With `fast_open`, to an address that has given a cookie, there is nothing to wait for: the SYN then leaves with
/// the first write.
pub(crate) fn begin(
    addr: SocketAddr,
    options: &TcpOptions,
    fast_open: bool,
) -> io::Result<(TcpStream, TcpFacts)> {
    let domain = Domain::for_address(addr);
    // socket2's `Socket::new` sets close-on-exec everywhere.
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let mut facts = TcpFacts {
        fast_open: false,
        unapplied: Vec::new(),
    };
    apply_to_handshake(SockRef::from(&socket), addr, options, &mut facts.unapplied);
    bind(&socket, addr, options).map_err(Local::wrap)?;
    let fast_open = fast_open && ask_for_fast_open(&socket, &mut facts.unapplied);
    let connected = match socket.connect(&addr.into()) {
        Ok(()) => true,
        Err(e) if is_in_progress(&e) => false,
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable && !has_source(addr) => {
            return Err(Local::wrap(e));
        }
        Err(e) => return Err(e),
    };
    // While the SYN is on its way.
    apply_to_connection(SockRef::from(&socket), options, &mut facts.unapplied);
    let stream = TcpStream::from_std(socket.into())?;
    facts.fast_open = fast_open && connected && super::info::is_unsent_syn(&stream);
    Ok((stream, facts))
}

/// Waits for the peer, if there is something to wait for.
pub(crate) async fn established(
    stream: &TcpStream,
    options: &TcpOptions,
    facts: &mut TcpFacts,
) -> io::Result<()> {
    if !facts.fast_open {
        // Writable means connected or failed; which of the two, the socket knows.
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    #[cfg(target_os = "linux")]
    if options.quickack {
        let set = SockRef::from(stream).set_tcp_quickack(true);
        note(&mut facts.unapplied, "quickack", set);
    }
    Ok(())
}

/// An error of this machine's own addresses and devices, which closing connections would not change.
#[derive(Debug)]
struct Local(io::Error);

impl Local {
    fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no way out from this machine: {}", self.0)
    }
}

impl std::error::Error for Local {}

/// Whether the way out of this machine is what failed, and not the address.
pub(crate) fn is_local(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.downcast_ref::<Local>().is_some())
}

/// Whether there is an address to reach `addr` from. With one, "address not available" means that its
/// ports are used up. Nothing is sent.
fn has_source(addr: SocketAddr) -> bool {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    std::net::UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(addr).is_ok())
}

fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::EINPROGRESS) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}

/// Where the connection leaves: not best effort.
fn bind(socket: &Socket, addr: SocketAddr, options: &TcpOptions) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if let Some(device) = &options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    #[cfg(not(target_os = "linux"))]
    if options.device.is_some() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let local: Option<IpAddr> = match addr {
        SocketAddr::V4(_) => options.local_v4.map(IpAddr::V4),
        SocketAddr::V6(_) => options.local_v6.map(IpAddr::V6),
    };
    let Some(local) = local else { return Ok(()) };
    // The port is chosen by connect(), for the pair of addresses: else a pool that binds would run out
    // of them sooner.
    #[cfg(target_os = "linux")]
    super::info::bind_address_no_port(socket);
    socket.bind(&SockAddr::from(SocketAddr::new(local, 0)))
}

fn note(unapplied: &mut Vec<UnappliedOption>, option: &'static str, set: io::Result<()>) {
    if let Err(error) = set {
        unapplied.push(UnappliedOption {
            option,
            error: error.kind(),
        });
    }
}

fn ask_for_fast_open(socket: &Socket, unapplied: &mut Vec<UnappliedOption>) -> bool {
    let set = super::info::set_fast_open_connect(socket);
    let is_set = set.is_ok();
    note(unapplied, "fast_open", set);
    is_set
}

/// What the SYN says, or goes by.
fn apply_to_handshake(
    socket: SockRef<'_>,
    addr: SocketAddr,
    options: &TcpOptions,
    unapplied: &mut Vec<UnappliedOption>,
) {
    // Named one by one: a new option does not compile until it is applied, or said to be elsewhere.
    let TcpOptions {
        nodelay: _, // `apply_to_connection`
        keepalive: _,
        user_timeout: _,
        notsent_lowat: _,
        quickack: _, // after connect()
        send_buffer,
        recv_buffer,
        dscp,
        mark,
        busy_poll,
        congestion,
        local_v4: _, // `bind`
        local_v6: _,
        device: _,
        fast_open: _, // `connect`
    } = options;
    let mut note = |option, set| note(unapplied, option, set);
    if let Some(bytes) = send_buffer {
        note("send_buffer", socket.set_send_buffer_size(*bytes));
    }
    if let Some(bytes) = recv_buffer {
        note("recv_buffer", socket.set_recv_buffer_size(*bytes));
    }
    if let Some(dscp) = dscp {
        // The two low bits are ECN's.
        let field = u32::from(*dscp) << 2;
        let set = match addr {
            SocketAddr::V4(_) => socket.set_tos_v4(field),
            #[cfg(target_os = "linux")]
            SocketAddr::V6(_) => socket.set_tclass_v6(field),
            #[cfg(not(target_os = "linux"))]
            SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        note("dscp", set);
    }
    #[cfg(target_os = "linux")]
    {
        if let Some(mark) = mark {
            note("mark", socket.set_mark(*mark));
        }
        if let Some(time) = busy_poll {
            let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            note("busy_poll", socket.set_busy_poll(micros));
        }
        if let Some(name) = congestion {
            note("congestion", socket.set_tcp_congestion(name.as_bytes()));
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        for (option, asked) in [
            ("mark", mark.is_some()),
            ("busy_poll", busy_poll.is_some()),
            ("congestion", congestion.is_some()),
            ("quickack", options.quickack),
        ] {
            if asked {
                note(option, Err(io::ErrorKind::Unsupported.into()));
            }
        }
    }
}

/// What holds from the first byte on.
fn apply_to_connection(
    socket: SockRef<'_>,
    options: &TcpOptions,
    unapplied: &mut Vec<UnappliedOption>,
) {
    let mut note = |option, set| note(unapplied, option, set);
    note("nodelay", socket.set_tcp_nodelay(options.nodelay));
    if let Some(keepalive) = &options.keepalive {
        let mut probes = TcpKeepalive::new().with_time(keepalive.time);
        #[cfg(any(unix, windows))]
        {
            probes = probes.with_interval(keepalive.interval);
        }
        #[cfg(unix)]
        {
            probes = probes.with_retries(keepalive.retries);
        }
        note("keepalive", socket.set_tcp_keepalive(&probes));
    }
    #[cfg(target_os = "linux")]
    {
        if let Some(timeout) = options.user_timeout {
            note("user_timeout", socket.set_tcp_user_timeout(Some(timeout)));
        }
        if let Some(bytes) = options.notsent_lowat {
            note("notsent_lowat", socket.set_tcp_notsent_lowat(bytes));
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let is_default = options.user_timeout == TcpOptions::default().user_timeout;
        for (option, asked) in [
            ("user_timeout", !is_default),
            ("notsent_lowat", options.notsent_lowat.is_some()),
        ] {
            if asked {
                note(option, Err(io::ErrorKind::Unsupported.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module, its siblings and timing, which is below.
    use super::super::options::Keepalive;
    use super::*;
    use std::time::Duration;

    async fn connect(
        addr: SocketAddr,
        options: &TcpOptions,
        fast_open: bool,
    ) -> io::Result<(TcpStream, TcpFacts)> {
        let (stream, mut facts) = begin(addr, options, fast_open)?;
        established(&stream, options, &mut facts).await?;
        Ok((stream, facts))
    }

    async fn listener() -> (tokio::net::TcpListener, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn default_options_are_read_back_from_the_kernel() {
        let (_listener, addr) = listener().await;
        let (stream, facts) = connect(addr, &TcpOptions::default(), false).await.unwrap();
        assert_eq!(facts.unapplied, []);
        assert!(!facts.fast_open);
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(30)
        );
        #[cfg(target_os = "linux")]
        {
            assert_eq!(
                socket.tcp_keepalive_interval().unwrap(),
                Duration::from_secs(10)
            );
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
            assert_eq!(
                socket.tcp_user_timeout().unwrap(),
                Some(Duration::from_secs(20))
            );
        }

        let off = TcpOptions::default()
            .nodelay(false)
            .keepalive(None)
            .user_timeout(None);
        let (stream, _) = connect(addr, &off, false).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(!socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn every_other_option_is_read_back_from_the_kernel() {
        let (_listener, addr) = listener().await;
        let options = TcpOptions::default()
            .keepalive(Keepalive {
                time: Duration::from_secs(7),
                interval: Duration::from_secs(2),
                retries: 5,
            })
            .user_timeout(Duration::from_secs(3))
            .notsent_lowat(16_384)
            .quickack(true)
            .send_buffer(100_000)
            .recv_buffer(50_000)
            .dscp(46)
            .congestion("reno")
            .local_v4(Ipv4Addr::new(127, 0, 0, 3))
            .device("lo");
        let (stream, facts) = connect(addr, &options, false).await.unwrap();
        assert_eq!(facts.unapplied, []);
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(3))
        );
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16_384);
        // The kernel doubles what it is asked for.
        assert_eq!(socket.send_buffer_size().unwrap(), 200_000);
        assert_eq!(socket.recv_buffer_size().unwrap(), 100_000);
        assert_eq!(socket.tos_v4().unwrap(), 46 << 2);
        let congestion = socket.tcp_congestion().unwrap();
        assert_eq!(congestion.split(|b| *b == 0).next().unwrap(), b"reno");
        assert_eq!(
            stream.local_addr().unwrap().ip(),
            Ipv4Addr::new(127, 0, 0, 3)
        );
        assert_eq!(socket.device().unwrap().unwrap(), b"lo");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn options_that_need_a_capability_apply_or_are_reported() {
        let (_listener, addr) = listener().await;
        let options = TcpOptions::default()
            .mark(7)
            .busy_poll(Duration::from_micros(50));
        let (stream, facts) = connect(addr, &options, false).await.unwrap();
        let socket = SockRef::from(&stream);
        let unapplied = |name| facts.unapplied.iter().any(|u| u.option == name);
        for (name, is_set) in [
            ("mark", socket.mark().is_ok_and(|mark| mark == 7)),
            ("busy_poll", socket.busy_poll().is_ok_and(|us| us == 50)),
        ] {
            assert_ne!(is_set, unapplied(name), "{name}: {facts:?}");
        }
        let denied = facts.unapplied.iter().map(|u| u.error);
        assert!(
            denied
                .into_iter()
                .all(|e| e == io::ErrorKind::PermissionDenied)
        );
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_does_not_apply_is_reported_and_the_way_out_is_not_guessed() {
        let (_listener, addr) = listener().await;
        let options = TcpOptions::default().congestion("no-such-thing");
        let (_, facts) = connect(addr, &options, false).await.unwrap();
        let [unapplied] = &facts.unapplied[..] else {
            panic!("{facts:?}")
        };
        assert_eq!(unapplied.option, "congestion");
        assert_eq!(unapplied.error, io::ErrorKind::NotFound);

        let elsewhere = TcpOptions::default().device("no-such-device");
        assert!(connect(addr, &elsewhere, false).await.is_err());
        let gone = TcpOptions::default().local_v4(Ipv4Addr::new(203, 0, 113, 77));
        let error = connect(addr, &gone, false).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(
            is_local(&error) && !crate::io::is_exhausted(&error),
            "{error}"
        );
    }

    #[test]
    fn values_that_no_system_takes_are_refused() {
        assert!(TcpOptions::default().dscp(63).check().is_ok());
        for wrong in [
            TcpOptions::default().dscp(64),
            TcpOptions::default().device(""),
            TcpOptions::default().congestion("a-name-that-is-too-long"),
        ] {
            assert!(wrong.check().unwrap_err().is_invalid(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn refused_connection_is_an_error_of_that_kind() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(addr, &TcpOptions::default(), false)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
