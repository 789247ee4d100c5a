//! Bytes in and out: the [`Transport`] under a connection, the [`Dial`] seam through which tests,
//! simulations and users bring their own I/O, and the wire that wraps it.
//!
//! ```text
//! h2 or h1
//!   TLS (rustls)
//!     Wire        cork: small writes leave together; read buffer: 16 KiB per read; stamps, counts
//!       Transport Tcp | Unix | Custom
//! ```

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use crate::clock;

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a transport of one's own must be.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connected byte stream.
#[non_exhaustive]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix domain socket.
    #[cfg(unix)]
    Unix(UnixStream),
    /// Anything else: a simulation, an in-memory pipe, a tunnel.
    Custom(Box<dyn Io>),
}

impl Transport {
    /// A transport of one's own.
    pub fn custom(io: impl Io + 'static) -> Self {
        Self::Custom(Box::new(io))
    }

    /// Reads what the kernel has, whatever the runtime has been told; `None` without a kernel.
    pub(crate) fn read_now(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let socket = match self {
            Self::Tcp(tcp) => socket2::SockRef::from(&*tcp),
            #[cfg(unix)]
            Self::Unix(unix) => socket2::SockRef::from(&*unix),
            Self::Custom(_) => return None,
        };
        // It does not block, so neither does this.
        Some(io::Read::read(&mut &*socket, buf))
    }

    /// The address of the other end, where the transport knows one.
    pub(crate) fn peer_addr(&self) -> Option<PeerAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok().map(PeerAddr::Ip),
            #[cfg(unix)]
            Self::Unix(unix) => {
                let addr = unix.peer_addr().ok()?;
                Some(PeerAddr::Unix(addr.as_pathname()?.to_owned()))
            }
            Self::Custom(_) => None,
        }
    }
}

