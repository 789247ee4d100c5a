//! Under h2: reads the 9-byte frame headers as they pass (RFC 9113 §4.1), stamps when a stream's
//! HEADERS arrived, sees SETTINGS and GOAWAY, enters in the ledger what is to be read, and takes out empty
//! DATA frames.
//!
//! A smaller stream limit is applied here and not when h2 has told of it: h2 wakes the requests
//! that the same read refused, and they would be refused again.
//!
//! The empty frames: h2 closes a connection at the 101st DATA frame of length 0 without END_STREAM
//! that it ever received, a guard without a setting, while ordinary servers send one per relayed
//! chunk. They carry nothing, so they are dropped before h2 counts them; a flood of them ends the
//! connection with an error that says so.
//!
//! When too much is unread nothing more is read until the connection's task has cut somebody off.
//!
//! [`Scanner`] is the pure part, beside the guards here.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use crate::clock::now;
use crate::error::escape_peer_text;
use crate::io::Carrier;
use crate::sync::lock;

use super::frames::{
    CONTINUATION, DATA, FrameHeader, GoAway, HEADER, HEADERS, RST_STREAM, Scanner, Seen,
};
use super::ledger::{Accounts, Ledger};
use super::readiness::Readiness;
use super::streams::StreamSlots;
use super::unread::Arrival;

/// Text of a GOAWAY that is kept.
const DEBUG_TEXT: usize = 128;

/// Empty DATA frames: as many as come with content or heads, else [`BURST`](Self::BURST) and
/// [`PER_MILLI`](Self::PER_MILLI) a millisecond. Pure.
#[derive(Debug, Default)]
struct EmptyFrames {
    level: u64,
    at: u64,
}

impl EmptyFrames {
    const BURST: u64 = 10_000;
    const PER_MILLI: u64 = 1;
    const NANOS_PER_MILLI: u64 = 1_000_000;

    /// One came, at so many nanoseconds. Whether they are a flood.
    fn came(&mut self, at: u64) -> bool {
        let passed = at.saturating_sub(self.at) / Self::NANOS_PER_MILLI;
        if passed > 0 {
            self.level = self.level.saturating_sub(passed * Self::PER_MILLI);
            self.at = at;
        }
        self.level += 1;
        self.level > Self::BURST
    }

    fn forget(&mut self) {
        self.level = 0;
    }
}

/// What a connection that is worn out has too much of: h2 counts these in the life of a connection, and
/// ends it when there are too many.
#[derive(Debug, Default)]
struct Wear {
    /// Frames on streams that are gone.
    late: u32,
    /// DATA frames without content that h2 saw.
    empty: u32,
    highest_stream: u32,
}

impl Wear {
    /// Half of what h2 takes.
    const LATE: u32 = MAX_LATE_FRAMES / 2;
    /// Of 100, which cannot be changed.
    const EMPTY: u32 = 80;
    /// Of 2^31 - 1 (RFC 9113 §5.1.1).
    const STREAM: u32 = (1 << 31) - (1 << 20);

    fn is_worn(&self) -> bool {
        self.late >= Self::LATE || self.empty >= Self::EMPTY || self.highest_stream >= Self::STREAM
    }
}

/// Frames that come late, on streams that h2 has forgotten, in the life of a connection: beyond, h2 ends it.
pub(super) const MAX_LATE_FRAMES: u32 = 100_000;

/// The window that every stream, and the connection, begins with (RFC 9113 §6.9.2).
const FIRST_WINDOW: u32 = 65_535;

/// What the tap knows, shared with the requests. Written by the connection's task alone; h2's own
/// lock orders it before the wake of the request that reads it, so relaxed loads suffice.
#[derive(Debug)]
pub(crate) struct TapState {
    base: Instant,
    last_read: AtomicU64,
    /// The last read that brought HEADERS or DATA.
    progress: AtomicU64,
    /// When something that had waited for room got it last: the peer's kernel takes what we send.
    moved: AtomicU64,
    /// What we write waits for room.
    is_blocked: AtomicBool,
    settings_seen: AtomicBool,
    /// Bytes that were written.
    written: AtomicU64,
    /// The stream in the middle of whose frame ends what has been read; 0 if that is none.
    cut_in: AtomicU32,
    /// How often the peer has set its stream limit.
    limits_seen: AtomicU32,
    /// The last one; as many as can be until there is one (RFC 9113 §6.5.2).
    limit: AtomicU32,
    /// How large the head of a request may be; as large as can be until the peer has said so.
    header_list_limit: AtomicU32,
    /// The smallest window that streams have begun with.
    stream_window: AtomicU32,
    /// What all bodies together may have had of the connection's window so far.
    granted: AtomicU64,
    /// What h2 was handed of them.
    handed: AtomicU64,
    goaway: AtomicBool,
    goaway_last_stream: AtomicU32,
    goaway_code: AtomicU32,
    goaway_text: Mutex<Vec<u8>>,
    open: AtomicBool,
    is_worn: AtomicBool,
    is_flooded: AtomicBool,
    slots: Arc<StreamSlots>,
    pub(super) ledger: Arc<Ledger>,
}

