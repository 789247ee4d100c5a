//! From records to lines of text: which picture a kind of requests gets, and what the glyphs mean.
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use firstbyte::Phase;

use crate::bars::{THIN, glyph};
use crate::line::{Line, Tone, View, flow};
use crate::one::waterfall;
use crate::record::{Record, ms};
use crate::table::{medians, table};

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
pub(crate) const LABEL: usize = 12;
/// Columns of milliseconds.
pub(crate) const NUMBER: usize = 9;

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
