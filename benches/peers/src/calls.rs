//! What every client can do here.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::world::{Protocol, World};

/// Bytes that a peer may send on one stream and on one connection before we read, the same for all.
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
pub const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

#[derive(Clone)]
pub enum Call {
    Get(&'static str),
    Post(Bytes),
}

/// Who is told of every piece of a response body.
pub type OnPiece<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

/// A client, with no connection yet.
pub trait Client: Clone + Send + Sync + 'static {
    type Worker: Worker;

    const NAME: &'static str;

    fn new(world: &Arc<World>, protocol: Protocol, target: Target) -> Self;
    /// The same pool for another host.
    fn elsewhere(&self, world: &World, target: Target) -> Self;
    /// Where calls are made one after the other.
    fn worker(&self) -> impl Future<Output = Self::Worker> + Send;
    /// The next call needs a new connection; TLS sessions are kept.
    fn forget_connections(&self) -> impl Future<Output = ()> + Send;
}

pub trait Worker: Send + 'static {
    /// Makes a call and reads its response to the end.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn call(
        &mut self,
        call: Call,
        on_piece: OnPiece<'_>,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// Where to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target {
    /// The last number of the loopback address; 0 is 1.
    pub host: u8,
    /// The server allows 10 streams on a connection.
    pub few_streams: bool,
    /// Connections that one origin may have, where a client can be told.
    pub connections: Option<usize>,
    /// Connections are not kept for another request.
    pub no_reuse: bool,
}

impl Target {
    pub fn address(self, world: &World) -> std::net::SocketAddr {
        let port = world.port(self.few_streams);
        if world.address.is_loopback() {
            return ([127, 0, 0, self.host.max(1)], port).into();
        }
        (world.address, port).into()
    }
}
