//! The picture of one request: a line per phase, each where it began. Pure.

use std::time::Duration;

use firstbyte::Phase;

use crate::bars::Scale;
use crate::line::{Line, Tone, View, flow};
use crate::record::{Record, ms};
use crate::render::{LABEL, NUMBER};

/// A line per phase of one request.
pub(crate) fn waterfall(record: &Record, longest: Duration, view: View) -> Vec<Line> {
    let scale = Scale::new(longest, view.width - LABEL - NUMBER);
    let mut lines = flow(Line::new(), 3, " · ", facts(record), view.width);
    let axis = Line::new().pad_to(LABEL).and(Tone::Dim, scale.axis());
    lines.push(axis.right(view.width, Tone::Dim, "ms"));
    let mut start = Duration::ZERO;
    for (phase, time) in record.phases() {
        let (first, bar) = scale.span(start, time);
        let bar_end = first + bar.chars().count();
        let line = Line::of(Tone::Plain, format!("   {phase}"));
        let notes = record.notes.iter().filter(|(p, _)| *p == phase);
        let notes: Vec<&str> = notes.map(|(_, note)| note.as_str()).collect();
        let (before, behind) = (first, scale.cells() - bar_end);
        // Behind the bar; in front of it if it ends late.
        let line = match fitting(&notes, before.max(behind).saturating_sub(1)) {
            Some(note) if note.chars().count() < behind => line
                .pad_to(LABEL + first)
                .and(Tone::Of(phase), bar)
                .and(Tone::Dim, format!(" {note}")),
            Some(note) => line
                .right(LABEL + first - 1, Tone::Dim, note)
                .pad_to(LABEL + first)
                .and(Tone::Of(phase), bar),
            None => line.pad_to(LABEL + first).and(Tone::Of(phase), bar),
        };
        lines.push(line.right(view.width, Tone::Plain, ms(time)));
        start += time;
    }
    let total = Line::of(Tone::Bold, "   total").pad_to(LABEL);
    let total = total.join(overhead(record));
    lines.push(total.right(view.width, Tone::Bold, ms(record.total())));
    lines
}

/// As many of the notes as there is room for.
fn fitting(notes: &[&str], room: usize) -> Option<String> {
    let some = (1..=notes.len()).rev().map(|n| notes[..n].join(", "));
    some.into_iter().find(|note| note.chars().count() <= room)
}

/// What else is known of a request.
fn facts(record: &Record) -> Vec<Line> {
    let mut facts = vec![Line::of(Tone::Plain, connection(record)).join(use_of(record))];
    let mut add = |text: String| facts.push(Line::of(Tone::Plain, text));
    match record.tls_resumed {
        Some(true) => add("TLS resumed".into()),
        Some(false) => add("TLS in full".into()),
        None => {}
    }
    if let Some(version) = record.version {
        add(version.into());
    }
    if let Some(status) = record.status {
        add(format!("status {status}"));
    }
    if record.attempts > 1 {
        add(format!("{} attempts", record.attempts));
    }
    facts
}

fn connection(record: &Record) -> String {
    let id = record
        .connection
        .map_or_else(|| "none".into(), |id| format!("#{id}"));
    format!("connection {id} ")
}

pub(crate) fn use_of(record: &Record) -> Line {
    match record.how {
        Some(how) if how.is_reused() => Line::of(Tone::Good, how.as_str()),
        Some(how) => Line::of(Tone::Of(Phase::Tcp), how.as_str()),
        None => Line::of(Tone::Bad, "failed"),
    }
}

fn overhead(record: &Record) -> Line {
    let (overhead, total) = (record.network_overhead(), record.total());
    let percent = overhead.as_secs_f64() / total.as_secs_f64().max(1e-9) * 100.0;
    let text = format!("network overhead {} ms, {percent:.0} % of it", ms(overhead));
    Line::of(Tone::Dim, text)
}
