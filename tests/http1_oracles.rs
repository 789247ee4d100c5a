//! The same response bytes, read by this crate, by hyper's client and by ureq-proto. They must agree about the status,
//! the body, whether it was whole and whether the connection may serve again; where they do not, the difference stands in
//! [`ALLOWED`] with its reason, and anything else fails. About whatever could put two readers out of step we may be
//! stricter and not laxer: rows in which we read what another refuses say why that is safe.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{ConnectionPool, Protocols};
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use ureq_proto::client::{Call, RecvBodyResult, RecvResponseResult, SendRequestResult};
use ureq_proto::{BodyMode, client::state::RecvBody};

/// Holds any response whole.
const PIPE: usize = 1 << 20;
/// Longer than anything takes on a paused clock.
const PATIENCE: Duration = Duration::from_secs(10);

/// A response on the wire, and where its writes begin.
#[derive(Clone)]
struct Case {
    method: Method,
    bytes: Vec<u8>,
    cuts: BTreeSet<usize>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `", self.method)?;
        let mut from = 0;
        for end in self.ends() {
            let piece = self.bytes[from..end].escape_ascii();
            write!(f, "{}{piece}", if from > 0 { "|" } else { "" })?;
            from = end;
        }
        write!(f, "`")
    }
}

impl Case {
    fn whole(method: &Method, bytes: impl AsRef<[u8]>) -> Self {
        Self {
            method: method.clone(),
            bytes: bytes.as_ref().to_vec(),
            cuts: BTreeSet::new(),
        }
    }

    /// Where the pieces end.
    fn ends(&self) -> impl Iterator<Item = usize> + use<'_> {
        let within = |cut: &usize| (1..self.bytes.len()).contains(cut);
        let cuts = self.cuts.iter().copied().filter(within);
        cuts.chain([self.bytes.len()])
    }

    fn pieces(&self) -> Vec<Bytes> {
        let mut from = 0;
        let piece = |end| {
            let piece = Bytes::copy_from_slice(&self.bytes[from..end]);
            from = end;
            piece
        };
        self.ends().map(piece).collect()
    }
}

/// What one implementation made of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reading {
    /// Of the final response; none if there was none.
    status: Option<u16>,
    body: Vec<u8>,
    whole: bool,
    reusable: bool,
    /// Why it is not whole, or not reusable.
    why: String,
}

/// The peer: waits for the request, sends the pieces, and the end of the connection or nothing more.
async fn feed(mut pipe: DuplexStream, pieces: Vec<Bytes>, end: bool, done: oneshot::Sender<()>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(pipe.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    for piece in pieces {
        if pipe.write_all(&piece).await.is_err() {
            return;
        }
        turns(2).await;
    }
    if end {
        let _gone = pipe.shutdown().await;
    }
    let _nobody_asks = done.send(());
    let _gone = pipe.read_to_end(&mut Vec::new()).await;
}

/// Lets everybody else have as many turns.
async fn turns(n: usize) {
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

// ---- The readers ----

/// Dials one connection.
struct Once(Mutex<Option<DuplexStream>>);

impl Dial for Once {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let pipe = self.0.lock().unwrap().take();
        Box::pin(async move {
            let pipe = pipe.ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(Transport::custom(pipe))
        })
    }
}

async fn ours(case: &Case) -> Reading {
    let mut reading = read_ours(case, true).await;
    if reading.whole {
        let open = read_ours(case, false).await;
        reading.reusable = open.whole && open.reusable;
        reading.why = open.why;
    }
    reading
}

async fn read_ours(case: &Case, end: bool) -> Reading {
    let (near, far) = tokio::io::duplex(PIPE);
    let (done, fed) = oneshot::channel();
    tokio::spawn(feed(far, case.pieces(), end, done));
    let pool = ConnectionPool::builder()
        .dialer(Once(Mutex::new(Some(near))))
        .resolve_to("sim.test", [[127, 0, 0, 1].into()])
        .build()
        .unwrap();
    let client = pool
        .client_builder("http://sim.test")
        .protocols(Protocols::Http1)
        .build()
        .unwrap();
    let mut reading = Reading::default();
    let request = client.request(case.method.clone(), "/").timeout(PATIENCE);
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => {
            reading.why = error.to_string();
            return reading;
        }
    };
    reading.status = Some(response.status().as_u16());
    loop {
        match response.chunk().await {
            Ok(Some(data)) => reading.body.extend_from_slice(&data),
            Ok(None) => break,
            Err(error) => {
                reading.why = error.to_string();
                return reading;
            }
        }
    }
    reading.whole = true;
    drop(response);
    let _gone = fed.await;
    turns(10).await;
    let stats = pool.stats();
    reading.reusable = stats.idle == 1;
    reading.why = format!("{:?}", stats.closed);
    reading
}

