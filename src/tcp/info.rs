//! What the kernel knows about a connection (`TCP_INFO`), and the options that socket2 does not have.
//!
//! A [`SocketWatch`] outlives its socket without keeping it open: descriptors are numbers that the
//! system gives to somebody else once they are free, so the number is forgotten before the socket is
//! closed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::sync::lock;

#[cfg(unix)]
type Descriptor = std::os::fd::RawFd;
#[cfg(not(unix))]
type Descriptor = ();

/// The kernel's view of a TCP connection at one moment (Linux).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpInfo {
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// Its mean deviation.
    pub rtt_variance: Duration,
    /// The shortest round trip seen lately; `None` on kernels before 4.6.
    pub min_rtt: Option<Duration>,
    /// Segments sent again, in the life of the connection.
    pub retransmissions: u32,
    /// Congestion window, in segments.
    pub congestion_window: u32,
    /// Bytes of data in a segment that we send.
    pub segment_size: u32,
    /// The rate at which the peer lately received what we sent, in bytes per second; `None` on
    /// kernels before 4.9.
    pub delivery_rate: Option<u64>,
    /// Bytes that the peer has acknowledged; `None` on kernels before 4.1.
    pub bytes_acked: Option<u64>,
    /// Bytes received; `None` on kernels before 4.1.
    pub bytes_received: Option<u64>,
    /// The peer accepted data in the SYN (Fast Open).
    pub syn_data_acked: bool,
}

/// Fields of `struct tcp_info` in linux/tcp.h: it only ever grows at its end, so that the length
/// which the kernel returns says what is there.
#[derive(Clone, Copy)]
struct Raw<'a>(&'a [u8]);

impl Raw<'_> {
    fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u32(self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// `tcpi_snd_wnd` below `tcpi_snd_mss`.
    fn is_window_closed(self) -> Option<bool> {
        Some(self.u32(228)? < self.u32(16)?)
    }
}

impl TcpInfo {
    fn parse(bytes: &[u8]) -> Option<Self> {
        const SYN_DATA: u8 = 32;
        let raw = Raw(bytes);
        let micros = |at| Some(Duration::from_micros(raw.u32(at)?.into()));
        Some(Self {
            syn_data_acked: raw.u8(5)? & SYN_DATA != 0,
            segment_size: raw.u32(16)?,
            rtt: micros(68)?,
            rtt_variance: micros(72)?,
            congestion_window: raw.u32(80)?,
            retransmissions: raw.u32(100)?,
            bytes_acked: raw.u64(120),
            bytes_received: raw.u64(128),
            // All ones: none was measured yet.
            min_rtt: raw
                .u32(148)
                .filter(|us| *us != u32::MAX)
                .map(|us| Duration::from_micros(us.into())),
            delivery_rate: raw.u64(160),
        })
    }
}

/// Looks at a socket for as long as it is open.
#[derive(Clone, Debug, Default)]
pub(crate) struct SocketWatch {
    descriptor: Arc<Mutex<Option<Descriptor>>>,
}

/// Owned beside the socket, and dropped before it.
#[derive(Debug)]
pub(crate) struct WatchedSocket {
    descriptor: Arc<Mutex<Option<Descriptor>>>,
}

impl Drop for WatchedSocket {
    fn drop(&mut self) {
        *lock(&self.descriptor) = None;
    }
}

impl SocketWatch {
    /// A watch of this socket, and the guard that must be dropped before the socket is closed.
    pub(crate) fn new(stream: &TcpStream) -> (Self, WatchedSocket) {
        #[cfg(unix)]
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(stream);
        #[cfg(not(unix))]
        let descriptor = {
            let _ = stream;
        };
        let descriptor = Arc::new(Mutex::new(Some(descriptor)));
        let guard = WatchedSocket {
            descriptor: descriptor.clone(),
        };
        (Self { descriptor }, guard)
    }

    /// What the kernel knows; `None` once the socket is closed, and on other systems than Linux.
    pub(crate) fn info(&self) -> Option<TcpInfo> {
        // Under the lock: the socket stays open meanwhile.
        let descriptor = lock(&self.descriptor);
        TcpInfo::parse(sys::tcp_info((*descriptor)?, &mut [0; sys::INFO])?)
    }

    /// The peer takes less than a segment; false where that cannot be told (kernels before 5.4).
    pub(super) fn is_window_closed(&self) -> bool {
        let descriptor = lock(&self.descriptor);
        let mut bytes = [0; sys::INFO];
        let bytes = (*descriptor).and_then(|descriptor| sys::tcp_info(descriptor, &mut bytes));
        bytes.is_some_and(|bytes| Raw(bytes).is_window_closed() == Some(true))
    }

    /// `None` if there is none, or the socket is closed.
    pub(super) fn user_timeout(&self) -> Option<Duration> {
        let descriptor = lock(&self.descriptor);
        sys::user_timeout((*descriptor)?)
    }

