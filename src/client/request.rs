//! A request under construction.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::body::Body;
use crate::error::Error;
use crate::event::EventListener;
#[cfg(feature = "websocket")]
use crate::websocket::Handshake;

use super::base_url::with_query;
use super::call::Call;
use super::client_core::ClientCore;
use super::options::{RequestOptions, Timeouts};
use super::prepare::{Draft, Prepared};
use super::response::Response;
use super::send::send;

/// For how long the answer to the opening of a WebSocket may take, unless somebody says.
#[cfg(feature = "websocket")]
const PATIENCE_WITH_HANDSHAKES: Duration = Duration::from_secs(10);

/// A request to be sent. A mistake in any step is told by [`send`](Self::send).
#[must_use = "a request does nothing until it is sent"]
pub struct RequestBuilder {
    core: Arc<ClientCore>,
    draft: Box<Draft>,
    body: Body,
    query: Vec<(String, String)>,
    mistake: Option<Error>,
}

impl fmt::Debug for RequestBuilder {
    /// Without path, query and headers: they may hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBuilder")
            .field("method", &self.draft.method)
            .field("origin", &self.core.route.origin)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl RequestBuilder {
    pub(super) fn new(core: Arc<ClientCore>, method: Method, path: &str) -> Self {
        let (target, mistake) = match core.target(path) {
            Ok(target) => (target, None),
            Err(error) => (PathAndQuery::from_static("/"), Some(error)),
        };
        Self {
            core,
            draft: Box::new(Draft::new(method, target)),
            body: Body::empty(),
            query: Vec::new(),
            mistake,
        }
    }

    /// Adds a header; the first one of a name replaces the client's.
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName>,
        V: TryInto<HeaderValue>,
    {
        match header(name, value) {
            Ok((name, value)) => {
                self.draft.headers.append(name, value);
            }
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Sets headers; each name replaces what was there.
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        for name in headers.keys() {
            self.draft.headers.remove(name);
        }
        for (name, value) in &headers {
            self.draft.headers.append(name, value.clone());
        }
        self
    }

    /// Sets `authorization: Bearer <token>`. The token never shows in logs, errors or Debug.
    pub fn bearer_auth(mut self, token: impl AsRef<str>) -> Self {
        match bearer(token.as_ref()) {
            Ok(value) => {
                self.draft.headers.insert(AUTHORIZATION, value);
            }
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Appends to the query, form-encoded.
    pub fn query<K, V>(mut self, pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs = pairs.into_iter().map(|(k, v)| (k.into(), v.into()));
        self.query.extend(pairs);
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to the value as JSON, and `content-type` unless it is set.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Serialize + ?Sized>(mut self, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => {
                self.body = Body::from(json);
                self.draft
                    .headers
                    .entry(http::header::CONTENT_TYPE)
                    .or_insert(HeaderValue::from_static("application/json"));
            }
            Err(e) => {
                let error = Error::invalid("the value does not serialize to JSON").with_source(e);
                self.mistake = self.mistake.or(Some(error));
            }
        }
        self
    }

    /// Bounds the whole call, to the end of the body.
    pub fn timeout(mut self, total: Duration) -> Self {
        self.draft.options.timeout = Some(total);
        self
    }

    /// Sets all timeouts, in place of those from the level above: a `None` in them is no bound.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.draft.options.timeouts = Some(timeouts);
        self
    }

    /// Says whether the request may be processed twice; by default its method decides, or an
    /// `Idempotency-Key` header.
    pub fn idempotent(mut self, yes: bool) -> Self {
        self.draft.options.idempotent = Some(yes);
        self
    }

    /// Lets the body wait for the server's word; see [`RequestOptions::expect_continue`].
    pub fn expect_continue(mut self, patience: Duration) -> Self {
        self.draft.options = self.draft.options.expect_continue(patience);
        self
    }

    /// Asks to speak `protocol` over a stream of its own; see [`RequestOptions::extended_connect`].
    pub fn extended_connect(mut self, protocol: impl Into<Arc<str>>) -> Self {
        self.draft.options = self.draft.options.extended_connect(protocol);
        self
    }

    /// Tells somebody of informational responses and of the progress of both bodies.
    pub fn listener(mut self, listener: Arc<dyn EventListener>) -> Self {
        self.draft.options = self.draft.options.listener(listener);
        self
    }

    /// Sets everything that [`RequestOptions`] has, in place of what was set here before.
    pub fn options(mut self, options: RequestOptions) -> Self {
        self.draft.options = options;
        self
    }

    /// Makes it the opening of a WebSocket.
    #[cfg(feature = "websocket")]
    pub(super) fn opening_websocket(mut self, handshake: &Handshake) -> Self {
        if let Err(error) = handshake.write(&mut self.draft.headers) {
            self.mistake = self.mistake.or(Some(error));
        }
        self.draft.is_websocket = true;
        // Whoever may think for minutes does so behind the handshake.
        let timeouts = self.core.options.with(&self.draft.options).timeouts;
        if timeouts.first_byte.is_none() && timeouts.total.is_none() {
            self.draft.options.timeouts = Some(timeouts.first_byte(PATIENCE_WITH_HANDSHAKES));
        }
        self
    }

    /// An error that is told before it is sent.
    #[cfg(feature = "websocket")]
    pub(super) fn describe(&self, error: Error) -> Error {
        error.with_origin(self.core.route.origin_text.clone())
    }

    /// Sends it and awaits the head of the response.
    ///
    /// Dropping the future gives back whatever it held: its place in line, its HTTP/2 stream
    /// (reset), its HTTP/1.1 connection (closed once the request has begun). A dial that it
    /// started goes on and serves others.
    ///
    /// # Errors
    /// Any [`ErrorKind`](crate::ErrorKind) but Status and Decode.
    pub async fn send(self) -> Result<Response, Error> {
        let Self {
            core,
            mut draft,
            body,
            query,
            mistake,
        } = self;
        let named = |e: Error| e.with_origin(core.route.origin_text.clone());
        if let Some(error) = mistake {
            return Err(named(error));
        }
        if !query.is_empty() {
            draft.target = with_query(&draft.target, &query).map_err(named)?;
        }
        let options = core.options.with(&draft.options);
        let headers = core.headers.load_full();
        let request =
            Prepared::new(draft, headers, &core.route.origin, body.exact_len()).map_err(named)?;
        let counters = Some(&*core.counters);
        let call = Call::begin(request, body, options);
        let body = send(&core.pool, counters, &core.route, call).await?;
        Ok(Response::new(body))
    }
}

/// A header from whatever names and values are given as.
pub(crate) fn header<N, V>(name: N, value: V) -> Result<(HeaderName, HeaderValue), Error>
where
    N: TryInto<HeaderName>,
    V: TryInto<HeaderValue>,
{
    let name = name
        .try_into()
        .map_err(|_| Error::invalid("header name is not valid"))?;
    let mut value = value.try_into().map_err(|_| {
        Error::invalid(format!(
            "value of header `{name}` holds a character that is not allowed"
        ))
    })?;
    super::prepare::mark_sensitive(&name, &mut value);
    Ok((name, value))
}

/// The value of `authorization` for a token.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, Error> {
    if token.is_empty() {
        // As a rule it is a variable of the environment that is not set.
        return Err(Error::invalid("the bearer token is empty"));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Error::invalid("bearer token holds a character that is not allowed"))?;
    value.set_sensitive(true);
    Ok(value)
}