async fn hyper(case: &Case) -> Reading {
    let mut reading = read_hyper(case, true).await;
    if reading.whole {
        let open = read_hyper(case, false).await;
        reading.reusable = open.whole && open.reusable;
    }
    reading
}

async fn read_hyper(case: &Case, end: bool) -> Reading {
    let (near, far) = tokio::io::duplex(PIPE);
    let (done, fed) = oneshot::channel();
    tokio::spawn(feed(far, case.pieces(), end, done));
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(near)).await;
    let (mut sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(&case.method)
        .uri("/")
        .header("host", "sim.test")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut reading = Reading::default();
    let response = match timeout(PATIENCE, sender.send_request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            reading.why = format!("{error:?}");
            return reading;
        }
        Err(_) => return reading,
    };
    reading.status = Some(response.status().as_u16());
    let mut body = response.into_body();
    loop {
        match timeout(PATIENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    reading.body.extend_from_slice(&data);
                }
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                reading.why = format!("{error:?}");
                return reading;
            }
            Err(_) => return reading,
        }
    }
    reading.whole = true;
    drop(body);
    let _gone = fed.await;
    turns(10).await;
    let ready = timeout(PATIENCE, sender.ready()).await;
    reading.reusable = matches!(ready, Ok(Ok(())));
    reading
}

/// ureq-proto does no I/O: it is shown what has arrived so far.
fn ureq(case: &Case) -> Reading {
    let request = Request::builder()
        .method(&case.method)
        .uri("http://sim.test/")
        .body(())
        .unwrap();
    let mut call = Call::new(request).unwrap().proceed();
    call.write(&mut [0; 1024]).unwrap();
    let Ok(Some(SendRequestResult::RecvResponse(mut call))) = call.proceed() else {
        panic!("a request without a body is out at once");
    };
    let mut reading = Reading::default();
    let mut ends = case.ends();
    let (mut from, mut end) = (0, ends.next().unwrap_or_default());
    loop {
        match call.try_response(&case.bytes[from..end], false) {
            Err(error) => {
                reading.why = format!("{error:?}");
                return reading;
            }
            Ok((n, Some(response))) => {
                from += n;
                reading.status = Some(response.status().as_u16());
                break;
            }
            Ok((0, None)) => match ends.next() {
                Some(next) => end = next,
                None => return reading,
            },
            Ok((n, None)) => from += n,
        }
    }
    let must_close = match call.proceed() {
        None => panic!("there is a response"),
        Some(RecvResponseResult::RecvBody(mut call)) => {
            if let Err(why) = ureq_body(&mut call, case, from, end, &mut ends, &mut reading.body) {
                reading.why = why;
                return reading;
            }
            match call.proceed() {
                None => panic!("the body has ended"),
                Some(RecvBodyResult::Redirect(call)) => call.must_close_connection(),
                Some(RecvBodyResult::Cleanup(call)) => call.must_close_connection(),
            }
        }
        Some(RecvResponseResult::Redirect(call)) => call.must_close_connection(),
        Some(RecvResponseResult::Cleanup(call)) => call.must_close_connection(),
    };
    reading.whole = true;
    reading.reusable = !must_close;
    reading
}

fn ureq_body(
    call: &mut Call<RecvBody>,
    case: &Case,
    mut from: usize,
    mut end: usize,
    ends: &mut impl Iterator<Item = usize>,
    body: &mut Vec<u8>,
) -> Result<(), String> {
    let mut out = [0; 4096];
    let until_close = call.body_mode() == BodyMode::CloseDelimited;
    loop {
        let read = call.read(&case.bytes[from..end], &mut out);
        let (n, written) = read.map_err(|error| format!("{error:?}"))?;
        from += n;
        body.extend_from_slice(&out[..written]);
        if !until_close && call.can_proceed() {
            return Ok(());
        }
        if n == 0 && written == 0 {
            match ends.next() {
                Some(next) => end = next,
                None if until_close => return Ok(()),
                None => return Err("the end of the connection".into()),
            }
        }
    }
}

// ---- The differences ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum Oracle {
    Hyper,
    Ureq,
}
use Oracle::{Hyper, Ureq};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// They have a response and we have none.
    WeRefuse,
    /// We have a response and they have none.
    TheyRefuse,
    /// Another status.
    Status,
    /// They have all of the body and we have not.
    WeBreak,
    /// We have all of the body and they have not.
    TheyBreak,
    /// Another body.
    Body,
    /// They use the connection again and we do not.
    WeClose,
    /// We use the connection again and they do not.
    TheyClose,
}
use Kind::{Body, TheyBreak, TheyClose, TheyRefuse, WeBreak, WeClose, WeRefuse};