impl From<TcpStream> for Transport {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

#[cfg(unix)]
impl From<UnixStream> for Transport {
    fn from(unix: UnixStream) -> Self {
        Self::Unix(unix)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(tcp) => tcp.fmt(f),
            #[cfg(unix)]
            Self::Unix(unix) => unix.fmt(f),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// The address of a connection's other end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerAddr {
    /// An IP address and port.
    Ip(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What to connect to: one address of an origin.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialTarget {
    /// The address to connect to.
    pub addr: SocketAddr,
    /// The host of the origin, as the URL has it.
    pub host: Arc<str>,
}

impl DialTarget {
    /// The target `addr` of `host`.
    pub fn new(addr: SocketAddr, host: impl Into<Arc<str>>) -> Self {
        Self {
            addr,
            host: host.into(),
        }
    }
}

/// Opens transports: the seam below DNS and the race over addresses, above which everything (TLS,
/// HTTP, pool, timing) stays the same.
///
/// Dropping the future abandons the attempt; it must leave no socket open.
pub trait Dial: Send + Sync + 'static {
    /// Connects to one address.
    fn dial(&self, target: DialTarget) -> BoxFuture<'static, io::Result<Transport>>;
}

macro_rules! each_transport {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Tcp($io) => $call,
            #[cfg(unix)]
            Transport::Unix($io) => $call,
            Transport::Custom($io) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_transport!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_transport!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_transport!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(io) => io.is_write_vectored(),
            Self::Custom(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_transport!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_transport!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// What the protocols ask of the stream they speak over, beside reading and writing.
pub(crate) trait Carrier: AsyncBufRead + AsyncWrite + Send + Unpin {
    /// The instant of the last read that brought bytes.
    fn last_read(&self) -> Option<Instant>;
    /// Bytes that the socket accepted so far.
    fn bytes_written(&self) -> u64;
    /// Bytes that the socket brought so far.
    fn bytes_read(&self) -> u64;
    /// Until [`uncork`](Self::uncork), nothing written leaves: the handshake is over and the first
    /// request shall leave together with its last flight.
    fn hold(&mut self);
    /// From now on a flush really writes.
    fn uncork(&mut self);
    /// What is written up to the next flush is all that there is before it: nothing is gained by keeping it
    /// until then.
    fn write_ahead(&mut self) {}
    /// Gives buffers back while the connection is idle.
    fn release_buffers(&mut self);
    /// Whether something that was written has not reached the socket.
    fn has_unsent(&self) -> bool {
        false
    }
    /// Whether all that was read was taken, and the kernel has nothing either. False where that is not known.
    fn is_still_quiet(&mut self) -> bool {
        false
    }
    /// What reads are expected to bring from now on.
    fn expect(&mut self, _expected: Expected) {}
    /// Ready once every handshake below is over. Drives it.
    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// What a read is expected to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Something,
    /// Nothing: no buffer is made for it until it does.
    Nothing,
}

/// What an exchange has moved so far, for whoever bounds it or tells of its failure.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes of the request's body handed over.
    pub(crate) body_sent: AtomicU64,
    /// Bytes of the request that the connection took, as far as it can tell.
    pub(crate) sent: AtomicU64,
    /// Bytes that were read for its response.
    pub(crate) received: AtomicU64,
    /// It waits for something before anything of it is sent.
    pub(crate) is_held: AtomicBool,
    /// A part of a response has come.
    pub(crate) is_answered: AtomicBool,
}

impl Traffic {
    /// What was sent and received.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let order = Ordering::Relaxed;
        (self.sent.load(order), self.received.load(order))
    }
}

/// Looks after a socket of our own while a request is under way.
pub(crate) trait AttendUpload: std::fmt::Debug + Send + Sync {
    /// To be polled beside the upload until the response begins, and dropped then; never ready.
    /// `None` if there is nothing to look after.
    fn attend(&self) -> Option<BoxFuture<'static, ()>>;
    /// What our kernel knows of the other end; `None` where it does not tell.
    fn path(&self) -> Option<PathFacts>;
}

/// What a kernel knows of the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathFacts {
    /// Bytes of ours that the other kernel has acknowledged.
    pub(crate) acknowledged: u64,
    /// The shortest round trip of late.
    pub(crate) min_rtt: Option<Duration>,
}

/// How much one read asks of the socket: a full TLS record.
const READ_BUFFER: usize = 16 * 1024;
/// How much rustls asks for at once.
const SMALL_READ: usize = 4 * 1024;
/// Writes from this size on are not copied into the cork.
const WRITE_THROUGH: usize = 8 * 1024;

thread_local! {
    /// Room for a read that nobody uses now. A connection that waits for its peer holds none.
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
    /// The same for what waits to be flushed.
    static SPARE_OUT: Cell<Option<Vec<u8>>> = const { Cell::new(None) };
}

/// When flushed bytes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cork {
    UntilRead,
    Held,
    Open,
    /// The same, but up to the next flush every write is written at once.
    Ahead,
    /// Every write is written at once: whoever writes may not know that it has to flush.
    Through,
}

/// The wrapper next to the socket: cork, read buffer, stamps and counts.
///
/// A flush is not always a write. While a handshake runs, what was flushed leaves at the next read,
/// for whoever reads waits for an answer. After [`Carrier::hold`] nothing leaves until
/// [`Carrier::uncork`]. So handshake flights leave as they must, and TLS Finished, the h2 preface,
/// SETTINGS and the first request leave in one write.
pub(crate) struct Wire<T> {
    /// Dropped before the transport is closed.
    guard: Option<Box<dyn Any + Send + Sync>>,
    io: T,
    cork: Cork,
    out: Vec<u8>,
    /// A write error met while reading: told to the next writer, so that it never hides a
    /// response that has arrived.
    write_error: Option<io::Error>,
    /// Something was written to the transport since it was flushed.
    is_unflushed: bool,
    /// What was read, up to `start` consumed. Without capacity while nothing is expected.
    buffer: BytesMut,
    start: usize,
    /// The last read brought as much as there was room for.
    is_pouring: bool,
    expected: Expected,
    /// The end, or the error, that was read ahead.
    ended: Option<io::Result<()>>,
    last_read: Option<Instant>,
    written: u64,
    read: u64,
}

impl<T> fmt::Debug for Wire<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // None of the bytes: on a plain connection they are the user's own.
        f.debug_struct("Wire")
            .field("cork", &self.cork)
            .field("written", &self.written)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            guard: None,
            io,
            cork: Cork::UntilRead,
            out: Vec::new(),
            write_error: None,
            is_unflushed: false,
            buffer: BytesMut::new(),
            start: 0,
            is_pouring: false,
            expected: Expected::Something,
            ended: None,
            last_read: None,
            written: 0,
            read: 0,
        }
    }

    /// Keeps something that must go before the transport does.
    pub(crate) fn with_guard(mut self, guard: Option<impl Any + Send + Sync>) -> Self {
        self.guard = guard.map(|guard| Box::new(guard) as Box<dyn Any + Send + Sync>);
        self
    }

    /// From now on every write is written at once: HTTP hands the connection over.
    pub(crate) fn write_through(&mut self) {
        self.cork = Cork::Through;
    }

    /// Forgets what was written and has not left.
    pub(crate) fn discard(&mut self) {
        self.out.clear();
    }

    /// Whether bytes that were written still wait to leave.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.out.is_empty()
    }

    /// Lets `read` look for bytes that have arrived and of which nobody was told, for the next read to find.
    /// False if there is nothing.
    pub(crate) fn read_ahead(
        &mut self,
        read: impl FnOnce(&mut T, &mut [u8]) -> Option<io::Result<usize>>,
    ) -> bool {
        if self.has_unread() || self.ended.is_some() {
            return true;
        }
        let mut scrap = [0; 64];
        match read(&mut self.io, &mut scrap) {
            None => {}
            Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Some(Err(e)) => self.ended = Some(Err(e)),
            Some(Ok(0)) => self.ended = Some(Ok(())),
            Some(Ok(n)) => self.keep(&scrap[..n]),
        }
        true
    }

    /// So much was read.
    fn count(&mut self, n: usize) {
        if n > 0 {
            self.read += n as u64;
            self.last_read = Some(clock::now());
        }
    }

    fn has_unread(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Makes room for a read. It is not initialized, which would cost more than the read.
    fn make_room(&mut self) {
        if self.buffer.capacity() == 0 {
            // A thread that ends has none.
            let spare = SPARE.try_with(Cell::take).ok().flatten();
            self.buffer = spare.unwrap_or_default();
        }
        self.buffer.clear();
        self.start = 0;
        self.buffer.reserve(READ_BUFFER);
    }

    /// There is nothing to read: whoever has something next may take the room.
    fn give_room_up(&mut self) {
        if self.buffer.capacity() > 0 && !self.has_unread() {
            self.start = 0;
            let spare = std::mem::take(&mut self.buffer);
            let _ends = SPARE.try_with(|cell| cell.set(Some(spare)));
        }
    }

    /// Keeps what was read elsewhere.
    fn keep(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        if !bytes.is_empty() {
            self.make_room();
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The transport below.
    #[cfg(test)]
    pub(crate) fn get_ref(&self) -> &T {
        &self.io
    }

    /// The transport below.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// Whoever reads during a handshake waits for the answer to what was written.
    fn release_flight(&mut self, cx: &mut Context<'_>) {
        if self.cork != Cork::UntilRead || self.out.is_empty() && !self.is_unflushed {
            return;
        }
        let released = match self.poll_drain(cx) {
            // A transport of somebody else's may have a buffer of its own.
            Poll::Ready(Ok(())) => Pin::new(&mut self.io).poll_flush(cx),
            other => other,
        };
        match released {
            Poll::Ready(Ok(())) => self.is_unflushed = false,
            Poll::Ready(Err(error)) => {
                self.out.clear();
                self.write_error = Some(error);
            }
            Poll::Pending => {}
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.write_error.take() {
            return Poll::Ready(Err(error));
        }
        let mut sent = 0;
        let result = loop {
            if sent == self.out.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.io).poll_write(cx, &self.out[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    sent += n;
                    self.written += n as u64;
                    self.is_unflushed = true;
                }
                Poll::Ready(Err(e)) => break Poll::Ready(Err(e)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.out.drain(..sent);
        if self.out.is_empty() && self.out.capacity() > 0 {
            let spare = std::mem::take(&mut self.out);
            let _ends = SPARE_OUT.try_with(|cell| cell.set(Some(spare)));
        }
        result
    }

    /// Keeps what is to be flushed.
    fn put(&mut self, bufs: &[io::IoSlice<'_>]) {
        if self.out.capacity() == 0 {
            let spare = SPARE_OUT.try_with(Cell::take).ok().flatten();
            self.out = spare.unwrap_or_default();
        }
        for buf in bufs {
            self.out.extend_from_slice(buf);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for Wire<T> {
    fn last_read(&self) -> Option<Instant> {
        self.last_read
    }

    fn bytes_written(&self) -> u64 {
        self.written
    }

    fn bytes_read(&self) -> u64 {
        self.read
    }

    fn hold(&mut self) {
        self.cork = Cork::Held;
    }

    fn uncork(&mut self) {
        self.cork = Cork::Open;
    }

    fn write_ahead(&mut self) {
        if self.cork == Cork::Open {
            self.cork = Cork::Ahead;
        }
    }

    fn release_buffers(&mut self) {
        self.give_room_up();
    }

    fn expect(&mut self, expected: Expected) {
        self.expected = expected;
    }

    fn poll_established(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let room = buf.remaining();
        // What comes in small pieces needs no buffer between, and what comes in large ones is read in as few
        // system calls as a record of TLS allows.
        let is_direct = room >= READ_BUFFER || (room >= SMALL_READ && !this.is_pouring);
        if is_direct && !this.has_unread() && this.ended.is_none() {
            // What larger pieces were read into is of no use while this waits.
            this.give_room_up();
            this.release_flight(cx);
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            this.is_pouring = buf.remaining() == 0;
            this.count(buf.filled().len() - before);
            return Poll::Ready(Ok(()));
        }
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let n = buf.remaining().min(bytes.len());
        buf.put_slice(&bytes[..n]);
        self.consume(n);
        Poll::Ready(Ok(()))
    }
}

/// What was read and not asked for stays here: the bytes behind a proxy's answer are the origin's.
impl<T: AsyncRead + AsyncWrite + Unpin> AsyncBufRead for Wire<T> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        this.release_flight(cx);
        if !this.has_unread() {
            if let Some(ended) = this.ended.take() {
                return Poll::Ready(ended.map(|()| &[][..]));
            }
            if this.expected == Expected::Something || this.buffer.capacity() > 0 {
                this.make_room();
                let Self { io, buffer, .. } = this;
                // It keeps nothing between polls.
                let read = pin!(io.read_buf(buffer));
                match read.poll(cx) {
                    Poll::Ready(Ok(n)) => {
                        this.is_pouring = n >= SMALL_READ;
                        this.count(n);
                    }
                    pending_or_failed => {
                        this.give_room_up();
                        return pending_or_failed.map_ok(|_| &[][..]);
                    }
                }
            } else {
                let mut scrap = [0; 64];
                let mut read = ReadBuf::new(&mut scrap);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
                let n = read.filled().len();
                this.keep(&scrap[..n]);
            }
        }
        Poll::Ready(Ok(&this.buffer[this.start..]))
    }

    fn consume(self: Pin<&mut Self>, n: usize) {
        let this = self.get_mut();
        this.start = (this.start + n).min(this.buffer.len());
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(error) = this.write_error.take() {
            return Poll::Ready(Err(error));
        }
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        let at_once = match this.cork {
            Cork::Through => true,
            Cork::Ahead => this.out.is_empty() || total > WRITE_THROUGH,
            Cork::UntilRead | Cork::Held | Cork::Open => total > WRITE_THROUGH,
        };
        if at_once || this.out.len() + total > WRITE_THROUGH {
            ready!(this.poll_drain(cx))?;
        }
        if at_once {
            let n = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
            this.written += n as u64;
            this.is_unflushed = true;
            return Poll::Ready(Ok(n));
        }
        this.put(bufs);
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.cork {
            Cork::UntilRead | Cork::Held => return Poll::Ready(Ok(())),
            Cork::Ahead => this.cork = Cork::Open,
            Cork::Open | Cork::Through => {}
        }
        if !this.out.is_empty() || this.write_error.is_some() {
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// No ports, descriptors or buffers are left, which closing a connection of one's own would change.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        let exhausted = [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
        ];
        error
            .raw_os_error()
            .is_some_and(|code| exhausted.contains(&code))
    }
    #[cfg(not(unix))]
    {
        error.kind() == io::ErrorKind::AddrNotAvailable
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts the writes that reach it.
    struct Counting {
        io: tokio::io::DuplexStream,
        writes: Vec<usize>,
    }

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
            self.writes.push(n);
            Poll::Ready(Ok(n))
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    fn wire() -> (Wire<Counting>, tokio::io::DuplexStream) {
        let (io, peer) = tokio::io::duplex(1 << 20);
        (
            Wire::new(Counting {
                io,
                writes: Vec::new(),
            }),
            peer,
        )
    }

    #[tokio::test]
    async fn corked_writes_leave_together_at_the_next_read() {
        let (mut wire, mut peer) = wire();
        wire.write_all(b"hello").await.unwrap();
        wire.flush().await.unwrap();
        wire.write_all(b" world").await.unwrap();
        wire.flush().await.unwrap();
        assert!(wire.get_ref().writes.is_empty() && wire.bytes_written() == 0);
        peer.write_all(b"x").await.unwrap();
        assert_eq!(wire.read_u8().await.unwrap(), b'x');
        assert_eq!(wire.get_ref().writes, [11]);
        assert!(wire.last_read().is_some());
    }

    #[tokio::test]
    async fn held_writes_wait_even_for_a_read() {
        let (mut wire, mut peer) = wire();
        wire.hold();
        wire.write_all(b"finished").await.unwrap();
        peer.write_all(b"x").await.unwrap();
        wire.read_u8().await.unwrap();
        assert!(wire.get_ref().writes.is_empty());
        wire.uncork();
        wire.flush().await.unwrap();
        assert_eq!(wire.get_ref().writes, [8]);
    }

    #[tokio::test]
    async fn uncorked_flush_writes_what_the_cork_held_and_what_follows_at_once() {
        let (mut wire, _peer) = wire();
        wire.write_all(b"finished").await.unwrap();
        wire.flush().await.unwrap();
        wire.uncork();
        wire.write_all(b" request").await.unwrap();
        wire.flush().await.unwrap();
        assert_eq!(wire.get_ref().writes, [16]);
    }

    #[tokio::test]
    async fn what_is_all_there_is_leaves_at_once_behind_what_was_held() {
        let (mut wire, _peer) = wire();
        wire.write_all(b"finished").await.unwrap();
        wire.write_ahead();
        wire.write_all(b"+").await.unwrap();
        assert!(wire.get_ref().writes.is_empty(), "the cork is still in");
        wire.uncork();
        wire.write_ahead();
        wire.write_all(b" request").await.unwrap();
        assert!(
            wire.get_ref().writes.is_empty(),
            "together with what was held"
        );
        wire.flush().await.unwrap();
        wire.write_ahead();
        wire.write_all(b"second").await.unwrap();
        assert_eq!(wire.get_ref().writes, [17, 6]);
        wire.flush().await.unwrap();
        wire.write_all(b"third").await.unwrap();
        assert_eq!(wire.get_ref().writes, [17, 6]);
    }

    #[tokio::test]
    async fn large_writes_keep_their_order_behind_small_ones() {
        let (mut wire, mut peer) = wire();
        wire.uncork();
        wire.write_all(b"head").await.unwrap();
        wire.write_all(&vec![7; 100_000]).await.unwrap();
        wire.flush().await.unwrap();
        let mut got = vec![0; 100_004];
        peer.read_exact(&mut got).await.unwrap();
        assert_eq!(&got[..4], b"head");
        assert!(got[4..].iter().all(|b| *b == 7));
        assert_eq!(wire.bytes_written(), 100_004);
    }

    #[tokio::test]
    async fn what_waits_holds_no_buffer_however_it_was_read_before() {
        let (mut wire, mut peer) = wire();
        let mut room = [0; SMALL_READ];
        peer.write_all(&[7; SMALL_READ]).await.unwrap();
        assert_eq!(wire.read(&mut room).await.unwrap(), SMALL_READ);
        assert!(wire.is_pouring);
        peer.write_all(b"less").await.unwrap();
        assert_eq!(wire.read(&mut room).await.unwrap(), 4);
        assert!(!wire.is_pouring && wire.buffer.capacity() > 0);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut buf = ReadBuf::new(&mut room);
        assert!(
            Pin::new(&mut wire)
                .poll_read(&mut cx, &mut buf)
                .is_pending()
        );
        assert_eq!(wire.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn buffers_are_released_only_when_nothing_is_in_them() {
        let (mut wire, mut peer) = wire();
        peer.write_all(b"ab").await.unwrap();
        assert_eq!(wire.read_u8().await.unwrap(), b'a');
        wire.release_buffers();
        assert_eq!(wire.read_u8().await.unwrap(), b'b');
        wire.release_buffers();
        assert_eq!(wire.buffer.capacity(), 0);
    }
}
