//! What `bench` measured, for other programs: one CSV line a scenario, and a Markdown page.

use super::{Bench, Row, cells, table};
use crate::Error;
use crate::plan::Phase;

/// The columns of a scenario, in order: name and value. Counts are whole, times in ms, memory in bytes; what was
/// not measured is empty. `tasks` are those that something trained.
fn columns(bench: &Bench, row: &Row, tasks: &[String]) -> Vec<(String, String)> {
    let (measured, speedup) = (&row.measurement, row.measurement.speedup);
    let shape = bench.shape(row);
    let mut columns = vec![
        ("freeze".to_owned(), measured.freeze.clone()),
        ("batch_size".to_owned(), shape.batch_size.map_or(String::new(), |n| n.to_string())),
        ("max_length".to_owned(), shape.max_length.to_string()),
        ("mean_tokens".to_owned(), shape.mean_tokens.to_string()),
        ("regime".to_owned(), measured.regime.bound.name().to_owned()),
        ("trainable_parameters".to_owned(), measured.n_trained.to_string()),
    ];
    let mut push = |name: &str, value: String| columns.push((name.to_owned(), value));
    for phase in Phase::ALL {
        let (name, cost) = (phase.name(), measured.cost[phase as usize]);
        push(&format!("{name}_flops"), cost.flops.to_string());
        push(&format!("{name}_bytes"), cost.bytes.to_string());
        push(&format!("{name}_ms"), measured.phase_ms[phase as usize].to_string());
        push(&format!("{name}_predicted_ms"), measured.predicted_ms[phase as usize].to_string());
    }
    for (name, value) in [
        ("step_ms", measured.step_ms.median),
        ("step_ms_low", measured.step_ms.low),
        ("step_ms_high", measured.step_ms.high),
        ("speedup_ideal", speedup.ideal),
        ("speedup_predicted", speedup.predicted),
        ("speedup_measured", speedup.measured.median),
        ("speedup_low", speedup.measured.low),
        ("speedup_high", speedup.measured.high),
    ] {
        push(name, value.to_string());
    }
    for (name, value) in [
        ("weights_bytes", Some(measured.memory.weights)),
        ("gradients_bytes", Some(measured.memory.gradients)),
        ("optimizer_bytes", Some(measured.memory.optimizer)),
        ("activations_bytes", Some(measured.memory.activations)),
        ("workspace_bytes", Some(measured.memory.workspace)),
        ("peak_planned_bytes", Some(measured.memory.total())),
        ("peak_measured_bytes", row.peak_measured),
    ] {
        push(name, value.map_or(String::new(), |bytes| bytes.to_string()));
    }
    let energy = measured.energy;
    for (name, value) in [
        ("watts", energy.map(|energy| energy.watts)),
        ("joules_per_thousand_samples", energy.map(|energy| energy.joules_per_thousand_samples)),
    ] {
        push(name, value.map_or(String::new(), |value| value.to_string()));
    }
    for (at, task) in tasks.iter().enumerate() {
        let confusion = row.training.as_ref().map(|training| &training.eval.tasks[at].confusion);
        let show = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        push(&format!("{task}_accuracy"), show(confusion.and_then(|c| c.accuracy())));
        push(&format!("{task}_macro_f1"), show(confusion.and_then(|c| c.macro_f1())));
    }
    columns
}

/// One line a scenario below a line of names.
///
/// # Errors
/// When a line cannot be written.
pub fn csv(bench: &Bench) -> Result<Vec<u8>, Error> {
    let trained = bench.rows.iter().find_map(|row| row.training.as_ref());
    let tasks: Vec<String> = (trained.iter().flat_map(|training| &training.eval.tasks))
        .map(|task| task.task.clone())
        .collect();
    let failed = |error: &dyn std::fmt::Display| Error::Run(format!("writing CSV: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (at, row) in bench.rows.iter().enumerate() {
        let (names, values): (Vec<String>, Vec<String>) =
            columns(bench, row, &tasks).into_iter().unzip();
        if at == 0 {
            writer.write_record(&names).map_err(|e| failed(&e))?;
        }
        writer.write_record(&values).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

/// The tables that people see, as Markdown.
pub fn markdown(bench: &Bench) -> String {
    let tables: Vec<String> = table::all(bench).iter().map(cells::Cells::markdown).collect();
    format!("{}\n\n{}", bench.environment.line(), tables.join("\n"))
}
