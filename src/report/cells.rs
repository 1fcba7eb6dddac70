//! A table as text, as HTML and as Markdown.

use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::html::escaped;
use super::{Bench, Row};

/// The cells of a table. A heading may have a second line; one without a first line shares that of the column
/// on its left.
pub struct Cells {
    header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Cells {
    /// A row for each of the bench's, that begins with its freeze and, where there are several, its batches.
    pub(super) fn new(bench: &Bench, header: &[&str], cells: impl Fn(&Row) -> Vec<String>) -> Self {
        let has_shapes = bench.shapes.len() > 1;
        let mut all = vec!["freeze".to_owned()];
        if has_shapes {
            all.push("batch x\nlength".to_owned());
        }
        all.extend(header.iter().map(|&heading| heading.to_owned()));
        let row = |row: &Row| {
            let mut all = vec![row.measurement.freeze.clone()];
            if has_shapes {
                all.push(bench.shape(row).label());
            }
            all.extend(cells(row));
            all
        };
        Self { header: all, rows: bench.rows.iter().map(row).collect() }
    }

    /// Rows of their own.
    pub(super) fn of(header: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self { header: header.iter().map(|&heading| heading.to_owned()).collect(), rows }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let header: Vec<&str> = self.header.iter().map(String::as_str).collect();
        draw(&header, self.rows.clone())
    }

    /// An HTML table.
    pub fn html(&self) -> String {
        let line = |tag: &str, cells: &[String]| {
            let cells: String = (cells.iter())
                .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell).replace('\n', "<br>")))
                .collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|row| line("td", row)).collect();
        let header = line("th", &self.header);
        format!("<table>\n<thead>{header}</thead>\n<tbody>{rows}</tbody>\n</table>\n")
    }

    /// A Markdown table, in which headings have one line.
    pub fn markdown(&self) -> String {
        let (mut first_line, mut header) = (String::new(), Vec::new());
        for heading in &self.header {
            let (first, second) = heading.split_once('\n').unwrap_or((heading, ""));
            if !first.is_empty() {
                first_line = first.to_owned();
            }
            header.push(format!("{first_line} {second}").trim_end().to_owned());
        }
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let figures = "---:|".repeat(self.header.len() - 1);
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}|---|{figures}\n{rows}", line(&header))
    }
}

/// The first `most` characters of a text.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A table whose first column is text and whose others are figures.
pub(super) fn draw(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_headings_have_one_line() {
        let header = ["freeze", "ms\nforward", "\nbackward", "peak"].map(str::to_owned).to_vec();
        let rows = vec![["name:a|b", "1", "2", "3"].map(str::to_owned).to_vec()];
        let expected = "| freeze | ms forward | ms backward | peak |\n|---|---:|---:|---:|\n\
                        | name:a\\|b | 1 | 2 | 3 |\n";
        assert_eq!(Cells { header, rows }.markdown(), expected);
    }
}
