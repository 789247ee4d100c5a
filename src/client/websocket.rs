//! WebSocket sessions over the pool's connections.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::connection::ConnectionInfo;
use crate::error::{Error, ReplaySafety};
use crate::metrics::StepMetrics;
use crate::sync::lock;
use crate::timing::RequestTiming;
use crate::websocket::{CloseFrame, Handshake, Message, Session, SessionOptions};

use super::options::Timeouts;
use super::provider_client::Client;
use super::request::RequestBuilder;
use super::response_body::TimingHandle;
use super::upgraded::Upgraded;

impl Client {
    /// A WebSocket at `path`, which is appended to the path of the base URL, or at an absolute URL of the same origin
    /// (`wss:` and `ws:` stand for `https:` and `http:`).
    ///
    /// Over a connection that speaks HTTP/2 it is one of its streams, beside other requests, and costs no handshake
    /// (RFC 8441). Where the server does not take it so, which is remembered for ten minutes, or speaks HTTP/1.1, a
    /// connection is switched (RFC 6455): it counts under the pool's limits until the session ends.
    ///
    /// ```no_run
    /// # async fn talk(client: firstbyte::Client) -> Result<(), firstbyte::Error> {
    /// let mut socket = client.websocket("/live").connect().await?;
    /// socket.send("hello").await?;
    /// while let Some(message) = socket.next().await {
    ///     println!("{:?}", message?.as_text());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn websocket(&self, path: impl AsRef<str>) -> WebSocketBuilder {
        let path = path.as_ref();
        let as_http = [("wss://", "https://"), ("ws://", "http://")];
        let absolute = as_http.into_iter().find_map(|(from, to)| {
            let start = path.get(..from.len())?;
            let rest = &path[from.len()..];
            start
                .eq_ignore_ascii_case(from)
                .then(|| format!("{to}{rest}"))
        });
        let path = absolute.as_deref().unwrap_or(path);
        WebSocketBuilder {
            request: RequestBuilder::new(self.core.clone(), Method::GET, path),
            subprotocols: Vec::new(),
            options: SessionOptions::default(),
        }
    }
}

/// A WebSocket to be opened. A mistake in any step is told by [`connect`](Self::connect).
#[must_use = "nothing is opened until it connects"]
pub struct WebSocketBuilder {
    request: RequestBuilder,
    subprotocols: Vec<String>,
    options: SessionOptions,
}

impl fmt::Debug for WebSocketBuilder {
    /// Without the names of subprotocols, in which some services want a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketBuilder")
            .field("request", &self.request)
            .field("subprotocols", &self.subprotocols.len())
            .field("options", &self.options)
            .finish()
    }
}

impl WebSocketBuilder {
    /// Adds a header to the handshake; the first one of a name replaces the client's.
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName>,
        V: TryInto<HeaderValue>,
    {
        self.request = self.request.header(name, value);
        self
    }

