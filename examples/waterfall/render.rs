//! From records to lines of text: a waterfall of one request, a table of several, a picture of
//! many. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use firstbyte::Phase;

use crate::bars::{Scale, THIN, ends, glyph, stacked};
use crate::line::{Line, Tone, View, flow};
use crate::record::Record;

/// Requests that belong together.
pub(crate) struct Kind {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) records: Vec<Record>,
    /// First begin to last end.
    pub(crate) took: Duration,
    pub(crate) shape: Shape,
    /// The longest time that the bars have to hold.
    pub(crate) longest: Duration,
}

/// How a kind is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Its one request, a line per phase.
    Phases,
    /// A line per request.
    Rows,
    /// A few of its requests, and all of them in one line.
    Crowd,
}

/// Columns of a label in front of a bar.
const LABEL: usize = 12;
/// Columns of milliseconds.
const NUMBER: usize = 9;

impl Kind {
    /// The heading and the picture.
    pub(crate) fn lines(&self, view: View) -> Vec<Line> {
        let title = Line::of(Tone::Bold, format!(" {}  ", self.title));
        let about = flow(title, 3, " ", words(&self.about), view.width);
        let picture = match (self.shape, self.records.as_slice()) {
            (_, []) => vec![Line::of(Tone::Dim, "   no request")],
            (Shape::Phases, [first, ..]) => waterfall(first, self.longest, view),
            (Shape::Rows, records) => {
                let names = (1..=records.len()).map(|n| n.to_string());
                let mut lines = table(names.zip(records).collect(), &[], self.longest, view);
                lines.extend(medians(records, view));
                lines
            }
            (Shape::Crowd, records) => self.crowd(records, view),
        };
        about
            .into_iter()
            .chain(picture)
            .chain([Line::new()])
            .collect()
    }

    fn crowd(&self, records: &[Record], view: View) -> Vec<Line> {
        let mut by_total: Vec<&Record> = records.iter().collect();
        by_total.sort_by_key(|record| record.total());
        let at = |share: f64| by_total[((by_total.len() - 1) as f64 * share).round() as usize];
        let rows = [
            ("first", &records[0]),
            ("fastest", at(0.0)),
            ("median", at(0.5)),
            ("p90", at(0.9)),
            ("slowest", at(1.0)),
        ];
        let rows = rows
            .map(|(name, record)| (name.to_owned(), record))
            .to_vec();
        let mut lines = table(rows, records, self.longest, view);
        lines.extend(medians(records, view));
        let items = vec![
            Line::of(
                Tone::Plain,
                format!("{} requests in {} ms", records.len(), ms(self.took)),
            ),
            Line::of(Tone::Plain, connections(records)),
            Line::of(Tone::Plain, uses(records)),
        ];
        lines.extend(flow(
            Line::of(Tone::Dim, "   in all"),
            LABEL,
            " · ",
            items,
            view.width,
        ));
        lines
    }
}

fn words(text: &str) -> Vec<Line> {
    text.split(' ')
        .map(|word| Line::of(Tone::Dim, word))
        .collect()
}

