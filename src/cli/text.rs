//! How things are written for people: sizes, spans, instants, tables, and text that came from outside.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use comfy_table::{Cell, CellAlignment, Table, presets};

pub use crate::types::{rfc3339, size};

/// A span of seconds.
pub fn span(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    // Beyond a minute nobody wants fractions; a span that is no number is shown as the longest.
    humantime::format_duration(std::time::Duration::from_secs(seconds as u64)).to_string()
}

/// An instant in UTC, to the second.
pub fn utc(instant: DateTime<Utc>) -> String {
    instant.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// An instant that may not be.
pub fn utc_or(instant: Option<DateTime<Utc>>, otherwise: &str) -> String {
    instant.map_or_else(|| otherwise.to_owned(), utc)
}

/// The instant of a point, exactly: the same wherever it is shown, and copied to `--at` it finds this point.
pub fn point(instant: DateTime<Utc>) -> String {
    rfc3339(instant)
}

/// As [`point`], where there may be none.
pub fn point_or(instant: Option<DateTime<Utc>>, otherwise: &str) -> String {
    instant.map_or_else(|| otherwise.to_owned(), point)
}

/// "1 recovery point", "2 recovery points".
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Text from outside (keys, facts, messages) with its control characters made visible: no name in a repository moves
/// the cursor of an operator's terminal. Line ends and tabs stay.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn is_hostile(c: char) -> bool {
    // Beside the control characters: those that turn the direction of writing around.
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A table without lines, as `ls -l` has none: it can be cut with `awk`. A header that begins with `>` is of a column of
/// numbers.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.map(|h| Cell::new(title(h.trim_start_matches('>')))));
    for row in rows {
        table.add_row(row.map(|cell| one_line(&cell)));
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// In capitals up to a bracket, which may hold a name.
fn title(text: &str) -> String {
    match text.split_once('(') {
        Some((before, bracket)) => format!("{}({bracket}", before.to_uppercase()),
        None => text.to_uppercase(),
    }
}

fn one_line(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

/// The name that was probably meant.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (distance(wanted, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = cost.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant() {
        let names = ["orders", "app", "media"];
        assert_eq!(nearest("order", names.into_iter()), Some("orders"));
        assert_eq!(nearest("oders", names.into_iter()), Some("orders"));
        assert_eq!(nearest("apps", names.into_iter()), Some("app"));
        assert_eq!(nearest("customers", names.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn text_from_outside_moves_no_cursor() {
        assert_eq!(clean("plain\n"), "plain\n");
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}"), "a\\u{1b}[2Jb\\u{202e}");
    }

    #[test]
    fn a_table_can_be_cut() {
        let text = table(
            ["run", ">size"],
            [["a".to_owned(), "1".to_owned()], ["bcd\ne".into(), "100".into()]],
        );
        assert_eq!(text, "RUN    SIZE\na         1\nbcd e   100\n");
    }

    #[test]
    fn the_instant_of_a_point_finds_it_again() {
        for text in [
            "2026-11-24T14:06:56.594738664Z",
            "2026-11-24T14:06:56.594738Z",
            "2026-11-24T14:06:56Z",
        ] {
            assert_eq!(point(text.parse().unwrap()), text);
        }
    }

    #[test]
    fn sizes_and_spans() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(3 << 20), "3.0 MiB");
        assert_eq!(span(0.25), "0.2 s");
        assert_eq!(span(3725.9), "1h 2m 5s");
    }
}