    /// Sets headers of the handshake; each name replaces what was there.
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.request = self.request.headers(headers);
        self
    }

    /// Sets `authorization: Bearer <token>`.
    pub fn bearer_auth(mut self, token: impl AsRef<str>) -> Self {
        self.request = self.request.bearer_auth(token);
        self
    }

    /// Appends to the query, form-encoded.
    pub fn query<K, V>(mut self, pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<String>,
        V: Into<String>,
    {
        self.request = self.request.query(pairs);
        self
    }

    /// Bounds the opening, from the call of [`connect`](Self::connect) to the server's answer; not the session.
    pub fn timeout(mut self, total: Duration) -> Self {
        self.request = self.request.timeout(total);
        self
    }

    /// Sets all timeouts of the opening. Where neither they nor the client's have a `first_byte` or a `total`, the server may
    /// take 10 s for its answer.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.request = self.request.timeouts(timeouts);
        self
    }

    /// Asks for one of these subprotocols, the preferred one first. Which one the server has chosen, if any, says
    /// [`WebSocket::subprotocol`]; one that was not asked for fails the handshake.
    pub fn subprotocols<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.subprotocols.extend(names.into_iter().map(Into::into));
        self
    }

    /// The longest message that is taken. A longer one ends the session (1009, kind TooLarge), before room is made for it if
    /// it is one frame; no more than three times as much is ever held. Default 16 MiB.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.options.max_message_bytes = bytes;
        self
    }

    /// After how long a silence of the server it is asked, with a ping, whether it is there; `None` for never. Default
    /// 20 s, below the idle timeouts of most proxies. Only while a message is waited for.
    pub fn ping_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.options.ping_interval = interval.into();
        self
    }

    /// For how long nothing may come from the server behind a ping; then the session is over, kind Timeout. A ping that
    /// stands behind a long message has time for as long as that moves. Default 20 s.
    pub fn ping_timeout(mut self, limit: Duration) -> Self {
        self.options.ping_timeout = limit;
        self
    }

    /// For how long the server may take to answer a Close. Default 5 s.
    pub fn close_timeout(mut self, limit: Duration) -> Self {
        self.options.close_timeout = limit;
        self
    }

    /// Says whether the opening may be made twice, if a connection that was idle turns out to be lost. By default it may, as
    /// any GET; where the server takes the same token only once it may not.
    pub fn idempotent(mut self, yes: bool) -> Self {
        self.request = self.request.idempotent(yes);
        self
    }

    /// Opens it.
    ///
    /// Dropping the future gives back whatever it held, as with [`RequestBuilder::send`].
    ///
    /// # Errors
    /// Whatever [`RequestBuilder::send`] fails with. Status: the server refused, and [`Error::status`] says how; it may
    /// be worth trying again for 429 and 503. Protocol: its answer is none to this handshake (RFC 6455 §4.1).
    /// Unsupported: it takes no WebSockets over HTTP/2, and the client's protocols allow nothing else.
    pub async fn connect(self) -> Result<WebSocket, Error> {
        let handshake = Handshake::new(self.subprotocols);
        let handshake = handshake.map_err(|error| self.request.describe(error))?;
        let request = self.request.opening_websocket(&handshake);
        let mut response = request.send().await?;
        let (status, version) = (response.status(), response.version());
        let is_open = if version == Version::HTTP_2 {
            status.is_success()
        } else {
            status == StatusCode::SWITCHING_PROTOCOLS
        };
        if !is_open {
            let message = format!("the server answered {status} to the WebSocket handshake");
            return Err(response.describe(Error::of_status(status, message)));
        }
        let subprotocol = handshake.check(version, response.headers());
        let subprotocol = subprotocol.map_err(|error| response.describe(error))?;
        let facts = Facts {
            timing: response.timing_handle(),
            metrics: response.metrics(),
            connection: response.connection().clone(),
            headers: response.headers().clone(),
            subprotocol,
        };
        Ok(WebSocket::new(response.upgrade()?, facts, self.options))
    }
}

/// What does not change while a session lasts.
struct Facts {
    timing: TimingHandle,
    metrics: StepMetrics,
    connection: ConnectionInfo,
    headers: HeaderMap,
    subprotocol: Option<String>,
}

/// What both halves hold.
struct Shared {
    session: Mutex<Session<Upgraded>>,
    tasks: Arc<Tasks>,
    /// Wakes `tasks`.
    waker: Waker,
    facts: Facts,
}

/// The task of each half. Either may do what the other waits for, since the connection knows only the waker of whoever
/// polled it last; so both are woken.
#[derive(Default)]
struct Tasks {
    receiver: AtomicWaker,
    sender: AtomicWaker,
}

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.receiver.wake();
        self.sender.wake();
    }
}

