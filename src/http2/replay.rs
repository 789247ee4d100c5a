//! A whole connection over memory: driver, requests, bodies and the peer's bytes in the order that an input
//! says, with as much read and written at a time as it says.
//!
//! Every future is polled only after it was woken, so that a lost wake-up is a hang at the end, which is
//! an assertion.
// layering: drives this protocol over a transport of its own; uses the ground layer.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::Body;
use crate::close_reason::CloseReason;
use crate::error::{Error, ReplaySafety};
use crate::event::RequestRecorder;
use crate::io::{Traffic, Wire};
use crate::sync::lock;

use super::driver::{Http2, Http2Options, Patience, Watch, connect};
use super::exchange::{Outgoing, ResponseHead};
use super::frames::{GoAway, without_empty_frames};
use super::ledger::Ledger;
use super::receive::RecvBody;
use super::streams::StreamSlots;
use super::tap::Tap;
use super::tunnel::Tunnel;

/// Requests of one input.
const MAX_REQUESTS: usize = 250;
/// Polls after one operation; more is a loop that feeds itself.
const MAX_POLLS: usize = 20_000;

/// Both directions between us and the peer.
#[derive(Debug, Default)]
struct Line {
    /// Sent by the peer and not read yet.
    incoming: VecDeque<u8>,
    /// The most that one read brings; with 0 it waits.
    piece: usize,
    /// How the peer has ended.
    end: Option<End>,
    /// Bytes that may still be written.
    room: usize,
    outgoing: Vec<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Fin,
    Reset,
}

impl Line {
    fn wake(waker: &mut Option<Waker>) {
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.end.is_none() {
            self.incoming.extend(bytes);
            Self::wake(&mut self.reader);
        }
    }

    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        Self::wake(&mut self.reader);
        Self::wake(&mut self.writer);
    }

    fn read_by(&mut self, piece: usize) {
        self.piece = piece;
        Self::wake(&mut self.reader);
    }

    fn give_room(&mut self, n: usize) {
        self.room = self.room.saturating_add(n);
        Self::wake(&mut self.writer);
    }
}

