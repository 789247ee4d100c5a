//! An HTTP/2 peer scripted frame by frame, over TCP (prior knowledge) or TLS with ALPN `h2`.
//!
//! It knows the layout of a frame (RFC 9113 §4.1) and the simplest encoding of a header (RFC 7541 §6.2.2: a literal that
//! touches no table), and keeps no state of the protocol, so that a script can break every rule. Request headers are not
//! decoded. When the script returns, the connection is dropped as it is; see [`h1_peer`](super::h1_peer).

use std::future::Future;
use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use rustls::ServerConfig;

use super::peer_io::{Listening, PeerIo};
use super::pki::{self, ServerIdentity};
use super::port;

/// Frame types (RFC 9113 §6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags (RFC 9113 §6).
pub mod flag {
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (RFC 9113 §6.5.2).
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Error codes (RFC 9113 §7).
pub mod code {
    pub const NO_ERROR: u32 = 0x0;
    pub const PROTOCOL_ERROR: u32 = 0x1;
    pub const INTERNAL_ERROR: u32 = 0x2;
    pub const FLOW_CONTROL_ERROR: u32 = 0x3;
    pub const SETTINGS_TIMEOUT: u32 = 0x4;
    pub const STREAM_CLOSED: u32 = 0x5;
    pub const FRAME_SIZE_ERROR: u32 = 0x6;
    pub const REFUSED_STREAM: u32 = 0x7;
    pub const CANCEL: u32 = 0x8;
    pub const COMPRESSION_ERROR: u32 = 0x9;
    pub const ENHANCE_YOUR_CALM: u32 = 0xb;
    pub const HTTP_1_1_REQUIRED: u32 = 0xd;
}

/// What a client says first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub len: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Bytes,
}

impl Frame {
    pub fn has_flag(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// DATA or HEADERS that end their stream.
    pub fn is_end_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.has_flag(flag::END_STREAM)
    }

    /// The error code of RST_STREAM and GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let bytes = self.payload.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }
}

/// A listening peer; dropping it cuts its connections.
pub struct H2Peer {
    listening: Listening,
}

impl H2Peer {
    /// Over plain TCP, for clients with prior knowledge.
    pub fn start<S, F>(script: S) -> Self
    where
        S: Fn(H2Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(port::any(), None, script)
    }

    /// Over TLS with ALPN `h2`.
    pub fn start_tls<S, F>(identity: &ServerIdentity, script: S) -> Self
    where
        S: Fn(H2Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(
            port::any(),
            Some(pki::server_config(identity, &["h2"])),
            script,
        )
    }

    /// Over TLS as configured.
    pub fn start_tls_config<S, F>(config: ServerConfig, script: S) -> Self
    where
        S: Fn(H2Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(port::any(), Some(config), script)
    }

    /// On this address, with TLS or without.
    pub fn start_at<S, F>(addr: SocketAddr, tls: Option<ServerConfig>, script: S) -> Self
    where
        S: Fn(H2Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listening =
            Listening::start(addr, tls, move |io, index| script(H2Conn::new(io), index));
        Self { listening }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listening.addr()
    }

    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.listening.connections()
    }

    pub async fn wait_connections(&self, n: usize) {
        self.listening.wait_connections(n).await;
    }

    /// Closes the port: when this returns it refuses. Open connections live on.
    pub fn stop(&self) {
        self.listening.stop();
    }
}

/// One connection in the hands of a script.
pub struct H2Conn {
    io: PeerIo,
    corked: Option<BytesMut>,
    has_auto_ping: bool,
}

impl H2Conn {
    /// One end of a connection that somebody else made.
    pub(super) fn new(io: PeerIo) -> Self {
        Self {
            io,
            corked: None,
            has_auto_ping: true,
        }
    }