/// A line per phase of one request.
fn waterfall(record: &Record, longest: Duration, view: View) -> Vec<Line> {
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

fn use_of(record: &Record) -> Line {
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

/// A line per request, and one for how many of `all` ended when. Columns are as wide as what stands
/// in them.
fn table(rows: Vec<(String, &Record)>, all: &[Record], longest: Duration, view: View) -> Vec<Line> {
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
fn medians(records: &[Record], view: View) -> Vec<Line> {
    let mut times: BTreeMap<Phase, Vec<Duration>> = BTreeMap::new();
    for (phase, time) in records.iter().flat_map(Record::phases) {
        times.entry(phase).or_default().push(time);
    }
    let items = times.into_iter().map(|(phase, times)| {
        let n = times.len();
        let item = Line::of(Tone::Of(phase), phase.name())
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
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn connections(records: &[Record]) -> String {
    let mut ids: Vec<u64> = records
        .iter()
        .filter_map(|record| record.connection)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    match ids.as_slice() {
        [] => "no connection".into(),
        [id] => format!("1 connection, #{id}"),
        [first, .., last] => format!("{} connections, #{first} to #{last}", ids.len()),
    }
}

/// How often each use: `49 multiplexed, 1 idle`.
fn uses(records: &[Record]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        let how = record
            .how
            .map_or("failed", firstbyte::ConnectionUse::as_str);
        *counts.entry(how).or_default() += 1;
    }
    let counts = counts.into_iter().map(|(how, n)| format!("{n} {how}"));
    counts.collect::<Vec<_>>().join(", ")
}

/// What the glyphs mean, once.
pub(crate) fn legend(kinds: &[Kind], view: View) -> Vec<Line> {
    let rare = [Phase::Retry, Phase::Proxy];
    let happened = |phase: Phase| {
        let mut records = kinds.iter().flat_map(|kind| &kind.records);
        records.any(|record| record.phases().iter().any(|(p, _)| *p == phase))
    };
    let shown = Phase::ALL
        .into_iter()
        .filter(|phase| !rare.contains(phase) || happened(*phase));
    let mut items: Vec<Line> = shown
        .map(|phase| {
            let glyph = glyph(phase, view.colour);
            Line::of(Tone::Of(phase), glyph.to_string()).and(Tone::Plain, format!(" {phase}"))
        })
        .collect();
    items.push(Line::of(Tone::Dim, format!("{THIN} tiny")));
    flow(Line::new(), 1, "  ", items, view.width)
}

/// Milliseconds with two decimals; what is less than that says so.
pub(crate) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        _ if time.is_zero() => "0".into(),
        _ if ms < 0.005 => "<0.01".into(),
        _ if ms < 10_000.0 => format!("{ms:.2}"),
        _ => format!("{ms:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use firstbyte::ConnectionUse;

    use super::*;
    use crate::record::Timing;

    fn record(phases: &[(Phase, u64)], how: ConnectionUse) -> Record {
        let micros = |phase| phases.iter().find(|(p, _)| *p == phase).map(|(_, us)| *us);
        let total = phases.iter().map(|(_, us)| us).sum();
        Record {
            connection: Some(7),
            how: Some(how),
            tls_resumed: Some(true),
            attempts: 1,
            timing: Some(Timing {
                phases: Phase::ALL.map(|phase| micros(phase).map(Duration::from_micros)),
                total: Duration::from_micros(total),
                ..Timing::default()
            }),
            notes: vec![(Phase::Tls, "a note of some length".into())],
            ..Record::default()
        }
    }

    fn kinds() -> Vec<Kind> {
        let cold = [
            (Phase::Queue, 40),
            (Phase::Dns, 12_600),
            (Phase::Tls, 2_400),
            (Phase::Wait, 26_000),
        ];
        let warm = [
            (Phase::Queue, 1),
            (Phase::Send, 30),
            (Phase::Wait, 26_000),
            (Phase::Receive, 9),
        ];
        let kind = |shape, records: Vec<Record>| Kind {
            title: "kind".into(),
            about: "a few words about it, and then some more, so that one line is not enough"
                .into(),
            longest: records.iter().map(Record::total).max().unwrap_or_default(),
            took: Duration::from_millis(50),
            records,
            shape,
        };
        vec![
            kind(Shape::Phases, vec![record(&cold, ConnectionUse::New)]),
            kind(Shape::Rows, vec![record(&warm, ConnectionUse::Idle); 10]),
            kind(
                Shape::Crowd,
                vec![record(&warm, ConnectionUse::Multiplexed); 250],
            ),
            kind(
                Shape::Crowd,
                vec![record(&[], ConnectionUse::Prewarmed), Record::default()],
            ),
            kind(Shape::Rows, Vec::new()),
        ]
    }

    #[test]
    fn no_line_is_wider_than_the_view() {
        for width in [80, 100, 160] {
            for colour in [false, true] {
                let view = View { width, colour };
                let mut lines = legend(&kinds(), view);
                lines.extend(kinds().iter().flat_map(|kind| kind.lines(view)));
                for line in lines {
                    assert!(line.width() <= width, "{width}: {}", line.paint(false));
                }
            }
        }
    }

    #[test]
    fn a_waterfall_has_the_phases_that_happened_and_no_other() {
        let view = View {
            width: 80,
            colour: false,
        };
        let lines: Vec<String> = kinds()[0]
            .lines(view)
            .iter()
            .map(|l| l.paint(false))
            .collect();
        let text = lines.join("\n");
        for (phase, shown) in [
            ("dns", true),
            ("tls", true),
            ("tcp", false),
            ("receive", false),
        ] {
            assert_eq!(
                text.contains(&format!("\n   {phase} ")),
                shown,
                "{phase}\n{text}"
            );
        }
        assert!(text.contains("connection #7 new · TLS resumed"), "{text}");
        assert!(text.contains("12.60") && text.contains("41.04"), "{text}");
    }
}
