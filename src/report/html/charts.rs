//! The pictures of a bench: time, memory, accuracy against cost, roofline, training curves.

use super::axes::{FIELD, HEIGHT, Point, WIDTH, ends, frame, scatter, short_name, tick_text};
use super::svg::{Anchor, Scale, Svg, fill, stroke};
use crate::measure::scenarios::OpTime;
use crate::plan::{Family, Phase};
use crate::report::table::digits;
use crate::report::{Bench, Row, Training};
use crate::train::LogLine;

const BAR: f64 = 20.0;
const PITCH: f64 = 34.0;
/// Where bars begin, right of their names.
const LEFT: f64 = 210.0;
const RIGHT: f64 = WIDTH - 90.0;

/// The name of a row: its freeze, and its batches where there are several.
fn name(bench: &Bench, row: &Row) -> String {
    match bench.shapes.len() {
        1 => row.measurement.freeze.clone(),
        _ => format!("{} ({})", row.measurement.freeze, bench.shape(row).label()),
    }
}

/// Bars of stacked parts, one a row, under an axis of `unit`; `extra` draws over the bar of a row.
fn bars(
    bench: &Bench,
    parts: &[&str],
    unit: &str,
    longest: f64,
    values: impl Fn(&Row) -> Vec<f64>,
    extra: impl Fn(&mut Svg, &Scale, f64, &Row),
) -> Svg {
    let height = 60.0 + PITCH * bench.rows.len() as f64;
    let mut svg = Svg::new(WIDTH, height);
    svg.legend(LEFT, 14.0, parts);
    let scale = Scale::linear([0.0, longest], [LEFT, RIGHT]);
    let (top, bottom) = (28.0, height - 26.0);
    for tick in scale.ticks() {
        let x = scale.at(tick);
        svg.line([x, top], [x, bottom], "grid");
        svg.text(
            [x, bottom + 16.0],
            Anchor::Middle,
            "faint",
            &format!("{} {unit}", tick_text(tick)),
        );
    }
    for (at, row) in bench.rows.iter().enumerate() {
        let y = top + 6.0 + PITCH * at as f64;
        let name = name(bench, row);
        svg.text([LEFT - 8.0, y + 14.0], Anchor::End, "", &short_name(&name));
        let values = values(row);
        let mut sum = 0.0;
        for (part, value) in values.iter().enumerate() {
            let (start, end) = (scale.at(sum), scale.at(sum + value));
            let title = format!("{name}, {}: {} {unit}", parts[part], digits(*value));
            svg.rect([start, y, end - start, BAR], &fill(part), &title);
            sum += value;
        }
        extra(&mut svg, &scale, y, row);
        let total = format!("{} {unit}", digits(sum));
        svg.text([RIGHT + 84.0, y + 14.0], Anchor::End, "", &total);
    }
    svg
}

/// Time by phase, with what was predicted as an outline.
pub fn time(bench: &Bench) -> String {
    let of = |row: &Row| row.measurement.phase_ms.to_vec();
    let longest = (bench.rows.iter())
        .flat_map(|row| [of(row).iter().sum(), row.measurement.predicted_step_ms()])
        .fold(0.0, f64::max);
    let parts = Phase::ALL.map(Phase::name);
    let svg = bars(bench, &parts, "ms", longest, of, |svg, scale, y, row| {
        let mut sum = 0.0;
        for (phase, value) in parts.iter().zip(row.measurement.predicted_ms) {
            let (start, end) = (scale.at(sum), scale.at(sum + value));
            let title = format!("predicted {phase}: {} ms", digits(value));
            svg.rect([start, y - 3.0, end - start, BAR + 6.0], "outline", &title);
            sum += value;
        }
    });
    svg.finish("Time of a step by phase, measured and predicted")
}