/// Our end of it.
#[derive(Debug)]
struct Pipe(Arc<Mutex<Line>>);

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut line = lock(&self.0);
        let n = line.incoming.len().min(line.piece).min(buf.remaining());
        if n > 0 {
            let bytes: Vec<u8> = line.incoming.drain(..n).collect();
            buf.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        match line.end.filter(|_| line.piece > 0) {
            Some(End::Fin) => Poll::Ready(Ok(())),
            Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                line.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut line = lock(&self.0);
        if line.end == Some(End::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let n = buf.len().min(line.room);
        if n == 0 && !buf.is_empty() {
            line.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        line.room -= n;
        line.outgoing.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A pool that retires the connection when it would.
#[derive(Debug)]
struct Watcher(Arc<StreamSlots>);

impl Watch for Watcher {
    fn limit_changed(&self, limit: u32) {
        self.0.set_limit(limit);
    }

    fn going_away(&self, _: GoAway) {
        self.0.retire();
    }

    fn settled(&self) {}

    fn late(&self) {}

    fn trusted(&self) {}

    fn refuses(&self) {
        self.0.retire();
    }

    fn worn(&self) {
        self.0.retire();
    }
}

/// A slot, and one of those that must all be gone at the end.
#[derive(Debug)]
struct Slot {
    slots: Arc<StreamSlots>,
    held: Arc<AtomicUsize>,
}

impl Slot {
    fn take(slots: &Arc<StreamSlots>, held: &Arc<AtomicUsize>) -> Option<Self> {
        slots.try_acquire()?;
        held.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            slots: slots.clone(),
            held: held.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.release();
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Notes that it was called.
#[derive(Debug)]
struct Flag(AtomicBool);

impl Flag {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(true)))
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.raise();
    }
}

/// The property that the fuzz target asserts: through the tap comes what was sent without the empty DATA
/// frames, in whatever pieces it arrives and whatever room the reader has.
pub(crate) fn check_reads(input: &[u8], piece: usize, room: usize) {
    let line = Arc::new(Mutex::new(Line::default()));
    let slots = Arc::new(StreamSlots::new(1));
    let ledger = Arc::new(Ledger::new(u32::MAX / 4, u32::MAX / 4));
    let (mut tap, state) = Tap::new(Wire::new(Pipe(line.clone())), slots, ledger);
    lock(&line).send(input);
    lock(&line).read_by(piece.max(1));
    lock(&line).end(End::Fin);
    let mut out = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut space = vec![0; room.max(1)];
    loop {
        let mut buf = ReadBuf::new(&mut space);
        match Pin::new(&mut tap).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => break,
            Poll::Ready(Ok(())) => out.extend_from_slice(buf.filled()),
            Poll::Ready(Err(_)) => {
                assert!(state.is_flooded());
                return;
            }
            Poll::Pending => panic!("everything is there"),
        }
    }
    assert_eq!(out, without_empty_frames(input).0);
}

type Answer = (Result<ResponseHead<Slot>, Error>, RequestRecorder);

/// One request and how far it is.
struct Asked {
    flag: Arc<Flag>,
    stage: Stage,
    /// What was read of its body.
    read: Vec<u8>,
    stream: Option<u32>,
}

enum Stage {
    Head(Pin<Box<dyn Future<Output = Answer>>>),
    Body(Box<RecvBody<Slot>>, Box<RequestRecorder>),
    Tunnel(Box<Tunnel<Slot>>),
    /// It read all there was.
    Ended,
    Failed,
    Dropped,
}

impl Asked {
    /// Goes on until it waits. A body is read only when its turn has come.
    fn poll(&mut self, reads: bool, unsent: &mut usize) {
        let waker = Waker::from(self.flag.clone());
        let mut cx = Context::from_waker(&waker);
        if let Stage::Head(answer) = &mut self.stage {
            let Poll::Ready((result, recorder)) = answer.as_mut().poll(&mut cx) else {
                return;
            };
            // The next stage was not polled yet.
            self.flag.raise();
            self.stage = match result {
                Ok(head) => {
                    self.stream = head.body.stream_id();
                    if head.is_tunnel {
                        match Tunnel::of(head.body) {
                            Some(tunnel) => Stage::Tunnel(Box::new(tunnel)),
                            None => Stage::Ended,
                        }
                    } else {
                        Stage::Body(Box::new(head.body), Box::new(recorder))
                    }
                }
                Err(error) => {
                    *unsent += usize::from(error.replay_safety() == ReplaySafety::NotSent);
                    Stage::Failed
                }
            };
        }
        if !reads {
            self.flag.raise();
            return;
        }
        loop {
            match &mut self.stage {
                Stage::Body(body, recorder) => match body.poll_body(&mut cx, recorder) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(frame))) => {
                        if let Ok(data) = frame.into_data() {
                            self.read.extend_from_slice(&data);
                        }
                    }
                    Poll::Ready(Some(Err(_))) => self.stage = Stage::Failed,
                    Poll::Ready(None) => self.stage = Stage::Ended,
                },
                Stage::Tunnel(tunnel) => {
                    let mut space = [0; 32];
                    let mut buf = ReadBuf::new(&mut space);
                    match Pin::new(tunnel).poll_read(&mut cx, &mut buf) {
                        Poll::Pending => return,
                        Poll::Ready(Ok(())) if buf.filled().is_empty() => self.stage = Stage::Ended,
                        Poll::Ready(Ok(())) => self.read.extend_from_slice(buf.filled()),
                        Poll::Ready(Err(_)) => self.stage = Stage::Failed,
                    }
                }
                Stage::Head(_) | Stage::Ended | Stage::Failed | Stage::Dropped => return,
            }
        }
    }
}

