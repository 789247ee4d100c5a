//! Server-Sent Events of a response, over both protocols: how they are read, how they end, and how they came in time. On a
//! paused clock.

mod common;
mod support;

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::sse::Item;
use firstbyte::{Client, Error, ErrorKind, EventStream, Protocols, Response};
use support::h1_peer::H1Conn;
use support::sim::{self, Sim};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;
use tokio::time::sleep;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const INTERNAL_ERROR: u32 = 2;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a peer does once a request is there.
#[derive(Clone, Copy)]
enum Step {
    Send(&'static str),
    Pause(u64),
    /// Sent together with what ends the body.
    Last(&'static str),
    /// The body ends as it should.
    End,
    /// It is cut off.
    Cut,
}

use Step::{Cut, End, Last, Pause, Send};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    transfer-encoding: chunked\r\n\r\n";

async fn answer_http1(conn: &mut H1Conn, steps: &[Step]) {
    conn.send(HEAD).await;
    for step in steps {
        match *step {
            Send(text) => {
                conn.send(format!("{:x}\r\n{text}\r\n", text.len())).await;
            }
            Pause(n) => sleep(millis(n)).await,
            Last(text) => {
                let chunk = format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
                conn.send(chunk).await;
            }
            End => {
                conn.send("0\r\n\r\n").await;
            }
            Cut => conn.fin().await,
        }
    }
}

/// Peers that answer every request with these steps; what comes behind them is nobody's.
fn peer(protocols: Protocols, steps: &'static [Step]) -> Sim {
    if protocols == Protocols::Http1 {
        return Sim::http1(move |mut conn, _| async move {
            while !conn.read_head().await.is_empty() {
                answer_http1(&mut conn, steps).await;
            }
        });
    }
    Sim::http2(move |mut conn, _| async move {
        conn.handshake(&[]).await;
        while let Some(head) = conn.read_frame().await {
            assert_ne!(head.kind, RST_STREAM, "a stream that had ended");
            if head.kind != HEADERS {
                continue;
            }
            let fields = [(":status", "200"), ("content-type", "text/event-stream")];
            conn.headers(head.stream, &fields, false).await;
            for step in steps {
                match *step {
                    Send(text) => {
                        conn.data(head.stream, text, false).await;
                    }
                    Pause(n) => sleep(millis(n)).await,
                    Last(text) => {
                        conn.data(head.stream, text, true).await;
                    }
                    End => {
                        conn.data(head.stream, "", true).await;
                    }
                    Cut => {
                        conn.rst(head.stream, INTERNAL_ERROR).await;
                    }
                }
            }
        }
    })
}

const BOTH: [Protocols; 2] = [Protocols::Http1, Protocols::Http2PriorKnowledge];

async fn ask(client: &Client) -> Response {
    client.get("/stream").send().await.expect("an answer")
}

async fn events(sim: &Sim, protocols: Protocols) -> EventStream {
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, protocols);
    ask(&client).await.events().expect("an event stream")
}

/// The data of all events, and how it ended.
async fn collect(events: &mut EventStream) -> (Vec<String>, Option<Error>) {
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => all.push(event.data.into()),
            Err(error) => {
                assert!(events.next().await.is_none(), "nothing follows an error");
                return (all, Some(error));
            }
        }
    }
    (all, None)
}

