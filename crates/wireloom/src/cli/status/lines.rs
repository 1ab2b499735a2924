//! Text that fits the width of a terminal: sentences, pairs of label and text, and columns.

/// The width unless the environment says otherwise: that of the terminals that everybody has.
const WIDTH: usize = 80;

/// Narrower than this no line can be.
const LEAST: usize = 40;

/// Between two columns.
const GAP: &str = "  ";

/// The most that the first column takes; a longer entry gets a line of its own.
const FIRST_COLUMN: usize = 30;

/// How many characters a line may have: `COLUMNS` of the environment, or 80.
pub(super) fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.unwrap_or(WIDTH).max(LEAST)
}

/// Wraps a text between words. The first line begins with `label`, the others with as many spaces. A word that is
/// longer than a line is cut.
pub(super) fn wrap(label: &str, text: &str, width: usize) -> String {
    let indent = label.chars().count();
    let room = width.saturating_sub(indent).max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace().flat_map(|word| pieces(word, room)) {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > room {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
            }
            line.push_str(&word);
            used += usize::from(used > 0) + length;
        }
    }
    let lines = lines.iter().enumerate().map(|(number, line)| match number {
        0 => format!("{label}{line}"),
        _ => format!("{:indent$}{line}", ""),
    });
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Pairs of a label and a text, with the texts below each other.
pub(super) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>, width: usize) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let longest = pairs.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
    pairs.iter().map(|(label, text)| wrap(&format!("{label:longest$}{GAP}"), text, width)).collect()
}

/// Rows of as many cells as the header has, each as wide as its column's widest cell, and a text below each row.
pub(super) fn columns<const N: usize>(
    header: [&str; N],
    rows: &[([String; N], Vec<String>)],
    width: usize,
) -> String {
    let longest = |column: usize| {
        let cells = rows.iter().map(|(cells, _)| cells[column].chars().count());
        let fitting = cells.filter(|length| column > 0 || *length <= FIRST_COLUMN);
        fitting.max().unwrap_or_default().max(header[column].len())
    };
    let widths: [usize; N] = std::array::from_fn(longest);
    let row = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line += &format!("{cell:width$}{GAP}");
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = row(header);
    for (cells, below) in rows {
        let mut cells: [&str; N] = cells.each_ref().map(String::as_str);
        if cells[0].chars().count() > FIRST_COLUMN {
            text += &wrap("", cells[0], width);
            cells[0] = "";
        }
        text += &row(cells);
        text.extend(below.iter().map(|line| wrap("    ", line, width)));
    }
    text
}

/// A word in pieces of at most this many characters.
fn pieces(word: &str, length: usize) -> impl Iterator<Item = String> {
    let characters: Vec<char> = word.chars().collect();
    let pieces: Vec<_> = characters.chunks(length).map(|piece| piece.iter().collect()).collect();
    pieces.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_between_words_and_aligned() {
        assert_eq!(wrap("warning: ", "one two three", 16), "warning: one two\n         three\n");
        assert_eq!(wrap("", "abcdefgh ij", 4), "abcd\nefgh\nij\n");
        assert_eq!(wrap("label  ", "", 40), "label\n");
    }

    #[test]
    fn pairs_and_columns_are_aligned_and_long_names_get_a_line() {
        let shown = pairs([("a", "x".to_owned()), ("long", "y".to_owned())], 40);
        assert_eq!(shown, "a     x\nlong  y\n");
        let long = "n".repeat(FIRST_COLUMN + 1);
        let rows = [
            (["b".to_owned(), "up".to_owned()], vec![]),
            ([long.clone(), "idle".to_owned()], vec!["why not".to_owned()]),
        ];
        let shown = columns(["peer", "state"], &rows, 80);
        assert_eq!(shown, format!("peer  state\nb     up\n{long}\n      idle\n    why not\n"));
    }
}
