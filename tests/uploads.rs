//! Request bodies on their way: the expectation of `100 Continue`, progress, early answers, trailers, bodies that are made
//! anew, and informational responses, over both protocols.

mod common;
mod support;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use common::{BOTH, in_time};
use firstbyte::{
    Body, Client, ConnectionUse, ErrorKind, EventListener, Progress, Protocols, ReplaySafety,
};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use support::h1_peer::H1Conn;
use support::h2_peer::{H2Conn, code, kind};
use support::sim::{self, Sim, plain};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(1);

/// What a listener was told, in order.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl EventListener for Told {
    fn informational(&self, status: StatusCode, headers: &HeaderMap) {
        let link = headers.get("link").map_or("", |v| v.to_str().unwrap());
        let told = format!("{} {link}", status.as_u16());
        self.0.lock().unwrap().push(told.trim_end().to_owned());
    }

    fn request_progress(&self, progress: Progress) {
        self.tell("sent", progress);
    }

    fn response_progress(&self, progress: Progress) {
        self.tell("received", progress);
    }
}

impl Told {
    fn tell(&self, what: &str, progress: Progress) {
        let total = progress.total.map_or_else(|| "?".into(), |n| n.to_string());
        let told = format!("{what} {} of {total}", progress.bytes);
        self.0.lock().unwrap().push(told);
    }
}

/// What a peer of one protocol can be asked to do, for scripts of both.
enum Peer {
    H1(H1Conn),
    H2(H2Conn, u32),
}

impl Peer {
    /// The next request's head; none at the end. Skips what is left of the body before.
    async fn head(&mut self) -> Option<String> {
        match self {
            Self::H1(conn) => Some(conn.read_head().await).filter(|head| !head.is_empty()),
            Self::H2(conn, stream) => {
                let head = conn.read_kind(kind::HEADERS).await?;
                *stream = head.stream;
                Some(String::new())
            }
        }
    }

    async fn informational(&mut self, status: u16, link: Option<&str>) {
        match self {
            Self::H1(conn) => {
                let link = link.map_or(String::new(), |link| format!("link: {link}\r\n"));
                conn.send(format!("HTTP/1.1 {status} Go\r\n{link}\r\n"))
                    .await;
            }
            Self::H2(conn, stream) => {
                let status = status.to_string();
                let mut headers = vec![(":status", status.as_str())];
                headers.extend(link.map(|link| ("link", link)));
                conn.headers(*stream, &headers, false).await;
            }
        }
    }

    /// So many bytes of body; fewer if the client ends or resets before.
    async fn body(&mut self, bytes: usize) -> usize {
        match self {
            Self::H1(conn) => conn.read_body(bytes).await.len(),
            Self::H2(conn, _) => {
                let mut read = 0;
                while read < bytes {
                    match conn.read_frame().await {
                        Some(frame) if frame.kind == kind::DATA => {
                            read += frame.len;
                            if frame.len > 0 && !frame.is_end_stream() {
                                conn.window_update(0, frame.len as u32).await;
                                conn.window_update(frame.stream, frame.len as u32).await;
                            }
                        }
                        Some(frame) if frame.kind == kind::RST_STREAM => break,
                        Some(_) => {}
                        None => break,
                    }
                }
                read
            }
        }
    }

    async fn answer(&mut self, status: u16, body: &str) {
        match self {
            Self::H1(conn) => {
                let length = body.len();
                let head = format!("HTTP/1.1 {status} So\r\ncontent-length: {length}\r\n\r\n");
                conn.send(format!("{head}{body}")).await;
            }
            Self::H2(conn, stream) => {
                let (status, length) = (status.to_string(), body.len().to_string());
                let headers = [(":status", status.as_str()), ("content-length", &length)];
                conn.headers(*stream, &headers, false).await;
                conn.data(*stream, body, true).await;
            }
        }
    }
}