    /// Reads the client's preface and SETTINGS, then sends these settings and the acknowledgement in one write. Returns
    /// the client's SETTINGS; none if it spoke no HTTP/2.
    pub async fn handshake(&mut self, settings: &[(u16, u32)]) -> Option<Frame> {
        let theirs = self.accept_preface().await?;
        self.cork();
        self.settings(settings).await;
        self.settings_ack().await;
        self.flush().await;
        Some(theirs)
    }

    /// Reads the client's preface and SETTINGS and says nothing. None if it spoke no HTTP/2.
    pub async fn accept_preface(&mut self) -> Option<Frame> {
        if self.io.read(PREFACE.len()).await != PREFACE {
            return None;
        }
        self.read_frame()
            .await
            .filter(|frame| frame.kind == kind::SETTINGS)
    }

    /// The next frame of any kind, none at the end of the connection. Answers PING unless told not to.
    pub async fn read_frame(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.io.read(9).await[..].try_into().ok()?;
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let payload = self.io.read(len).await;
        if payload.len() < len {
            return None;
        }
        let frame = Frame {
            len,
            kind: head[3],
            flags: head[4],
            stream,
            payload,
        };
        if frame.kind == kind::PING && !frame.has_flag(flag::ACK) && self.has_auto_ping {
            self.frame(kind::PING, flag::ACK, 0, &frame.payload).await;
        }
        Some(frame)
    }

    /// Waits until a frame begins, or the end. Dropped before, it has taken nothing.
    pub async fn readable(&mut self) {
        self.io.readable().await;
    }

    /// The next frame of this kind, skipping all others.
    pub async fn read_kind(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.read_frame().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The next HEADERS, skipping SETTINGS, WINDOW_UPDATE, PRIORITY and PING.
    ///
    /// # Panics
    ///
    /// If the client sends another frame or ends before: this ends the connection, and the test sees that.
    pub async fn read_headers(&mut self) -> Frame {
        loop {
            let frame = self
                .read_frame()
                .await
                .expect("the client ended before its HEADERS");
            match frame.kind {
                kind::HEADERS => return frame,
                kind::SETTINGS | kind::WINDOW_UPDATE | kind::PRIORITY | kind::PING => {}
                _ => panic!("HEADERS were expected, not {frame:?}"),
            }
        }
    }

    /// Whether PINGs are answered while reading; they are unless told otherwise.
    pub fn auto_ping(&mut self, has_auto_ping: bool) {
        self.has_auto_ping = has_auto_ping;
    }

    /// A frame with this payload and the length that belongs to it. False if the client is gone.
    pub async fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: impl AsRef<[u8]>,
    ) -> bool {
        let bytes = encode(kind, flags, stream, payload.as_ref());
        self.raw(bytes).await
    }

    pub async fn settings(&mut self, settings: &[(u16, u32)]) -> bool {
        let mut payload = BytesMut::new();
        for (id, value) in settings {
            payload.put_u16(*id);
            payload.put_u32(*value);
        }
        self.frame(kind::SETTINGS, 0, 0, payload).await
    }

    pub async fn settings_ack(&mut self) -> bool {
        self.frame(kind::SETTINGS, flag::ACK, 0, []).await
    }

    /// HEADERS with END_HEADERS; a block beyond 16 KiB goes on in CONTINUATION frames.
    pub async fn headers(
        &mut self,
        stream: u32,
        headers: &[(&str, &str)],
        end_stream: bool,
    ) -> bool {
        const MAX_FRAME: usize = 16_384;
        let block = header_block(headers);
        let end_stream = if end_stream { flag::END_STREAM } else { 0 };
        let mut pieces = block.chunks(MAX_FRAME).enumerate().peekable();
        while let Some((n, piece)) = pieces.next() {
            let kind = if n == 0 {
                kind::HEADERS
            } else {
                kind::CONTINUATION
            };
            let mut flags = if n == 0 { end_stream } else { 0 };
            if pieces.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            if !self.frame(kind, flags, stream, piece).await {
                return false;
            }
        }
        true
    }