/// The connection with everything on it.
struct Scene {
    line: Arc<Mutex<Line>>,
    handle: Option<Http2>,
    driver: Option<Pin<Box<dyn Future<Output = CloseReason>>>>,
    driver_flag: Arc<Flag>,
    asked: Vec<Asked>,
    held: Arc<AtomicUsize>,
    slots: Arc<StreamSlots>,
    /// Requests that say that nothing of them was sent.
    unsent: usize,
    /// All that the peer ever sent.
    sent: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let line = Arc::new(Mutex::new(Line {
            piece: usize::MAX,
            room: usize::MAX,
            ..Line::default()
        }));
        let options = Http2Options::default()
            .stream_window(65_535)
            .connection_window(65_535);
        let mut cx = Context::from_waker(Waker::noop());
        let (handle, driver) = {
            let connecting = connect(Wire::new(Pipe(line.clone())), &options, None);
            match std::pin::pin!(connecting).poll(&mut cx) {
                Poll::Ready(Ok(both)) => both,
                _ => panic!("there is room for the preface"),
            }
        };
        let slots = handle.shared.slots.clone();
        let watch = Watcher(slots.clone());
        let patience = Patience {
            rtt: None,
            calm: Arc::default(),
            settings: Duration::from_secs(600),
        };
        handle.open();
        Self {
            line,
            handle: Some(handle),
            driver: Some(Box::pin(async move {
                Box::new(driver).run(&watch, patience).await
            })),
            driver_flag: Flag::new(),
            asked: Vec::new(),
            held: Arc::default(),
            slots,
            unsent: 0,
            sent: Vec::new(),
        }
    }

    /// Polls whoever was woken, until nobody is.
    fn run(&mut self, reads: bool) {
        for _ in 0..MAX_POLLS {
            let mut is_quiet = true;
            if let Some(driver) = &mut self.driver
                && self.driver_flag.take()
            {
                is_quiet = false;
                let waker = Waker::from(self.driver_flag.clone());
                if driver
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_ready()
                {
                    self.driver = None;
                }
            }
            for asked in &mut self.asked {
                let is_turn = reads || matches!(asked.stage, Stage::Head(_));
                if is_turn && asked.flag.take() {
                    is_quiet = false;
                    asked.poll(reads, &mut self.unsent);
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("it goes round in circles");
    }

    fn ask(&mut self, kind: u8, size: u8) {
        let Some(handle) = self
            .handle
            .clone()
            .filter(|_| self.asked.len() < MAX_REQUESTS)
        else {
            return;
        };
        let Some(slot) = Slot::take(&self.slots, &self.held) else {
            return;
        };
        let mut head = Request::new(());
        *head.uri_mut() = http::Uri::from_static("https://h.test/");
        let content = Bytes::from(vec![b'x'; usize::from(size) * 600]);
        let (method, body, protocol) = match kind % 4 {
            0 | 1 => (Method::GET, Body::empty(), None),
            2 => (Method::POST, Body::from(content), None),
            _ => (Method::CONNECT, Body::empty(), Some("x".into())),
        };
        *head.method_mut() = method;
        let outgoing = Outgoing {
            head: || head,
            length: body.exact_len(),
            expect: None,
            protocol,
        };
        let answer = async move {
            let mut recorder = RequestRecorder::start(None);
            let (mut body, traffic) = (Some(body), Traffic::default());
            if outgoing.protocol.is_some()
                && let Err(error) = handle.check_extended_connect().await
            {
                return (Err(error), recorder);
            }
            let answer = match handle.start(outgoing, &mut body, &recorder, slot) {
                Ok(mut exchange) => {
                    let head = exchange.head(&traffic, &mut recorder).await;
                    head.map(|head| exchange.into_response(head))
                }
                Err(error) => Err(error),
            };
            (answer, recorder)
        };
        self.asked.push(Asked {
            flag: Flag::new(),
            stage: Stage::Head(Box::pin(answer)),
            read: Vec::new(),
            stream: None,
        });
    }

    fn peer_sends(&mut self, bytes: &[u8]) {
        if lock(&self.line).end.is_none() {
            self.sent.extend_from_slice(bytes);
        }
        lock(&self.line).send(bytes);
    }

    fn peer_sends_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = Vec::with_capacity(9 + payload.len());
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.peer_sends(&frame);
    }

    fn step(&mut self, [operation, a, b]: [u8; 3]) {
        // Streams that may exist, and a few that do not.
        let stream = u32::from(a % 16) * 2 + 1;
        let [high, low] = [a >> 4, b];
        match operation % 16 {
            0 | 1 => self.ask(a, b),
            2 => {
                // 200, 204, 404, 500, 100 and trailers, in HPACK (RFC 7541).
                let block: &[u8] = match b % 8 {
                    0..=2 => &[0x88],
                    3 => &[0x89],
                    4 => &[0x8d],
                    5 => &[0x8e],
                    6 => b"\x08\x03100",
                    _ => b"\x00\x01a\x01b",
                };
                let flags = if b & 0x80 != 0 { 0x5 } else { 0x4 };
                self.peer_sends_frame(1, flags, stream, block);
            }
            3 | 4 => {
                let end = u8::from(b & 0x80 != 0);
                let len = usize::from(b & 0x7f) * if high > 8 { 100 } else { 1 };
                let content: Vec<u8> = (0..len).map(|n| (n % 251) as u8 ^ b).collect();
                if operation % 16 == 4 && high > 12 {
                    // More of them than one stream may leave unread.
                    for byte in content.iter().take(700) {
                        self.peer_sends_frame(0, 0, stream, &[*byte]);
                    }
                } else {
                    self.peer_sends_frame(0, end, stream, &content);
                }
            }
            5 => {
                // Padded.
                let mut payload = vec![high];
                payload.extend(std::iter::repeat_n(b, usize::from(low)));
                payload.extend(std::iter::repeat_n(0, usize::from(high)));
                self.peer_sends_frame(0, 0x8, stream, &payload);
            }
            6 => self.peer_sends_frame(3, 0, stream, &u32::from(b % 16).to_be_bytes()),
            7 => {
                let id = [1, 3, 4, 5, 8, 6][usize::from(a % 6)];
                let value = u32::from(b) * if high > 8 { 1000 } else { 1 };
                let mut payload = vec![0, id];
                payload.extend_from_slice(&value.to_be_bytes());
                self.peer_sends_frame(4, 0, 0, &payload);
            }
            8 => self.peer_sends_frame(4, b & 1, 0, &[]),
            9 => {
                let mut payload = stream.to_be_bytes().to_vec();
                payload.extend_from_slice(&u32::from(b % 16).to_be_bytes());
                self.peer_sends_frame(7, 0, 0, &payload);
            }
            10 => self.peer_sends_frame(6, a & 1, 0, &[b; 8]),
            11 => {
                let stream = if high > 8 { 0 } else { stream };
                let more = u32::from(b) * 500;
                self.peer_sends_frame(8, 0, stream, &more.to_be_bytes());
            }
            12 => {
                let mut line = lock(&self.line);
                if a & 1 == 0 {
                    line.read_by(usize::from(b));
                } else {
                    line.room = 0;
                    line.give_room(usize::from(b) * usize::from(high));
                }
            }
            13 if high > 12 => {
                // More of them than resets are paid at once.
                let from = self.asked.len();
                for _ in 0..b {
                    self.ask(0, 0);
                }
                self.run(false);
                for asked in &mut self.asked[from..] {
                    asked.stage = Stage::Dropped;
                }
            }
            13 => {
                if let Some(asked) = self.asked.get_mut(usize::from(a)) {
                    asked.stage = Stage::Dropped;
                }
            }
            14 => {
                if let Some(asked) = self.asked.get_mut(usize::from(a % 32))
                    && asked.flag.take()
                {
                    asked.poll(true, &mut self.unsent);
                }
            }
            _ if a == 0xfd => self.handle = None,
            _ if a == 0xff => lock(&self.line).end(End::Reset),
            _ if a == 0xfe => lock(&self.line).end(End::Fin),
            _ => self.peer_sends(&[a, b]),
        }
    }

    /// The peer ends, everybody reads to the end of what there is, and lets go.
    fn end(mut self) {
        {
            let mut line = lock(&self.line);
            line.read_by(usize::MAX);
            line.give_room(usize::MAX);
            line.end(End::Fin);
        }
        self.run(true);
        assert!(self.driver.is_none(), "the connection does not end");
        for asked in &self.asked {
            assert!(
                matches!(asked.stage, Stage::Ended | Stage::Failed | Stage::Dropped),
                "a request hangs"
            );
        }
        self.check_bodies();
        self.check_unsent();
        self.asked.clear();
        assert_eq!(self.held.load(Ordering::Relaxed), 0, "slots are held");
        assert_eq!(self.slots.in_use(), 0);
    }

    /// Whoever read a response read the beginning of what the peer sent on its stream, and all of it if it
    /// was told that this was all.
    fn check_bodies(&self) {
        let sent = contents(&self.sent);
        let nothing = (Vec::new(), false);
        for asked in &self.asked {
            let Some(stream) = asked.stream else { continue };
            let (content, is_ended) = sent.get(&stream).unwrap_or(&nothing);
            assert!(content.starts_with(&asked.read), "stream {stream}");
            if matches!(asked.stage, Stage::Ended) {
                assert!(*is_ended && *content == asked.read, "stream {stream}");
            }
        }
    }

    /// A request that says that nothing of it was sent has no stream.
    fn check_unsent(&self) {
        let line = lock(&self.line);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
        let mut heads = 0;
        for frame in frames(&line.outgoing[preface.min(line.outgoing.len())..]) {
            heads += usize::from(frame.kind == 1);
        }
        assert!(heads + self.unsent <= self.asked.len());
    }
}

struct Seen<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// The frames of a byte stream, as plainly as they can be read.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Seen<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<9>()?;
        let [a, b, c, kind, flags, e, f, g, h] = *head;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = rest.get(..len)?;
        bytes = &rest[len..];
        Some(Seen {
            kind,
            flags,
            stream: u32::from_be_bytes([e, f, g, h]) & 0x7fff_ffff,
            payload,
        })
    })
}

