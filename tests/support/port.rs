//! A listening socket that can be closed from outside: when [`Port::close`] returns the port refuses.
//!
//! A `TcpListener` inside a task cannot promise that: an aborted task is dropped some time later.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use tokio::net::{TcpListener, TcpStream};

/// A free port of 127.0.0.1.
pub fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// One listener, shared by who accepts and who closes.
#[derive(Clone)]
pub struct Port {
    addr: SocketAddr,
    listener: Arc<Mutex<Option<TcpListener>>>,
}

impl Port {
    /// Listens; port 0 is a free one.
    pub fn bind(addr: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind(addr).expect("the address is free");
        listener.set_nonblocking(true).expect("a fresh socket");
        let listener = TcpListener::from_std(listener).expect("peers start inside a runtime");
        Self {
            addr: listener.local_addr().expect("bound"),
            listener: Arc::new(Mutex::new(Some(listener))),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connection; none once the port is closed.
    pub async fn accept(&self) -> Option<TcpStream> {
        loop {
            match self.next().await? {
                Ok(tcp) => return Some(tcp),
                // Out of descriptors, or a client that gave up while queued: neither ends the peer.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Closes the socket here and now. Connections accepted before live on.
    pub fn close(&self) {
        self.listener
            .lock()
            .expect("no panic under this lock")
            .take();
    }

    /// The lock is held for each poll only, never across an await.
    async fn next(&self) -> Option<io::Result<TcpStream>> {
        poll_fn(|cx| {
            let listener = self.listener.lock().expect("no panic under this lock");
            match listener.as_ref() {
                Some(listener) => listener.poll_accept(cx).map_ok(|(tcp, _)| tcp).map(Some),
                None => Poll::Ready(None),
            }
        })
        .await
    }
}