impl TapState {
    fn new(slots: Arc<StreamSlots>, ledger: Arc<Ledger>) -> Self {
        Self {
            slots,
            ledger,
            goaway_text: Mutex::default(),
            is_worn: AtomicBool::new(false),
            is_flooded: AtomicBool::new(false),
            base: now(),
            last_read: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            settings_seen: AtomicBool::new(false),
            written: AtomicU64::new(0),
            cut_in: AtomicU32::new(0),
            limits_seen: AtomicU32::new(0),
            limit: AtomicU32::new(u32::MAX),
            header_list_limit: AtomicU32::new(u32::MAX),
            stream_window: AtomicU32::new(FIRST_WINDOW),
            granted: AtomicU64::new(FIRST_WINDOW.into()),
            handed: AtomicU64::new(0),
            goaway: AtomicBool::new(false),
            goaway_last_stream: AtomicU32::new(0),
            goaway_code: AtomicU32::new(0),
            open: AtomicBool::new(false),
        }
    }

    /// How the response head of a stream has arrived so far.
    pub(super) fn arrival(&self, stream: u32) -> Arrival {
        self.ledger.enter().unread.arrival(stream)
    }

    /// Bytes that the last header block of a stream had on the wire; 0 if there was none.
    pub(crate) fn head_bytes(&self, stream: u32) -> usize {
        self.arrival(stream).bytes as usize
    }

    /// The peer's SETTINGS have arrived.
    pub(crate) fn has_settings(&self) -> bool {
        self.settings_seen.load(Ordering::Acquire)
    }

    /// Bytes that were written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What has been read ends in the middle of a frame of this stream.
    pub(super) fn is_cut_in(&self, stream: u32) -> bool {
        self.cut_in.load(Ordering::Relaxed) == stream
    }

    /// How often the peer has set its stream limit.
    pub(crate) fn limits_seen(&self) -> u32 {
        self.limits_seen.load(Ordering::Relaxed)
    }

    /// The stream limit that the peer has set last.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// The GOAWAY that the peer sent, the last one if there were several.
    pub(crate) fn goaway(&self) -> Option<GoAway> {
        self.goaway.load(Ordering::Acquire).then(|| GoAway {
            last_stream: self.goaway_last_stream.load(Ordering::Relaxed),
            code: self.goaway_code.load(Ordering::Relaxed),
        })
    }

    /// The beginning of the text that came with it, made safe to print; empty if there was none.
    pub(crate) fn goaway_text(&self) -> String {
        escape_peer_text(&lock(&self.goaway_text))
    }

    /// h2 would end the connection before long.
    pub(crate) fn is_worn(&self) -> bool {
        self.is_worn.load(Ordering::Relaxed)
    }