/// Memory by kind as planned, with the measured peak as a mark.
pub fn memory(bench: &Bench) -> String {
    const MB: f64 = 1e6;
    let of = |row: &Row| {
        let memory = row.measurement.memory;
        let kinds = [
            memory.weights,
            memory.gradients,
            memory.optimizer,
            memory.activations,
            memory.workspace,
        ];
        kinds.map(|bytes| bytes as f64 / MB).to_vec()
    };
    let measured = |row: &Row| row.peak_measured.map(|bytes| bytes as f64 / MB);
    let longest = (bench.rows.iter())
        .flat_map(|row| [of(row).iter().sum(), measured(row).unwrap_or(0.0)])
        .fold(0.0, f64::max);
    let parts = ["weights", "gradients", "optimizer", "activations", "workspace"];
    let svg = bars(bench, &parts, "MB", longest, of, |svg, scale, y, row| {
        if let Some(peak) = measured(row) {
            let x = scale.at(peak);
            svg.line([x, y - 4.0], [x, y + BAR + 4.0], "mark");
        }
    });
    svg.finish("Memory of a step by kind, as planned, and its measured peak")
}

/// A task's accuracy against the time of a step, with the front that no scenario beats.
pub fn quality(bench: &Bench, task: usize) -> Option<String> {
    let mut found: Vec<(&Row, [f64; 2])> = Vec::new();
    let mut task_name = "";
    for row in &bench.rows {
        let Some(training) = &row.training else { continue };
        let of_task = &training.eval.tasks[task];
        task_name = &of_task.task;
        found.extend(
            of_task
                .confusion
                .accuracy()
                .map(|accuracy| (row, [row.measurement.step_ms.median, accuracy])),
        );
    }
    let points = found.into_iter().map(|(row, [ms, accuracy])| {
        let freeze = &row.measurement.freeze;
        let title = format!("{freeze}: {} ms, {accuracy:.3}", digits(ms));
        Point {
            name: freeze.clone(),
            at: [ms, accuracy],
            class: fill(0),
            title,
            is_comparable: true,
        }
    });
    let points: Vec<Point> = points.collect();
    let label = format!("Accuracy of task {task_name} against the time of a step");
    scatter(&points, ["ms a step", &format!("accuracy, {task_name}")], &label)
}

/// The ops of the baseline under the machine's roof (Williams, Waterman and Patterson, "Roofline", 2009).
pub fn roofline(bench: &Bench) -> Option<String> {
    let row = bench.rows.first()?;
    let ops: Vec<&OpTime> = (row.measurement.ops.iter())
        .filter(|op| op.flops > 0 && op.bytes > 0 && op.measured_ms > 0.0)
        .collect();
    let intensity = |op: &OpTime| op.flops as f64 / op.bytes as f64;
    let rate = |op: &OpTime| op.flops as f64 / (op.measured_ms * 1e6);
    let (peak, bandwidth) =
        (bench.ceilings.gemm_flops_per_second / 1e9, bench.ceilings.copy_bytes_per_second / 1e9);
    let ridge = peak / bandwidth;
    let (least, most) = ends(ops.iter().map(|op| intensity(op)).chain([ridge]))?;
    let (slowest, fastest) = ends(ops.iter().map(|op| rate(op)).chain([peak]))?;
    let [left, right, top, bottom] = FIELD;
    let (from, to) = (least / 2.0, most * 3.0);
    let x = Scale::logarithmic([from, to], [left, right]);
    let y = Scale::logarithmic([slowest.min(bandwidth * from) / 2.0, fastest * 2.0], [bottom, top]);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    frame(&mut svg, [&x, &y], FIELD, ["FLOPs a byte", "GFLOP/s"]);
    let roof = [[from, bandwidth * from], [ridge, peak], [to, peak]];
    svg.polyline(&roof.map(|[a, b]| [x.at(a), y.at(b)]), "roof");
    let present: Vec<Family> = Family::ALL
        .into_iter()
        .filter(|family| ops.iter().any(|op| op.family == *family))
        .collect();
    for (line, family) in present.iter().enumerate() {
        let (x, y) = (right + 20.0, top + 8.0 + 20.0 * line as f64);
        svg.rect([x, y - 9.0, 11.0, 11.0], &fill(*family as usize), family.name());
        svg.text([x + 16.0, y], Anchor::Start, "", family.name());
    }
    for op in ops {
        let at = [x.at(intensity(op)), y.at(rate(op))];
        let title = format!(
            "{}: {} GFLOP/s, {} FLOPs a byte, {} ms in {} calls",
            op.op,
            digits(rate(op)),
            digits(intensity(op)),
            digits(op.measured_ms),
            op.calls
        );
        svg.dot(at, &fill(op.family as usize), &title);
    }
    Some(svg.finish("The ops of the baseline's step under the machine's roof"))
}

