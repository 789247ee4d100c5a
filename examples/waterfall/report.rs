//! Out to the terminal or the pipe: JSON as requests end, or a page of pictures at the end; what
//! failed to standard error; whether the run succeeded.

use std::io::Write;

use firstbyte::ConnectionPoolStats;

use crate::Trouble;
use crate::json;
use crate::line::{Line, View};
use crate::record::Record;
use crate::render::{Kind, legend};
use crate::summary;

/// Failures that are told one by one.
const TOLD: usize = 5;

/// Where records go.
pub(crate) struct Report {
    json: bool,
    pub(crate) view: View,
}

/// Everything there is to show.
pub(crate) struct Page {
    pub(crate) intro: Vec<Line>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) stats: ConnectionPoolStats,
    pub(crate) outro: Vec<Line>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            view: View::of_stdout(),
        }
    }

    /// A request has ended.
    pub(crate) fn seen(&self, record: &Record) {
        if self.json {
            print_all([json::request(record)]);
        }
    }

    /// Shows the page.
    ///
    /// # Errors
    /// Failed, if a request has.
    pub(crate) fn finish(&self, page: &Page) -> Result<(), Trouble> {
        if self.json {
            print_all([json::stats(&page.stats)]);
        } else {
            print_all(
                self.page(page)
                    .iter()
                    .map(|line| line.paint(self.view.colour)),
            );
        }
        let records = page.kinds.iter().flat_map(|kind| &kind.records);
        let failed: Vec<(usize, &Record)> = (1..)
            .zip(records)
            .filter(|(_, record)| record.failure.is_some())
            .collect();
        for (n, record) in failed.iter().take(TOLD) {
            if let Some(failure) = &record.failure {
                let phase = failure.phase.unwrap_or("none");
                eprintln!(
                    "waterfall: request {n} failed in phase {phase}: {}",
                    failure.message
                );
            }
        }
        match failed.len() {
            0 => Ok(()),
            n => Err(Trouble::Failed(format!("{n} of the requests failed"))),
        }
    }

    fn page(&self, page: &Page) -> Vec<Line> {
        let Page {
            intro,
            kinds,
            stats,
            outro,
        } = page;
        let mut lines = intro.clone();
        lines.push(Line::new());
        lines.extend(legend(kinds, self.view));
        lines.push(Line::new());
        lines.extend(kinds.iter().flat_map(|kind| kind.lines(self.view)));
        lines.extend(summary::first_bytes(kinds, self.view));
        lines.extend(summary::statistics(stats, self.view));
        lines.extend(outro.iter().cloned());
        lines
    }
}

/// A reader that has gone away, such as `head`, has seen what it wanted.
fn print_all(lines: impl IntoIterator<Item = String>) {
    let mut out = std::io::stdout().lock();
    for line in lines {
        if writeln!(out, "{line}").is_err() {
            return;
        }
    }
    let _ = out.flush();
}
