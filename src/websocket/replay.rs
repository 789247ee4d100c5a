//! A session against a plain reading of RFC 6455 §5.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::ErrorKind;

use super::session::{Session, SessionOptions};
use super::{CloseFrame, Message};

const LIMIT: usize = 300;

/// How a session ends.
#[derive(Clone, Debug, PartialEq)]
enum End {
    Closed(CloseFrame),
    Failed(ErrorKind),
}

/// What a peer's bytes mean: messages, the frames that answer them, and the end.
#[derive(Debug, PartialEq)]
struct Outcome {
    messages: Vec<Message>,
    answers: Vec<(u8, Vec<u8>)>,
    end: End,
}

/// The property that the fuzz target asserts: whatever comes, in whatever pieces, a session says the same about it as
/// the rules read one after the other, answers what is to be answered with masked frames, and ends.
pub(crate) fn check_session(input: &[u8], piece: usize) {
    assert_eq!(
        run(input, piece.max(1)),
        expected(input),
        "in pieces of {piece}"
    );
}

/// Gives its bytes in pieces and then the end; keeps what is written.
struct Replay<'a> {
    left: &'a [u8],
    piece: usize,
    written: &'a mut Vec<u8>,
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
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = buf.len().min(self.piece);
        self.written.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run(input: &[u8], piece: usize) -> Outcome {
    let mut written = Vec::new();
    let replay = Replay {
        left: input,
        piece,
        written: &mut written,
    };
    let options = SessionOptions {
        max_message_bytes: LIMIT,
        ping_interval: None,
        ..SessionOptions::default()
    };
    let mut session = Session::new(replay, false, options);
    let mut cx = Context::from_waker(Waker::noop());
    let mut messages = Vec::new();
    let mut failed = None;
    loop {
        match session.poll_next(&mut cx) {
            // A turn is over.
            Poll::Pending => {}
            Poll::Ready(None) => break,
            Poll::Ready(Some(Ok(message))) => {
                assert!(failed.is_none(), "a message behind an error");
                messages.push(message);
            }
            Poll::Ready(Some(Err(error))) => {
                assert!(failed.is_none(), "an error behind an error");
                failed = Some(error.kind());
            }
        }
    }
    let end = match (failed, session.close_frame()) {
        (Some(kind), _) => End::Failed(kind),
        (None, Some(frame)) => End::Closed(frame.clone()),
        (None, None) => panic!("an end without a reason"),
    };
    drop(session);
    Outcome {
        messages,
        answers: answers(&written),
        end,
    }
}

/// The frames that were written: short ones, masked and whole. Of a Close only the code.
fn answers(mut written: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut answers = Vec::new();
    while let [first, second, rest @ ..] = written {
        assert_eq!(second & 0x80, 0x80, "not masked");
        let len = usize::from(second & 0x7f);
        assert!(len <= 125, "not a control frame");
        let (mask, rest) = rest.split_at(4);
        let (payload, rest) = rest.split_at(len);
        let payload = payload.iter().zip(mask.iter().cycle());
        let mut payload: Vec<u8> = payload.map(|(byte, mask)| byte ^ mask).collect();
        if *first == 0x88 {
            payload.truncate(2);
        }
        answers.push((*first, payload));
        written = rest;
    }
    assert!(written.is_empty(), "half a frame");
    answers
}

/// The rules, one after the other.
fn expected(input: &[u8]) -> Outcome {
    let mut reading = Reading::default();
    let mut left = input;
    let end = loop {
        match reading.frame(&mut left) {
            Ok(None) => {}
            Ok(Some(end)) => break end,
            Err(code) => {
                if let Some(code) = code {
                    let payload = code.to_be_bytes().to_vec();
                    reading.answers.push((0x88, payload));
                }
                break End::Failed(match code {
                    Some(1009) => ErrorKind::TooLarge,
                    Some(_) => ErrorKind::Protocol,
                    None => ErrorKind::ConnectionLost,
                });
            }
        }
    };
    Outcome {
        messages: reading.messages,
        answers: reading.answers,
        end,
    }
}

#[derive(Default)]
struct Reading {
    messages: Vec<Message>,
    answers: Vec<(u8, Vec<u8>)>,
    /// The opcode and what there is of a message in fragments.
    partial: Option<(u8, Vec<u8>)>,
}

/// The code of the Close that an error is answered with; `None` for an end that was not announced.
type Code = Option<u16>;

impl Reading {
    fn frame(&mut self, left: &mut &[u8]) -> Result<Option<End>, Code> {
        let [first, second] = take(left)?;
        let (is_final, opcode) = (first & 0x80 != 0, first & 0xf);
        let is_control = opcode >= 8;
        let is_known = matches!(opcode, 0..=2 | 8..=10);
        let fits = is_control || (opcode == 0) == self.partial.is_some();
        let is_masked = second & 0x80 != 0;
        if first & 0x70 != 0 || !is_known || !fits || is_masked || is_control && !is_final {
            return Err(Some(1002));
        }
        let len = match second & 0x7f {
            126.. if is_control => return Err(Some(1002)),
            126 => match u64::from(u16::from_be_bytes(take(left)?)) {
                ..126 => return Err(Some(1002)),
                len => len,
            },
            127 => match u64::from_be_bytes(take(left)?) {
                ..65_536 => return Err(Some(1002)),
                len => len,
            },
            1 if opcode == 8 => return Err(Some(1002)),
            len => u64::from(len),
        };
        if len > LIMIT as u64 {
            return Err(Some(1009));
        }
        let len = len as usize;
        let (payload, rest) = left.split_at(len.min(left.len()));
        let is_whole = payload.len() == len;
        *left = rest;
        if is_control {
            return if is_whole {
                self.control(opcode, payload)
            } else {
                Err(None)
            };
        }
        let (kind, mut bytes) = self.partial.take().unwrap_or((opcode, Vec::new()));
        bytes.extend_from_slice(payload);
        if kind == 1 {
            match std::str::from_utf8(&bytes) {
                Err(error) if error.error_len().is_some() => return Err(Some(1007)),
                Err(_) if is_final && is_whole => return Err(Some(1007)),
                _ => {}
            }
        }
        if !is_whole {
            return Err(None);
        }
        if bytes.len() > LIMIT {
            return Err(Some(1009));
        }
        if !is_final {
            self.partial = Some((kind, bytes));
            return Ok(None);
        }
        self.messages.push(match kind {
            1 => Message::Text(String::from_utf8(bytes).expect("looked at").into()),
            _ => Message::Binary(Bytes::from(bytes)),
        });
        Ok(None)
    }

    fn control(&mut self, opcode: u8, payload: &[u8]) -> Result<Option<End>, Code> {
        match (opcode, payload) {
            (9, payload) => self.answers.push((0x8a, payload.to_vec())),
            (8, []) => {
                self.answers.push((0x88, Vec::new()));
                return Ok(Some(End::Closed(CloseFrame::default())));
            }
            (8, [a, b, reason @ ..]) => {
                let code = u16::from_be_bytes([*a, *b]);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return Err(Some(1002));
                }
                let reason = std::str::from_utf8(reason).map_err(|_| Some(1007))?;
                self.answers.push((0x88, vec![*a, *b]));
                return Ok(Some(End::Closed(CloseFrame {
                    code: Some(code),
                    reason: reason.into(),
                })));
            }
            _ => {}
        }
        Ok(None)
    }
}

fn take<const N: usize>(left: &mut &[u8]) -> Result<[u8; N], Code> {
    let (taken, rest) = left.split_first_chunk().ok_or(None)?;
    *left = rest;
    Ok(*taken)
}
