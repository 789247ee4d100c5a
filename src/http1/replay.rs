//! A response from memory, in pieces.
// layering: drives this protocol over a transport of its own; uses the ground layer.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use http::{HeaderMap, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::Body;
use crate::event::RequestRecorder;
use crate::io::{Traffic, Wire};

use super::encode::RequestHead;
use super::exchange::Http1;

/// The property that the fuzz target asserts: however the bytes of a response are split, its status, its
/// body and whether it is sound are the same, it ends, and a connection is never used again after an
/// error or while bytes are left.
pub(crate) fn check_exchange(input: &[u8], piece: usize, is_head: bool) {
    let whole = run(input, input.len().max(1), is_head);
    let split = run(input, piece.max(1), is_head);
    assert_eq!(whole, split, "in pieces of {piece}");
}

/// Gives its bytes in pieces and then the end; takes whatever is written.
#[derive(Debug)]
struct Replay<'a> {
    left: &'a [u8],
    piece: usize,
}

impl AsyncRead for Replay<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.piece.min(self.left.len()).min(buf.remaining());
        let (now, later) = self.left.split_at(n);
        buf.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Status, body, number of trailers, soundness.
type Outcome = (Option<StatusCode>, Vec<u8>, usize, bool);

fn run(input: &[u8], piece: usize, is_head: bool) -> Outcome {
    let replay = Replay { left: input, piece };
    let mut http1 = Http1::new(Wire::new(replay), None, None, None);
    let request = RequestHead {
        method: if is_head { &Method::HEAD } else { &Method::GET },
        target: "/",
        authority: "h.test",
        headers: &HeaderMap::new(),
        defaults: None,
    };
    let mut recorder = RequestRecorder::start(None);
    let (mut body, traffic) = (Body::empty(), Traffic::default());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let head = {
        let exchange = http1.exchange(&request, Some(0), None, &mut body, &traffic, &mut recorder);
        match pin!(exchange).poll(&mut cx) {
            Poll::Ready(head) => head,
            Poll::Pending => panic!("everything is there"),
        }
    };
    let Ok(head) = head else {
        assert!(http1.reusable().is_err());
        return (None, Vec::new(), 0, false);
    };
    let (mut content, mut trailers, mut is_sound) = (Vec::new(), 0, true);
    loop {
        match http1.poll_body(&mut cx) {
            Poll::Pending => panic!("everything is there"),
            Poll::Ready(None) => break,
            Poll::Ready(Some(Err(_))) => is_sound = false,
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => content.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().map_or(0, |t| t.len()),
            },
        }
    }
    let is_reusable = http1.reusable().is_ok();
    assert!(!is_reusable || (is_sound && http1.has_nothing_left()));
    (Some(head.status), content, trailers, is_sound)
}