#[tokio::test(start_paused = true)]
async fn events_are_decoded_however_the_pieces_fall() {
    const STEPS: &[Step] = &[
        Send("\u{feff}event: a\r"),
        Send("\ndata: h\u{e4}"),
        Send("lf"),
        Pause(1),
        Send("te\r\n\r\nid: 7\ndata: 1\ndata: 2\n"),
        Send("\n: alive\n\ndata: last, and not complete"),
        End,
    ];
    for protocols in BOTH {
        let mut events = events(&peer(protocols, STEPS), protocols).await;
        let mut items = Vec::new();
        while let Some(item) = events.next_item().await {
            items.push(item.unwrap());
        }
        let [
            Item::Event(first),
            Item::Event(second),
            Item::Comment(comment),
        ] = &items[..]
        else {
            panic!("{items:?}");
        };
        assert_eq!(
            (first.event.as_str(), first.data.as_str()),
            ("a", "h\u{e4}lfte")
        );
        assert_eq!(
            (second.event.as_str(), second.data.as_str()),
            ("message", "1\n2")
        );
        assert_eq!((second.id.as_str(), events.last_event_id()), ("7", "7"));
        assert_eq!(*comment, "alive");
        let timing = events.timing();
        assert_eq!((timing.events, timing.comments), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn stream_ends_before_its_last_event_and_leaves_the_connection_to_others() {
    const TOGETHER: &[Step] = &[Send("data: a\n\n"), Last("data: [DONE]\n\n")];
    const APART: &[Step] = &[Send("data: a\n\ndata: [DONE]\n\n"), Pause(1), End];
    for (protocols, steps) in BOTH.into_iter().flat_map(|p| [(p, TOGETHER), (p, APART)]) {
        let sim = peer(protocols, steps);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, protocols);
        for _ in 0..3 {
            let events = ask(&client).await.events().unwrap();
            let mut events = events.until("[DONE]");
            assert_eq!(collect(&mut events).await.0, ["a"]);
            if steps.len() == TOGETHER.len() {
                assert_eq!(pool.stats().active, 0, "given back before it is dropped");
            }
            drop(events);
            // What ends the body may be a moment behind.
            sleep(millis(2)).await;
        }
        assert_eq!(sim.dials(), 1, "{protocols:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_does_not_end_behind_its_last_event_is_not_waited_for_long() {
    const STEPS: &[Step] = &[
        Send("data: [DONE]\n\n: and more\n"),
        Pause(20),
        Send(": and more\n"),
        Pause(60_000),
    ];
    for protocols in BOTH {
        let sim = peer(protocols, STEPS);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, protocols);
        let start = tokio::time::Instant::now();
        let mut stream = ask(&client).await.events().unwrap().until("[DONE]");
        let (all, error) = collect(&mut stream).await;
        assert!(all.is_empty() && error.is_none());
        assert_eq!(start.elapsed().as_millis() / 10, 5);
        assert_eq!(pool.stats().active, 0, "it holds nothing any more");
    }
}

#[tokio::test(start_paused = true)]
async fn stream_that_was_cut_off_is_an_error_and_no_end() {
    const CUT: &[Step] = &[Send("data: a\n\ndata: b"), Pause(5), Cut];
    const SHORT: &[Step] = &[Send("data: a\n\ndata: [DO"), End];
    for protocols in BOTH {
        let mut cut = events(&peer(protocols, CUT), protocols).await;
        let (all, error) = collect(&mut cut).await;
        assert_eq!(all, ["a"]);
        let kind = error.expect("it was cut off").kind();
        let expected = if protocols == Protocols::Http1 {
            ErrorKind::Truncated
        } else {
            ErrorKind::Refused
        };
        assert_eq!(kind, expected, "{protocols:?}");

        let mut whole = events(&peer(protocols, SHORT), protocols).await;
        let (all, error) = collect(&mut whole).await;
        assert!(
            all == ["a"] && error.is_none(),
            "the standard drops what is not complete"
        );

        let short = events(&peer(protocols, SHORT), protocols).await;
        let (all, error) = collect(&mut short.until("[DONE]")).await;
        let error = error.expect("it ended too early");
        assert_eq!((all.len(), error.kind()), (1, ErrorKind::Truncated));
        assert!(error.to_string().contains("[DONE]"), "{error}");
        assert!(
            error.timing().is_some(),
            "with all that is known of the call"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn comments_do_not_count_as_events_for_who_waits_too_long() {
    const ALIVE: Step = Send(": alive\n\n");
    const STEPS: &[Step] = &[
        Send("data: a\n\n"),
        Pause(4_000),
        ALIVE,
        Pause(4_000),
        ALIVE,
        Pause(4_000),
        Send("data: too late\n\n"),
        End,
    ];
    for protocols in BOTH {
        let patient = events(&peer(protocols, STEPS), protocols).await;
        let mut patient = patient.event_timeout(millis(12_500));
        assert_eq!(collect(&mut patient).await.0, ["a", "too late"]);

        // The time that the caller takes for a comment is its own.
        let lazy = events(&peer(protocols, STEPS), protocols).await;
        let mut lazy = lazy.event_timeout(millis(9_000));
        let mut seen = 0;
        while let Some(item) = lazy.next_item().await {
            if let Item::Comment(_) = item.expect("8 s at most") {
                sleep(millis(3_500)).await;
            }
            seen += 1;
        }
        assert_eq!(seen, 4);

        let start = tokio::time::Instant::now();
        let hasty = events(&peer(protocols, STEPS), protocols).await;
        let (all, error) = collect(&mut hasty.event_timeout(millis(10_000))).await;
        let error = error.expect("nothing came");
        assert_eq!((all.len(), error.kind()), (1, ErrorKind::Timeout));
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn time_to_the_first_event_and_between_events_is_measured() {
    const STEPS: &[Step] = &[
        Pause(300),
        Send(": thinking\n\n"),
        Pause(200),
        Send("data: 1\n\ndata: 2\n\n"),
        Pause(20),
        Send("data: 3\n\n"),
        Pause(20),
        Send("data: 4\n\n"),
        Pause(160),
        Send("data: 5\n\n"),
        End,
    ];
    for protocols in BOTH {
        let mut events = events(&peer(protocols, STEPS), protocols).await;
        assert!(events.timing().first_event.is_none() && events.timing().rate().is_none());
        assert_eq!(collect(&mut events).await.0.len(), 5);
        let timing = events.timing();
        let first = timing.first_event.unwrap().as_millis();
        assert!((500..505).contains(&first), "{first}");
        assert_eq!((timing.events, timing.gaps.count()), (5, 4));
        let span = timing.span.as_millis();
        assert!((200..205).contains(&span), "{span}");
        assert!((timing.rate().unwrap() - 20.0).abs() < 0.5);
        let max = timing.gaps.max().unwrap().as_millis();
        assert!((160..163).contains(&max), "{max}");
        let middle = timing.gaps.quantile(0.75).unwrap().as_secs_f64() * 1e3;
        assert!((18.0..22.0).contains(&middle), "{middle}");
        // The first byte of the head was there long before.
        assert!(events.body().metrics().ttfb_ms.unwrap() < 100.0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_event_stream_says_what_it_is() {
    const PROBLEM: &str = "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n\
        content-length: 2\r\n\r\n{}";
    const ZIPPED: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n\
        content-length: 2\r\n\r\nzz";
    const BARE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ndata: a\n\n";
    for (text, said) in [
        (
            PROBLEM,
            &["429 Too Many Requests", "`application/json`"][..],
        ),
        (ZIPPED, &["content-encoding gzip"]),
        (BARE, &["200 OK", "``"]),
    ] {
        let sim = Sim::http1(move |mut conn, _| async move {
            while !conn.read_head().await.is_empty() {
                conn.send(text).await;
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let error = ask(&client).await.events().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        for said in said {
            assert!(error.to_string().contains(said), "{error}");
        }
        if text == BARE {
            let mut events = EventStream::new(ask(&client).await.into_body());
            assert_eq!(
                collect(&mut events).await.0,
                ["a"],
                "who knows better is believed"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn event_without_an_end_is_refused_at_its_bound() {
    const LONG: &str = "data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n";
    const STEPS: &[Step] = &[Send("data: a\n\n"), Send(LONG), Send(LONG), Send(LONG), End];
    for protocols in BOTH {
        let stream = events(&peer(protocols, STEPS), protocols).await;
        let (all, error) = collect(&mut stream.max_event_bytes(150)).await;
        assert_eq!((all.len(), error.unwrap().kind()), (1, ErrorKind::TooLarge));
    }
}

/// Comments that never end, each there as soon as it is asked for.
struct Chatter(bool, &'static [u8]);

impl AsyncRead for Chatter {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let turn = ready!(poll_proceed(cx));
        if self.0 {
            while buf.remaining() >= self.1.len() {
                buf.put_slice(self.1);
            }
        } else {
            buf.put_slice(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n");
            self.0 = true;
        }
        turn.made_progress();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Chatter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Chatters(&'static [u8]);

impl Dial for Chatters {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, std::io::Result<Transport>> {
        Box::pin(std::future::ready(Ok(Transport::custom(Chatter(
            false, self.0,
        )))))
    }
}

#[tokio::test]
async fn what_is_no_event_and_has_no_pause_does_not_put_the_event_timeout_off() {
    for text in [&b":\n"[..], b"\n", b"id: 1\n", b"x\n"] {
        let pool = firstbyte::ConnectionPool::builder().dialer(Chatters(text));
        let pool = pool.build().unwrap();
        let client = pool.client_builder("http://127.0.0.1");
        let client = client.protocols(Protocols::Http1).build().unwrap();
        let events = ask(&client).await.events().unwrap();
        let mut events = events.event_timeout(millis(100));
        let next = tokio::spawn(async move {
            let next = events.next().await;
            (next, events)
        });
        let next = tokio::time::timeout(millis(20_000), next);
        let (next, _events) = next.await.expect("in time").unwrap();
        let error = next.unwrap().unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert_eq!(pool.stats().active, 0, "it holds nothing any more");
    }
}