    /// DATA in one frame.
    pub async fn data(&mut self, stream: u32, bytes: impl AsRef<[u8]>, end_stream: bool) -> bool {
        let flags = if end_stream { flag::END_STREAM } else { 0 };
        self.frame(kind::DATA, flags, stream, bytes).await
    }

    /// HEADERS that end the stream.
    pub async fn trailers(&mut self, stream: u32, trailers: &[(&str, &str)]) -> bool {
        self.headers(stream, trailers, true).await
    }

    pub async fn rst(&mut self, stream: u32, code: u32) -> bool {
        self.frame(kind::RST_STREAM, 0, stream, code.to_be_bytes())
            .await
    }

    pub async fn goaway(&mut self, last: u32, code: u32, debug: impl AsRef<[u8]>) -> bool {
        let mut payload = BytesMut::new();
        payload.put_u32(last);
        payload.put_u32(code);
        payload.put_slice(debug.as_ref());
        self.frame(kind::GOAWAY, 0, 0, payload).await
    }

    pub async fn ping(&mut self, payload: [u8; 8]) -> bool {
        self.frame(kind::PING, 0, 0, payload).await
    }

    /// Of the connection if `stream` is 0.
    pub async fn window_update(&mut self, stream: u32, n: u32) -> bool {
        self.frame(kind::WINDOW_UPDATE, 0, stream, n.to_be_bytes())
            .await
    }

    /// These bytes as they are.
    pub async fn raw(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match &mut self.corked {
            Some(corked) => {
                corked.put_slice(bytes.as_ref());
                true
            }
            None => self.io.send(bytes.as_ref()).await,
        }
    }

    /// Keeps everything back until [`H2Conn::flush`].
    pub fn cork(&mut self) {
        self.corked.get_or_insert_default();
    }

    /// Sends what was kept back in one write, and keeps nothing back from now on.
    pub async fn flush(&mut self) -> bool {
        match self.corked.take() {
            Some(bytes) => self.io.send(&bytes).await,
            None => true,
        }
    }

    /// FIN (over TLS after close_notify), and goes on reading.
    pub async fn fin(&mut self) {
        self.io.fin().await;
    }

    /// RST.
    pub fn reset(self) {
        self.io.reset();
    }

    /// FIN (over TLS after close_notify), and is gone.
    pub async fn close(self) {
        self.io.close().await;
    }

    /// FIN without close_notify, and is gone.
    pub async fn close_without_notify(self) {
        self.io.close_without_notify().await;
    }

    /// Reads and throws away until the client ends; PINGs are answered as in [`H2Conn::read_frame`].
    pub async fn closed_by_client(&mut self) {
        while self.read_frame().await.is_some() {}
    }
}

/// The bytes of one frame.
pub fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let len = u32::try_from(payload.len())
        .expect("a frame is below 16 MiB")
        .to_be_bytes();
    assert_eq!(len[0], 0, "a frame is below 16 MiB");
    let mut bytes = BytesMut::with_capacity(9 + payload.len());
    bytes.put_slice(&len[1..]);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// A header block of literals that enter no table (RFC 7541 §6.2.2), names and values as they are.
pub fn header_block(headers: &[(&str, &str)]) -> Bytes {
    let mut block = BytesMut::new();
    for (name, value) in headers {
        block.put_u8(0);
        put_string(&mut block, name.as_bytes());
        put_string(&mut block, value.as_bytes());
    }
    block.freeze()
}

/// Without Huffman (RFC 7541 §5.2), its length an integer with a prefix of 7 bits (§5.1).
fn put_string(block: &mut BytesMut, string: &[u8]) {
    if string.len() < 127 {
        block.put_u8(string.len() as u8);
    } else {
        block.put_u8(127);
        let mut rest = string.len() - 127;
        while rest >= 128 {
            block.put_u8((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.put_u8(rest as u8);
    }
    block.put_slice(string);
}
