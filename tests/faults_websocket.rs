//! What goes wrong with WebSockets, and what is made of it. Peers scripted byte by byte, on a paused clock.
//!
//! | fault | test |
//! |---|---|
//! | handshake: wrong or missing accept, upgrade, connection; subprotocol or extension that nobody asked for; huge head | `answers_that_do_not_fit_fail_the_handshake` |
//! | handshake that is not answered | `handshake_that_is_not_answered_ends_in_time` |
//! | bytes right behind the 101 | `what_comes_behind_the_handshake_is_the_first_message` |
//! | masks: of every frame, never the same; a server that masks | `every_frame_is_masked_by_chance`, `what_breaks_the_protocol_is_told` |
//! | control frames: too long, fragmented, in the middle of a message, unasked pongs | `what_breaks_the_protocol_is_told`, `what_is_unusual_and_sound_is_taken` |
//! | pings whose answers are not taken | `flood_of_pings_is_bounded` |
//! | lengths: with the highest bit, not minimal, beyond the limit by frame or by message; fragments without end | `what_breaks_the_protocol_is_told`, `fragments_without_end_cost_nothing` |
//! | reserved opcodes and bits, continuations of nothing, messages within messages | `what_breaks_the_protocol_is_told` |
//! | UTF-8: wrong, split, overlong, surrogates, in reasons | `what_breaks_the_protocol_is_told`, `what_is_unusual_and_sound_is_taken` |
//! | Close: codes, one byte, no answer, data behind it, a cut, a connection that is not ended | `closing_*`, `what_breaks_the_protocol_is_told` |
//! | compression | never offered: an extension in the answer fails the handshake |
//! | a half that waits when the session ends, a write error before what has arrived is read | `both_halves_learn_of_the_end`, `what_has_arrived_is_read_although_nothing_can_be_sent` |
//! | dead peer | `silent_peer_is_asked_and_given_up`, `answers_keep_a_session_alive` |
//! | streams of HTTP/2 that end or are reset | `stream_that_*` |
#![cfg(feature = "websocket")]

mod common;
mod support;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{DropAfter, eventually};
use firstbyte::websocket::Message;
use firstbyte::{
    Client, ConnectionPool, Error, ErrorKind, Phase, Protocols, ReplaySafety, WebSocket,
    WebSocketBuilder,
};
use support::h1_peer::H1Conn;
use support::h2_peer::{H2Conn, code, kind};
use support::sim::{self, Sim};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The most that a message may have here.
const LIMIT: usize = 1000;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A frame as a server sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(len as u8),
        len @ 126..65_536 => {
            bytes.push(126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(payload);
    bytes
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes()[..], reason].concat())
}

/// A frame that the client sent.
#[derive(Clone, Debug)]
struct Got {
    first: u8,
    mask: Option<[u8; 4]>,
    /// Unmasked.
    payload: Vec<u8>,
}

impl Got {
    fn close_code(&self) -> Option<u16> {
        let is_close = self.first == FIN | CLOSE;
        let code = self.payload.first_chunk()?;
        is_close.then(|| u16::from_be_bytes(*code))
    }
}

/// The server's end of a session.
struct Peer {
    conn: H1Conn,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Peer {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.conn.send(bytes).await
    }

    async fn read(&mut self) -> Option<Got> {
        let head = self.conn.read_body(2).await;
        let [first, second] = head[..] else {
            return None;
        };
        let len = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.bytes().await?)),
            127 => u64::from_be_bytes(self.bytes().await?),
            len => u64::from(len),
        };
        let mask = match second & 0x80 {
            0 => None,
            _ => Some(self.bytes::<4>().await?),
        };
        let len = usize::try_from(len).unwrap();
        let mut payload = self.conn.read_body(len).await.to_vec();
        if payload.len() < len {
            return None;
        }
        if let Some(mask) = mask {
            for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
                *byte ^= mask;
            }
        }
        let got = Got {
            first,
            mask,
            payload,
        };
        self.got.lock().unwrap().push(got.clone());
        Some(got)
    }

    async fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.conn.read_body(N).await[..].try_into().ok()
    }

    /// Reads until the client closes, answers that, and ends the connection.
    async fn until_closed(mut self) {
        while let Some(got) = self.read().await {
            if got.first == FIN | CLOSE {
                self.send(frame(FIN | CLOSE, &got.payload)).await;
                self.conn.close().await;
                return;
            }
        }
    }
}

/// The network, and what its servers were sent.
struct World {
    sim: Sim,
    client: Client,
    pool: ConnectionPool,
    got: Arc<Mutex<Vec<Got>>>,
}

impl World {
    /// `script` gets each session behind its handshake, in whose packet `first` travels.
    fn new<F>(
        first: impl AsRef<[u8]> + Clone + Send + Sync + 'static,
        script: impl Fn(Peer) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let got = Arc::new(Mutex::new(Vec::new()));
        let gets = got.clone();
        let script = Arc::new(script);
        let sim = Sim::http1(move |mut conn, _| {
            let (got, script, first) = (gets.clone(), script.clone(), first.clone());
            async move {
                let head = conn.read_head().await;
                let accept = accept_of(&head);
                let head = switching(&accept);
                conn.send([head.as_bytes(), first.as_ref()].concat()).await;
                script(Peer { conn, got }).await;
            }
        });
        let pool = sim.pool(|pool| pool);
        Self {
            client: sim::client(&pool, Protocols::Http1),
            sim,
            pool,
            got,
        }
    }