/// The loss over the steps of each training, and with it what each scenario is drawn in.
pub fn curves(bench: &Bench) -> Option<String> {
    let trained: Vec<(&str, &Training)> = (bench.rows.iter())
        .filter_map(|row| Some((row.measurement.freeze.as_str(), row.training.as_ref()?)))
        .collect();
    let losses: Vec<Vec<[f64; 2]>> = trained.iter().map(|(_, one)| smoothed(&one.log)).collect();
    let logs = || trained.iter().flat_map(|(_, training)| &training.log);
    let (_, n_steps) = ends(logs().map(|line| match line {
        LogLine::Step { step, .. }
        | LogLine::Evaluation { step, .. }
        | LogLine::Freeze { step, .. } => *step as f64,
    }))?;
    let of_evaluation = logs().filter_map(|line| match line {
        LogLine::Evaluation { eval_loss, .. } => Some(*eval_loss),
        LogLine::Step { .. } | LogLine::Freeze { .. } => None,
    });
    let (_, highest) = ends(losses.iter().flatten().map(|point| point[1]).chain(of_evaluation))?;
    let [left, right, top, bottom] = FIELD;
    let (x, y) = (
        Scale::linear([0.0, n_steps], [left, right]),
        Scale::linear([0.0, highest], [bottom, top]),
    );
    let mut svg = Svg::new(WIDTH, HEIGHT);
    frame(
        &mut svg,
        [&x, &y],
        FIELD,
        ["steps", "training loss, the mean of about 20 steps; dots: evaluation"],
    );
    for (at, ((freeze, training), points)) in trained.iter().zip(&losses).enumerate() {
        let points: Vec<[f64; 2]> = points.iter().map(|[a, b]| [x.at(*a), y.at(*b)]).collect();
        svg.polyline(&points, &format!("curve {}", stroke(at)));
        for line in &training.log {
            if let LogLine::Evaluation { step, eval_loss, .. } = line {
                let place = [x.at(*step as f64), y.at(*eval_loss)];
                svg.dot(place, &fill(at), &format!("{freeze}, step {step}: {eval_loss:.3}"));
            }
        }
        let (x, y) = (right + 20.0, top + 8.0 + 20.0 * at as f64);
        svg.rect([x, y - 9.0, 11.0, 11.0], &fill(at), freeze);
        svg.text([x + 16.0, y], Anchor::Start, "", &short_name(freeze));
    }
    Some(svg.finish("Training and evaluation loss over the steps of each scenario"))
}

/// Step and loss, each the mean over a run of steps.
fn smoothed(log: &[LogLine]) -> Vec<[f64; 2]> {
    const STEPS: usize = 20;
    let steps: Vec<[f64; 2]> = (log.iter())
        .filter_map(|line| match line {
            LogLine::Step { step, loss, .. } => Some([*step as f64, f64::from(*loss)]),
            LogLine::Evaluation { .. } | LogLine::Freeze { .. } => None,
        })
        .collect();
    let mean = |run: &[[f64; 2]]| {
        let sum = run.iter().fold([0.0, 0.0], |[a, b], [x, y]| [a + x, b + y]);
        sum.map(|sum| sum / run.len() as f64)
    };
    steps.chunks(STEPS.min(steps.len().div_ceil(5)).max(1)).map(mean).collect()
}
