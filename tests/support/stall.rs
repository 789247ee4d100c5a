//! Peers that never get as far as HTTP: silent, refusing, unreachable, or speaking nonsense.

use std::net::SocketAddr;

use bytes::Bytes;
use socket2::{Domain, Socket, Type};

use super::peer_io::Listening;
use super::port;

/// A peer that stalls. Dropping it closes what it holds open.
pub struct Stall {
    addr: SocketAddr,
    means: Means,
}

enum Means {
    Listening(Listening),
    /// A listener that nobody accepts from, and the connections that fill its queue.
    Full {
        _sockets: Vec<Socket>,
    },
}

impl Stall {
    /// Accepts and never says a byte; reads nothing either.
    pub fn accept_silent() -> Self {
        Self::accept_silent_at(port::any())
    }

    /// The same on this address, for example `[::1]` and the port of a sound server on `127.0.0.1`.
    pub fn accept_silent_at(addr: SocketAddr) -> Self {
        Self::garbage_at(addr, Bytes::new())
    }

    /// Accepts, sends these bytes at once and keeps the connection open.
    pub fn garbage(bytes: impl Into<Bytes>) -> Self {
        Self::garbage_at(port::any(), bytes)
    }

    /// The same on this address.
    pub fn garbage_at(addr: SocketAddr, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let listening = Listening::start(addr, None, move |mut io, _| {
            let bytes = bytes.clone();
            async move {
                io.send(&bytes).await;
                std::future::pending().await
            }
        });
        Self {
            addr: listening.addr(),
            means: Means::Listening(listening),
        }
    }

    /// An address that refuses for as long as the process lives: its port is taken by a socket that does not listen.
    pub fn refused_addr() -> SocketAddr {
        let socket = bound(port::any());
        let addr = addr_of(&socket);
        // Never closed, so that no other test is given this port.
        std::mem::forget(socket);
        addr
    }

    /// A listener whose queue is full: Linux drops every further SYN, so that `connect` hangs.
    pub fn blackhole() -> Self {
        Self::blackhole_at(port::any())
    }

    /// The same on this address.
    pub fn blackhole_at(addr: SocketAddr) -> Self {
        let listener = bound(addr);
        // A queue of length 0 takes one connection.
        listener.listen(0).expect("bound");
        let addr = addr_of(&listener);
        let mut sockets = vec![listener];
        // Loopback delivers in order: whatever comes after the first connection that is not made at once finds the
        // queue full.
        loop {
            let (socket, is_connected) = knock(addr);
            sockets.push(socket);
            if !is_connected {
                break;
            }
            assert!(
                sockets.len() < 16,
                "this kernel keeps accepting behind a backlog of 0"
            );
        }
        Self {
            addr,
            means: Means::Full { _sockets: sockets },
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Connections accepted so far; a blackhole accepts none.
    pub fn connections(&self) -> usize {
        match &self.means {
            Means::Listening(listening) => listening.connections(),
            Means::Full { .. } => 0,
        }
    }

    /// Resolves once that many connections were accepted; for a blackhole never.
    pub async fn wait_connections(&self, n: usize) {
        match &self.means {
            Means::Listening(listening) => listening.wait_connections(n).await,
            Means::Full { .. } => std::future::pending().await,
        }
    }
}

/// A TCP socket on this address that does not listen yet.
fn bound(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None);
    let socket = socket.expect("a descriptor is left");
    socket.bind(&addr.into()).expect("the address is free");
    socket
}

fn addr_of(socket: &Socket) -> SocketAddr {
    let addr = socket.local_addr().expect("bound");
    addr.as_socket().expect("an IP address")
}

/// Begins a connection, and says whether it was made before this returns.
fn knock(addr: SocketAddr) -> (Socket, bool) {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None);
    let socket = socket.expect("a descriptor is left");
    socket.set_nonblocking(true).expect("a fresh socket");
    // "In progress" is all that a non-blocking connect ever says.
    let _in_progress = socket.connect(&addr.into());
    let is_connected = socket.peer_addr().is_ok();
    (socket, is_connected)
}