    fn websocket(&self) -> WebSocketBuilder {
        self.client.websocket("/live").max_message_bytes(LIMIT)
    }

    async fn open(&self) -> WebSocket {
        self.websocket().connect().await.unwrap()
    }

    /// What the client's Close said, if there was one.
    fn close_code(&self) -> Option<u16> {
        self.got.lock().unwrap().last()?.close_code()
    }

    async fn is_gone(&self) {
        eventually("the connection is gone", || {
            let stats = self.pool.stats();
            (self.sim.live(), stats.open, stats.upgraded) == (0, 0, 0)
        })
        .await;
    }
}

/// The head of a sound answer.
fn switching(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    )
}

fn accept_of(head: &str) -> String {
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "));
    derive_accept_key(key.unwrap_or_default().as_bytes())
}

/// The error that ends the session, within an hour.
async fn next_error(socket: &mut WebSocket) -> Error {
    let end = async {
        loop {
            if let Err(error) = socket.next().await.expect("an error") {
                break error;
            }
        }
    };
    tokio::time::timeout(seconds(3600), end)
        .await
        .expect("it hangs")
}

fn text(message: Option<Result<Message, Error>>) -> String {
    message.unwrap().unwrap().as_text().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn answers_that_do_not_fit_fail_the_handshake() {
    let huge = format!("x: {}", "y".repeat(200_000));
    let cases = [
        (
            "no accept",
            vec!["upgrade: websocket", "connection: upgrade"],
        ),
        (
            "wrong accept",
            vec![
                "upgrade: websocket",
                "connection: upgrade",
                "sec-websocket-accept: AAAA",
            ],
        ),
        ("no upgrade", vec!["connection: upgrade", "ACCEPT"]),
        (
            "another upgrade",
            vec!["upgrade: h2c", "connection: upgrade", "ACCEPT"],
        ),
        ("no connection", vec!["upgrade: websocket", "ACCEPT"]),
        (
            "accept twice",
            vec![
                "upgrade: websocket",
                "connection: upgrade",
                "ACCEPT",
                "ACCEPT",
            ],
        ),
        (
            "extension",
            vec![
                "upgrade: websocket",
                "connection: upgrade",
                "ACCEPT",
                "sec-websocket-extensions: permessage-deflate",
            ],
        ),
        (
            "subprotocol",
            vec![
                "upgrade: websocket",
                "connection: upgrade",
                "ACCEPT",
                "sec-websocket-protocol: chat",
            ],
        ),
        (
            "huge head",
            vec!["upgrade: websocket", "connection: upgrade", "ACCEPT", &huge],
        ),
    ];
    for (name, lines) in cases {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let sim = Sim::http1(move |mut conn, _| {
            let lines = lines.clone();
            async move {
                let accept = accept_of(&conn.read_head().await);
                let head: String = lines
                    .iter()
                    .map(|line| match &**line {
                        "ACCEPT" => format!("sec-websocket-accept: {accept}\r\n"),
                        line => format!("{line}\r\n"),
                    })
                    .collect();
                conn.send(format!("HTTP/1.1 101 Switching Protocols\r\n{head}\r\n"))
                    .await;
                conn.closed_by_client().await;
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let error = client.websocket("/live").connect().await.unwrap_err();
        let expected = match name {
            "huge head" => ErrorKind::TooLarge,
            _ => ErrorKind::Protocol,
        };
        assert_eq!(error.kind(), expected, "{name}: {error}");
        assert_eq!((error.attempts(), sim.dials()), (1, 1), "{name}");
        eventually("the connection is gone", || sim.live() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn handshake_that_is_not_answered_ends_in_time() {
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    for (patience, expected) in [(None, 10), (Some(3), 3), (Some(60), 60)] {
        let mut builder = client.websocket("/live");
        if let Some(patience) = patience {
            builder = builder.timeout(seconds(patience));
        }
        let start = Instant::now();
        let error = builder.connect().await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert_eq!(start.elapsed(), seconds(expected));
        assert_eq!(error.attempts(), 1);
    }
    eventually("the connections are gone", || sim.live() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_the_handshake_is_the_first_message() {
    let first = [frame(FIN | TEXT, b"hello"), frame(FIN | TEXT, b"again")].concat();
    let world = World::new(first, Peer::until_closed);
    let mut socket = world.open().await;
    assert_eq!(text(socket.next().await), "hello");
    assert_eq!(text(socket.next().await), "again");
    socket.close(1000, "").await.unwrap();
    world.is_gone().await;
}

#[tokio::test(start_paused = true)]
async fn every_frame_is_masked_by_chance() {
    let first = [frame(FIN | PING, b"?"), frame(FIN | TEXT, b"x")].concat();
    let world = World::new(first, Peer::until_closed);
    let mut socket = world.open().await;
    assert_eq!(text(socket.next().await), "x");
    for _ in 0..100 {
        socket.send(vec![0; 100]).await.unwrap();
    }
    socket.close(1000, "").await.unwrap();
    let got = world.got.lock().unwrap().clone();
    // The messages, the answer to the ping and the Close.
    assert_eq!(got.len(), 102);
    let mut masks: Vec<_> = got.iter().map(|got| got.mask.expect("a mask")).collect();
    masks.sort_unstable();
    masks.dedup();
    // Two of 102 are equal once in a million runs.
    assert!(masks.len() > 100, "{} masks", masks.len());
    assert!(
        got.iter()
            .filter(|got| got.first == FIN | BINARY)
            .all(|got| got.payload == [0; 100])
    );
}

/// What the peer sends, what becomes of it, and the code of the Close that it gets.
fn violations() -> Vec<(String, Vec<u8>, ErrorKind, u16)> {
    use ErrorKind::{Protocol, TooLarge};
    let mut cases: Vec<(String, Vec<u8>, ErrorKind, u16)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>, kind, code| {
        cases.push((name.to_owned(), bytes, kind, code));
    };
    let masked = vec![FIN | TEXT, 0x81, 1, 2, 3, 4, b'a' ^ 1];
    case("masked", masked, Protocol, 1002);
    for opcode in [PING, PONG, CLOSE] {
        case(
            "long control",
            frame(FIN | opcode, &[b'x'; 126]),
            Protocol,
            1002,
        );
        case("fragmented control", frame(opcode, b""), Protocol, 1002);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        case("reserved opcode", frame(FIN | opcode, b""), Protocol, 1002);
    }
    for bit in [0x40, 0x20, 0x10] {
        case(
            "reserved bit",
            frame(FIN | bit | TEXT, b"x"),
            Protocol,
            1002,
        );
    }
    for first in [FIN, 0] {
        let bytes = frame(first | CONTINUATION, b"x");
        case("continuation of nothing", bytes.clone(), Protocol, 1002);
        let whole = [frame(FIN | TEXT, b"x"), bytes].concat();
        case("continuation of a whole one", whole, Protocol, 1002);
    }
    let within = [frame(TEXT, b"x"), frame(FIN | TEXT, b"y")].concat();
    case("message within a message", within, Protocol, 1002);
    let long = vec![FIN | BINARY, 126, 0, 5, 1, 2, 3, 4, 5];
    case("length of 16 bits not minimal", long, Protocol, 1002);
    let long = vec![FIN | BINARY, 127, 0, 0, 0, 0, 0, 0, 0, 200];
    case("length of 64 bits not minimal", long, Protocol, 1002);
    let long = vec![FIN | BINARY, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
    case("length with the highest bit", long, TooLarge, 1009);
    let long = frame(FIN | BINARY, &[0; LIMIT + 1]);
    case("frame beyond the limit", long, TooLarge, 1009);
    let long = [frame(BINARY, &[0; LIMIT]), frame(FIN | CONTINUATION, b"x")].concat();
    case("message beyond the limit", long, TooLarge, 1009);
    for wrong in [
        &b"\xff"[..],
        b"\xc3",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"ok \x80",
    ] {
        case("text", frame(FIN | TEXT, wrong), Protocol, 1007);
        let mut split = frame(TEXT, &wrong[..1]);
        for byte in &wrong[1..] {
            split.extend(frame(CONTINUATION, &[*byte]));
        }
        split.extend(frame(FIN | CONTINUATION, b""));
        case("split text", split, Protocol, 1007);
        case("reason", close(1000, wrong), Protocol, 1007);
    }
    // Before the message is whole.
    case(
        "text that cannot become right",
        frame(TEXT, b"\xff"),
        Protocol,
        1007,
    );
    case(
        "close of one byte",
        frame(FIN | CLOSE, b"\x03"),
        Protocol,
        1002,
    );
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        case(
            &format!("close with {code}"),
            close(code, b""),
            Protocol,
            1002,
        );
    }
    cases
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_is_told() {
    for (name, bytes, kind, code) in violations() {
        for piece in [bytes.len(), 1] {
            let sent = bytes.clone();
            let world = World::new(b"", move |mut peer| {
                let sent = sent.clone();
                async move {
                    peer.conn.send_slowly(sent, piece).await;
                    peer.until_closed().await;
                }
            });
            let mut socket = world.open().await;
            let error = next_error(&mut socket).await;
            assert_eq!(error.kind(), kind, "{name}: {error}");
            assert_eq!(error.phase(), Some(Phase::Receive), "{name}");
            assert_eq!(error.replay_safety(), ReplaySafety::Processed);
            assert!(error.origin().is_some() && error.timing().is_some());
            // Nothing more comes of it, and nothing more goes out.
            assert_eq!(socket.send("x").await.unwrap_err().kind(), kind, "{name}");
            assert!(socket.next().await.is_none(), "{name}");
            world.is_gone().await;
            assert_eq!(world.close_code(), Some(code), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_unusual_and_sound_is_taken() {
    let mut bytes = Vec::new();
    // A character of four bytes in as many fragments, with control frames in between.
    bytes.extend(frame(TEXT, b""));
    bytes.extend(frame(CONTINUATION, b"a\xf0"));
    bytes.extend(frame(FIN | PING, b"one"));
    bytes.extend(frame(CONTINUATION, b"\x9f"));
    bytes.extend(frame(FIN | PONG, b"unasked"));
    bytes.extend(frame(CONTINUATION, b"\xa7"));
    bytes.extend(frame(CONTINUATION, b""));
    bytes.extend(frame(FIN | CONTINUATION, b"\xad"));
    bytes.extend(frame(FIN | TEXT, b""));
    bytes.extend(frame(FIN | BINARY, b"\xff\xfe"));
    bytes.extend(frame(FIN | PING, &[b'x'; 125]));
    bytes.extend(frame(FIN | BINARY, &[0; LIMIT]));
    bytes.extend(close(4999, "tschüß".as_bytes()));
    // What comes behind a Close is nothing to anybody.
    bytes.extend(frame(FIN | TEXT, b"late"));
    for piece in [bytes.len(), 1] {
        let sent = bytes.clone();
        let world = World::new(b"", move |mut peer| {
            let sent = sent.clone();
            async move {
                peer.conn.send_slowly(sent, piece).await;
                while peer
                    .read()
                    .await
                    .is_some_and(|got| got.close_code().is_none())
                {}
            }
        });
        let mut socket = world.open().await;
        assert_eq!(text(socket.next().await), "a\u{1f9ed}");
        assert_eq!(text(socket.next().await), "");
        let came = socket.next().await.unwrap().unwrap();
        assert_eq!(came, Message::Binary(Bytes::from_static(b"\xff\xfe")));
        assert_eq!(
            socket.next().await.unwrap().unwrap().into_bytes().len(),
            LIMIT
        );
        assert_eq!(socket.close_frame(), None);
        assert!(socket.next().await.is_none());
        let said = socket.close_frame().unwrap();
        assert_eq!((said.code, &*said.reason), (Some(4999), "tschüß"));
        world.is_gone().await;
        let got = world.got.lock().unwrap().clone();
        let firsts: Vec<_> = got
            .iter()
            .map(|got| (got.first, &got.payload[..]))
            .collect();
        let expected = [
            (FIN | PONG, &b"one"[..]),
            (FIN | PONG, &[b'x'; 125]),
            (FIN | CLOSE, &4999u16.to_be_bytes()),
        ];
        assert_eq!(firsts, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn fragments_without_end_cost_nothing() {
    const FRAGMENTS: usize = if cfg!(debug_assertions) {
        50_000
    } else {
        1_000_000
    };
    let world = World::new(b"", |mut peer| async move {
        peer.send(frame(TEXT, b"x")).await;
        let empty = frame(CONTINUATION, b"").repeat(1_000);
        for _ in 0..FRAGMENTS / 1_000 {
            peer.send(&empty).await;
        }
        peer.send(frame(FIN | CONTINUATION, b"y")).await;
        peer.until_closed().await;
    });
    let mut socket = world.open().await;
    assert_eq!(text(socket.next().await), "xy");
    socket.close(1000, "").await.unwrap();
}

/// What the peer does not read it shall not make us keep.
#[tokio::test(start_paused = true)]
async fn flood_of_pings_is_bounded() {
    let world = World::new(b"", |mut peer| async move {
        let pings = frame(FIN | PING, &[b'x'; 125]).repeat(100);
        for _ in 0..100 {
            peer.send(&pings).await;
        }
        peer.send(frame(FIN | TEXT, b"enough")).await;
    });
    let mut socket = world.open().await;
    let error = socket.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("1000 pings"), "{error}");
    assert!(socket.next().await.is_none());
    world.is_gone().await;
    // One that reads is answered for as long as it likes.
    let world = World::new(b"", |mut peer| async move {
        for _ in 0..5_000 {
            peer.send(frame(FIN | PING, b"x")).await;
            peer.read().await;
        }
        peer.send(frame(FIN | TEXT, b"enough")).await;
        peer.until_closed().await;
    });
    let mut socket = world.open().await;
    assert_eq!(text(socket.next().await), "enough");
}

#[tokio::test(start_paused = true)]
async fn silent_peer_is_asked_and_given_up() {
    let world = World::new(frame(FIN | TEXT, b"x"), |mut peer| async move {
        while peer.read().await.is_some() {}
    });
    let builder = world.websocket().ping_interval(seconds(10));
    let mut socket = builder.ping_timeout(seconds(3)).connect().await.unwrap();
    assert_eq!(text(socket.next().await), "x");
    let start = Instant::now();
    let error = next_error(&mut socket).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_timeout());
    assert_eq!(start.elapsed(), seconds(13));
    assert!(socket.next().await.is_none());
    world.is_gone().await;
    let got = world.got.lock().unwrap().clone();
    assert_eq!(
        got.iter().map(|got| got.first).collect::<Vec<_>>(),
        [FIN | PING]
    );
}

#[tokio::test(start_paused = true)]
async fn answers_keep_a_session_alive() {
    let world = World::new(b"", |mut peer| async move {
        for _ in 0..100 {
            let ping = peer.read().await.unwrap();
            sleep(Duration::from_millis(1_500)).await;
            peer.send(frame(FIN | PONG, &ping.payload)).await;
        }
        // Any byte is a sign of life, if only half a frame.
        let message = frame(FIN | TEXT, b"slow");
        for byte in message {
            sleep(seconds(9)).await;
            peer.send([byte]).await;
        }
        peer.until_closed().await;
    });
    let builder = world.websocket().ping_interval(seconds(10));
    let mut socket = builder.ping_timeout(seconds(2)).connect().await.unwrap();
    let start = Instant::now();
    assert_eq!(text(socket.next().await), "slow");
    assert_eq!(
        start.elapsed(),
        Duration::from_millis(100 * 11_500 + 6 * 9_000)
    );
    assert_eq!(socket.round_trip(), Some(Duration::from_millis(1_500)));
    let pings = world.got.lock().unwrap().len();
    assert_eq!(pings, 100);
    // Without an interval nobody asks.
    let world = World::new(b"", |mut peer| async move {
        sleep(seconds(100_000)).await;
        peer.send(frame(FIN | TEXT, b"late")).await;
        peer.until_closed().await;
    });
    let mut socket = world
        .websocket()
        .ping_interval(None)
        .connect()
        .await
        .unwrap();
    assert_eq!(text(socket.next().await), "late");
    assert!(world.got.lock().unwrap().is_empty());
    assert_eq!(socket.round_trip(), None);
}

#[tokio::test(start_paused = true)]
async fn closing_that_is_not_answered_ends_in_time() {
    for chatters in [false, true] {
        let world = World::new(b"", move |mut peer| async move {
            while chatters && peer.send(frame(FIN | TEXT, b"x")).await {
                sleep(Duration::from_millis(10)).await;
            }
            peer.conn.closed_by_client().await;
        });
        let mut socket = world.open().await;
        let start = Instant::now();
        let error = socket.close(1000, "").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert_eq!(start.elapsed(), seconds(5));
        world.is_gone().await;
    }
}

#[tokio::test(start_paused = true)]
async fn closing_waits_a_moment_for_the_server_to_end_the_connection() {
    for is_ours in [true, false] {
        let world = World::new(b"", move |mut peer| async move {
            if is_ours {
                let got = peer.read().await.unwrap();
                peer.send(frame(FIN | CLOSE, &got.payload)).await;
            } else {
                peer.send(frame(FIN | CLOSE, b"")).await;
            }
            peer.conn.closed_by_client().await;
        });
        let mut socket = world.open().await;
        let start = Instant::now();
        if is_ours {
            let said = socket.close(1001, "away").await.unwrap();
            assert_eq!((said.code, &*said.reason), (Some(1001), "away"));
        } else {
            assert!(socket.next().await.is_none());
            assert_eq!(socket.close_frame().unwrap().code, None);
        }
        assert_eq!(start.elapsed(), seconds(1));
        world.is_gone().await;
    }
}

#[tokio::test(start_paused = true)]
async fn closing_by_cutting_is_an_error_and_closing_is_not() {
    for (is_reset, mid_frame) in [(false, false), (false, true), (true, false)] {
        let world = World::new(b"", move |mut peer| async move {
            peer.send(frame(FIN | TEXT, b"whole")).await;
            if mid_frame {
                peer.send([FIN | TEXT, 5, b'h']).await;
            }
            if is_reset {
                peer.conn.reset();
            } else {
                peer.conn.close().await;
            }
        });
        let mut socket = world.open().await;
        assert_eq!(text(socket.next().await), "whole");
        let error = next_error(&mut socket).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
        assert!(socket.next().await.is_none());
        assert_eq!(socket.close_frame(), None);
        assert!(socket.close(1000, "").await.is_err());
        world.is_gone().await;
    }
    // The peer that closes and is gone has closed.
    let world = World::new(close(1001, b"restart"), |peer| async move {
        peer.conn.close().await;
    });
    let mut socket = world.open().await;
    assert!(socket.next().await.is_none());
    assert_eq!(socket.close_frame().unwrap().code, Some(1001));
    let error = socket.send("x").await.unwrap_err();
    assert!(error.to_string().contains("1001"), "{error}");
    world.is_gone().await;
}

#[tokio::test(start_paused = true)]
async fn closing_with_what_must_not_be_sent_is_refused() {
    let world = World::new(b"", Peer::until_closed);
    let mut socket = world.open().await;
    let error = socket.close(1006, "").await.unwrap_err();
    assert!(error.is_invalid(), "{error}");
    assert!(
        socket
            .close(1000, &"x".repeat(124))
            .await
            .unwrap_err()
            .is_invalid()
    );
    // The session is as it was.
    socket.send("x").await.unwrap();
    socket.close(4000, &"x".repeat(123)).await.unwrap();
    assert_eq!(world.close_code(), Some(4000));
}

/// What ends a session ends it for the half that waits for something else, too.
#[tokio::test(start_paused = true)]
async fn both_halves_learn_of_the_end() {
    type End = fn(Peer) -> firstbyte::io::BoxFuture<'static, ()>;
    let ends: [(&str, End, ErrorKind); 5] = [
        (
            "end of the connection",
            |mut peer| Box::pin(async move { peer.conn.fin().await }),
            ErrorKind::ConnectionLost,
        ),
        (
            "close",
            |mut peer| {
                Box::pin(async move {
                    peer.send(close(1001, b"")).await;
                    sleep(seconds(60)).await;
                })
            },
            ErrorKind::ConnectionLost,
        ),
        (
            "violation",
            |mut peer| {
                Box::pin(async move {
                    peer.send([0xff, 0xff]).await;
                    sleep(seconds(60)).await;
                })
            },
            ErrorKind::Protocol,
        ),
        (
            "silence",
            |peer| {
                Box::pin(async move {
                    sleep(seconds(3600)).await;
                    drop(peer);
                })
            },
            ErrorKind::Timeout,
        ),
        (
            "gone",
            |peer| Box::pin(async move { drop(peer) }),
            ErrorKind::ConnectionLost,
        ),
    ];
    for (name, end, kind) in ends {
        for is_joined in [true, false] {
            let world = World::new(b"", move |peer| async move {
                sleep(seconds(1)).await;
                end(peer).await;
            });
            let (mut sender, mut receiver) = world.open().await.split();
            // More than fits on the way, and nobody reads it.
            let send = async move { sender.send(vec![0; 1 << 20]).await.unwrap_err().kind() };
            let receive = async move {
                while let Some(Ok(_)) = receiver.next().await {}
                receiver
            };
            let both = async {
                if is_joined {
                    tokio::join!(receive, send)
                } else {
                    let send = tokio::spawn(send);
                    (receive.await, send.await.unwrap())
                }
            };
            let both = tokio::time::timeout(seconds(600), both).await;
            let (receiver, failed) = both.unwrap_or_else(|_| panic!("{name} hangs"));
            assert_eq!(failed, kind, "{name}");
            drop(receiver);
            world.is_gone().await;
        }
    }
}

/// An error of writing is no reason to lose what has arrived, least of all why the server went.
#[tokio::test(start_paused = true)]
async fn what_has_arrived_is_read_although_nothing_can_be_sent() {
    let gone = support::gate::Gate::new();
    let goes = gone.clone();
    let world = World::new(b"", move |mut peer| {
        let goes = goes.clone();
        async move {
            peer.send(frame(FIN | TEXT, b"last words")).await;
            peer.send(close(1011, b"quota")).await;
            drop(peer);
            goes.open();
        }
    });
    let mut socket = world.open().await;
    gone.waiter().opened().await;
    let error = socket.send("hello").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert_eq!(error.phase(), Some(Phase::Send));
    let said = socket.close(1000, "").await.unwrap();
    assert_eq!((said.code, &*said.reason), (Some(1011), "quota"));
    // Without a Close it is told once more, by the way in.
    let world = World::new(b"", |mut peer| async move {
        peer.send(frame(FIN | TEXT, b"last words")).await;
        drop(peer);
    });
    let mut socket = world.open().await;
    eventually("it is gone", || {
        world.sim.live() == 1 && world.sim.dials() == 1
    })
    .await;
    tokio::task::yield_now().await;
    let _ = socket.send("hello").await;
    assert_eq!(text(socket.next().await), "last words");
    let error = next_error(&mut socket).await;
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert!(socket.next().await.is_none());
}

/// A ping behind a long message waits for it, and so does the verdict.
#[tokio::test(start_paused = true)]
async fn long_message_that_moves_is_no_silence() {
    let world = World::new(b"", |mut peer| async move {
        let mut left = 1 << 20;
        while left > 0 {
            // All of it takes more than a minute, in which the server has nothing to say.
            sleep(seconds(2)).await;
            left -= peer.conn.read_body(left.min(32 * 1024)).await.len();
        }
        peer.send(frame(FIN | TEXT, b"all of it")).await;
        peer.conn.closed_by_client().await;
    });
    let builder = world.websocket().ping_interval(seconds(5));
    let socket = builder.ping_timeout(seconds(3)).connect().await.unwrap();
    let (mut sender, mut receiver) = socket.split();
    let start = Instant::now();
    let message = vec![0; 1 << 20];
    let (sent, came) = tokio::join!(sender.send(message), receiver.next());
    sent.unwrap();
    assert_eq!(text(came), "all of it");
    assert!(start.elapsed() > seconds(60));
}

#[tokio::test(start_paused = true)]
async fn small_limit_is_for_messages_and_not_for_control_frames() {
    let world = World::new(b"", |mut peer| async move {
        peer.send(frame(FIN | PING, &[b'x'; 125])).await;
        peer.send(frame(FIN | TEXT, b"ten bytes!")).await;
        peer.send(frame(FIN | TEXT, b"more than ten")).await;
        peer.until_closed().await;
    });
    let builder = world.websocket().max_message_bytes(10);
    let mut socket = builder.connect().await.unwrap();
    assert_eq!(text(socket.next().await), "ten bytes!");
    let error = next_error(&mut socket).await;
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(socket.next().await.is_none());
    let got = world.got.lock().unwrap().clone();
    assert_eq!((got[0].first, got[0].payload.len()), (FIN | PONG, 125));
    assert_eq!(got[1].close_code(), Some(1009));
}

#[tokio::test(start_paused = true)]
async fn opening_on_a_connection_that_was_lost_is_made_again_unless_it_must_not_be() {
    for idempotent in [None, Some(false)] {
        let sim = Sim::http1(|mut conn, index| async move {
            if index == 0 {
                conn.read_head().await;
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
                // Lost as soon as it is asked for more.
                conn.read_head().await;
                return conn.close().await;
            }
            let accept = accept_of(&conn.read_head().await);
            conn.send(switching(&accept)).await;
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        client.get("/").send().await.unwrap().bytes().await.unwrap();
        let mut builder = client.websocket("/live");
        if let Some(yes) = idempotent {
            builder = builder.idempotent(yes);
        }
        match builder.connect().await {
            Ok(socket) => {
                assert_eq!((idempotent, socket.metrics().attempts), (None, 2));
            }
            Err(error) => {
                assert_eq!(idempotent, Some(false), "{error}");
                assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
                assert_eq!(error.attempts(), 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn opening_that_waits_for_settings_was_not_sent() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.accept_preface().await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, sim::plain(Protocols::Http2));
    let error = client
        .websocket("/live")
        .timeout(seconds(1))
        .connect()
        .await
        .unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
}

/// On real sockets, since nobody is ever idle.
#[tokio::test]
async fn closing_ends_although_the_server_never_stops_talking() {
    let peer = support::h1_peer::H1Peer::start(|mut conn, _| async move {
        let accept = accept_of(&conn.read_head().await);
        conn.send(switching(&accept)).await;
        let many = frame(FIN | TEXT, b"x").repeat(1_000);
        while conn.send(&many).await {}
    });
    let pool = ConnectionPool::new();
    let client = pool.client_builder(format!("http://{}", peer.addr()));
    let client = client.build().unwrap();
    let builder = client
        .websocket("/")
        .close_timeout(Duration::from_millis(200));
    let mut socket = builder.connect().await.unwrap();
    let error = common::in_time(socket.close(1000, "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    eventually("its place is free", || pool.stats().open == 0).await;
}

/// On the clock of the machine, whose instants are no whole milliseconds.
#[tokio::test]
async fn silence_is_found_out_on_a_real_clock() {
    let peer = support::h1_peer::H1Peer::start(|mut conn, _| async move {
        let accept = accept_of(&conn.read_head().await);
        conn.send(switching(&accept)).await;
        conn.closed_by_client().await;
    });
    let pool = ConnectionPool::new();
    let client = pool.client_builder(format!("http://{}", peer.addr()));
    let client = client.build().unwrap();
    let short = Duration::from_micros(30_300);
    for closes in [false, true] {
        let builder = client.websocket("/").ping_interval(short);
        let builder = builder.ping_timeout(short).close_timeout(short);
        let mut socket = builder.connect().await.unwrap();
        let error = common::in_time(async {
            if closes {
                socket.close(1000, "").await.unwrap_err()
            } else {
                socket.next().await.unwrap().unwrap_err()
            }
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
}

/// Over TLS, which keeps what the socket has no room for: of a message whose future was dropped then, nothing is left
/// behind, though nothing is sent any more.
#[tokio::test]
async fn dropped_send_leaves_nothing_in_tls() {
    common::in_time(async {
        let pki = support::pki::Pki::new();
        let gate = support::gate::Gate::new();
        let waiter = gate.waiter();
        // With its head, as a client sends it.
        const MESSAGE: usize = 16_000;
        const FRAME: usize = MESSAGE + 8;
        let messages = Arc::new(AtomicUsize::new(0));
        let counted = messages.clone();
        let identity = pki.server(&["localhost"]);
        let peer = support::h1_peer::H1Peer::start_tls(&identity, move |mut conn, _| {
            let (waiter, counted) = (waiter.clone(), counted.clone());
            async move {
                let accept = accept_of(&conn.read_head().await);
                conn.send(switching(&accept)).await;
                waiter.opened().await;
                let all = counted.load(Ordering::SeqCst) * FRAME;
                let came = conn.read_body(all).await.len() / FRAME;
                conn.send(frame(FIN | TEXT, came.to_string().as_bytes()))
                    .await;
                conn.closed_by_client().await;
            }
        });
        let tls = firstbyte::tls::TlsOptions::new().builtin_roots(false);
        let pool = ConnectionPool::builder().tls(tls.add_root(pki.ca_der()));
        let pool = pool.build().unwrap();
        let client = pool.client_builder(format!("https://localhost:{}", peer.port()));
        let client = client.build().unwrap();
        let builder = client.websocket("/").ping_interval(None);
        let mut socket = builder.connect().await.unwrap();
        loop {
            messages.fetch_add(1, Ordering::SeqCst);
            let sent = DropAfter::new(socket.send(vec![7; MESSAGE]), 1).await;
            // No room is left in the socket, and the whole frame is in the hands of TLS.
            let Some(sent) = sent else { break };
            sent.unwrap();
        }
        gate.open();
        let came = text(socket.next().await);
        assert_eq!(came, messages.load(Ordering::SeqCst).to_string());
    })
    .await;
}

/// Dropped at every point, nothing is lost, sent twice or cut in two.
#[tokio::test(start_paused = true)]
async fn dropped_futures_lose_nothing() {
    for polls in 1..6 {
        let world = World::new(b"", |mut peer| async move {
            let mut n = 0u32;
            while let Some(got) = peer.read().await {
                if got.first == FIN | CLOSE {
                    peer.send(frame(FIN | CLOSE, &got.payload)).await;
                    return;
                }
                let number = format!("{n}");
                n += 1;
                // Byte by byte, so that there is something to lose.
                peer.conn
                    .send_slowly(frame(FIN | TEXT, number.as_bytes()), 1)
                    .await;
            }
        });
        let mut socket = world.open().await;
        let mut sent = 0;
        let mut came = 0;
        for _ in 0..50 {
            if DropAfter::new(socket.send(vec![1; 500]), polls)
                .await
                .is_some()
            {
                sent += 1;
            }
            if let Some(message) = DropAfter::new(socket.next(), polls).await {
                assert_eq!(text(message), came.to_string());
                came += 1;
            }
            tokio::task::yield_now().await;
        }
        while came < sent {
            assert_eq!(text(socket.next().await), came.to_string());
            came += 1;
        }
        socket.close(1000, "").await.unwrap();
        let got = world.got.lock().unwrap().clone();
        let messages = got.iter().filter(|got| got.first == FIN | BINARY);
        assert!(messages.clone().count() >= sent);
        assert!(messages.into_iter().all(|got| got.payload == [1; 500]));
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_session_gives_back_its_place() {
    let world = World::new(b"", |mut peer| async move {
        peer.conn.closed_by_client().await;
    });
    let socket = world.open().await;
    assert_eq!(world.pool.stats().upgraded, 1);
    let (sender, receiver) = socket.split();
    drop(sender);
    assert_eq!(world.pool.stats().upgraded, 1);
    drop(receiver);
    world.is_gone().await;
}

const OK: &[(&str, &str)] = &[(":status", "200")];
const ALLOWED: &[(u16, u32)] = &[(8, 1)];

/// A session over a stream of HTTP/2 whose peer does this.
async fn over_http2<F>(
    script: impl Fn(H2Conn, u32) -> F + Send + Sync + 'static,
) -> (ConnectionPool, Client, WebSocket)
where
    F: Future<Output = ()> + Send + 'static,
{
    let script = Arc::new(script);
    let sim = Sim::http2(move |mut conn, _| {
        let script = script.clone();
        async move {
            conn.handshake(ALLOWED).await;
            let stream = conn.read_headers().await.stream;
            conn.headers(stream, OK, false).await;
            script(conn, stream).await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, sim::plain(Protocols::Http2));
    let socket = client.websocket("/live").connect().await.unwrap();
    (pool, client, socket)
}

#[tokio::test(start_paused = true)]
async fn stream_that_ends_or_is_reset_ends_the_session_alone() {
    for is_reset in [false, true] {
        let (pool, client, mut socket) = over_http2(move |mut conn, stream| async move {
            conn.data(stream, frame(FIN | TEXT, b"x"), !is_reset).await;
            if is_reset {
                conn.rst(stream, code::INTERNAL_ERROR).await;
            }
            let stream = conn.read_headers().await.stream;
            conn.headers(stream, OK, true).await;
            conn.closed_by_client().await;
        })
        .await;
        let error = next_error(&mut socket).await;
        let expected = if is_reset {
            ErrorKind::Refused
        } else {
            ErrorKind::ConnectionLost
        };
        assert_eq!(error.kind(), expected, "{error}");
        client.get("/").send().await.unwrap();
        assert_eq!(pool.stats().connections_created, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn stream_that_is_closed_ends_both_ways_and_is_not_reset() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = seen.clone();
    let (_pool, client, mut socket) = over_http2(move |mut conn, stream| {
        let sees = sees.clone();
        async move {
            let data = conn.read_kind(kind::DATA).await.unwrap();
            assert_eq!(data.stream, stream);
            sees.lock()
                .unwrap()
                .push((data.kind, data.len, data.is_end_stream()));
            // The server may wait for our end before it sends its own.
            conn.data(stream, close(1000, b""), false).await;
            while let Some(frame) = conn.read_frame().await {
                if frame.stream == stream {
                    sees.lock()
                        .unwrap()
                        .push((frame.kind, frame.len, frame.is_end_stream()));
                    conn.data(stream, b"", true).await;
                }
                if frame.kind == kind::HEADERS {
                    conn.headers(frame.stream, OK, true).await;
                }
            }
        }
    })
    .await;
    let start = Instant::now();
    socket.close(1000, "").await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    drop(socket);
    client.get("/").send().await.unwrap();
    // The Close in one piece of data, with its mask; then the end.
    assert_eq!(
        *seen.lock().unwrap(),
        [(kind::DATA, 8, false), (kind::DATA, 0, true)]
    );
}

/// Whoever of the two halves is told of it first.
#[tokio::test(start_paused = true)]
async fn closing_that_took_too_long_is_no_clean_end_for_the_receiver() {
    let world = World::new(b"", |peer| async move {
        let _reads_nothing = peer;
        std::future::pending::<()>().await;
    });
    let socket = world.websocket().close_timeout(seconds(3));
    let (mut sender, mut receiver) = socket.connect().await.unwrap().split();
    // The way out is full.
    let stuck = tokio::time::timeout(seconds(1), sender.send(vec![0; 4 << 20])).await;
    assert!(stuck.is_err());
    let (closed, next) = tokio::join!(biased; sender.close(1000, ""), receiver.next());
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::Timeout);
    let error = next.expect("no clean end").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(receiver.next().await.is_none());
}
