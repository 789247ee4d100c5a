//! Durations as bars to scale. Pure.
//!
//! What is shorter than a cell still shows, as a thin mark; the rest of the bar gives way, so that
//! its length stays to scale.

use std::time::Duration;

use firstbyte::Phase;

use crate::line::{Line, Tone};

/// The mark of what is too short for a cell of its own.
pub(crate) const THIN: char = '▏';

/// How many cells a duration is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    longest: Duration,
    cells: usize,
}

impl Scale {
    /// `longest` fills all cells.
    pub(crate) fn new(longest: Duration, cells: usize) -> Self {
        Self {
            longest: longest.max(Duration::from_micros(1)),
            cells,
        }
    }

    pub(crate) fn cells(self) -> usize {
        self.cells
    }

    fn cells_of(self, time: Duration) -> f64 {
        time.as_secs_f64() / self.longest.as_secs_f64() * self.cells as f64
    }

    /// A bar that begins after `start` and lasts `time`: its first cell, and itself in steps of an
    /// eighth of a cell.
    pub(crate) fn span(self, start: Duration, time: Duration) -> (usize, String) {
        const PARTS: [char; 8] = ['█', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
        let length = self.cells_of(time);
        let eighths = ((length * 8.0).round() as usize).clamp(1, self.cells * 8);
        let mut bar = "█".repeat(eighths / 8);
        if !eighths.is_multiple_of(8) {
            bar.push(PARTS[eighths % 8]);
        }
        let first = self.cells_of(start).round() as usize;
        (first.min(self.cells - bar.chars().count()), bar)
    }

    /// Phases one behind the other, in whole cells: how many each gets, 0 for a thin mark. A thin
    /// mark takes a cell too.
    pub(crate) fn stack(self, times: &[Duration]) -> Vec<usize> {
        let ideal: Vec<f64> = times.iter().map(|time| self.cells_of(*time)).collect();
        let is_thin: Vec<bool> = ideal.iter().map(|cells| *cells < 0.5).collect();
        let whole: f64 = ideal.iter().sum();
        let target = (whole.round() as usize).clamp(times.len().min(self.cells), self.cells);
        let mut cells: Vec<usize> = ideal
            .iter()
            .map(|cells| (cells.round() as usize).max(1))
            .collect();
        // What the thin marks take too much, or rounding gave too little, the longest bears.
        while cells.iter().sum::<usize>() != target {
            let excess = |i: &usize| cells[*i] as f64 - ideal[*i];
            let by_excess = |a: &usize, b: &usize| excess(a).total_cmp(&excess(b));
            let thick = (0..cells.len()).filter(|i| !is_thin[*i]);
            let changed = if cells.iter().sum::<usize>() > target {
                thick
                    .filter(|i| cells[*i] > 1)
                    .max_by(by_excess)
                    .map(|i| (i, cells[i] - 1))
            } else {
                thick.min_by(by_excess).map(|i| (i, cells[i] + 1))
            };
            let Some((i, n)) = changed else { break };
            cells[i] = n;
        }
        let thinned = cells.into_iter().zip(is_thin);
        thinned
            .map(|(cells, is_thin)| if is_thin { 0 } else { cells })
            .collect()
    }

    /// The axis: a tick and its milliseconds at round numbers.
    pub(crate) fn axis(self) -> String {
        let longest = self.longest.as_secs_f64() * 1e3;
        let step = round_step(longest, self.cells);
        let mut axis = vec![' '; self.cells];
        for n in 0.. {
            let at = (n as f64 * step / longest * self.cells as f64).round() as usize;
            let value = n as f64 * step;
            let label = match n {
                0 => "╷0 ms".to_owned(),
                _ => format!("╷{value:.*}", if step < 1.0 { 2 } else { 0 }),
            };
            if at + label.chars().count() > self.cells {
                break;
            }
            for (i, c) in label.chars().enumerate() {
                axis[at + i] = c;
            }
        }
        axis.into_iter().collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that two ticks are at least seven cells apart.
fn round_step(longest: f64, cells: usize) -> f64 {
    let least = longest / cells as f64 * 7.0;
    let power = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power);
    step.into_iter()
        .find(|step| *step >= least)
        .unwrap_or(power * 10.0)
}

/// What a phase is drawn with where phases share a line. Without colour each has a pattern: heavy
/// ones for what the connection cost, a thin line for waiting for the server.
pub(crate) fn glyph(phase: Phase, colour: bool) -> char {
    match (phase, colour) {
        (Phase::Wait, true) => '━',
        (Phase::Queue, _) => '░',
        (_, true) => '█',
        (Phase::Retry, _) => 'x',
        (Phase::Dns, _) => '▓',
        (Phase::Tcp, _) => '▒',
        (Phase::Proxy, _) => '%',
        (Phase::Tls, _) => '█',
        (Phase::Protocol, _) => '=',
        (Phase::Send, _) => '>',
        (Phase::Wait, _) => '─',
        (Phase::Receive, _) => '<',
        _ => '?',
    }
}

/// The phases of one request on one line.
pub(crate) fn stacked(scale: Scale, phases: &[(Phase, Duration)], colour: bool) -> Line {
    let times: Vec<Duration> = phases.iter().map(|(_, time)| *time).collect();
    let cells = scale.stack(&times);
    let drawn = phases.iter().zip(cells);
    drawn.fold(Line::new(), |line, ((phase, _), cells)| {
        let bar = match cells {
            0 => THIN.to_string(),
            n => glyph(*phase, colour).to_string().repeat(n),
        };
        line.and(Tone::Of(*phase), bar)
    })
}

/// How many of the durations end in which cell: `▁` to `█`.
pub(crate) fn ends(scale: Scale, times: &[Duration]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut counts = vec![0_usize; scale.cells];
    for time in times {
        let cell = scale.cells_of(*time) as usize;
        counts[cell.min(scale.cells - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or_default().max(1);
    let height = |n: usize| {
        if n == 0 {
            ' '
        } else {
            HEIGHTS[(n * 8).div_ceil(most) - 1]
        }
    };
    counts.into_iter().map(height).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn a_stack_is_as_long_as_its_sum_and_short_phases_show() {
        let scale = Scale::new(ms(40.0), 40);
        let times = [
            ms(0.02),
            ms(12.6),
            ms(0.1),
            ms(2.4),
            ms(0.05),
            ms(24.8),
            ms(0.03),
        ];
        let cells = scale.stack(&times);
        assert_eq!(cells.iter().map(|n| (*n).max(1)).sum::<usize>(), 40);
        assert_eq!(cells.iter().filter(|n| **n == 0).count(), 4);
        assert!(cells[5] > cells[1] && cells[1] > cells[3]);
    }

    #[test]
    fn a_stack_never_leaves_its_cells() {
        let times = [ms(0.0), ms(1.0), ms(3.3), ms(0.001), ms(7.0), ms(0.4)];
        for cells in [6, 7, 25, 60] {
            for longest in [11.701, 20.0, 400.0, 40000.0] {
                let stack = Scale::new(ms(longest), cells).stack(&times);
                let drawn: usize = stack.iter().map(|n| (*n).max(1)).sum();
                assert!(drawn <= cells, "{cells} {longest}: {stack:?}");
            }
        }
    }

    #[test]
    fn a_span_stays_inside_and_is_never_nothing() {
        let scale = Scale::new(ms(40.0), 40);
        assert_eq!(scale.span(ms(0.0), ms(0.0)), (0, "▏".into()));
        assert_eq!(scale.span(ms(10.0), ms(2.5)), (10, "██▌".into()));
        assert_eq!(scale.span(ms(40.0), ms(0.001)), (39, "▏".into()));
        assert_eq!(scale.span(ms(0.0), ms(99.0)).1.chars().count(), 40);
    }

    #[test]
    fn ends_are_counted_by_cell() {
        let times = [ms(0.0), ms(5.0), ms(5.1), ms(9.99), ms(10.0)];
        assert_eq!(ends(Scale::new(ms(10.0), 10), &times), "▄    █   █");
    }

    #[test]
    fn axes_have_round_numbers() {
        assert!(
            Scale::new(ms(44.0), 58)
                .axis()
                .starts_with("╷0 ms        ╷10")
        );
        for longest in [0.07, 3.0, 99.0, 12345.0] {
            let axis = Scale::new(ms(longest), 25).axis();
            assert_eq!(axis.chars().count(), 25);
        }
    }
}
