//! HTTP/1.1 without a task: the caller's own future writes the request and reads the answer.
//!
//! `framing` decides where a body ends, `chunked` decodes the one framing that needs a decoder,
//! `encode` writes heads and chunks (all three pure), `upload` sends a request with them, `exchange` reads the answer.
//!
//! ```text
//! Idle --exchange--> Busy --final head--> Body --end--> Idle (reusable) or Done (to be closed)
//!                      '----- dropped, failed ------------------------------> Done
//! ```

mod chunked;
mod encode;
mod exchange;
mod framing;
mod interrupt;
mod keep_alive;
#[cfg(any(test, fuzzing))]
mod replay;
mod upload;

#[cfg(any(test, fuzzing))]
pub(crate) use chunked::check_splits as check_chunked;
pub(crate) use encode::{Forward, Repeated, RequestHead};
pub(crate) use exchange::Http1;
pub(crate) use interrupt::Killer;
pub(crate) use keep_alive::KeepAlive;
#[cfg(any(test, fuzzing))]
pub(crate) use replay::check_exchange;
