//! What the server has seen so far: the truth that the client's own statistics are held against.

use std::sync::Arc;

use tokio::sync::watch;

/// A snapshot of the server's books.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub connections_accepted: usize,
    pub connections_open: usize,
    /// TLS handshakes that went the whole way (with or without a HelloRetryRequest).
    pub tls_full: usize,
    pub tls_resumed: usize,
    /// Handshakes that ended in an alert or a closed connection; not those that the server itself cut.
    pub tls_failed: usize,
    /// Bytes that came as early data.
    pub early_bytes: usize,
    /// Request heads seen.
    pub requests: usize,
    /// Requests whose body did not arrive whole.
    pub request_bodies_failed: usize,
    /// Responses handed over to their last byte.
    pub responses_finished: usize,
    /// Responses given up before that: the client went away, reset the stream, or the server was told to cut.
    pub responses_dropped: usize,
    /// Exchanges between the head of the request and the end of the response, on all connections together.
    pub streams_open: usize,
    pub max_streams_open: usize,
    /// In the order of accept.
    pub requests_per_connection: Vec<usize>,
    pub h1_connections: usize,
    pub h2_connections: usize,
}

/// The books themselves; every change wakes those who wait for a count.
#[derive(Clone)]
pub(super) struct Books {
    counts: Arc<watch::Sender<Counts>>,
}

impl Books {
    pub(super) fn new() -> Self {
        Self {
            counts: Arc::new(watch::Sender::new(Counts::default())),
        }
    }

    pub(super) fn snapshot(&self) -> Counts {
        self.counts.borrow().clone()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    pub(super) async fn wait(&self, reached: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.counts.subscribe();
        let found = counts.wait_for(reached).await;
        found.expect("the books are ours and still open").clone()
    }

    /// Opens the entry of one more connection.
    pub(super) fn connection(&self) -> ConnectionEntry {
        let mut index = 0;
        self.note(|counts| {
            index = counts.connections_accepted;
            counts.connections_accepted += 1;
            counts.connections_open += 1;
            counts.requests_per_connection.push(0);
        });
        ConnectionEntry {
            books: self.clone(),
            index,
        }
    }

    /// Opens the entry of one more exchange on connection `index`.
    pub(super) fn exchange(&self, index: usize) -> ExchangeEntry {
        self.note(|counts| {
            counts.requests += 1;
            counts.requests_per_connection[index] += 1;
            counts.streams_open += 1;
            counts.max_streams_open = counts.max_streams_open.max(counts.streams_open);
        });
        ExchangeEntry {
            books: self.clone(),
            is_finished: false,
        }
    }
}

/// One accepted connection; closed in the books when dropped.
pub(super) struct ConnectionEntry {
    books: Books,
    pub(super) index: usize,
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.books.note(|counts| counts.connections_open -= 1);
    }
}

/// One exchange; when dropped it counts as finished or as dropped, whichever it came to.
pub(super) struct ExchangeEntry {
    books: Books,
    is_finished: bool,
}

impl ExchangeEntry {
    pub(super) fn finish(&mut self) {
        self.is_finished = true;
    }
}

impl Drop for ExchangeEntry {
    fn drop(&mut self) {
        self.books.note(|counts| {
            counts.streams_open -= 1;
            match self.is_finished {
                true => counts.responses_finished += 1,
                false => counts.responses_dropped += 1,
            }
        });
    }
}
