//! What a TCP socket is to be.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::error::Error;

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

/// Options of every TCP socket.
///
/// Applied best effort: what the system does not know or does not allow is reported in
/// [`TcpFacts::unapplied`](crate::timing::TcpFacts) of the connection's trace and fails nothing. The
/// exceptions are `local_v4`, `local_v6` and `device`: a connection that would leave by another way
/// is not made.
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
    /// kernel alone would try for about 15 minutes. Off while the server's window is closed to an
    /// HTTP/1.1 upload (kernel 5.4 or newer): a server may take its time, [`Timeouts::first_byte`]
    /// and [`Timeouts::total`] bound it.
    ///
    /// [`Timeouts::first_byte`]: crate::Timeouts::first_byte
    /// [`Timeouts::total`]: crate::Timeouts::total
    pub user_timeout: Option<Duration>,
    /// Bytes not yet sent above which the socket takes no more (`TCP_NOTSENT_LOWAT`, Linux): less
    /// waits in the kernel where HTTP/2 can no longer reorder it. Default the system's.
    pub notsent_lowat: Option<u32>,
    /// Acknowledge at once in the beginning (`TCP_QUICKACK`, Linux). The kernel leaves the mode by
    /// itself. Default off.
    pub quickack: bool,
    /// The kernel's send buffer in bytes. Default the system's, which grows by itself; a size given
    /// here does not.
    pub send_buffer: Option<usize>,
    /// The kernel's receive buffer in bytes, likewise.
    pub recv_buffer: Option<usize>,
    /// Differentiated services code point, 0 to 63 (RFC 2474). Default none.
    pub dscp: Option<u8>,
    /// Mark for policy routing and firewalls (`SO_MARK`, Linux; needs CAP_NET_ADMIN). Default none.
    pub mark: Option<u32>,
    /// How long the kernel polls the device queue before it sleeps (`SO_BUSY_POLL`, Linux; needs
    /// CAP_NET_ADMIN to raise). Default the system's.
    pub busy_poll: Option<Duration>,
    /// Congestion control, such as `bbr` (Linux). Default the system's.
    pub congestion: Option<String>,
    /// The address to connect from over IPv4. Default the system's choice.
    pub local_v4: Option<Ipv4Addr>,
    /// The address to connect from over IPv6. Default the system's choice.
    pub local_v6: Option<Ipv6Addr>,
    /// The network interface to use (`SO_BINDTODEVICE`, Linux). Default the system's choice.
    pub device: Option<String>,
    /// TCP Fast Open (RFC 7413, Linux): on a connection to an address that has given a cookie, the
    /// first bytes travel with the SYN. The kernel may deliver them twice (§6), and a middlebox may
    /// drop such a SYN, which costs a retransmission. Only for `https`, where the first bytes are a
    /// handshake. A SYN holds about 1400 bytes: switch post-quantum key shares off to fit. Default
    /// off.
    pub fast_open: bool,
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
            notsent_lowat: None,
            quickack: false,
            send_buffer: None,
            recv_buffer: None,
            dscp: None,
            mark: None,
            busy_poll: None,
            congestion: None,
            local_v4: None,
            local_v6: None,
            device: None,
            fast_open: false,
        }
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty,)+) => {
        $(
            #[doc = concat!("Sets `", stringify!($name), "`.")]
            pub fn $name(mut self, $name: impl Into<$type>) -> Self {
                self.$name = $name.into();
                self
            }
        )+
    };
}

impl TcpOptions {
    setters! {
        nodelay: bool,
        keepalive: Option<Keepalive>,
        user_timeout: Option<Duration>,
        notsent_lowat: Option<u32>,
        quickack: bool,
        send_buffer: Option<usize>,
        recv_buffer: Option<usize>,
        dscp: Option<u8>,
        mark: Option<u32>,
        busy_poll: Option<Duration>,
        local_v4: Option<Ipv4Addr>,
        local_v6: Option<Ipv6Addr>,
        fast_open: bool,
    }

    /// Sets `congestion`.
    pub fn congestion(mut self, name: impl Into<String>) -> Self {
        self.congestion = Some(name.into());
        self
    }

    /// Sets `device`.
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// # Errors
    /// Invalid: a value that no system takes.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.dscp.is_some_and(|dscp| dscp > 63) {
            return Err(Error::invalid("tcp dscp is larger than 63"));
        }
        for (name, text) in [("congestion", &self.congestion), ("device", &self.device)] {
            // IFNAMSIZ and TCP_CA_NAME_MAX are 16, a final NUL included.
            let fits = |text: &String| (1..16).contains(&text.len()) && !text.contains('\0');
            if !text.as_ref().is_none_or(fits) {
                return Err(Error::invalid(format!("tcp {name} has not 1 to 15 bytes")));
            }
        }
        Ok(())
    }
}
