//! A page that shows what `bench` measured: one file without scripts, that opens offline.

mod advice;
mod axes;
mod charts;
mod page;
mod svg;

pub use self::advice::advice_page;
use self::page::{Page, figure};
pub use self::svg::escaped;
use super::{Bench, Row, table};
use crate::sums::mean;

/// The whole page.
pub fn page(bench: &Bench) -> String {
    let title = format!("What freezing saves: {}", model(bench));
    let note = format!("{}, {}", bench.environment.line(), bench.environment.date());
    let mut page = Page::new(&title, &note, &summary(bench));
    let mut section = |heading: &str, note: &str, content: String| {
        page.section(heading, note, &content);
    };
    section(
        "Time of a step",
        "Medians by phase; dashed: what the plan and this machine's ceilings predict.",
        figure(charts::time(bench)),
    );
    section(
        "Memory",
        "As planned, by kind; the line marks the measured peak.",
        figure(charts::memory(bench)),
    );
    let tasks = bench.rows.iter().find_map(|row| row.training.as_ref());
    let n_tasks = tasks.map_or(0, |training| training.eval.tasks.len());
    let quality: String =
        (0..n_tasks).filter_map(|task| charts::quality(bench, task)).map(figure).collect();
    if !quality.is_empty() {
        section(
            "Accuracy against cost",
            "On the evaluation rows. The dashed line joins the scenarios that no other beats in both.",
            quality,
        );
    }
    if let Some(curves) = charts::curves(bench) {
        section("Training", "", figure(curves));
    }
    if let Some(roofline) = charts::roofline(bench) {
        section(
            "Roofline of the baseline",
            "Each dot is one kind of op; above the slope lies what finds its operands in a cache.",
            figure(roofline),
        );
    }
    let tables: String = table::all(bench)
        .iter()
        .map(|table| format!("<div class=\"wide\">{}</div>\n", table.html()))
        .collect();
    section("Figures", &escaped(&table::batches(bench)), tables);
    let notes: String =
        table::notes(bench).iter().map(|note| format!("<li>{}</li>\n", escaped(note))).collect();
    if !notes.is_empty() {
        section("What to know", "", format!("<ul>\n{notes}</ul>\n"));
    }
    section(
        "How it was measured",
        "",
        page::environment(&bench.environment, &bench.ceilings, &bench.settings["data"]),
    );
    page.finish()
}

fn model(bench: &Bench) -> String {
    let named = ["model", "arch"].iter().find_map(|key| bench.settings[key].as_str());
    named.unwrap_or("a model").to_owned()
}

/// Two sentences: what the best freeze saves, and what it costs or how well it was foretold.
fn summary(bench: &Bench) -> String {
    let trains = |row: &&Row| row.measurement.n_trained > 0 && row.measurement.freeze != "none";
    let speedup = |row: &Row| row.measurement.speedup.measured.median;
    let best = bench.rows.iter().filter(trains).max_by(|a, b| speedup(a).total_cmp(&speedup(b)));
    let Some(best) = best else {
        let step = bench.rows.first().map_or(f64::NAN, |row| row.measurement.step_ms.median);
        return format!("A step that trains everything takes {} ms.", table::digits(step));
    };
    let (measured, baseline) = (&best.measurement, bench.baseline(best));
    let ratio = measured.speedup;
    let memory = 1.0 - measured.memory.total() as f64 / baseline.memory.total() as f64;
    let first = format!(
        "Of the freezes that still train something, {} saves most: a step is {:.2} times as fast as one that trains \
         everything ({:.2} to {:.2}, {:.2} predicted) and needs {:.0} % less memory.",
        measured.freeze,
        ratio.measured.median,
        ratio.measured.low,
        ratio.measured.high,
        ratio.predicted,
        100.0 * memory
    );
    let accuracy = |row: &Row| {
        let tasks = &row.training.as_ref()?.eval.tasks;
        let all: Option<Vec<f64>> = tasks.iter().map(|task| task.confusion.accuracy()).collect();
        mean(all?)
    };
    let full = bench.rows.iter().find(|row| row.shape == best.shape && !trains(row));
    let second = match (accuracy(best), full.and_then(accuracy)) {
        (Some(own), Some(full)) => format!(
            "Its mean accuracy over the tasks is {own:.3}, where training everything gives {full:.3}."
        ),
        _ => {
            let quotient = |row: &Row| speedup(row) / row.measurement.speedup.predicted;
            let quotients =
                bench.rows.iter().filter(|row| row.measurement.freeze != "none").map(quotient);
            let (low, high) = quotients.fold((f64::INFINITY, 0.0_f64), |(low, high), quotient| {
                (low.min(quotient), high.max(quotient))
            });
            format!("Measured speed-ups are {low:.2} to {high:.2} times the predicted ones.")
        }
    };
    format!("{first} {second}")
}
