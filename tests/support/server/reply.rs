//! What the server answers: a [`Reply`] is a plain value; [`ReplyBody`] plays it out.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

use super::super::gate::{Gate, Waiter};
use super::counts::ExchangeEntry;
use super::io::Written;

/// One scripted answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) delay: Duration,
    pub(super) hold: Option<Waiter>,
    pub(super) close: bool,
    chunks: VecDeque<Bytes>,
    gap: Duration,
    is_streamed: bool,
    trailers: Option<HeaderMap>,
    cut_after: Option<usize>,
}

impl Reply {
    /// # Panics
    ///
    /// If this is no status code.
    pub fn status(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).expect("a status code"),
            headers: HeaderMap::new(),
            delay: Duration::ZERO,
            hold: None,
            close: false,
            chunks: VecDeque::new(),
            gap: Duration::ZERO,
            is_streamed: false,
            trailers: None,
            cut_after: None,
        }
    }

    pub fn ok() -> Self {
        Self::status(200)
    }

    /// The whole body at once, with its length.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.chunks = VecDeque::from([body.into()]);
        self.is_streamed = false;
        self
    }

    /// Adds a header (it does not replace one of the same name).
    pub fn header(mut self, name: &str, value: &str) -> Self {
        insert(&mut self.headers, name, value);
        self
    }

    /// Waits this long before the head.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The head waits until the gate opens. This does not keep the gate closed: a clone must stay with the test.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "reads best in a chain of builders"
    )]
    pub fn hold(mut self, gate: Gate) -> Self {
        self.hold = Some(gate.waiter());
        self
    }

    /// A streamed body without a length, `gap` apart.
    pub fn chunks(mut self, chunks: Vec<Bytes>, gap: Duration) -> Self {
        self.chunks = chunks.into();
        self.gap = gap;
        self.is_streamed = true;
        self
    }

    /// Trailers after the body, which therefore has no length. (hyper's h1 sends those announced by a `trailer` header.)
    pub fn trailers(mut self, trailers: &[(&str, &str)]) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in trailers {
            insert(&mut map, name, value);
            self.headers.append(
                http::header::TRAILER,
                HeaderValue::from_str(name).expect("a header name"),
            );
        }
        self.trailers = Some(map);
        self.is_streamed = true;
        self
    }

    /// On h1 says `Connection: close` and closes; on h2 nothing happens.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// Sends this many bytes of the body and then cuts: h1 closes the connection (over TLS without close_notify), h2
    /// resets the stream. A body with a length has promised all of it.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    pub(super) fn into_body(
        self,
        entry: ExchangeEntry,
        written: Arc<Written>,
        is_head: bool,
    ) -> ReplyBody {
        let has_no_body = is_head || self.status == 204 || self.status == 304;
        let total: usize = self.chunks.iter().map(Bytes::len).sum();
        let mut chunks: VecDeque<Bytes> = self.chunks;
        if let Some(bytes) = self.cut_after {
            truncate(&mut chunks, bytes);
        }
        // Empty frames are no frames: `is_end_stream` must not wait for them.
        chunks.retain(|chunk| !chunk.is_empty());
        let mut body = ReplyBody {
            chunks,
            gap: self.gap,
            nap: None,
            length_left: (!self.is_streamed).then_some(total as u64),
            trailers: self.trailers,
            cut: self.cut_after.map(|_| Cut {
                written,
                goal: None,
            }),
            is_first: true,
            entry: Some(entry),
        };
        if has_no_body {
            // hyper leaves it to the service to send no body over HTTP/2; the length stays.
            body.chunks.clear();
            body.trailers = None;
        }
        if has_no_body || body.is_over() {
            body.finish();
        }
        body
    }
}

fn insert(map: &mut HeaderMap, name: &str, value: &str) {
    let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
    map.append(name, HeaderValue::from_str(value).expect("a header value"));
}

fn truncate(chunks: &mut VecDeque<Bytes>, mut bytes: usize) {
    for chunk in chunks {
        chunk.truncate(bytes);
        bytes -= chunk.len();
    }
}

/// A reply's body on its way out. The exchange is over in the books when this is dropped or has given its last frame.
pub(super) struct ReplyBody {
    chunks: VecDeque<Bytes>,
    gap: Duration,
    nap: Option<Pin<Box<Sleep>>>,
    length_left: Option<u64>,
    trailers: Option<HeaderMap>,
    cut: Option<Cut>,
    is_first: bool,
    entry: Option<ExchangeEntry>,
}

/// A body that ends in an error, once what it gave before is on the wire.
struct Cut {
    written: Arc<Written>,
    goal: Option<u64>,
}

impl ReplyBody {
    fn is_over(&self) -> bool {
        self.chunks.is_empty() && self.trailers.is_none() && self.cut.is_none()
    }

    fn finish(&mut self) {
        if let Some(mut entry) = self.entry.take() {
            entry.finish();
        }
    }

    fn nap(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gap.is_zero() || self.is_first {
            return Poll::Ready(());
        }
        let gap = self.gap;
        let nap = self
            .nap
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(gap)));
        ready!(nap.as_mut().poll(cx));
        self.nap = None;
        Poll::Ready(())
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if !this.chunks.is_empty() {
            ready!(this.nap(cx));
        }
        if let Some(chunk) = this.chunks.pop_front() {
            this.is_first = false;
            if let Some(left) = &mut this.length_left {
                *left -= chunk.len() as u64;
            }
            if let Some(cut) = &mut this.cut {
                cut.goal = Some(cut.written.so_far() + chunk.len() as u64);
            }
            if this.is_over() {
                this.finish();
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(cut) = &mut this.cut {
            // Without any data it is the head that must be out.
            let goal = *cut.goal.get_or_insert_with(|| cut.written.so_far() + 1);
            ready!(cut.written.poll_flushed(goal, cx));
            return Poll::Ready(Some(Err(io::Error::other("cut by the test"))));
        }
        let trailers = this.trailers.take();
        this.finish();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.length_left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
