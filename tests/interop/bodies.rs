//! Bodies whose every byte is known, and the frames of an answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use firstbyte::{Body, Response};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::site::pieces;

/// Bytes in which no two places look alike (xorshift).
pub(crate) fn noise(len: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// A body in pieces, whose length nobody is told.
pub(crate) struct Pieces {
    left: VecDeque<Frame<Bytes>>,
}

impl Pieces {
    pub(crate) fn of(whole: &Bytes) -> Self {
        let left = pieces(whole).into_iter().map(Frame::data).collect();
        Self { left }
    }

    /// Adds a trailer at the end.
    pub(crate) fn trailer(mut self, name: &'static str, value: &'static str) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, http::HeaderValue::from_static(value));
        self.left.push_back(Frame::trailers(trailers));
        self
    }
}

impl From<Pieces> for Body {
    fn from(pieces: Pieces) -> Self {
        Self::wrap(pieces)
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.left.pop_front().map(Ok))
    }
}

/// The data of an answer in one piece, and its trailers.
pub(crate) async fn collect(
    response: Response,
) -> Result<(Bytes, Option<HeaderMap>), firstbyte::Error> {
    let whole = response.into_body().collect().await?;
    let trailers = whole.trailers().cloned();
    Ok((whole.to_bytes(), trailers))
}

/// A body that comes through a channel, and ends with it.
pub(crate) struct Channel(pub(crate) mpsc::UnboundedReceiver<Bytes>);

impl From<Channel> for Body {
    fn from(channel: Channel) -> Self {
        Self::wrap(channel)
    }
}

impl http_body::Body for Channel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(Frame::data).map(Ok))
    }
}
