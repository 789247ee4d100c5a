//! One socket: created non-blocking, tuned, connected.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

/// TCP keep-alive probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes until the connection is dead.
    pub retries: u32,
}

/// Options of every TCP socket. Applied best effort: an option that the system does not know does
/// not fail the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TcpOptions {
    /// Send small segments at once (`TCP_NODELAY`). Default on: a request is complete when it is
    /// written, and Nagle would hold its last segment for a round trip.
    pub nodelay: bool,
    /// Keep-alive probes. Default 30 s, 10 s, 3: a peer that vanished while idle is noticed
    /// within a minute, and NATs keep the flow.
    pub keepalive: Option<Keepalive>,
    /// How long sent data may stay unacknowledged (`TCP_USER_TIMEOUT`, Linux). Default 20 s: the
    /// kernel alone would try for about 15 minutes.
    pub user_timeout: Option<Duration>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive {
                time: Duration::from_secs(30),
                interval: Duration::from_secs(10),
                retries: 3,
            }),
            user_timeout: Some(Duration::from_secs(20)),
        }
    }
}

impl TcpOptions {
    /// Sets `TCP_NODELAY`.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.nodelay = on;
        self
    }

    /// Sets the keep-alive probes.
    pub fn keepalive(mut self, keepalive: Option<Keepalive>) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// Sets the user timeout.
    pub fn user_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.user_timeout = timeout;
        self
    }
}

/// Connects to one address. Dropping the future closes the socket.
pub(crate) async fn connect(addr: SocketAddr, options: &TcpOptions) -> io::Result<TcpStream> {
    let domain = Domain::for_address(addr);
    // socket2's `Socket::new` sets close-on-exec everywhere.
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    apply(SockRef::from(&socket), options);
    match socket.connect(&addr.into()) {
        Ok(()) => {}
        Err(e) if is_in_progress(&e) => {}
        Err(e) => return Err(e),
    }
    let stream = TcpStream::from_std(socket.into())?;
    // Writable means connected or failed; which of the two, the socket knows.
    stream.writable().await?;
    match stream.take_error()? {
        None => Ok(stream),
        Some(error) => Err(error),
    }
}

fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc_einprogress()) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(unix)]
fn libc_einprogress() -> i32 {
    // The one errno std gives no stable kind for.
    if cfg!(any(
        target_os = "macos",
        target_os = "ios",
        target_os = "freebsd"
    )) {
        36
    } else {
        115
    }
}

fn apply(socket: SockRef<'_>, options: &TcpOptions) {
    // Best effort: a kernel without an option still connects.
    let _ = socket.set_tcp_nodelay(options.nodelay);
    if let Some(keepalive) = options.keepalive {
        let mut probes = TcpKeepalive::new().with_time(keepalive.time);
        #[cfg(any(unix, windows))]
        {
            probes = probes.with_interval(keepalive.interval);
        }
        #[cfg(unix)]
        {
            probes = probes.with_retries(keepalive.retries);
        }
        let _ = socket.set_tcp_keepalive(&probes);
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = options.user_timeout {
        let _ = socket.set_tcp_user_timeout(Some(timeout));
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[tokio::test]
    async fn options_are_read_back_from_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stream = connect(addr, &TcpOptions::default()).await.unwrap();
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
        let stream = connect(addr, &off).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(!socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
    }

    #[tokio::test]
    async fn refused_connection_is_an_error_of_that_kind() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(addr, &TcpOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