/// A difference that is meant.
struct Allowed {
    by: &'static [Oracle],
    kinds: &'static [Kind],
    /// A part of what we say about it, and a part of what they say.
    ours: &'static str,
    theirs: &'static str,
    /// What the response, and our reading of it, must look like.
    only: fn(&Case, &Reading) -> bool,
    #[expect(dead_code, reason = "it is for whoever reads the table")]
    because: &'static str,
}

const BOTH: &[Oracle] = &[Hyper, Ureq];
/// Two readers that see two ends of a body can differ in all that follows from it.
const ANY_END: &[Kind] = &[Body, WeBreak, TheyBreak, WeClose, TheyClose];

const ALLOWED: &[Allowed] = &[
    // ---- We are stricter with heads.
    Allowed {
        by: BOTH,
        kinds: &[WeRefuse],
        ours: "the answer is not HTTP/1",
        theirs: "",
        only: any,
        because: "Empty lines may stand before a request (RFC 9112 §2.2) and not before a response.",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeRefuse],
        ours: "no upgrade was asked for",
        theirs: "",
        only: any,
        because: "Nobody asked to switch (RFC 9110 §15.2.2), so what follows is of no known protocol.",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeRefuse],
        ours: "too many informational responses",
        theirs: "",
        only: any,
        because: "They could go on for ever (RFC 9110 §15.2 knows no end); 32 are more than anybody sends.",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeRefuse],
        ours: "more than 65536 bytes",
        theirs: "",
        only: any,
        because: "A head is bounded to 64 KiB (RFC 9110 §5.4 leaves the bound to the recipient).",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeRefuse],
        ours: "transfer-encoding is not valid",
        theirs: "",
        only: has_coding,
        because: "Chunked is applied once and last (RFC 9112 §6.1, §6.3 rule 4).",
    },
    // ---- We are stricter with bodies.
    Allowed {
        by: BOTH,
        kinds: &[WeBreak],
        ours: "chunk size is not hexadecimal",
        theirs: "",
        only: has_coding,
        because: "A size is 1*HEXDIG without space or sign (RFC 9112 §7.1).",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeBreak],
        ours: "chunk size has too many digits",
        theirs: "",
        only: has_coding,
        because: "More than sixteen digits are no size, leading zeros or not (RFC 9112 §7.1 asks for care here).",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeBreak],
        ours: "chunk extension holds a control byte",
        theirs: "",
        only: has_coding,
        because: "Extensions are tokens and quoted strings (RFC 9112 §7.1.1).",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeBreak],
        ours: "trailers are malformed",
        theirs: "",
        only: has_coding,
        because: "Trailers are field lines (RFC 9112 §7.1.2), here at most 64; ureq-proto skips them unread.",
    },
    Allowed {
        by: &[Ureq],
        kinds: &[WeBreak],
        ours: "trailers are too large",
        theirs: "",
        only: has_coding,
        because: "ureq-proto skips trailers without a bound.",
    },
    // ---- We are stricter with the next request.
    Allowed {
        by: BOTH,
        kinds: &[WeClose],
        ours: "PeerAskedToClose",
        theirs: "",
        only: has_both,
        because: "Who sends both framings is not trusted with a second response (RFC 9112 §6.3 rule 3).",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeClose],
        ours: "PeerAskedToClose",
        theirs: "",
        only: |case, _| has(case, b"\nconnection:") && has_obs_text(case),
        because: "They overlook a `close` beside bytes that are not ASCII (RFC 9112 §9.3).",
    },
    Allowed {
        by: BOTH,
        kinds: &[WeClose],
        ours: "LearnedLimit",
        theirs: "",
        only: |case, _| has(case, b"\nkeep-alive:"),
        because: "`Keep-Alive: max=0` and `timeout=0` are believed (RFC 2068 §19.7.1.1); they do not read the field.",
    },
    Allowed {
        by: &[Ureq],
        kinds: &[WeClose],
        ours: "UnsolicitedBytes",
        theirs: "",
        only: any,
        because: "ureq-proto leaves the bytes behind a response to its caller.",
    },
    // ---- We read what another refuses: nothing that could put anybody out of step.
    Allowed {
        by: &[Hyper],
        kinds: &[TheyRefuse],
        ours: "",
        theirs: "TooLarge",
        only: |case, _| has(case, b"1844674407370955161"),
        because: "hyper keeps the greatest lengths for itself; nobody sends so much.",
    },
    Allowed {
        by: &[Hyper],
        kinds: &[TheyRefuse],
        ours: "",
        theirs: "TooLarge",
        only: |case, _| case.bytes.split(|byte| *byte == b'\n').count() > 100,
        because: "hyper takes 100 fields, we 128.",
    },
    Allowed {
        by: &[Hyper],
        kinds: &[TheyRefuse],
        ours: "",
        theirs: "TransferEncoding",
        only: |case, ours| is_http10(case) && !ours.reusable,
        because: "HTTP/1.0 knows no such framing: the message is read and the connection ends with it (RFC 9112 §6.1).",
    },
    Allowed {
        by: &[Ureq],
        kinds: &[TheyRefuse],
        ours: "",
        theirs: "HeadersWith100",
        only: any,
        because: "Any 1xx may have fields (RFC 9110 §15.2); they are skipped with it.",
    },
    Allowed {
        by: &[Ureq],
        kinds: &[TheyRefuse],
        ours: "",
        theirs: "ContentLengthHeader",
        only: is_length_moot,
        because: "A length that decides nothing is not looked at: there is no content (RFC 9112 §6.3 rule 1), or it is \
                  overridden and costs the connection (rule 3).",
    },
    Allowed {
        by: &[Ureq],
        kinds: &[TheyBreak],
        ours: "",
        theirs: "ChunkExpectedCrLf",
        only: |case, _| has_coding(case, &Reading::default()) && has(case, b";"),
        because: "Extensions are to be ignored (RFC 9112 §7.1.1): we give up beyond 16 KiB, ureq-proto beyond 20 bytes.",
    },
    Allowed {
        by: &[Hyper],
        kinds: &[TheyBreak],
        ours: "",
        theirs: "TooManyHeaders",
        only: has_coding,
        because: "A line may end in LF alone (RFC 9112 §2.2), also a trailer; hyper counts them by CRLF. The section ends \
                  in CRLF CRLF for both.",
    },
    // ---- Another end of the body.
    Allowed {
        by: &[Ureq],
        kinds: ANY_END,
        ours: "",
        theirs: "",
        only: |case, ours| is_http10(case) && has_coding(case, ours) && !ours.reusable,
        because: "ureq-proto overlooks Transfer-Encoding in HTTP/1.0; we end the connection (RFC 9112 §6.1).",
    },
    Allowed {
        by: &[Ureq],
        kinds: ANY_END,
        ours: "",
        theirs: "",
        only: |case, ours| is_never_chunked(case) && has_both(case, ours) && !ours.reusable,
        because: "Transfer-Encoding overrides a length also where it is not chunked (RFC 9112 §6.3 rules 3 and 4).",
    },
];

