//! What comes after the pictures: how the kinds compare, and the pool's statistics. Pure.

use std::time::Duration;

use firstbyte::{ConnectionPoolStats, Phase};

use crate::bars::{Scale, glyph};
use crate::line::{Line, Tone, View, flow};
use crate::record::{Record, ms};
use crate::render::Kind;

const LABEL: usize = 22;

/// The median time to the first byte of each kind, with the share of the network overhead.
pub(crate) fn first_bytes(kinds: &[Kind], view: View) -> Vec<Line> {
    let rows: Vec<(&str, Duration, Duration)> = kinds
        .iter()
        .filter_map(|kind| {
            let (byte, overhead) = middle(&kind.records)?;
            Some((kind.title.as_str(), overhead, byte))
        })
        .collect();
    if rows.len() < 2 {
        return Vec::new();
    }
    let longest = rows
        .iter()
        .map(|(_, _, byte)| *byte)
        .max()
        .unwrap_or_default();
    let scale = Scale::new(longest, view.width - LABEL - 12);
    let mut lines = vec![
        Line::of(Tone::Bold, " Time to the first byte, median ")
            .and(
                Tone::Of(Phase::Tls),
                glyph(Phase::Tls, view.colour).to_string(),
            )
            .and(Tone::Dim, " network overhead ")
            .and(
                Tone::Of(Phase::Wait),
                glyph(Phase::Wait, view.colour).to_string(),
            )
            .and(Tone::Dim, " the rest"),
    ];
    for (title, overhead, byte) in rows {
        let overhead = overhead.min(byte);
        let parts = match overhead.is_zero() {
            true => vec![(Phase::Wait, byte)],
            false => vec![(Phase::Tls, overhead), (Phase::Wait, byte - overhead)],
        };
        let bar = crate::bars::stacked(scale, &parts, view.colour);
        let line = Line::of(Tone::Plain, format!("   {title}"))
            .pad_to(LABEL)
            .join(bar);
        lines.push(line.right(view.width, Tone::Bold, format!("{} ms", ms(byte))));
    }
    lines.push(Line::new());
    lines
}

/// The time to the first byte and the network overhead of the request in the middle.
fn middle(records: &[Record]) -> Option<(Duration, Duration)> {
    let mut times: Vec<_> = records
        .iter()
        .filter_map(|record| {
            Some((
                record.timing.as_ref()?.first_byte?,
                record.network_overhead(),
            ))
        })
        .collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// What the pool counted.
pub(crate) fn statistics(stats: &ConnectionPoolStats, view: View) -> Vec<Line> {
    let rate = format!("{:.1} %", stats.connection_reuse_rate);
    let (total, reused) = (stats.total_requests, stats.connections_reused);
    let saved = format!("{:.1} ms", stats.network_overhead_reduction_ms);
    let big = [
        (
            "reuse rate",
            rate,
            format!("{reused} of {total} waited for no connection phase"),
        ),
        (
            "look-ups saved",
            stats.dns_lookups_saved.to_string(),
            "waited for no DNS query".into(),
        ),
        (
            "handshakes saved",
            stats.tls_handshakes_saved.to_string(),
            "https, on a connection that was there already".into(),
        ),
        (
            "overhead saved",
            saved,
            "what opening those connections had cost".into(),
        ),
    ];
    let mut lines = vec![Line::of(
        Tone::Bold,
        format!(" The pool after {total} requests"),
    )];
    for (name, value, about) in big {
        let label = Line::of(Tone::Plain, format!("   {name}"));
        let value = Line::of(Tone::Good, format!("{value:<11}"));
        let about = Line::of(Tone::Dim, about);
        lines.extend(flow(label, LABEL, "", vec![value, about], view.width));
    }
    let counted = |name: &str, n: u64| Line::of(Tone::Plain, format!("{n} {name}"));
    let opened = vec![
        counted("opened", stats.connections_created),
        counted("resumed", stats.resumed),
        counted("open", stats.open as u64),
        counted("idle", stats.idle as u64),
        counted("active", stats.active as u64),
    ];
    lines.extend(labelled("connections", opened, view));
    let closed: Vec<Line> = stats
        .closed
        .iter()
        .map(|(why, n)| counted(why.as_str(), *n))
        .collect();
    let closed = if closed.is_empty() {
        vec![Line::of(Tone::Dim, "none")]
    } else {
        closed
    };
    lines.extend(labelled("closed", closed, view));
    let rest = vec![
        counted("joined a dial", stats.joined),
        counted("retries", stats.retries),
        counted("limit hits", stats.limit_hits),
        counted("dials failed", stats.dials_failed),
        counted("unserved", stats.unserved),
    ];
    lines.extend(labelled("beside that", rest, view));
    lines
}

/// A label and what belongs to it, as under the statistics.
pub(crate) fn labelled(label: &str, items: Vec<Line>, view: View) -> Vec<Line> {
    let label = Line::of(Tone::Plain, format!("   {label}"));
    flow(label, LABEL, " · ", items, view.width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_fit_into_eighty_columns() {
        let view = View {
            width: 80,
            colour: false,
        };
        let mut stats = ConnectionPoolStats::default();
        stats.total_requests = 123_456;
        stats.network_overhead_reduction_ms = 123_456.7;
        for reason in firstbyte::CloseReason::ALL {
            stats.closed.insert(*reason, 1234);
        }
        for line in statistics(&stats, view) {
            assert!(line.width() <= 80, "{}", line.paint(false));
        }
    }
}
