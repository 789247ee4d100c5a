//! Streams whose request is gone before they are over, and whose reset cannot be paid yet. They keep their
//! slot until they are reset or end by themselves: for the peer they are open.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::time::{Sleep, sleep_until};

use crate::clock::now;
use crate::sync::lock;

use super::bell::Bell;
use super::ledger::Ledger;
use super::stream::{Parts, Recv};
use super::unread::End;

/// A stream that nobody wants any more.
pub(super) struct Orphan {
    pub(super) id: u32,
    pub(super) parts: Parts,
    /// All of the request has been sent: when the peer ends its side the stream is over.
    pub(super) is_sent: bool,
    /// Given back when the stream is over: the last field.
    pub(super) _lease: Box<dyn Any + Send>,
}

impl fmt::Debug for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Orphan").field(&self.id).finish()
    }
}

impl Orphan {
    /// What arrived is thrown away, and what still comes. True if there is nothing left to reset.
    fn settle(&mut self, cx: &mut Context<'_>) -> bool {
        if let Recv::Head(response) = &mut self.parts.recv {
            match Pin::new(response).poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return true,
            }
        }
        self.parts.recv = Recv::Unwanted;
        false
    }
}

/// Where requests leave their streams for the connection's task.
#[derive(Debug)]
pub(super) struct Inbox {
    /// `None` once the task is gone.
    orphans: Mutex<Option<Vec<Orphan>>>,
    /// There may be some.
    has_some: AtomicBool,
    /// Wakes the task.
    pub(super) bell: Bell,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            orphans: Mutex::new(Some(Vec::new())),
            has_some: AtomicBool::new(false),
            bell: Bell::new(),
        }
    }
}

impl Inbox {
    pub(super) fn leave(&self, orphan: Orphan) {
        let unwanted = match &mut *lock(&self.orphans) {
            Some(orphans) => {
                orphans.push(orphan);
                self.has_some.store(true, Ordering::Release);
                None
            }
            None => Some(orphan),
        };
        // Not under the lock: its lease goes home.
        drop(unwanted);
        self.bell.wake();
    }

    /// Nobody tends them any more.
    pub(super) fn close(&self) {
        let orphans = lock(&self.orphans).take();
        drop(orphans);
        self.bell.forget();
    }
}

/// The orphans of one connection, in its task.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    waiting: VecDeque<Orphan>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Orphans {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Lets go of those that are over, resets those that can be paid, the oldest first, and sees to being
    /// woken for the next one.
    pub(super) fn tend(&mut self, cx: &mut Context<'_>, inbox: &Inbox, ledger: &Ledger) {
        if inbox.has_some.load(Ordering::Acquire)
            && inbox.has_some.swap(false, Ordering::AcqRel)
            && let Some(new) = &mut *lock(&inbox.orphans)
        {
            self.waiting.extend(new.drain(..));
        }
        if self.waiting.is_empty() {
            return;
        }
        let mut over = Vec::new();
        for mut orphan in std::mem::take(&mut self.waiting) {
            let is_gone = match ledger.enter().unread.end(orphan.id) {
                End::Reset => true,
                End::Complete | End::Ended => orphan.is_sent,
                End::Open => false,
            };
            if is_gone || orphan.settle(cx) {
                over.push(orphan);
            } else {
                self.waiting.push_back(orphan);
            }
        }
        while let Some(oldest) = self.waiting.pop_front() {
            let paid = ledger.enter().resets.pay(now());
            match paid {
                Ok(()) => over.push(oldest),
                Err(at) => {
                    self.waiting.push_front(oldest);
                    let timer = self
                        .timer
                        .get_or_insert_with(|| Box::pin(sleep_until(at.into())));
                    timer.as_mut().reset(at.into());
                    if timer.as_mut().poll(cx).is_ready() {
                        cx.waker().wake_by_ref();
                    }
                    break;
                }
            }
        }
        Self::release(over, ledger);
    }

    /// Lets go of all: the connection ends with them.
    pub(super) fn release_all(&mut self, ledger: &Ledger) {
        Self::release(self.waiting.drain(..).collect(), ledger);
    }

    fn release(over: Vec<Orphan>, ledger: &Ledger) {
        for orphan in over {
            ledger.enter().unread.closed(orphan.id);
            // h2 resets the stream when its last half is dropped.
            drop(orphan);
        }
    }
}