impl Shared {
    /// Polls the session for the half whose task is `own`.
    fn poll<R>(
        &self,
        own: &AtomicWaker,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Session<Upgraded>, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        own.register(cx.waker());
        let (polled, is_news) = {
            let mut session = lock(&self.session);
            let before = session.standing();
            let polled = poll(&mut session, &mut Context::from_waker(&self.waker));
            (polled, before != session.standing())
        };
        if polled.is_ready() {
            own.take();
        }
        if is_news {
            // The other half waits for something that will not come, or for another time.
            self.waker.wake_by_ref();
        }
        polled
    }

    fn describe(&self, error: Error) -> Error {
        let reused = self.facts.metrics.connection_reused;
        error
            .with_origin(self.facts.connection.origin())
            .with_attempt(self.facts.metrics.attempts, reused)
            .with_timing(self.facts.timing.get())
            .with_replay(ReplaySafety::Processed)
    }
}

/// A WebSocket session. Made by [`Client::websocket`].
///
/// [`next`](Self::next) and [`send`](Self::send) are cancel safe, so that one task can select over both; a task that only
/// sends while the server only sends, too, may have to wait for itself, and [`split`](Self::split)s the session.
///
/// Dropping it closes the connection, or resets the stream; [`close`](Self::close) says goodbye first.
pub struct WebSocket {
    sender: WebSocketSender,
    receiver: WebSocketReceiver,
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sender.0.fmt_as("WebSocket", f)
    }
}

impl WebSocket {
    fn new(upgraded: Upgraded, facts: Facts, options: SessionOptions) -> Self {
        let is_http2 = facts.connection.protocol() == Version::HTTP_2;
        let session = Session::new(upgraded, is_http2, options);
        let tasks = Arc::new(Tasks::default());
        let shared = Arc::new(Shared {
            session: Mutex::new(session),
            waker: tasks.clone().into(),
            tasks,
            facts,
        });
        Self {
            sender: WebSocketSender(shared.clone()),
            receiver: WebSocketReceiver(shared),
        }
    }

    /// The next message; see [`WebSocketReceiver::next`].
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        self.receiver.next().await
    }

    /// Sends a message; see [`WebSocketSender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, message: impl Into<Message>) -> Result<(), Error> {
        self.sender.send(message).await
    }

    /// Closes, and awaits the end: the server's Close, before which its messages are thrown away, and the end of the
    /// connection. Gives what the server's Close said.
    ///
    /// Dropping the future ends the waiting; [`next`](Self::next) goes on with it.
    ///
    /// # Errors
    /// Invalid: a code that must not be sent (RFC 6455 §7.4; 1000 is the normal one), a reason above 123 bytes. Timeout
    /// beyond [`close_timeout`](WebSocketBuilder::close_timeout); ConnectionLost and others where the session had failed or
    /// fails now.
    pub async fn close(&mut self, code: u16, reason: &str) -> Result<CloseFrame, Error> {
        self.sender.close(code, reason).await?;
        while let Some(message) = self.next().await {
            message?;
        }
        Ok(self.close_frame().unwrap_or_default())
    }

    /// Its two ways, for two tasks.
    pub fn split(self) -> (WebSocketSender, WebSocketReceiver) {
        (self.sender, self.receiver)
    }

    /// What the server's Close said, once it has come.
    pub fn close_frame(&self) -> Option<CloseFrame> {
        self.receiver.close_frame()
    }

    /// The subprotocol that the server has chosen.
    pub fn subprotocol(&self) -> Option<&str> {
        self.facts().subprotocol.as_deref()
    }

    /// The header fields of the server's answer.
    pub fn headers(&self) -> &HeaderMap {
        &self.facts().headers
    }

    /// The connection it runs over.
    pub fn connection(&self) -> &ConnectionInfo {
        &self.facts().connection
    }

    /// How the time of the opening was spent.
    pub fn timing(&self) -> RequestTiming {
        self.facts().timing.get()
    }

    /// The numbers that users watch, of the opening.
    pub fn metrics(&self) -> StepMetrics {
        self.facts().metrics
    }

    /// How long the last ping took to be answered.
    pub fn round_trip(&self) -> Option<Duration> {
        self.receiver.round_trip()
    }

    fn facts(&self) -> &Facts {
        &self.sender.0.facts
    }
}