    /// The peer sent so many empty DATA frames that the connection was ended.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.load(Ordering::Acquire)
    }

    /// The last read that brought anything, or the beginning.
    pub(crate) fn heard(&self) -> Instant {
        self.base + Duration::from_nanos(self.last_read.load(Ordering::Relaxed))
    }

    /// What we send waits for room: it may be a while until a PING has left.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// The last write that had waited for room and got it, or the beginning.
    pub(crate) fn moved(&self) -> Instant {
        self.base + Duration::from_nanos(self.moved.load(Ordering::Relaxed))
    }

    /// The last read that brought HEADERS or DATA, or the beginning.
    pub(crate) fn progress(&self) -> Instant {
        self.base + Duration::from_nanos(self.progress.load(Ordering::Relaxed))
    }

    /// h2 was handed so much more of a body.
    pub(super) fn handed(&self, bytes: u64) {
        self.handed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether h2 may hold some of a body of so many bytes, all of which it was handed, for want of window.
    pub(super) fn may_hold(&self, body: u64) -> bool {
        let granted = self.granted.load(Ordering::Relaxed);
        body > self.stream_window.load(Ordering::Relaxed).into()
            || self.handed.load(Ordering::Relaxed) > granted
    }

    /// How large the head of a request may be, if the peer has said so.
    pub(super) fn header_list_limit(&self) -> Option<u32> {
        let limit = self.header_list_limit.load(Ordering::Relaxed);
        (limit != u32::MAX).then_some(limit)
    }

    /// From now on flushes reach the socket.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn see(&self, seen: Seen<'_>, at: u64) {
        match seen {
            Seen::Frame(FrameHeader {
                kind: HEADERS | DATA,
                ..
            }) => self.progress.store(at, Ordering::Relaxed),
            Seen::Settings => self.settings_seen.store(true, Ordering::Release),
            Seen::Frame(_) | Seen::Content { .. } | Seen::Filtered => {}
            Seen::GoAwayText(piece) => {
                let mut text = lock(&self.goaway_text);
                let n = piece.len().min(DEBUG_TEXT + 1 - text.len());
                text.extend_from_slice(&piece[..n]);
            }
            Seen::StreamLimit(limit) => {
                self.slots.lower_limit(limit);
                self.limit.store(limit, Ordering::Relaxed);
                self.limits_seen.fetch_add(1, Ordering::Relaxed);
            }
            Seen::HeaderListLimit(limit) => {
                self.header_list_limit.store(limit, Ordering::Relaxed);
            }
            Seen::InitialWindow(window) => {
                self.stream_window.fetch_min(window, Ordering::Relaxed);
            }
            Seen::Window(more) => {
                self.granted.fetch_add(more.into(), Ordering::Relaxed);
            }
            Seen::GoAway(GoAway { last_stream, code }) => {
                let order = Ordering::Relaxed;
                self.goaway_last_stream.store(last_stream, order);
                self.goaway_code.store(code, order);
                lock(&self.goaway_text).clear();
                self.goaway.store(true, Ordering::Release);
            }
        }
    }
}

/// The stream that h2 reads and writes.
#[derive(Debug)]
pub(crate) struct Tap<S> {
    io: S,
    readiness: Readiness,
    scanner: Scanner,
    /// A header for which the reader had no room, as far as it was not handed on.
    owed: Vec<u8>,
    state: Arc<TapState>,
    uncorked: bool,
    /// The last write, or flush, found no room; and what the socket had taken by then.
    is_blocked: bool,
    taken: u64,
    empty: EmptyFrames,
    wear: Wear,
}

impl<S: Carrier> Tap<S> {
    pub(crate) fn new(
        io: S,
        slots: Arc<StreamSlots>,
        ledger: Arc<Ledger>,
    ) -> (Self, Arc<TapState>) {
        let state = Arc::new(TapState::new(slots, ledger));
        let tap = Self {
            io,
            readiness: Readiness::new(),
            scanner: Scanner::default(),
            owed: Vec::new(),
            state: state.clone(),
            uncorked: false,
            is_blocked: false,
            taken: 0,
            empty: EmptyFrames::default(),
            wear: Wear::default(),
        };
        (tap, state)
    }
}

/// Enters what a frame means for the books of its stream. Whether empty frames are a flood now.
fn enter(
    accounts: &mut Accounts,
    wear: &mut Wear,
    empty: &mut EmptyFrames,
    seen: Seen<'_>,
    at: (Instant, u64),
) -> bool {
    match seen {
        Seen::Frame(frame) if matches!(frame.kind, DATA | HEADERS | RST_STREAM) => {
            if frame.kind == HEADERS {
                empty.forget();
                wear.highest_stream = wear.highest_stream.max(frame.stream);
                let is_known = accounts.unread.head_came(frame.stream, frame.len, at.0);
                wear.late += u32::from(!is_known);
            } else if frame.is_empty_data() {
                accounts.unread.head_is_over(frame.stream);
            }
            if let Some(end) = frame.end() {
                accounts.unread.ended(frame.stream, end);
            }
        }
        Seen::Content { frame, bytes } => {
            if bytes > 0 {
                empty.forget();
            } else if !frame.ends_stream() {
                wear.empty += 1;
            }
            let is_known = accounts.unread.received(frame.stream, u64::from(bytes));
            wear.late += u32::from(!is_known);
        }
        Seen::Frame(frame) if frame.kind == CONTINUATION => {
            accounts.unread.head_goes_on(frame.stream, frame.len);
        }
        Seen::Filtered => return empty.came(at.1),
        _ => {}
    }
    false
}

