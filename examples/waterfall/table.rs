//! The picture of several requests: a line each, and what is usual among them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use firstbyte::Phase;

use crate::bars::{Scale, ends, stacked};
use crate::line::{Line, Tone, View, flow};
use crate::one::use_of;
use crate::record::{Record, ms};
use crate::render::{LABEL, NUMBER};

/// A line per request, and one for how many of `all` ended when. Columns are as wide as what stands
/// in them.
pub(crate) fn table(
    rows: Vec<(String, &Record)>,
    all: &[Record],
    longest: Duration,
    view: View,
) -> Vec<Line> {
    let id = |record: &Record| {
        record
            .connection
            .map_or_else(|| "-".into(), |id| format!("#{id}"))
    };
    let widest = |cells: Vec<usize>, heading: &str| {
        cells
            .into_iter()
            .max()
            .unwrap_or_default()
            .max(heading.len())
    };
    let names = widest(
        rows.iter().map(|(name, _)| name.chars().count()).collect(),
        "",
    );
    let ids = widest(
        rows.iter().map(|(_, record)| id(record).len()).collect(),
        "conn",
    );
    let uses = widest(
        rows.iter()
            .map(|(_, record)| use_of(record).width())
            .collect(),
        "use",
    );
    let tls = widest(
        rows.iter()
            .map(|(_, record)| record.handshake().len())
            .collect(),
        "tls",
    );

    let at_id = 3 + names + 1;
    let at_use = at_id + ids + 1;
    let at_tls = at_use + uses + 1;
    let at_bar = at_tls + tls + 1;
    let at_total = view.width - NUMBER;
    let scale = Scale::new(longest, at_total - NUMBER - at_bar);

    let heading = Line::new()
        .pad_to(at_id)
        .and(Tone::Dim, "conn")
        .pad_to(at_use)
        .and(Tone::Dim, "use")
        .pad_to(at_tls)
        .and(Tone::Dim, "tls")
        .pad_to(at_bar)
        .and(Tone::Dim, scale.axis())
        .right(at_total, Tone::Dim, "total")
        .right(view.width, Tone::Dim, "network");
    let mut lines = vec![heading];
    for (name, record) in rows {
        let total = if record.failure.is_some() {
            Tone::Bad
        } else {
            Tone::Bold
        };
        let network = record.network_overhead();
        let network_tone = if network.is_zero() {
            Tone::Dim
        } else {
            Tone::Plain
        };
        let line = Line::new()
            .right(3 + names, Tone::Dim, name)
            .pad_to(at_id)
            .and(Tone::Plain, id(record))
            .pad_to(at_use)
            .join(use_of(record))
            .pad_to(at_tls)
            .and(Tone::Plain, record.handshake())
            .pad_to(at_bar)
            .join(stacked(scale, &record.phases(), view.colour))
            .right(at_total, total, ms(record.total()))
            .right(view.width, network_tone, ms(network));
        lines.push(line);
    }
    if !all.is_empty() {
        let totals: Vec<Duration> = all.iter().map(Record::total).collect();
        let label = Line::of(
            Tone::Dim,
            format!("   how many of the {} end when", all.len()),
        );
        let label = if label.width() < at_bar {
            label
        } else {
            Line::of(Tone::Dim, "   ends")
        };
        lines.push(
            label
                .pad_to(at_bar)
                .and(Tone::Of(Phase::Receive), ends(scale, &totals)),
        );
    }
    lines
}

/// The median of each phase over the requests in which it happened.
pub(crate) fn medians(records: &[Record], view: View) -> Vec<Line> {
    let mut times: BTreeMap<Phase, Vec<Duration>> = BTreeMap::new();
    for (phase, time) in records.iter().flat_map(Record::phases) {
        times.entry(phase).or_default().push(time);
    }
    let items = times.into_iter().map(|(phase, times)| {
        let n = times.len();
        let item = Line::of(Tone::Of(phase), phase.as_str())
            .and(Tone::Plain, format!(" {}", ms(median(times))));
        if n == records.len() {
            item
        } else {
            item.and(Tone::Dim, format!(" ({n}x)"))
        }
    });
    let label = Line::of(Tone::Dim, "   medians");
    flow(label, LABEL, "  ", items.collect(), view.width)
}

/// The middle one; zero of none.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