impl Shared {
    fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("connection", &self.facts.connection)
            .field("session", &*lock(&self.session))
            .finish_non_exhaustive()
    }
}

/// The way out of a [`WebSocket`].
pub struct WebSocketSender(Arc<Shared>);

impl fmt::Debug for WebSocketSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("WebSocketSender", f)
    }
}

impl WebSocketSender {
    /// Sends a message, and waits until the connection has taken it: as one frame up to 4 MiB, in one TLS record or piece of
    /// HTTP/2 data where it fits.
    ///
    /// Dropped before there was room for it, the future sends nothing; later, the message goes out with whatever is sent
    /// or received next, and never half of it.
    ///
    /// # Errors
    /// ConnectionLost: the connection is, or the session is over or closing; or whatever it has failed with. What the server
    /// has said by then, a Close with its reason perhaps, is still there to be received.
    pub async fn send(&mut self, message: impl Into<Message>) -> Result<(), Error> {
        let mut message = Some(message.into());
        poll_fn(|cx| {
            let tasks = &self.0.tasks;
            self.0.poll(&tasks.sender, cx, |session, cx| {
                session.poll_send(cx, &mut message)
            })
        })
        .await
        .map_err(|error| self.0.describe(error))
    }

    /// Sends a Close, after which nothing can be sent. The other half goes on until the server has answered it, and tells if
    /// it could not be sent.
    ///
    /// Dropping the future ends the waiting; the Close goes out with whatever is received next.
    ///
    /// # Errors
    /// As [`WebSocket::close`].
    pub async fn close(&mut self, code: u16, reason: &str) -> Result<(), Error> {
        let shared = &*self.0;
        let frame = CloseFrame::new(code, reason).map_err(|error| shared.describe(error))?;
        let mut frame = Some(frame);
        let closed = poll_fn(|cx| {
            shared.poll(&shared.tasks.sender, cx, |session, cx| {
                if let Some(frame) = frame.take() {
                    session.start_close(&frame)?;
                }
                session.poll_flush(cx)
            })
        });
        closed.await.map_err(|error| shared.describe(error))
    }
}

/// The way in of a [`WebSocket`].
pub struct WebSocketReceiver(Arc<Shared>);

impl fmt::Debug for WebSocketReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("WebSocketReceiver", f)
    }
}

impl WebSocketReceiver {
    /// The next message; `None` once both sides have closed. Meanwhile the server's pings are answered, and it is asked
    /// whether it is there ([`ping_interval`](WebSocketBuilder::ping_interval)).
    ///
    /// Dropping the future loses nothing; the next call goes on.
    ///
    /// # Errors
    /// Once, and `None` after it. ConnectionLost: the connection ended without a Close. Protocol: the server broke the
    /// protocol, and was told so (1002, 1007). TooLarge: a message beyond
    /// [`max_message_bytes`](WebSocketBuilder::max_message_bytes) (1009). Timeout: it answered no ping, or no Close.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for adapters; as a `Stream`: `futures_util::stream::poll_fn(move |cx| receiver.poll_next(cx))`.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        let shared = &*self.0;
        let next = shared.poll(&shared.tasks.receiver, cx, Session::poll_next);
        next.map(|next| next.map(|next| next.map_err(|error| shared.describe(error))))
    }

    /// What the server's Close said, once it has come.
    pub fn close_frame(&self) -> Option<CloseFrame> {
        lock(&self.0.session).close_frame().cloned()
    }

    /// How long the last ping took to be answered.
    pub fn round_trip(&self) -> Option<Duration> {
        lock(&self.0.session).round_trip()
    }
}