/// What each stream was sent, and whether it was ended.
fn contents(bytes: &[u8]) -> BTreeMap<u32, (Vec<u8>, bool)> {
    let mut streams: BTreeMap<u32, (Vec<u8>, bool)> = BTreeMap::new();
    for frame in frames(bytes) {
        let (content, is_ended) = streams.entry(frame.stream).or_default();
        if frame.kind == 0 && !*is_ended {
            let padding = frame.payload.first().filter(|_| frame.flags & 0x8 != 0);
            let data = match padding {
                None => frame.payload,
                Some(n) => {
                    let end = frame.payload.len().saturating_sub(usize::from(*n)).max(1);
                    &frame.payload[1..end]
                }
            };
            content.extend_from_slice(data);
        }
        *is_ended |= frame.kind <= 1 && frame.flags & 0x1 != 0;
    }
    streams
}

/// The property that the fuzz target asserts, over operations of three bytes each: nothing panics, hangs or
/// holds a slot at the end; what is read of a response is what was sent, and is all of it when it says so;
/// a request that says it was not sent was not.
pub(crate) fn check_connection(data: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime for timers");
    }
    RUNTIME.with(|runtime| {
        let _guard = runtime.enter();
        let mut scene = Scene::new();
        scene.run(false);
        for operation in data.chunks_exact(3).take(400) {
            scene.step(operation.try_into().expect("three"));
            scene.run(false);
        }
        scene.end();
    });
}