fn any(_: &Case, _: &Reading) -> bool {
    true
}

fn has(case: &Case, part: &[u8]) -> bool {
    let lower = case.bytes.to_ascii_lowercase();
    lower.windows(part.len()).any(|window| window == part)
}

/// The values of a field in the heads, one by one.
fn values(case: &Case, name: &[u8]) -> Vec<Vec<u8>> {
    let lower = case.bytes.to_ascii_lowercase();
    let (mut values, mut is_interim) = (Vec::new(), false);
    for line in lower.split(|byte| *byte == b'\n') {
        if let Some(status) = line.strip_prefix(b"http/1.") {
            is_interim = status.get(2) == Some(&b'1');
        } else if let Some((own, value)) = split_once(line)
            && own == name
        {
            let list = value.split(|byte| *byte == b',');
            values.extend(list.map(|value| value.trim_ascii().to_vec()));
        } else if line.trim_ascii().is_empty() && !is_interim {
            break;
        }
    }
    values
}

fn split_once(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((&line[..colon], &line[colon + 1..]))
}

fn has_coding(case: &Case, _: &Reading) -> bool {
    !values(case, b"transfer-encoding").is_empty()
}

fn has_both(case: &Case, ours: &Reading) -> bool {
    has_coding(case, ours) && !values(case, b"content-length").is_empty()
}

fn has_obs_text(case: &Case) -> bool {
    case.bytes.iter().any(|byte| *byte >= 0x80)
}

fn is_http10(case: &Case) -> bool {
    has(case, b"http/1.0 ")
}

fn is_never_chunked(case: &Case) -> bool {
    let codings = values(case, b"transfer-encoding");
    codings.iter().all(|coding| coding != b"chunked")
}

