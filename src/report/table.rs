//! Tables for people, one row a scenario: as plain text, and as Markdown.

use super::cells::Cells;
use super::{Bench, Shape, retention};
use crate::measure::Interval;
use crate::measure::power::Energy;
use crate::plan::{Family, Phase};
use crate::train::evaluate::TaskQuality;

/// All that people see.
pub fn text(bench: &Bench) -> String {
    let mut text = format!(
        "{}\n{} parameters, {}; {}\n",
        bench.environment.line(),
        bench.n_values,
        batches(bench),
        bench.ceilings.line()
    );
    for table in all(bench) {
        text += &format!("\n{}", table.text());
    }
    for (at, note) in notes(bench).iter().enumerate() {
        let gap = if at == 0 { "\n" } else { "" };
        text += &format!("{gap}- {note}\n");
    }
    text
}

/// What the figures alone do not say.
pub(super) fn notes(bench: &Bench) -> Vec<String> {
    let mut notes = Vec::new();
    for row in &bench.rows {
        let of = match bench.shapes.len() {
            1 => String::new(),
            _ => format!("{}: ", bench.shape(row).label()),
        };
        notes.extend(bench.findings(row).into_iter().map(|finding| format!("{of}{finding}")));
        let measurement = &row.measurement;
        if !measurement.outliers.is_empty() {
            let far = (measurement.outliers.iter()).map(|&round| {
                format!("{:.1} ms in round {}", measurement.times_ms[round], round + 1)
            });
            let far = far.collect::<Vec<_>>().join(", ");
            let freeze = &measurement.freeze;
            notes.push(format!("{of}outliers of {freeze}, counted all the same: {far}"));
        }
    }
    for shape in &bench.shapes {
        let clocks = shape.clocks.as_ref();
        notes.extend(clocks.map(|clocks| format!("{}: {}", shape.label(), clocks.text())));
        notes.extend(shape.aa.as_ref().map(|aa| format!("{}: {}", shape.label(), aa.text())));
    }
    notes
}

