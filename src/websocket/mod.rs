//! WebSocket (RFC 6455): what it says, and a session over any byte stream that was switched to it. The frames are
//! tokio-websockets'.
//!
//! `handshake` and `liveness` decide (pure), `session` acts.
//! [`Client::websocket`](crate::Client::websocket) opens one.

mod handshake;
mod liveness;
#[cfg(any(test, fuzzing))]
mod replay;
mod session;

use bytes::Bytes;

use crate::error::Error;
use crate::text::Text;

pub(crate) use handshake::Handshake;
#[cfg(any(test, fuzzing))]
pub(crate) use replay::check_session;
pub(crate) use session::{Session, SessionOptions};

/// What one side says to the other. Pings, pongs and fragments are below it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Text.
    Text(Text),
    /// Bytes.
    Binary(Bytes),
}

impl Message {
    /// Its bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Its text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }
}

impl From<Text> for Message {
    fn from(text: Text) -> Self {
        Self::Text(text)
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes.into())
    }
}

/// Why a side closes (RFC 6455 §5.5.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseFrame {
    /// The code (RFC 6455 §7.4); `None` if none was sent.
    pub code: Option<u16>,
    /// What was said to it; never longer than 123 bytes.
    pub reason: Text,
}

impl CloseFrame {
    /// Normal closure.
    pub const NORMAL: u16 = 1000;
    /// Going away.
    pub const GOING_AWAY: u16 = 1001;

    /// One to be sent.
    ///
    /// # Errors
    /// Invalid: a code that must not be sent (RFC 6455 §7.4), a reason above 123 bytes.
    pub(crate) fn new(code: u16, reason: &str) -> Result<Self, Error> {
        // 1004 to 1006 and 1015 stand for what was not sent; 1010 and 3000 to 4999 are a client's to say.
        if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
            return Err(Error::invalid(format!(
                "close code {code} must not be sent (RFC 6455 §7.4); 1000 is the normal one"
            )));
        }
        if reason.len() > 123 {
            return Err(Error::invalid(format!(
                "the close reason has {} bytes, the most is 123 (RFC 6455 §5.5)",
                reason.len()
            )));
        }
        Ok(Self {
            code: Some(code),
            reason: reason.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn only_what_may_be_sent_becomes_a_close_frame() {
        for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999] {
            assert!(CloseFrame::new(code, "").is_ok(), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert!(
                CloseFrame::new(code, "").unwrap_err().is_invalid(),
                "{code}"
            );
        }
        assert!(CloseFrame::new(1000, &"x".repeat(123)).is_ok());
        assert!(CloseFrame::new(1000, &"x".repeat(124)).is_err());
    }
}