fn is_length_moot(case: &Case, ours: &Reading) -> bool {
    let has_no_content = |status| matches!(status, 204 | 304);
    let of_1xx = [&b"http/1.1 1"[..], b"http/1.0 1"];
    case.method == Method::HEAD
        || ours.status.is_some_and(has_no_content)
        || of_1xx.iter().any(|start| has(case, start))
        || (has_coding(case, ours) && !ours.reusable)
}

fn kind_of(ours: &Reading, theirs: &Reading) -> Option<Kind> {
    match (ours.status, theirs.status) {
        (None, None) => return None,
        (None, Some(_)) => return Some(WeRefuse),
        (Some(_), None) => return Some(TheyRefuse),
        (Some(a), Some(b)) if a != b => return Some(Kind::Status),
        _ => {}
    }
    match (ours.whole, theirs.whole) {
        (false, true) => return Some(WeBreak),
        (true, false) => return Some(TheyBreak),
        (true, true) if ours.body != theirs.body => return Some(Body),
        // What came before the break may have been handed over or not.
        (false, false)
            if !ours.body.starts_with(&theirs.body) && !theirs.body.starts_with(&ours.body) =>
        {
            return Some(Body);
        }
        _ => {}
    }
    match (ours.reusable, theirs.reusable) {
        (false, true) => Some(WeClose),
        (true, false) => Some(TheyClose),
        _ => None,
    }
}

/// Which row allows the difference; none if there is no difference.
fn judge(
    case: &Case,
    oracle: Oracle,
    ours: &Reading,
    theirs: &Reading,
) -> Result<Option<usize>, String> {
    let Some(kind) = kind_of(ours, theirs) else {
        return Ok(None);
    };
    let row = ALLOWED.iter().position(|row| {
        row.by.contains(&oracle)
            && row.kinds.contains(&kind)
            && ours.why.contains(row.ours)
            && theirs.why.contains(row.theirs)
            && (row.only)(case, ours)
    });
    row.map(Some).ok_or_else(|| {
        format!("{oracle:?} {kind:?}\n   {case:?}\n   ours   {ours:?}\n   theirs {theirs:?}")
    })
}