/// What steps ran on, in words.
pub(super) fn batches(bench: &Bench) -> String {
    let n_rounds = bench.rows.first().map_or(0, |row| row.measurement.times_ms.len());
    let one = |shape: &Shape| {
        let n_sequences = shape.batch_lengths.first().map_or(0, Vec::len);
        format!(
            "batches of {:.0} tokens in {n_sequences} sequences, {n_rounds} rounds after {} of warm-up",
            shape.mean_tokens, shape.warmup_rounds
        )
    };
    bench.shapes.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// All tables, in the order in which they are shown.
pub fn all(bench: &Bench) -> Vec<Cells> {
    let tables = [
        Some(time(bench)),
        Some(prediction(bench)),
        Some(families(bench)),
        Some(memory(bench)),
        energy(bench),
        quality(bench),
        retention::scenarios(bench),
    ];
    tables.into_iter().flatten().collect()
}

/// What one step costs and takes.
fn time(bench: &Bench) -> Cells {
    let header = [
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
    Cells::new(bench, &header, |row| {
        let measurement = &row.measurement;
        let (speedup, n_rounds) = (measurement.speedup, measurement.times_ms.len());
        let mut cells = vec![grouped(measurement.n_trained)];
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

/// What a GPU draws, where that could be read.
pub(super) fn energy(bench: &Bench) -> Option<Cells> {
    bench.rows.iter().find_map(|row| row.measurement.energy)?;
    let header = ["watts", "joules per\n1000 samples", "share of\nthe baseline"];
    Some(Cells::new(bench, &header, |row| {
        let joules = |energy: Energy| energy.joules_per_thousand_samples;
        let (energy, baseline) = (row.measurement.energy, bench.baseline(row).energy);
        let share = energy.zip(baseline).map(|(own, all)| joules(own) / joules(all));
        let cell = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        vec![
            cell(energy.map(|energy| digits(energy.watts))),
            cell(energy.map(joules).map(digits)),
            cell(share.map(|share| format!("{:.1} %", 100.0 * share))),
        ]
    }))
}

/// What bounds a step, and how far it is from what the machine's ceilings allow.
fn prediction(bench: &Bench) -> Cells {
    let header = [
        "bound by\n(share)",
        "ms at the ceilings\nforward",
        "\nbackward",
        "\noptimizer",
        "\nin all",
        "measured / that\nforward",
        "\nbackward",
        "\noptimizer",
        "\nin all",
    ];
    Cells::new(bench, &header, |row| {
        let measurement = &row.measurement;
        let bound = measurement.regime.bound.name().trim_end_matches("-bound");
        let mut cells = vec![format!("{bound} ({:.0} %)", 100.0 * measurement.regime.share())];
        let predicted = measurement.predicted_ms;
        let all = (measurement.step_ms.median, measurement.predicted_step_ms());
        cells.extend(predicted.into_iter().chain([all.1]).map(digits));
        let pairs = measurement.phase_ms.into_iter().zip(predicted).chain([all]);
        cells.extend(pairs.map(|(measured, predicted)| match predicted {
            0.0 => "-".to_owned(),
            _ => format!("{:.2}", measured / predicted),
        }));
        cells
    })
}

/// Where the time of a step goes by family of ops, and how many times its floor that is.
fn families(bench: &Bench) -> Cells {
    let has_family = |family: &Family| {
        bench.rows.iter().any(|row| row.measurement.ops.iter().any(|one| one.family == *family))
    };
    let present: Vec<Family> = Family::ALL.into_iter().filter(has_family).collect();
    let header: Vec<String> =
        present.iter().map(|family| format!("{}\nms (x floor)", family.name())).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    Cells::new(bench, &header, |row| {
        let cell = |family: &Family| {
            let ours = || row.measurement.ops.iter().filter(|one| one.family == *family);
            let measured: f64 = ours().map(|one| one.measured_ms).sum();
            let predicted: f64 = ours().map(|one| one.predicted_ms).sum();
            match ours().count() {
                0 => "-".to_owned(),
                _ => format!("{} ({:.2})", digits(measured), measured / predicted),
            }
        };
        present.iter().map(cell).collect()
    })
}

/// What one step needs of memory.
fn memory(bench: &Bench) -> Cells {
    let header = [
        "MB weights",
        "gradients",
        "optimizer",
        "activations",
        "workspace",
        "= peak\nplanned",
        "\nmeasured",
    ];
    Cells::new(bench, &header, |row| {
        let memory = row.measurement.memory;
        let kinds = [
            memory.weights,
            memory.gradients,
            memory.optimizer,
            memory.activations,
            memory.workspace,
            memory.total(),
        ];
        let mut cells = kinds.map(megabytes).to_vec();
        cells.push(row.peak_measured.map_or("-".into(), megabytes));
        cells
    })
}

/// What training gave; None where nothing was trained.
fn quality(bench: &Bench) -> Option<Cells> {
    let first = bench.rows.iter().find_map(|row| row.training.as_ref())?;
    let mut header = vec!["seconds".to_owned()];
    for task in &first.eval.tasks {
        header.push(format!("{}\naccuracy", task.task));
        header.push("\nmacro-F1".to_owned());
        header.push("train\n- test".to_owned());
        header.push("accuracy\nbefore".to_owned());
    }
    header.push("frozen tensors\nproven equal".to_owned());
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    Some(Cells::new(bench, &header, |row| {
        let Some(training) = &row.training else {
            // Nothing trains here.
            return vec!["-".to_owned(); header.len()];
        };
        let mut cells = vec![format!("{:.1}", training.seconds)];
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

/// Three digits, or a dash.
pub(super) fn share(value: Option<f64>) -> String {
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
pub(super) fn grouped(n: usize) -> String {
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
