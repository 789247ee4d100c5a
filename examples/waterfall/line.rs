//! Lines of text with tones, and what a tone looks like. Pure but for [`View::of_stdout`].

use std::io::IsTerminal;

use firstbyte::Phase;

/// What a piece of text is; the colour follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Of(Phase),
}

impl Tone {
    /// The escape sequence that switches it on. Phases have the colours of browsers' network
    /// panels: dns teal, connect orange, TLS purple, waiting green, receiving blue.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[38;5;244m",
            Self::Good => "\x1b[38;5;78m",
            Self::Bad => "\x1b[1;38;5;203m",
            Self::Of(phase) => match phase {
                Phase::Retry => "\x1b[38;5;203m",
                Phase::Queue => "\x1b[38;5;246m",
                Phase::Dns => "\x1b[38;5;44m",
                Phase::Tcp => "\x1b[38;5;214m",
                Phase::Proxy => "\x1b[38;5;180m",
                Phase::Tls => "\x1b[38;5;141m",
                Phase::Protocol => "\x1b[38;5;205m",
                Phase::Send => "\x1b[38;5;221m",
                Phase::Wait => "\x1b[38;5;78m",
                Phase::Receive => "\x1b[38;5;75m",
                _ => "",
            },
        }
    }
}

/// One line, in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pieces: Vec<(Tone, String)>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A line of one piece.
    pub(crate) fn of(tone: Tone, text: impl Into<String>) -> Self {
        Self::new().and(tone, text)
    }

    /// With one more piece.
    pub(crate) fn and(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.pieces.push((tone, text.into()));
        self
    }

    /// With the pieces of another line behind its own.
    pub(crate) fn join(mut self, other: Self) -> Self {
        self.pieces.extend(other.pieces);
        self
    }

    /// With blanks up to a column.
    pub(crate) fn pad_to(self, column: usize) -> Self {
        let blanks = column.saturating_sub(self.width());
        self.and(Tone::Plain, " ".repeat(blanks))
    }

    /// With text that ends in a column.
    pub(crate) fn right(self, column: usize, tone: Tone, text: impl Into<String>) -> Self {
        let text = text.into();
        self.pad_to(column.saturating_sub(text.chars().count()))
            .and(tone, text)
    }

    /// Columns taken. All that is printed here is one column wide.
    pub(crate) fn width(&self) -> usize {
        self.pieces
            .iter()
            .map(|(_, text)| text.chars().count())
            .sum()
    }

    /// The line as it is written.
    pub(crate) fn paint(&self, colour: bool) -> String {
        let mut out = String::new();
        for (tone, text) in &self.pieces {
            let code = tone.code();
            if colour && !code.is_empty() && !text.trim().is_empty() {
                out.push_str(code);
                out.push_str(text);
                out.push_str("\x1b[0m");
            } else {
                out.push_str(text);
            }
        }
        out.truncate(out.trim_end().len());
        out
    }
}

/// Pieces that flow over as many lines as they need, each indented.
pub(crate) fn flow(
    first: Line,
    indent: usize,
    gap: &str,
    items: Vec<Line>,
    width: usize,
) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut line = first.pad_to(indent);
    let mut is_empty = true;
    for item in items {
        let gap = if is_empty { "" } else { gap };
        if !is_empty && line.width() + gap.chars().count() + item.width() > width {
            lines.push(line);
            line = Line::new().pad_to(indent).join(item);
        } else {
            line = line.and(Tone::Dim, gap).join(item);
        }
        is_empty = false;
    }
    lines.push(line);
    lines
}

/// How the output is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) width: usize,
    pub(crate) colour: bool,
}

impl View {
    /// As standard output and the environment have it.
    pub(crate) fn of_stdout() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let columns = set("COLUMNS").and_then(|columns| columns.parse::<usize>().ok());
        // The size of a terminal cannot be asked without unsafe code; 80 fits every one of them.
        let width = columns.unwrap_or(if is_terminal { 80 } else { 100 });
        let is_dumb = set("TERM").is_some_and(|term| term == "dumb");
        let forced = set("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let colour = set("NO_COLOR").is_none() && (forced || (is_terminal && !is_dumb));
        Self {
            width: width.clamp(80, 200),
            colour,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_no_escapes() {
        let line = Line::of(Tone::Bold, "a")
            .right(5, Tone::Of(Phase::Tls), "b")
            .and(Tone::Dim, "  ");
        assert_eq!(line.paint(false), "a   b");
        assert_eq!(line.paint(true), "\x1b[1ma\x1b[0m   \x1b[38;5;141mb\x1b[0m");
        assert_eq!(line.width(), 7);
    }

    #[test]
    fn flowing_text_stays_within_the_width() {
        let items = (0..9)
            .map(|n| Line::of(Tone::Plain, format!("item {n}")))
            .collect();
        let lines = flow(Line::of(Tone::Dim, "x"), 4, ", ", items, 30);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.width() <= 30));
        assert_eq!(lines[0].paint(false), "x   item 0, item 1, item 2");
    }
}
