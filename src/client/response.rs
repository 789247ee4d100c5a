//! A response as callers read it.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, Version};
use http_body::Body as _;

use crate::connection::ConnectionInfo;
use crate::error::{Error, ErrorKind};
use crate::io::PeerAddr;
use crate::metrics::StepMetrics;
use crate::timing::{ConnectionUse, RequestTiming};

use super::call::content_length;
use super::events::EventStream;
use super::response_body::{ResponseBody, TimingHandle};
use super::upgraded::Upgraded;

/// How much of a body that does not decode its error shows.
#[cfg(feature = "json")]
const MAX_DECODE_PIECE: usize = 96;

/// A response whose head has arrived. Its body is read as it is asked for.
pub struct Response {
    body: ResponseBody,
}

impl fmt::Debug for Response {
    /// Without the URL's path and query: they may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status())
            .field("version", &self.body.call.version)
            .field("connection", self.body.connection())
            .finish_non_exhaustive()
    }
}

impl Response {
    pub(super) fn new(body: ResponseBody) -> Self {
        Self { body }
    }

    /// The status. An error status is a response like any other;
    /// [`error_for_status`](Self::error_for_status) makes it an error.
    pub fn status(&self) -> StatusCode {
        self.body.call.status
    }

    /// The header fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.body.call.headers
    }

    /// HTTP/2 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.body.call.version
    }

    /// The URL that was asked, query included.
    pub fn url(&self) -> &str {
        self.body.call.url.as_str(self.connection().origin())
    }

    /// The address of the other end, where the transport knows one.
    pub fn remote_addr(&self) -> Option<&PeerAddr> {
        self.body.connection().remote_addr()
    }

    /// The announced length of the body.
    pub fn content_length(&self) -> Option<u64> {
        content_length(self.headers())
    }

    /// The connection it came over.
    pub fn connection(&self) -> &ConnectionInfo {
        self.body.connection()
    }

    /// How the request came to its connection.
    pub fn connection_use(&self) -> ConnectionUse {
        self.body.connection_use()
    }

    /// The numbers that users watch.
    pub fn metrics(&self) -> StepMetrics {
        self.body.metrics()
    }

    /// The timing so far; final once the body has been read.
    pub fn timing(&self) -> RequestTiming {
        self.body.timing()
    }

    /// A handle that knows the final timing when the response is gone.
    pub fn timing_handle(&mut self) -> TimingHandle {
        self.body.timing_handle()
    }

    /// Itself, or an error if the status is 400 or more. The body is dropped with it.
    ///
    /// # Errors
    /// Kind Status.
    pub fn error_for_status(self) -> Result<Self, Error> {
        self.error_for_status_ref()?;
        Ok(self)
    }

    /// An error if the status is 400 or more, with the response left to be read: what the server says about it, and
    /// headers such as `retry-after`.
    ///
    /// # Errors
    /// Kind Status.
    pub fn error_for_status_ref(&self) -> Result<&Self, Error> {
        let status = self.body.call.status;
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(self);
        }
        let error = Error::of_status(status, format!("the server answered {status}"));
        Err(self.body.call.describe(error))
    }

    /// The next piece of the body; `None` at its end. Trailers are skipped.
    ///
    /// Dropping the future loses nothing; the next call goes on.
    ///
    /// # Errors
    /// Truncated, ConnectionLost, Protocol, Refused, Timeout; SlowReader where so much was left unread that the stream was
    /// reset; Body if the request's own body fails behind the head; Http1Required.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame.transpose()?.map(http_body::Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) => return Ok(Some(data)),
                Some(Err(_)) => {}
            }
        }
    }

    /// The whole body.
    ///
    /// Dropping the future loses what was read.
    ///
    /// # Errors
    /// TooLarge beyond 64 MiB (see `max_body_bytes`), and whatever [`chunk`](Self::chunk) fails
    /// with.
    pub async fn bytes(&mut self) -> Result<Bytes, Error> {
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        self.check_size(first.len())?;
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut all = BytesMut::with_capacity((first.len() + second.len()) * 2);
        all.extend_from_slice(&first);
        let mut next = Some(second);
        while let Some(data) = next {
            self.check_size(all.len() + data.len())?;
            all.extend_from_slice(&data);
            next = self.chunk().await?;
        }
        Ok(all.freeze())
    }

    fn check_encoding(&self) -> Result<(), Error> {
        let Some(encoding) = self.headers().get(http::header::CONTENT_ENCODING) else {
            return Ok(());
        };
        if encoding == "identity" {
            return Ok(());
        }
        let name = crate::error::escape_peer_text(encoding.as_bytes());
        let message = format!("the body has content-encoding {name}, which is not decoded here");
        let error = Error::new(ErrorKind::Decode, message);
        Err(self.body.call.describe(error))
    }

    fn check_size(&self, size: usize) -> Result<(), Error> {
        if size <= self.body.call.options.max_body_bytes {
            return Ok(());
        }
        let message = format!(
            "the body is larger than max_body_bytes of {}",
            self.body.call.options.max_body_bytes
        );
        Err(self
            .body
            .call
            .describe(Error::new(ErrorKind::TooLarge, message)))
    }

    /// The whole body as text: UTF-8, with what is not UTF-8 replaced.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub async fn text(&mut self) -> Result<String, Error> {
        let bytes = self.bytes().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// Decode, with the place and a piece of the text (what looks like a key masked), or with the content-encoding that this
    /// crate does not decode; and as [`bytes`](Self::bytes).
    #[cfg(feature = "json")]
    pub async fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Error> {
        self.check_encoding()?;
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            use crate::error::{escape_peer_text, mask_keys};
            let start = &bytes[..bytes.len().min(MAX_DECODE_PIECE)];
            let mut piece = mask_keys(&escape_peer_text(start));
            if start.len() < bytes.len() {
                // The cut may have gone through a key and left too little of it to be known.
                let whole_words = piece.rfind([' ', '"', '*']).unwrap_or(0);
                piece.truncate(whole_words);
            }
            let message = format!("the body is not the JSON expected; it begins `{piece}`");
            // serde names the place, and the value that it did not expect.
            let cause = mask_keys(&e.to_string());
            let error = Error::new(ErrorKind::Decode, message).with_source(cause);
            self.body.call.describe(error)
        })
    }

    /// The body as Server-Sent Events.
    ///
    /// # Errors
    /// Decode: the response is no event stream by its `content-type`, as when a server answers with an error (ask
    /// [`error_for_status_ref`](Self::error_for_status_ref) before, and its body is there to be read); or it has a
    /// `content-encoding`, which is not decoded here. [`EventStream::new`] does not ask.
    pub fn events(self) -> Result<EventStream, Error> {
        self.check_encoding()?;
        let content_type = self.headers().get(http::header::CONTENT_TYPE);
        let content_type = content_type.map_or(&b""[..], http::HeaderValue::as_bytes);
        let essence = content_type.split(|b| *b == b';').next();
        let is_events = essence.is_some_and(|essence| {
            essence
                .trim_ascii()
                .eq_ignore_ascii_case(b"text/event-stream")
        });
        if is_events {
            return Ok(EventStream::new(self.body));
        }
        let message = format!(
            "the response is no event stream: its status is {}, its content-type `{}`",
            self.status(),
            crate::error::escape_peer_text(content_type)
        );
        Err(self
            .body
            .call
            .describe(Error::new(ErrorKind::Decode, message)))
    }

    #[cfg(feature = "websocket")]
    pub(super) fn describe(&self, error: Error) -> Error {
        self.body.call.describe(error)
    }

    /// The body alone.
    pub fn into_body(self) -> ResponseBody {
        self.body
    }

    /// The response in the types of `http`.
    pub fn into_http(self) -> http::Response<ResponseBody> {
        self.body.into_http()
    }

    /// After 101 Switching Protocols: the connection itself. After 2xx to an
    /// [extended CONNECT](super::RequestOptions::extended_connect): its stream.
    ///
    /// # Errors
    /// Invalid if the response is no upgrade.
    pub fn upgrade(self) -> Result<Upgraded, Error> {
        let status = self.body.call.status;
        self.body
            .into_upgraded()
            .ok_or_else(|| Error::invalid(format!("status {status} is no upgrade")))
    }
}
