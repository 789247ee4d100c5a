//! A dial in a task of its own: it belongs to the pool. Whoever asked may go; it finishes and
//! serves the next.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::connection::{ConnectionInfo, Deps, Learned, Opened, Plan, connect};
use crate::error::{Error, ErrorKind};
use crate::event::DialRecorder;

use super::capacity::Permit;
use super::shared::runtime_gone;

/// Tells how a dial ended, for whoever asked for a connection and not for a request.
pub(crate) type Report = oneshot::Sender<Result<ConnectionInfo, Error>>;

/// A dial that is over.
pub(crate) struct Dialled {
    pub(crate) id: u64,
    pub(crate) result: Result<Opened, Error>,
    pub(crate) permit: Permit,
    pub(crate) recorder: Arc<DialRecorder>,
    /// Its task was dropped: by a runtime that shuts down, or by us.
    pub(crate) is_abandoned: bool,
}

/// Who takes what a dial brings.
pub(crate) trait DialSink: Send + Sync {
    fn dialled(self: Arc<Self>, dialled: Dialled);
}

/// Everything one dial needs.
pub(crate) struct DialTask {
    pub(crate) id: u64,
    pub(crate) sink: Arc<dyn DialSink>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) deps: Arc<Deps>,
    pub(crate) recorder: Arc<DialRecorder>,
    pub(crate) permit: Permit,
    pub(crate) learned: Learned,
}

impl DialTask {
    /// Starts it. It ends with exactly one call of its sink, even if its runtime is shut down or
    /// the user's dialer panics.
    pub(crate) fn spawn(self, runtime: &Handle) -> AbortHandle {
        let mut guard = Guard {
            task: Some(self),
            is_polled: false,
        };
        let task = runtime.spawn(async move {
            let Some(task) = &guard.task else { return };
            let (plan, deps) = (task.plan.clone(), task.deps.clone());
            let (recorder, learned) = (task.recorder.clone(), task.learned);
            let mut dial = pin!(connect(&plan, &deps, &recorder, learned));
            let result = poll_fn(|cx| {
                guard.is_polled = true;
                let polled = dial.as_mut().poll(cx);
                guard.is_polled = false;
                polled
            });
            let result = result.await;
            guard.finish(result, false);
        });
        task.abort_handle()
    }
}

struct Guard {
    task: Option<DialTask>,
    /// Dropped meanwhile, the dial has panicked.
    is_polled: bool,
}

impl Guard {
    fn finish(&mut self, result: Result<Opened, Error>, is_abandoned: bool) {
        let Some(task) = self.task.take() else {
            return;
        };
        let DialTask {
            id,
            sink,
            plan: _,
            deps: _,
            recorder,
            permit,
            learned: _,
        } = task;
        sink.dialled(Dialled {
            id,
            result,
            permit,
            recorder,
            is_abandoned,
        });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(task) = &self.task else { return };
        let is_abandoned = !self.is_polled;
        let error = if is_abandoned {
            runtime_gone()
        } else {
            Error::new(ErrorKind::Connect, "the dial panicked")
        };
        let error = error
            .at(task.recorder.current_phase())
            .with_origin(task.plan.origin_text.clone());
        self.finish(Err(error), is_abandoned);
    }
}