/// A network whose peers run this script, whatever the protocol.
fn peers<F>(protocols: Protocols, script: impl Fn(Peer, usize) -> F + Send + Sync + 'static) -> Sim
where
    F: Future<Output = ()> + Send + 'static,
{
    if protocols == Protocols::Http1 {
        return Sim::http1(move |conn, index| script(Peer::H1(conn), index));
    }
    let script = Arc::new(script);
    Sim::http2(move |mut conn, index| {
        let script = script.clone();
        async move {
            conn.handshake(&[]).await;
            script(Peer::H2(conn, 0), index).await;
        }
    })
}

fn client_of(sim: &Sim, protocols: Protocols) -> Client {
    sim::client(&sim.pool(|pool| pool), plain(protocols))
}

#[tokio::test(start_paused = true)]
async fn body_waits_for_the_servers_word_and_not_for_ever() {
    in_time(async {
        for protocols in BOTH {
            // Says so after 300 ms; says nothing; answers without wanting the body.
            let sim = peers(protocols, |mut peer, _| async move {
                let head = peer.head().await.unwrap();
                assert!(head.is_empty() || head.contains("expect: 100-continue\r\n"));
                let begin = Instant::now();
                sleep(Duration::from_millis(300)).await;
                peer.informational(100, None).await;
                assert_eq!(peer.body(5).await, 5);
                let waited = begin.elapsed().as_millis().to_string();
                peer.answer(200, &waited).await;

                peer.head().await.unwrap();
                let begin = Instant::now();
                assert_eq!(peer.body(5).await, 5);
                let waited = begin.elapsed().as_millis().to_string();
                peer.answer(200, &waited).await;

                peer.head().await.unwrap();
                peer.answer(417, "no").await;
                assert_eq!(peer.body(5).await, 0, "not sent any more");
            });
            let client = client_of(&sim, protocols);
            let send = || client.post("/").body("hello").expect_continue(PATIENCE);
            let mut waited = Vec::new();
            for _ in 0..2 {
                let mut response = send().send().await.unwrap();
                waited.push(response.text().await.unwrap());
            }
            assert_eq!(waited, ["300", "1000"], "{protocols:?}");
            let mut response = send().send().await.unwrap();
            assert_eq!(response.status(), 417);
            assert!(response.timing().upload_end().is_none());
            assert_eq!(response.text().await.unwrap(), "no");
            assert_eq!(sim.dials(), 1);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_final_answer_instead_of_the_word_no_request_follows_on_an_http1_connection() {
    in_time(async {
        let sim = peers(Protocols::Http1, |mut peer, index| async move {
            peer.head().await.unwrap();
            peer.answer(if index == 0 { 417 } else { 200 }, "").await;
            assert_eq!(peer.body(1).await, 0);
        });
        let client = client_of(&sim, Protocols::Http1);
        let refused = client.post("/").body("hello").expect_continue(PATIENCE);
        assert_eq!(refused.send().await.unwrap().status(), 417);
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.connection_use(), ConnectionUse::New);
        assert_eq!(sim.dials(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn expectation_without_a_body_is_none_and_the_header_is_ours() {
    in_time(async {
        let sim = peers(Protocols::Http1, |mut peer, _| async move {
            let head = peer.head().await.unwrap();
            peer.answer(200, if head.contains("expect") { "yes" } else { "no" })
                .await;
        });
        let client = client_of(&sim, Protocols::Http1);
        let get = client.get("/").expect_continue(PATIENCE);
        assert_eq!(get.send().await.unwrap().text().await.unwrap(), "no");
        let own = client.post("/").header("expect", "100-continue").body("x");
        let error = own.send().await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("expect_continue"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn listener_is_told_of_hints_and_of_progress_both_ways() {
    in_time(async {
        for protocols in BOTH {
            let sim = peers(protocols, |mut peer, _| async move {
                peer.head().await.unwrap();
                peer.informational(103, Some("</style.css>; rel=preload"))
                    .await;
                peer.body(5).await;
                peer.answer(200, "response").await;
            });
            let client = client_of(&sim, protocols);
            let told = Arc::new(Told::default());
            let request = client.post("/").body("hello").listener(told.clone());
            let mut response = request.send().await.unwrap();
            assert_eq!(
                told.take(),
                ["sent 5 of 5", "103 </style.css>; rel=preload"],
                "{protocols:?}"
            );
            assert!(response.timing().informational().is_some());
            response.text().await.unwrap();
            assert_eq!(told.take(), ["received 8 of 8"]);
        }
    })
    .await;
}

/// A body of 10,000 bytes at a time, one piece each 10 ms, in all so many.
struct Slowly {
    left: usize,
    has_length: bool,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Slowly {
    fn body(pieces: usize, has_length: bool) -> Body {
        Body::wrap(Self {
            left: pieces,
            has_length,
            timer: Box::pin(sleep(Duration::ZERO)),
        })
    }
}

impl http_body::Body for Slowly {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        std::task::ready!(Future::poll(self.timer.as_mut(), cx));
        let next = Instant::now() + Duration::from_millis(10);
        self.timer.as_mut().reset(next);
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; 10_000])))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        if self.has_length {
            http_body::SizeHint::with_exact(self.left as u64 * 10_000)
        } else {
            http_body::SizeHint::default()
        }
    }
}

#[tokio::test(start_paused = true)]
async fn streams_with_and_without_length_tell_how_far_they_are() {
    in_time(async {
        for protocols in BOTH {
            for has_length in [true, false] {
                let sim = peers(protocols, move |mut peer, _| async move {
                    let head = peer.head().await.unwrap();
                    if !head.is_empty() {
                        assert_eq!(head.contains("content-length: 30000"), has_length);
                        assert_eq!(head.contains("chunked"), !has_length);
                    }
                    peer.body(30_000).await;
                    peer.answer(200, "got it").await;
                });
                let client = client_of(&sim, protocols);
                let told = Arc::new(Told::default());
                let request = client.post("/").listener(told.clone());
                let body = Slowly::body(3, has_length);
                request.body(body).send().await.unwrap();
                let total = if has_length { "30000" } else { "?" };
                let expected = [10_000, 20_000, 30_000].map(|n| format!("sent {n} of {total}"));
                assert_eq!(told.take(), expected, "{protocols:?}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn complete_answer_stops_the_upload_and_its_stream_alone() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let stream = conn.read_headers().await.stream;
            conn.read_kind(kind::DATA).await;
            conn.headers(stream, &[(":status", "413")], false).await;
            conn.data(stream, "too large", true).await;
            // With the next request, in whatever order.
            let mut reset = None;
            let mut next = None;
            while reset.is_none() || next.is_none() {
                let frame = conn.read_frame().await.unwrap();
                match frame.kind {
                    kind::RST_STREAM => reset = Some((frame.stream, frame.code())),
                    kind::HEADERS => next = Some(frame.stream),
                    _ => {}
                }
            }
            assert_eq!(reset, Some((stream, Some(code::NO_ERROR))));
            conn.headers(next.unwrap(), &[(":status", "200")], true)
                .await;
            conn.closed_by_client().await;
        });
        let client = client_of(&sim, Protocols::Http2);
        let endless = Slowly::body(usize::MAX / 10_000, false);
        let mut response = client.post("/").body(endless).send().await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(response.text().await.unwrap(), "too large");
        assert_eq!(client.get("/").send().await.unwrap().status(), 200);
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn both_ways_at_once_over_http2() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let stream = conn.read_headers().await.stream;
            conn.headers(stream, &[(":status", "200")], false).await;
            // Each piece is answered before the next one comes.
            loop {
                let data = conn.read_kind(kind::DATA).await.unwrap();
                conn.data(stream, data.len.to_string(), data.is_end_stream())
                    .await;
                if data.is_end_stream() {
                    break;
                }
            }
            conn.closed_by_client().await;
        });
        let client = client_of(&sim, Protocols::Http2);
        let body = Slowly::body(3, false);
        let mut response = client.post("/").body(body).send().await.unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = response.chunk().await.unwrap() {
            pieces.push(piece);
        }
        assert_eq!(pieces, ["10000", "10000", "10000", "0"]);
    })
    .await;
}

/// Bytes with trailers behind them.
struct WithTrailers(Vec<Frame<Bytes>>, Option<u64>);

impl WithTrailers {
    fn body(has_length: bool) -> Body {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "5".parse().unwrap());
        let frames = vec![Frame::trailers(trailers), Frame::data(Bytes::from("hello"))];
        Body::wrap(Self(frames, has_length.then_some(5)))
    }
}

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop().map(Ok))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.1.map_or_else(
            http_body::SizeHint::default,
            http_body::SizeHint::with_exact,
        )
    }
}

#[tokio::test(start_paused = true)]
async fn request_trailers_travel_over_both_protocols_and_never_get_lost_silently() {
    in_time(async {
        let sim = Sim::http1(|mut conn, _| async move {
            while !conn.read_head().await.is_empty() {
                let body = conn.read_until("\r\n\r\n").await;
                let answer = body.escape_ascii().to_string();
                let length = answer.len();
                conn.send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}"
                ))
                .await;
            }
        });
        let client = client_of(&sim, Protocols::Http1);
        for has_length in [false, true] {
            let request = client.post("/").header("trailer", "x-sum");
            let mut response = request
                .body(WithTrailers::body(has_length))
                .send()
                .await
                .unwrap();
            let sent = response.text().await.unwrap();
            assert_eq!(sent, "5\\r\\nhello\\r\\n0\\r\\nx-sum: 5\\r\\n\\r\\n");
        }
        // With a content-length there is no place for them (RFC 9112 §7.1.2).
        let unannounced = client.post("/").body(WithTrailers::body(true));
        let error = unannounced.send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Body);
        assert!(error.to_string().contains("`trailer`"), "{error}");

        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let stream = conn.read_headers().await.stream;
            let data = conn.read_kind(kind::DATA).await.unwrap();
            let trailers = conn.read_kind(kind::HEADERS).await.unwrap();
            assert!(!data.is_end_stream() && trailers.is_end_stream());
            conn.headers(stream, &[(":status", "200")], true).await;
            conn.closed_by_client().await;
        });
        let client = client_of(&sim, Protocols::Http2);
        let request = client.post("/").body(WithTrailers::body(false));
        assert_eq!(request.send().await.unwrap().status(), 200);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn factory_makes_the_body_anew_for_each_attempt() {
    in_time(async {
        let sim = Sim::http2(|mut conn, index| async move {
            conn.handshake(&[]).await;
            let stream = conn.read_headers().await.stream;
            conn.read_kind(kind::DATA).await;
            if index == 0 {
                // The whole connection, after a part of the body.
                conn.goaway(0, code::NO_ERROR, "").await;
                return conn.closed_by_client().await;
            }
            let mut read = 10_000;
            while read < 30_000 {
                read += conn.read_kind(kind::DATA).await.unwrap().len;
            }
            conn.headers(stream, &[(":status", "200")], true).await;
            conn.closed_by_client().await;
        });
        let client = client_of(&sim, Protocols::Http2);
        let made = Arc::new(AtomicUsize::new(0));
        let count = made.clone();
        let body = Body::factory(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Slowly::body(3, true)
        });
        let response = client.post("/").body(body).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), made.load(Ordering::SeqCst)),
            (200, 2)
        );
        assert_eq!(response.metrics().attempts, 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn error_says_how_many_bytes_went_and_came() {
    in_time(async {
        for protocols in BOTH {
            let sim = peers(protocols, |mut peer, _| async move {
                peer.head().await.unwrap();
                peer.body(5).await;
                match &mut peer {
                    Peer::H1(conn) => {
                        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
                            .await;
                    }
                    Peer::H2(conn, stream) => {
                        conn.headers(*stream, &[(":status", "200")], false).await;
                        conn.data(*stream, "half", false).await;
                    }
                }
            });
            let client = client_of(&sim, protocols);
            let mut response = client.post("/").body("hello").send().await.unwrap();
            let error = response.bytes().await.unwrap_err();
            assert_eq!(error.replay_safety(), ReplaySafety::Processed);
            let (sent, received) = (error.bytes_sent(), error.bytes_received());
            if protocols == Protocols::Http1 {
                // With the heads.
                assert!(sent > 40 && received >= 40, "{sent}, {received}");
            } else {
                assert_eq!((sent, received), (5, 4));
            }

            let sim = peers(protocols, |mut peer, _| async move {
                peer.head().await.unwrap();
                peer.body(5).await;
            });
            let client = client_of(&sim, protocols);
            let error = client.post("/").body("hello").send().await.unwrap_err();
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            assert!(
                error.bytes_sent() >= 5 && error.bytes_received() == 0,
                "{error:?}"
            );
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn informational_responses_are_bounded_in_number_and_in_bytes() {
    in_time(async {
        for protocols in BOTH {
            for (hints, bytes) in [(100, 10), (10, 10_000)] {
                let link = "x".repeat(bytes);
                let sim = peers(protocols, move |mut peer, _| {
                    let link = link.clone();
                    async move {
                        peer.head().await.unwrap();
                        for _ in 0..hints {
                            peer.informational(103, Some(&link)).await;
                        }
                        peer.answer(200, "").await;
                    }
                });
                let client = client_of(&sim, protocols);
                let error = client.get("/").send().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Protocol, "{protocols:?}");
                assert!(error.to_string().contains("informational"), "{error}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn upload_stops_where_its_reader_stops() {
    in_time(async {
        for protocols in BOTH {
            let sim = peers(protocols, |mut peer, _| async move {
                peer.head().await.unwrap();
                // Reads nothing for a while: the pipe and the windows fill up.
                sleep(Duration::from_secs(6)).await;
                peer.body(1_000_000).await;
                peer.answer(200, "").await;
            });
            let client = client_of(&sim, protocols);
            let told = Arc::new(Told::default());
            let request = client
                .post("/")
                .body(Slowly::body(100, true))
                .listener(told.clone());
            let mut sending = Box::pin(request.send());
            let early = tokio::time::timeout(
                Duration::from_secs(3),
                poll_fn(|cx| sending.as_mut().poll(cx)),
            );
            assert!(early.await.is_err());
            let sent = told.take().len();
            assert!(sent < 20, "{protocols:?}: {sent} pieces of 10,000 bytes");
            sending.await.unwrap();
        }
    })
    .await;
}

/// As a server that answers piece by piece does: nothing ends the upload but its own end, or that of the answer.
#[tokio::test(start_paused = true)]
async fn upload_goes_on_beside_an_answer_that_has_begun() {
    for has_length in [true, false] {
        let sim = Sim::http1(move |mut conn, _| async move {
            for _ in 0..2 {
                conn.read_head().await;
                let read = async |conn: &mut H1Conn| {
                    if has_length {
                        conn.read_body(10_000).await;
                    } else {
                        conn.read_until([&[b'x'; 10_000][..], b"\r\n"].concat())
                            .await;
                    }
                };
                read(&mut conn).await;
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
                    .await;
                read(&mut conn).await;
                read(&mut conn).await;
                if !has_length {
                    conn.read_until("0\r\n\r\n").await;
                }
                sleep(Duration::from_secs(1)).await;
                conn.send("all").await;
            }
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        for how in [ConnectionUse::New, ConnectionUse::Idle] {
            let request = client.post("/").body(Slowly::body(3, has_length));
            let mut response = in_time(request.send()).await.unwrap();
            assert_eq!(response.chunk().await.unwrap().unwrap(), "one");
            let rest = in_time(response.text()).await.unwrap();
            assert_eq!(rest, "all");
            assert_eq!(response.connection_use(), how);
            assert!(response.timing().upload_end().is_some());
        }
        assert_eq!(sim.dials(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn upload_that_fails_beside_its_answer_fails_the_answer() {
    /// One piece, and then a failure.
    struct Fails(usize);
    impl http_body::Body for Fails {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0 += 1;
            match self.0 {
                1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"piece"))))),
                // Until the answer has begun.
                2..10 => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(Some(Err(std::io::Error::other("it broke")))),
            }
        }
    }
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
            .await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    let request = client.post("/").body(Body::wrap(Fails(0)));
    let mut response = in_time(request.send()).await.unwrap();
    let error = in_time(response.bytes()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Body, "{error}");
    assert!(error.to_string().contains("it broke"), "{error}");
}
