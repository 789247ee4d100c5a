//! Sends requests and keeps what was measured: one, one after another, all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use firstbyte::{Client, ConnectionPool};
use http::Method;
use tokio::sync::{Barrier, mpsc};

use crate::record::Record;

/// What to ask for, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) url: String,
    pub(crate) method: Method,
    pub(crate) body: Option<Bytes>,
}

/// Sends one request and reads its body to the end.
pub(crate) async fn one(client: &Client, job: &Job) -> Record {
    let mut request = client.request(job.method.clone(), job.url.clone());
    if let Some(body) = &job.body {
        request = request.body(body.clone());
    }
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Record::failed(job, &error),
    };
    let mut bytes = 0;
    let error = loop {
        match response.chunk().await {
            Ok(Some(piece)) => bytes += piece.len() as u64,
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    Record::answered(job, &response, bytes, error.as_ref())
}

/// How a number of requests follow each other.
#[derive(Clone)]
pub(crate) struct Course {
    pub(crate) count: usize,
    /// Between two requests of one worker.
    pub(crate) gap: Duration,
    /// Close what is idle before each request: it needs a new connection.
    pub(crate) close_idle: Option<ConnectionPool>,
}

/// As many workers as there are clients share the requests; `seen` is told of each one as it ends.
/// The records are in the order in which the requests were begun.
pub(crate) async fn course(
    clients: Vec<Client>,
    job: &Job,
    course: Course,
    mut seen: impl FnMut(&Record),
) -> Vec<Record> {
    let (sender, mut ended) = mpsc::unbounded_channel();
    let next = Arc::new(AtomicUsize::new(0));
    // All at once means all at once: nobody starts before everybody can.
    let start = Arc::new(Barrier::new(clients.len()));
    for client in clients {
        let (sender, next, start) = (sender.clone(), next.clone(), start.clone());
        let (job, course) = (job.clone(), course.clone());
        tokio::spawn(async move {
            start.wait().await;
            let mut is_first = true;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= course.count {
                    return;
                }
                if !std::mem::take(&mut is_first) && !course.gap.is_zero() {
                    tokio::time::sleep(course.gap).await;
                }
                if let Some(pool) = &course.close_idle {
                    pool.close_idle();
                }
                let record = one(&client, &job).await;
                if sender.send((index, record)).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut records = Vec::with_capacity(course.count);
    while let Some((index, record)) = ended.recv().await {
        seen(&record);
        records.push((index, record));
    }
    records.sort_by_key(|(index, _)| *index);
    records.into_iter().map(|(_, record)| record).collect()
}