    /// Nothing happens once the socket is closed.
    pub(super) fn set_user_timeout(&self, timeout: Option<Duration>) {
        let descriptor = lock(&self.descriptor);
        if let Some(descriptor) = *descriptor {
            sys::set_user_timeout(descriptor, timeout);
        }
    }
}

/// Fast Open: connect() has returned, and the SYN waits for the first write.
pub(super) fn is_unsent_syn(stream: &TcpStream) -> bool {
    #[cfg(target_os = "linux")]
    {
        const SYN_SENT: u8 = 2;
        let mut bytes = [0; sys::INFO];
        let info = sys::tcp_info(std::os::fd::AsRawFd::as_raw_fd(stream), &mut bytes);
        info.is_some_and(|bytes| bytes.first() == Some(&SYN_SENT))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = stream;
        false
    }
}

pub(super) use sys::set_fast_open_connect;

/// Lets connect() choose the port of a socket that is bound to an address.
#[cfg(target_os = "linux")]
pub(super) fn bind_address_no_port(socket: &socket2::Socket) {
    // Without it (kernels before 4.2) bind() chooses one of all ports.
    let _ = sys::set_bind_address_no_port(socket);
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod sys {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
    use std::time::Duration;

    /// Larger than `struct tcp_info` of any kernel so far.
    pub(super) const INFO: usize = 512;

    /// As much of `bytes` as the kernel fills.
    pub(super) fn tcp_info(fd: RawFd, bytes: &mut [u8; INFO]) -> Option<&[u8]> {
        let mut len = INFO as libc::socklen_t;
        // SAFETY: `bytes` has room for `len` bytes and outlives the call; the kernel writes at most
        // `len` bytes and sets `len` to how many it wrote. A descriptor that is no TCP socket is an
        // error and no more.
        let result = unsafe {
            libc::getsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return None;
        }
        bytes.get(..len as usize)
    }

    pub(super) fn user_timeout(fd: RawFd) -> Option<Duration> {
        // SAFETY: the caller holds the lock that keeps the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        socket2::SockRef::from(&fd).tcp_user_timeout().ok()?
    }

    pub(super) fn set_user_timeout(fd: RawFd, timeout: Option<Duration>) {
        // SAFETY: the caller holds the lock that keeps the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // It was read from this socket, or set on it, before: what there is to fail has passed.
        let _ = socket2::SockRef::from(&fd).set_tcp_user_timeout(timeout);
    }

    pub(in super::super) fn set_fast_open_connect(socket: &socket2::Socket) -> io::Result<()> {
        set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT)
    }

    pub(super) fn set_bind_address_no_port(socket: &socket2::Socket) -> io::Result<()> {
        set(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
    }

    fn set(socket: &socket2::Socket, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: `on` outlives the call, and the length is its own.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::io;

    pub(super) const INFO: usize = 0;

    pub(super) fn tcp_info(_: super::Descriptor, _: &mut [u8; INFO]) -> Option<&[u8]> {
        None
    }

    pub(super) fn user_timeout(_: super::Descriptor) -> Option<std::time::Duration> {
        None
    }

    pub(super) fn set_user_timeout(_: super::Descriptor, _: Option<std::time::Duration>) {}

    pub(in super::super) fn set_fast_open_connect(_: &socket2::Socket) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn kernel_tells_what_passed_and_nothing_once_the_socket_is_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (watch, guard) = SocketWatch::new(&stream);
        stream.write_all(&[7; 1000]).await.unwrap();
        peer.read_exact(&mut [0; 1000]).await.unwrap();
        peer.write_all(b"answer").await.unwrap();
        stream.read_exact(&mut [0; 6]).await.unwrap();
        let info = watch.info().unwrap();
        assert_eq!(info.bytes_received, Some(6));
        // The SYN counts as one.
        assert_eq!(info.bytes_acked, Some(1001));
        assert!(info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1));
        assert!(info.congestion_window > 0 && info.segment_size > 500);
        assert!(info.min_rtt.unwrap() <= info.rtt && !info.syn_data_acked);
        drop(guard);
        assert_eq!(watch.info(), None);
    }

    #[test]
    fn short_answer_of_an_old_kernel_leaves_newer_fields_out() {
        let bytes: Vec<u8> = (0..=255).collect();
        let info = TcpInfo::parse(&bytes[..104]).unwrap();
        assert_eq!(
            info.retransmissions,
            u32::from_ne_bytes([100, 101, 102, 103])
        );
        assert_eq!((info.bytes_acked, info.delivery_rate), (None, None));
        assert!(TcpInfo::parse(&bytes[..152]).unwrap().min_rtt.is_some());
        assert_eq!(TcpInfo::parse(&bytes[..100]), None);
        assert_eq!(TcpInfo::parse(&[]), None);
    }
}
