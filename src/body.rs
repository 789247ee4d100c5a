//! Request bodies: bytes, a stream, or a factory that makes the stream anew for each attempt.
//!
//! Whether a failed request may be sent again depends on whether its body can be produced again;
//! [`Body`] knows.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::error::{Error, ErrorKind};

type BoxError = Box<dyn StdError + Send + Sync>;
type BoxBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError> + Send>>;
type Factory = Arc<dyn Fn() -> Body + Send + Sync>;

/// The body of a request.
///
/// Bytes and factories can be sent again when an attempt failed before the peer processed it; a
/// stream only while nothing was taken from it.
pub struct Body {
    kind: Kind,
}

enum Kind {
    Bytes(Bytes),
    Stream { body: BoxBody, touched: bool },
    Factory(Factory),
}

impl Body {
    /// No body at all.
    pub fn empty() -> Self {
        Self::from(Bytes::new())
    }

    /// Any [`http_body::Body`]. Its length is sent as `content-length` if its size hint is exact.
    /// It can be sent once, unless it has ended already, or is a `Body` or a `String`, which can be produced again.
    pub fn wrap<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        let mut body = Some(body);
        let any: &mut dyn Any = &mut body;
        if let Some(same) = any.downcast_mut::<Option<Self>>() {
            return same.take().unwrap_or_default();
        }
        if let Some(text) = any.downcast_mut::<Option<String>>() {
            return text.take().unwrap_or_default().into();
        }
        let Some(body) = body else {
            return Self::empty();
        };
        let body = BoxedErrors {
            body: Box::pin(body),
        };
        Self {
            kind: Kind::Stream {
                body: Box::pin(body),
                touched: false,
            },
        }
    }

    /// A body that can be produced again: `make` is called for each attempt.
    pub fn factory(make: impl Fn() -> Self + Send + Sync + 'static) -> Self {
        Self {
            kind: Kind::Factory(Arc::new(make)),
        }
    }

    /// A second one, for whoever sends the request again; `None` if it can be produced only once.
    pub fn try_clone(&self) -> Option<Self> {
        match &self.kind {
            Kind::Bytes(bytes) => Some(Self::from(bytes.clone())),
            Kind::Factory(make) => Some(Self {
                kind: Kind::Factory(make.clone()),
            }),
            Kind::Stream { .. } => None,
        }
    }

    /// The bytes, if the whole body is known.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The body for one attempt; what remains is for a further one (`None`: this was the only one).
    pub(crate) fn for_attempt(body: &mut Option<Self>) -> Self {
        match body.as_ref().map(|body| &body.kind) {
            Some(Kind::Bytes(bytes)) => Self::from(bytes.clone()),
            Some(Kind::Factory(make)) => match make().kind {
                // A factory that makes factories would never end; one level is unwrapped.
                Kind::Factory(inner) => inner(),
                kind => Self { kind },
            },
            Some(Kind::Stream { .. }) | None => body.take().unwrap_or_default(),
        }
    }

    /// Whether an attempt took anything from it.
    pub(crate) fn is_touched(&self) -> bool {
        matches!(&self.kind, Kind::Stream { touched: true, .. })
    }

    /// The exact length, if known.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        match &self.kind {
            Kind::Bytes(bytes) => Some(bytes.len() as u64),
            Kind::Stream { body, .. } => body.size_hint().exact(),
            Kind::Factory(_) => None,
        }
    }

    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Stream { body, touched } => {
                let next = body.as_mut().poll_frame(cx);
                *touched |= next.is_ready();
                next
            }
            Kind::Factory(make) => {
                let body = make();
                *self = body;
                self.poll_next(cx)
            }
        }
    }
}

/// What a field in the trailers of a request would mean to somebody who merges them into the headers:
/// framing, routing, authentication (RFC 9110 §6.5.1), or a connection (RFC 9113 §8.2.2).
pub(crate) fn forbidden_trailer(trailers: &HeaderMap) -> Option<Error> {
    const FORBIDDEN: [HeaderName; 17] = [
        header::AUTHORIZATION,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::MAX_FORWARDS,
        header::PROXY_AUTHORIZATION,
        header::RANGE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::CACHE_CONTROL,
    ];
    let others = ["keep-alive", "proxy-connection"];
    let name = trailers
        .keys()
        .find(|name| FORBIDDEN.contains(name) || others.contains(&name.as_str()))?;
    Some(Error::new(
        ErrorKind::Body,
        format!("header {name} cannot stand in trailers (RFC 9110 §6.5.1)"),
    ))
}

/// So that layers which pass requests on, or make them anew, know it as a body.
impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Bytes(bytes) => bytes.is_empty(),
            Kind::Stream { body, .. } => body.is_end_stream(),
            Kind::Factory(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Stream { body, .. } => body.size_hint(),
            _ => self
                .exact_len()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Bytes(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Kind::Stream { .. } => f.write_str("Body(stream)"),
            Kind::Factory(_) => f.write_str("Body(factory)"),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self {
            kind: Kind::Bytes(bytes),
        }
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

macro_rules! body_from {
    ($($from:ty),+) => {
        $(impl From<$from> for Body {
            fn from(bytes: $from) -> Self {
                Self::from(Bytes::from(bytes))
            }
        })+
    };
}
body_from!(Vec<u8>, String, &'static [u8], &'static str);

/// A body whose errors are boxed, so that all streams have one type.
struct BoxedErrors<B> {
    body: Pin<Box<B>>,
}

impl<B> HttpBody for BoxedErrors<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.body
            .as_mut()
            .poll_frame(cx)
            .map(|next| next.map(|frame| frame.map_err(Into::into)))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and error, which is below.
    use super::*;

    #[test]
    fn bytes_and_factories_serve_a_second_attempt_and_streams_do_not() {
        let attempt = |body: Body| {
            let mut rest = Some(body);
            (Body::for_attempt(&mut rest), rest)
        };
        let (first, rest) = attempt(Body::from("abc"));
        assert_eq!(first.as_bytes().unwrap(), "abc");
        assert_eq!(rest.unwrap().as_bytes().unwrap(), "abc");

        let (first, rest) = attempt(Body::factory(|| Body::from("x")));
        assert_eq!(first.as_bytes().unwrap(), "x");
        let nested = Body::factory(|| Body::factory(|| Body::from("y")));
        assert_eq!(attempt(nested).0.as_bytes().unwrap(), "y");
        assert!(rest.is_some());

        let same = Body::wrap(Body::from("abc"));
        assert_eq!(same.as_bytes().unwrap(), "abc");
        let ended = Body::wrap(http_body_util::Empty::<Bytes>::new());
        assert!(attempt(ended).1.is_some());

        let text = Body::wrap("text".to_owned());
        assert_eq!(text.as_bytes().unwrap(), "text");

        let stream = Body::wrap(http_body_util::Full::new(Bytes::from("s")));
        assert_eq!(stream.exact_len(), Some(1));
        let (mut first, rest) = attempt(stream);
        assert!(rest.is_none() && !first.is_touched());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(first.poll_next(&mut cx).is_ready());
        assert!(first.is_touched());
    }
}
