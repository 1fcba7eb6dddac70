//! Tables for people, one row a scenario: as plain text, and as Markdown.

use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::Row;
use crate::measure::Interval;
use crate::plan::Phase;
use crate::train::evaluate::TaskQuality;

/// The cells of a table. A heading may have a second line; one without a first line shares that of the column
/// on its left.
pub struct Cells {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Cells {
    fn new(header: &[&str], rows: &[Row], cells: impl Fn(&Row) -> Vec<String>) -> Self {
        let header = header.iter().map(|&heading| heading.to_owned()).collect();
        Self { header, rows: rows.iter().map(cells).collect() }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let header: Vec<&str> = self.header.iter().map(String::as_str).collect();
        draw(&header, self.rows.clone())
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

/// What one step costs and takes.
pub fn time(rows: &[Row]) -> Cells {
    let header = [
        "freeze",
        "trained",
        "GFLOP\nforward",
        "\nbackward",
        "\noptimizer",
        "ms\nforward",
        "\nbackward",
        "\noptimizer",
        "ms a step\n(95 % interval)",
        "speed-up\nby FLOPs",
        "\npredicted",
        "measured\n(95 % interval)",
        "measured /\npredicted",
    ];
    Cells::new(&header, rows, |row| {
        let measurement = &row.measurement;
        let (speedup, n_rounds) = (measurement.speedup, measurement.times_ms.len());
        let mut cells = vec![measurement.freeze.clone(), grouped(measurement.n_trained)];
        let phases = || Phase::ALL.iter().map(|phase| *phase as usize);
        cells.extend(phases().map(|at| digits(measurement.cost[at].flops as f64 / 1e9)));
        cells.extend(phases().map(|at| digits(measurement.phase_ms[at])));
        cells.extend([
            interval(measurement.step_ms, n_rounds, digits),
            format!("{:.2}", speedup.ideal),
            format!("{:.2}", speedup.predicted),
            interval(speedup.measured, n_rounds, |x| format!("{x:.2}")),
            format!("{:.2}", speedup.measured.median / speedup.predicted),
        ]);
        cells
    })
}

/// What one step needs of memory.
pub fn memory(rows: &[Row]) -> Cells {
    let header = [
        "freeze",
        "MB weights",
        "gradients",
        "optimizer",
        "activations",
        "workspace",
        "= peak\nplanned",
        "\nmeasured",
    ];
    Cells::new(&header, rows, |row| {
        let memory = row.measurement.memory;
        let kinds = [
            memory.weights,
            memory.gradients,
            memory.optimizer,
            memory.activations,
            memory.workspace,
            memory.total(),
        ];
        let mut cells = vec![row.measurement.freeze.clone()];
        cells.extend(kinds.map(megabytes));
        cells.push(row.peak_measured.map_or("-".into(), megabytes));
        cells
    })
}

/// What training gave; None where nothing was trained.
pub fn quality(rows: &[Row]) -> Option<Cells> {
    let first = rows.iter().find_map(|row| row.training.as_ref())?;
    let mut header = vec!["freeze".to_owned(), "seconds".to_owned()];
    for task in &first.eval.tasks {
        header.push(format!("{}\naccuracy", task.task));
        header.push("\nmacro-F1".to_owned());
        header.push("train\n- test".to_owned());
        header.push("accuracy\nbefore".to_owned());
    }
    header.push("frozen tensors\nproven equal".to_owned());
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    Some(Cells::new(&header, rows, |row| {
        let mut cells = vec![row.measurement.freeze.clone()];
        let Some(training) = &row.training else {
            // Nothing trains here.
            cells.extend(vec!["-".to_owned(); header.len() - 1]);
            return cells;
        };
        cells.push(format!("{:.1}", training.seconds));
        for (at, task) in training.eval.tasks.iter().enumerate() {
            let accuracy = |task: &TaskQuality| task.confusion.accuracy();
            let gap = (accuracy(&training.train.tasks[at]).zip(accuracy(task)))
                .map(|(train, test)| train - test);
            let before = training.before.as_ref().and_then(|q| accuracy(&q.tasks[at]));
            cells.extend([accuracy(task), task.confusion.macro_f1(), gap, before].map(share));
        }
        cells.push(training.n_proven.to_string());
        cells
    }))
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

fn share(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.3}"))
}

fn interval(interval: Interval, n_rounds: usize, show: impl Fn(f64) -> String) -> String {
    let Interval { low, median, high } = interval;
    if n_rounds < LEAST_ROUNDS {
        return show(median);
    }
    format!("{} ({} to {})", show(median), show(low), show(high))
}

/// Rounds below which a bootstrap interval says nothing: it would be the range of a few values.
const LEAST_ROUNDS: usize = 6;

/// Three digits that matter, and no more.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.005 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.0e}"),
    }
}

fn megabytes(bytes: usize) -> String {
    digits(bytes as f64 / 1e6)
}

/// 22713216 as 22,713,216.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(22_713_216), "22,713,216");
        assert_eq!(digits(1234.4), "1234");
        assert_eq!(digits(12.34), "12.3");
        assert_eq!(digits(0.0), "0.00");
        assert_eq!(digits(0.0001), "1e-4");
    }
}
