//! The document of `bench --json`.

use serde_json::{Map, Value, json};

use super::{Bench, Row, Training};
use crate::measure::regime::Bound;
use crate::plan::Phase;
use crate::train::{LogLine, Quality};

/// The whole document.
pub fn document(bench: &Bench) -> Value {
    json!({
        "environment": bench.environment,
        "settings": bench.settings,
        "ceilings": bench.ceilings,
        "baseline": bench.rows.first().map(|row| row.measurement.freeze.as_str()),
        "shapes": bench.shapes,
        "scenarios": bench.rows.iter().map(|row| scenario(bench, row)).collect::<Vec<_>>(),
    })
}

fn by_phase(value: impl Fn(usize) -> Value) -> Value {
    let named = Phase::ALL.iter().map(|phase| (phase.name().to_owned(), value(*phase as usize)));
    Value::Object(named.collect::<Map<_, _>>())
}

fn scenario(bench: &Bench, row: &Row) -> Value {
    let (regime, shape) = (row.measurement.regime, bench.shape(row));
    let shares = Bound::ALL
        .iter()
        .map(|bound| (bound.name().to_owned(), json!(regime.shares[*bound as usize])));
    let measurement = &row.measurement;
    let (memory, speedup) = (measurement.memory, measurement.speedup);
    json!({
        "freeze": measurement.freeze,
        "batch_size": shape.batch_size,
        "max_length": shape.max_length,
        "trainable_parameters": measurement.n_trained,
        "flops": by_phase(|phase| measurement.cost[phase].flops.into()),
        "bytes": by_phase(|phase| measurement.cost[phase].bytes.into()),
        "phase_ms": by_phase(|phase| measurement.phase_ms[phase].into()),
        "predicted_ms": by_phase(|phase| measurement.predicted_ms[phase].into()),
        "ops": measurement.ops,
        "regime": { "bound": regime.bound, "shares": shares.collect::<Map<_, _>>() },
        "input_gradients": measurement.input_gradients,
        "energy": measurement.energy,
        "findings": bench.findings(row),
        "step_ms": {
            "median": measurement.step_ms.median,
            "low": measurement.step_ms.low,
            "high": measurement.step_ms.high,
            "times": measurement.times_ms,
            "outliers": measurement.outliers,
        },
        "device_ms": measurement.device_ms,
        "speedup": {
            "ideal": speedup.ideal,
            "predicted": speedup.predicted,
            "measured": speedup.measured.median,
            "low": speedup.measured.low,
            "high": speedup.measured.high,
        },
        "memory_bytes": {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "workspace": memory.workspace,
            "peak_planned": memory.total(),
            "peak_measured": row.peak_measured,
        },
        "quality": row.training.as_ref().map(|training| training.eval.shares()),
        "training": row.training.as_ref().map(training),
    })
}

fn training(training: &Training) -> Value {
    json!({
        "train_quality": training.train.shares(),
        "quality_before": training.before.as_ref().map(Quality::shares),
        "seconds": training.seconds,
        "frozen_tensors_proven": training.n_proven,
        "forgetting": training.retention.as_ref().map(|retention| &retention.forgetting),
        "drift": training.retention.as_ref().map(|retention| &retention.drift),
        "log": training.log.iter().map(LogLine::shown).collect::<Vec<_>>(),
    })
}