/// The rows that were needed, or all that is wrong.
async fn compare(case: &Case) -> Result<Vec<usize>, String> {
    let ours = ours(case).await;
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for (oracle, theirs) in [(Hyper, hyper(case).await), (Ureq, ureq(case))] {
        match judge(case, oracle, &ours, &theirs) {
            Ok(row) => rows.extend(row),
            Err(why) => wrong.push(why),
        }
    }
    if wrong.is_empty() {
        Ok(rows)
    } else {
        Err(wrong.join("\n"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

// ---- The responses ----

/// Complete responses and beginnings of them, good ones and bad ones.
fn corpus() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |bytes: Vec<u8>| cases.push(Case::whole(&Method::GET, bytes));
    for line in [
        &b"HTTP/1.1 200 OK"[..],
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 404 Not Found",
        b"HTTP/1.1 500 caf\xe9",
        b"HTTP/1.1 302 Found",
        b"HTTP/1.1 999 X",
        b"HTTP/1.1 600 X",
        b"HTTP/1.1 099 X",
        b"HTTP/1.1 000 X",
        b"HTTP/1.1 20 X",
        b"HTTP/1.1 2000 X",
        b"HTTP/1.1 2x0 X",
        b"HTTP/1.1 +20 X",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 200\tOK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 O\x1bK",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 OK\r",
        b"HTTP/1.1",
        b"HTTP/1.2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.10 200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b"<html>",
        b"\r\nHTTP/1.1 200 OK",
        b"\n\n\r\nHTTP/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/1.1 205 Reset Content",
        b"HTTP/1.1 426 Upgrade Required\r\nupgrade: h2c\r\nconnection: upgrade",
    ] {
        for end in ["\r\n", "\n"] {
            let rest = format!("{end}content-length: 2{end}{end}ok");
            add([line, rest.as_bytes()].concat());
        }
    }
    for field in [
        &b"a:b"[..],
        b"a:",
        b"a: caf\xe9",
        b"a : b",
        b"a\t: b",
        b": b",
        b"a b: c",
        b"no colon",
        b" a: b",
        b"a: b\r\n c",
        b"a: b\r\n\tc",
        b"a: b\r\n \r\nd: e",
        b"a: b\0",
        b"a: b\x01",
        b"a: b\x7f",
        b"a: b\rc",
        b"a: b\r",
        b"\ra: b",
        b"a\0: b",
        b"n\xe4: b",
        b"a(: b",
        b"connection: close",
        b"connection: Close, x",
        b"connection: keep-alive",
        b"connection: keep-alive\r\nconnection: close",
        b"connection: close\r\nconnection: keep-alive",
        b"connection: closed",
        b"connection: content-length",
        b"connection: \xff, close",
        b"connection: upgrade\r\nupgrade: h2c",
        b"proxy-connection: close",
        b"trailer: x",
        b"content-encoding: gzip",
        b"location: http://elsewhere.test/",
        b"set-cookie: a=b\r\nset-cookie: c=d",
        b"date: never",
    ] {
        add([
            b"HTTP/1.1 200 OK\r\n",
            field,
            b"\r\ncontent-length: 2\r\n\r\nok",
        ]
        .concat());
        add([
            b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n",
            field,
            b"\r\n\r\nok",
        ]
        .concat());
    }
    for value in [
        "0",
        "5",
        " 5 ",
        "05",
        "00000000000000000000005",
        "5, 5",
        "5,5",
        "5 , 05",
        "5, 6",
        "5,",
        ",5",
        "5,,5",
        "",
        " ",
        "-5",
        "+5",
        "0x5",
        "5.0",
        "5 5",
        "5;",
        "five",
        "9223372036854775808",
        "18446744073709551613",
        "18446744073709551614",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999",
        "5\r\ncontent-length: 5",
        "5\r\ncontent-length: 6",
        "5\r\nContent-Length:",
        "5\u{a0}",
        "4",
        "6",
        "1000",
    ] {
        add(format!("HTTP/1.1 200 OK\r\ncontent-length: {value}\r\n\r\nhello").into_bytes());
    }
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    for coding in [
        "chunked",
        "Chunked",
        " chunked ",
        "gzip, chunked",
        "identity, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked, identity",
        "identity",
        "gzip",
        "chunkedchunked",
        "xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunked,",
        ",chunked",
        "gzip,,chunked",
        "",
        ",",
        "chunked gzip",
        "\u{e9}, chunked",
        "chunked, \u{e9}",
        "gzip\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: gzip",
        "chunked\r\ntransfer-encoding: chunked",
    ] {
        for (version, more) in [
            ("1.1", ""),
            ("1.1", "content-length: 5\r\n"),
            ("1.0", "connection: keep-alive\r\n"),
            ("1.0", "content-length: 5\r\n"),
        ] {
            let head =
                format!("HTTP/{version} 200 OK\r\ntransfer-encoding: {coding}\r\n{more}\r\n");
            add(format!("{head}{chunked}").into_bytes());
        }
    }
    for length in ["x", "5, 6", "18446744073709551615"] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n");
        add(format!("{head}transfer-encoding: chunked\r\n\r\n{chunked}").into_bytes());
    }
    let long = "x".repeat(40);
    let extension = "x".repeat(17_000);
    let zeros = "0".repeat(20);
    let trailers: String = (0..70).map(|n| format!("x-{n}: y\r\n")).collect();
    for chunks in [
        "0\r\n\r\n",
        "00\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n",
        "5\r\nhel",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n0\r\n\r",
        "",
        "5",
        "5\r",
        "1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
        "A\r\n0123456789\r\n0\r\n\r\n",
        "a\r\n0123456789\r\n0\r\n\r\n",
        "05\r\nhello\r\n0\r\n\r\n",
        "0000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0 \r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "g\r\n",
        "5\nhello\n0\n\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5;a\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0;c\r\n\r\n",
        "5; a = \"b\"\r\nhello\r\n0\r\n\r\n",
        "5 ;a\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "5;a\x01\r\nhello\r\n0\r\n\r\n",
        "5;\u{e9}\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello",
        "ffffffffffffffff\r\nhello",
        "fffffffffffffffff\r\nhello",
        "7fffffffffffffff\r\nhello",
        "0\r\na: b\r\n\r\n",
        "0\r\na: b\r\nc: d\r\n\r\n",
        "0\r\na: b\r\n",
        "0\r\na: b\n\r\n",
        "0\r\na: b\n\r\n\r\n",
        "0\r\na: b\n\n",
        "0\r\na: b\nc: d\r\n\r\n",
        "0\r\n\n\r\n\r\n",
        "0\r\na: b\r\n c\r\n\r\n",
        "0\r\na b\r\n\r\n",
        "0\r\n: b\r\n\r\n",
        "0\r\na : b\r\n\r\n",
        "0\r\na: b\0\r\n\r\n",
        "0\r\na: b\rc\r\n\r\n",
        "0\r\na\r\n\r\n",
        "0\r\n \r\n\r\n",
        "0\r\n\ra: b\r\n\r\n",
        "0\r\n\u{e9}: b\r\n\r\n",
        "0\r\na: \u{e9}\r\n\r\n",
        "0\r\ncontent-length: 5\r\n\r\n",
        "0\r\ntransfer-encoding: gzip\r\nhost: x\r\n\r\n",
        &format!("5;{long}\r\nhello\r\n0\r\n\r\n"),
        &format!("5;{extension}\r\nhello\r\n0\r\n\r\n"),
        &format!("{zeros}5\r\nhello\r\n0\r\n\r\n"),
        &format!("0\r\n{trailers}\r\n"),
        &format!("0\r\nx: {extension}\r\n\r\n"),
        &format!("0\r\nx: {long}\r\n\r\n"),
    ] {
        add(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}").into_bytes());
    }
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let fields = |n: usize| -> String { (0..n).map(|n| format!("x-{n}: y\r\n")).collect() };
    for text in [
        "",
        "H",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r",
        "\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\nuntil the end",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 204 X\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 204 X\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.0 204 X\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
        "HTTP/1.1 304 X\r\ncontent-length: 5, 6\r\n\r\n",
        "HTTP/1.1 304 X\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.1 304 X\r\n\r\nexcess",
        "HTTP/1.1 205 X\r\n\r\n",
        "HTTP/1.1 205 X\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n\r\n",
        &format!("HTTP/1.1 100 Continue\r\n\r\n{ok}"),
        &format!("HTTP/1.1 100 Continue\r\n\r\n\r\n{ok}"),
        &format!("HTTP/1.1 100 X\r\na: b\r\n\r\n{ok}"),
        &format!("HTTP/1.1 102 X\r\n\r\n{ok}"),
        &format!("HTTP/1.1 103 X\r\nlink: </a>\r\n\r\n{ok}"),
        &format!("HTTP/1.1 199 X\r\ncontent-length: 2\r\n\r\n{ok}"),
        &format!("HTTP/1.1 103 X\r\ncontent-length: x\r\n\r\n{ok}"),
        &format!("HTTP/1.1 103 X\r\ncontent-length: 5, 6\r\ntransfer-encoding: gzip\r\n\r\n{ok}"),
        &format!("HTTP/1.0 100 X\r\n\r\n{ok}"),
        &format!("HTTP/1.1 103 X\r\nconnection: close\r\n\r\n{ok}"),
        &format!("{}{ok}", "HTTP/1.1 102 X\r\n\r\n".repeat(32)),
        &format!("{}{ok}", "HTTP/1.1 102 X\r\n\r\n".repeat(33)),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 X\r\n\r\nbytes",
        &format!("HTTP/1.1 103 X\r\n\r\nHTTP/1.1 101 X\r\n\r\n{ok}"),
        &format!("{ok}{ok}"),
        &format!("{ok}\r\n"),
        &format!("{ok}x"),
        &format!("{ok}\0"),
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nx",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\n\r\nx",
        "HTTP/1.1 302 Found\r\nlocation: /a\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: /a\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: /a\r\n",
        "HTTP/1.1 401 X\r\nwww-authenticate: Basic\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=5, max=0\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nkeep-alive: timeout=5, max=100\r\ncontent-length: 0\r\n\r\n",
        &format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
            fields(99)
        ),
        &format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
            fields(100)
        ),
        &format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
            fields(127)
        ),
        &format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
            fields(128)
        ),
        &format!(
            "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok",
            "y".repeat(60_000)
        ),
        &format!(
            "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok",
            "y".repeat(66_000)
        ),
        &format!("HTTP/1.1 200 {long}\r\ncontent-length: 2\r\n\r\nok"),
    ] {
        add(text.as_bytes().to_vec());
    }
    for text in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
    ] {
        cases.push(Case::whole(&Method::HEAD, text));
    }
    cases
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, &'static [u8]),
    Remove(Index),
    RepeatLine(Index),
    RemoveLine(Index),
    MoveLine(Index, Index),
    Cut(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let bytes: &[&[u8]] = &[
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\r\n",
        b"\0",
        b" ",
        b"\t",
        b",",
        b";",
        b":",
        b"0",
        b"5",
        b"\x7f",
        b"\xe9",
        b"chunked",
        b", chunked",
        b"close",
        b"HTTP/1.1 100 X\r\n\r\n",
        b"content-length: 1\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: close\r\n",
        b"0\r\n\r\n",
    ];
    prop_oneof![
        1 => (any_index(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        1 => (any_index(), proptest::num::u8::ANY).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        4 => (any_index(), select(bytes)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => any_index().prop_map(Mutation::Remove),
        1 => any_index().prop_map(Mutation::RepeatLine),
        1 => any_index().prop_map(Mutation::RemoveLine),
        1 => (any_index(), any_index()).prop_map(|(from, to)| Mutation::MoveLine(from, to)),
        1 => any_index().prop_map(Mutation::Cut),
    ]
}

fn any_index() -> impl Strategy<Value = Index> {
    proptest::prelude::any::<Index>()
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let len = bytes.len();
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect()
    };
    match mutation {
        Mutation::Insert(at, new) => {
            let at = at.index(len + 1);
            bytes.splice(at..at, new.iter().copied());
        }
        _ if len == 0 => {}
        Mutation::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
        Mutation::Set(at, byte) => bytes[at.index(len)] = *byte,
        Mutation::Remove(at) => {
            bytes.remove(at.index(len));
        }
        Mutation::Cut(at) => bytes.truncate(at.index(len)),
        Mutation::RepeatLine(at) => {
            let mut all = lines(bytes);
            let at = at.index(all.len());
            all.insert(at, all[at].clone());
            *bytes = all.concat();
        }
        Mutation::RemoveLine(at) => {
            let mut all = lines(bytes);
            all.remove(at.index(all.len()));
            *bytes = all.concat();
        }
        Mutation::MoveLine(from, to) => {
            let mut all = lines(bytes);
            let line = all.remove(from.index(all.len()));
            all.insert(to.index(all.len() + 1), line);
            *bytes = all.concat();
        }
    }
}

// ---- The tests ----

#[test]
fn three_readers_agree_about_every_response_or_the_difference_is_meant() {
    let corpus = corpus();
    assert!(corpus.len() > 400, "{} responses", corpus.len());
    let (mut used, mut wrong) = (BTreeSet::new(), Vec::new());
    runtime().block_on(async {
        for case in corpus {
            match compare(&case).await {
                Ok(rows) => used.extend(rows),
                Err(why) => wrong.push(why),
            }
        }
    });
    let n = wrong.len();
    assert!(wrong.is_empty(), "{n} times:\n{}", wrong.join("\n"));
    let unused: Vec<_> = (0..ALLOWED.len()).filter(|n| !used.contains(n)).collect();
    assert!(unused.is_empty(), "rows that allow nothing: {unused:?}");
}

#[test]
fn every_response_is_read_the_same_however_it_arrives() {
    runtime().block_on(async {
        for whole in corpus().into_iter().filter(|case| case.bytes.len() < 300) {
            let expected = ours(&whole).await;
            let all = 1..whole.bytes.len();
            let halves = [whole.bytes.len() / 2].into_iter().collect();
            for cuts in [all.clone().collect(), all.step_by(7).collect(), halves] {
                let case = Case {
                    cuts,
                    ..whole.clone()
                };
                assert_same(&case, &expected, &ours(&case).await);
                compare(&case).await.expect("the difference is meant");
            }
        }
    });
}

/// Apart from the words of an error: an early part may show one fault before another is seen.
fn assert_same(case: &Case, whole: &Reading, cut: &Reading) {
    let of = |reading: &Reading| {
        let Reading {
            status,
            body,
            whole,
            reusable,
            ..
        } = reading.clone();
        (status, body, whole, reusable)
    };
    assert_eq!(
        of(whole),
        of(cut),
        "{case:?}: {} and {}",
        whole.why,
        cut.why
    );
}

#[test]
fn mutated_responses_are_read_alike_or_the_difference_is_meant() {
    let corpus: Vec<_> = corpus()
        .into_iter()
        .filter(|case| case.bytes.len() < 300)
        .collect();
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    let mut runner = TestRunner::new(Config {
        cases: cases.unwrap_or(2_000),
        failure_persistence: None,
        ..Config::default()
    });
    let runtime = runtime();
    let strategy = (
        select(corpus),
        vec(mutation(), 0..4),
        vec(any_index(), 0..3),
    );
    let tested = runner.run(&strategy, |(mut case, mutations, cuts)| {
        for mutation in &mutations {
            mutate(&mut case.bytes, mutation);
        }
        let whole = case.clone();
        let at = |cut: &Index| cut.index(case.bytes.len() + 1);
        case.cuts = cuts.iter().map(at).collect();
        let compared = runtime.block_on(async {
            assert_same(&case, &ours(&whole).await, &ours(&case).await);
            compare(&case).await
        });
        prop_assert!(compared.is_ok(), "{}", compared.unwrap_err());
        Ok(())
    });
    if let Err(failed) = tested {
        panic!("{failed}");
    }
}
