//! What a training run gave, for people and programs.

use serde_json::json;

use super::Args;
use crate::Result;
use crate::cli::{print, print_json};
use crate::report::retention::RunRetention;
use crate::train::evaluate::TaskQuality;
use crate::train::{FreezeProof, Quality, TrainOutcome};

/// Prints what a run gave.
pub(super) fn report(
    args: &Args,
    outcome: &TrainOutcome,
    proof: FreezeProof,
    freeze: &str,
    retention: Option<&RunRetention>,
) -> Result<()> {
    let progress = &outcome.progress;
    let seconds = progress.train_seconds;
    let n_values = outcome.n_trained + proof.n_values;
    if args.run.json {
        let mut document = json!({
            "output": args.output.to_string_lossy(),
            "freeze": freeze,
            "steps": progress.n_steps,
            "train_runtime": seconds,
            "train_steps_per_second": progress.n_steps as f64 / seconds,
            "trainable_parameters": outcome.n_trained,
            "parameters": n_values,
            "eval": outcome.eval.as_ref().map(Quality::shares),
            "confusion": outcome.eval.as_ref().map(confusion),
            "best": outcome.best.as_ref().map(|best| json!({
                "metric": args.evaluation.metric_for_best_model.name(),
                "value": best.value,
                "step": best.step,
                "kept": best.values.is_some(),
            })),
            "frozen": proof,
        });
        if let Some(keys) = document.as_object_mut() {
            keys.extend(RunRetention::document(retention));
        }
        return print_json(&document);
    }
    let mut text = format!(
        "trained {} of {} values for {} steps in {seconds:.1} s\n",
        outcome.n_trained, n_values, progress.n_steps
    );
    if let Some(best) = &outcome.best {
        let name = args.evaluation.metric_for_best_model.name();
        let kept = if best.values.is_some() { ", which is kept" } else { "" };
        text += &format!("best {name}: {:.4}, after step {}{kept}\n", best.value, best.step);
    }
    if let Some(quality) = &outcome.eval {
        text += &format!("{}\n", quality_line(quality));
    }
    if let Some(retention) = retention {
        text += &format!("\n{}\n", retention.text());
    }
    text += &format!(
        "{} tensors that did not train ({} values) are equal to the model's own, byte for byte\nwrote \
         {}\n",
        proof.n_tensors,
        proof.n_values,
        args.output.display()
    );
    print(&text)
}

/// What the shares of right answers hide: which label was taken for which.
fn confusion(quality: &Quality) -> serde_json::Value {
    let one = |task: &TaskQuality| {
        let value = json!({ "mcc": task.confusion.mcc(), "counts": task.confusion.counts() });
        (task.task.clone(), value)
    };
    quality.tasks.iter().map(one).collect::<serde_json::Map<_, _>>().into()
}

/// `topic: accuracy 0.790, macro-F1 0.776, MCC 0.732; ...`.
pub(super) fn quality_line(quality: &Quality) -> String {
    let share = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let task = |task: &TaskQuality| {
        let (accuracy, macro_f1) = (task.confusion.accuracy(), task.confusion.macro_f1());
        let (name, mcc) = (&task.task, share(task.confusion.mcc()));
        format!("{name}: accuracy {}, macro-F1 {}, MCC {mcc}", share(accuracy), share(macro_f1))
    };
    quality.tasks.iter().map(task).collect::<Vec<_>>().join("; ")
}