impl<S: Carrier> Tap<S> {
    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            // Nobody else writes it.
            let all = self.state.written() + *n as u64;
            self.state.written.store(all, Ordering::Relaxed);
        }
        self.look_for_room(written.is_pending());
        written
    }

    /// Something was written or flushed, or there was no room for it. TLS takes what the socket has no room for: only the
    /// flush tells.
    fn look_for_room(&mut self, has_none: bool) {
        if !has_none && !self.is_blocked {
            return;
        }
        let taken = self.io.bytes_written();
        let has_moved = self.is_blocked && taken > self.taken;
        self.taken = taken;
        self.is_blocked = has_none || self.io.has_unsent();
        self.state
            .is_blocked
            .store(self.is_blocked, Ordering::Relaxed);
        if has_moved {
            let at = now().saturating_duration_since(self.state.base);
            let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
            self.state.moved.store(at, Ordering::Relaxed);
        }
    }
}

impl<S: Carrier> Tap<S> {
    /// Reads once, behind what is held back. Whether the reader is to be told: there is something, or the end.
    fn read(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let start = buf.filled().len();
        let held = self.scanner.held().len();
        buf.put_slice(self.scanner.held());
        let mut cx = self.readiness.context(cx);
        let read = Pin::new(&mut self.io).poll_read(&mut cx, buf);
        // A task that has used its turn up is told that there is nothing.
        if read.is_pending() && coop::has_budget_remaining() {
            self.readiness.found_nothing();
        }
        if !matches!(read, Poll::Ready(Ok(()))) {
            buf.set_filled(start);
            return read.map_ok(|()| false);
        }
        if buf.filled().len() == start + held {
            self.scanner.have = 0;
            return Poll::Ready(Ok(true));
        }
        let read_at = self.io.last_read().unwrap_or(self.state.base);
        let at = read_at.saturating_duration_since(self.state.base);
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.state.last_read.store(at, Ordering::Relaxed);
        let state = &self.state;
        if cfg!(firstbyte_bare) && state.has_settings() && self.scanner.have == 0 {
            return Poll::Ready(Ok(true));
        }
        let bytes = &mut buf.filled_mut()[start..];
        let mut is_flood = false;
        let mut accounts = state.ledger.enter();
        let kept = self.scanner.scan(bytes, held, |seen| {
            is_flood |= enter(
                &mut accounts,
                &mut self.wear,
                &mut self.empty,
                seen,
                (read_at, at),
            );
            state.see(seen, at);
        });
        drop(accounts);
        // Whatever ends the connection may do so without another read.
        state.cut_in.store(self.scanner.cut_in(), Ordering::Relaxed);
        if is_flood {
            state.is_flooded.store(true, Ordering::Release);
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if self.wear.is_worn() {
            state.is_worn.store(true, Ordering::Relaxed);
        }
        buf.set_filled(start + kept);
        Poll::Ready(Ok(kept > 0))
    }
}

impl<S: Carrier> AsyncRead for Tap<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.ledger.is_over() {
            // The task that polls us cuts somebody off first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.readiness.context(cx);
        if this.owed.is_empty() && !this.readiness.begin() {
            return Poll::Pending;
        }
        while buf.remaining() > 0 {
            if !this.owed.is_empty() {
                let n = this.owed.len().min(buf.remaining());
                buf.put_slice(&this.owed[..n]);
                this.owed.drain(..n);
                return Poll::Ready(Ok(()));
            }
            if this.scanner.held().len() < buf.remaining() {
                if ready!(this.read(cx, buf))? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // No room for the header: it is completed beside.
            let mut space = [0; HEADER];
            let mut header = ReadBuf::new(&mut space);
            let is_some = ready!(this.read(cx, &mut header))?;
            this.owed.extend_from_slice(header.filled());
            if is_some && this.owed.is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Carrier> AsyncWrite for Tap<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut cx = this.readiness.context(cx);
        let written = Pin::new(&mut this.io).poll_write(&mut cx, buf);
        this.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut cx = this.readiness.context(cx);
        let written = Pin::new(&mut this.io).poll_write_vectored(&mut cx, bufs);
        this.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.uncorked && this.state.is_open() {
            this.uncorked = true;
            this.io.uncork();
        }
        let mut cx = this.readiness.context(cx);
        let flushed = Pin::new(&mut this.io).poll_flush(&mut cx);
        this.look_for_room(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.io.uncork();
        let mut cx = this.readiness.context(cx);
        Pin::new(&mut this.io).poll_shutdown(&mut cx)
    }
}

#[cfg(test)]
mod tests {
    // layering: uses frames, ledger and streams beside it; io and clock are below.
    use super::super::frames::{PADDED, SETTINGS, frame};
    use super::*;

    #[test]
    fn smaller_stream_limit_holds_from_the_read_that_brought_it() {
        let settings = frame(
            SETTINGS,
            0,
            0,
            &[0, 4, 0, 0, 0, 9, 0, 3, 0, 0, 0, 7, 0, 3, 0, 0, 0, 5],
        );
        for piece in 1..=settings.len() {
            let slots = Arc::new(StreamSlots::new(6));
            let state = TapState::new(slots.clone(), ledger());
            let mut scanner = Scanner::default();
            for part in settings.chunks(piece) {
                let held = scanner.held().to_vec();
                let mut bytes = [&held, part].concat();
                scanner.scan(&mut bytes, held.len(), |s| state.see(s, 0));
            }
            let taken = std::iter::from_fn(|| slots.try_acquire()).count();
            assert_eq!(taken, 5, "not raised to 7, lowered to 5");
        }
    }

    /// As over TLS, which takes what the socket has no room for.
    #[tokio::test(start_paused = true)]
    async fn flush_tells_that_there_is_no_room_and_that_what_is_written_moves() {
        use crate::io::Wire;
        use tokio::io::AsyncReadExt as _;

        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut wire = Wire::new(ours);
        wire.uncork();
        let (mut tap, state) = Tap::new(wire, Arc::new(StreamSlots::new(1)), ledger());
        state.open();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let written = Pin::new(&mut tap).poll_write(&mut cx, &[0; 200]);
        assert!(written.is_ready() && !state.is_blocked());
        let mut flush = || Pin::new(&mut tap).poll_flush(&mut cx).is_ready();
        assert!(!flush() && state.is_blocked());
        let before = state.moved();
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        assert!(!flush() && state.moved() == before, "nothing moves");
        theirs.read_exact(&mut [0; 64]).await.unwrap();
        assert!(!flush() && state.is_blocked());
        assert_eq!(state.moved(), before + second);
        for _ in 0..2 {
            theirs.read_exact(&mut [0; 64]).await.unwrap();
            flush();
        }
        assert!(!state.is_blocked());
    }

    #[test]
    fn empty_frames_are_a_flood_only_beyond_their_rate_and_without_content() {
        let mut empty = EmptyFrames::default();
        let milli = EmptyFrames::NANOS_PER_MILLI;
        assert!(
            !(0..100_000).any(|n| empty.came(n * milli)),
            "one a millisecond"
        );
        assert!((0..EmptyFrames::BURST + 2).any(|_| empty.came(100_000 * milli)));
        empty.forget();
        assert!(!empty.came(100_000 * milli));
    }

    #[test]
    fn connection_is_worn_before_h2_ends_it() {
        let (ledger, mut wear) = (ledger(), Wear::default());
        let mut accounts = ledger.enter();
        let mut empty = EmptyFrames::default();
        let at = (now(), 0);
        let header = |kind, stream| FrameHeader {
            len: 1,
            kind,
            flags: PADDED,
            stream,
        };
        let content = |bytes| Seen::Content {
            frame: header(DATA, 1),
            bytes,
        };
        for _ in 1..Wear::EMPTY {
            enter(&mut accounts, &mut wear, &mut empty, content(0), at);
        }
        assert!(!wear.is_worn());
        enter(&mut accounts, &mut wear, &mut empty, content(0), at);
        assert!(wear.is_worn());

        let mut wear = Wear::default();
        for _ in 0..Wear::LATE {
            assert!(!wear.is_worn());
            enter(&mut accounts, &mut wear, &mut empty, content(7), at);
        }
        assert!(wear.is_worn());

        let mut wear = Wear::default();
        let last = Seen::Frame(header(HEADERS, Wear::STREAM + 1));
        enter(&mut accounts, &mut wear, &mut empty, last, at);
        assert!(wear.is_worn());
    }

    fn ledger() -> Arc<Ledger> {
        Arc::new(Ledger::new(1 << 21, 1 << 24))
    }
}
