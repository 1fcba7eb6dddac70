//! `trainer_state.json`: what a run did, under the names that transformers' Trainer gives it.

use serde_json::{Map, Value, json};

use super::{LogLine, Progress, TrainOptions};
use crate::data::BatchLimit;

/// The document. Keys of what does not exist here (hyper-parameter search, several processes) have the values that
/// a single run has there.
pub fn trainer_state(options: &TrainOptions, progress: &Progress) -> Value {
    let best = progress.search.best();
    json!({
        "best_global_step": best.map(|(step, _)| step),
        "best_metric": best.map(|(_, value)| value),
        "best_model_checkpoint": null,
        "epoch": progress.n_epochs,
        "eval_steps": options.eval_steps,
        "global_step": progress.n_steps,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": progress.log.iter().map(entry).collect::<Vec<_>>(),
        "logging_steps": options.logging_steps,
        "max_steps": options.max_steps.unwrap_or(progress.n_steps),
        "num_input_tokens_seen": progress.n_tokens,
        "num_train_epochs": options.n_epochs,
        "stateful_callbacks": {},
        "total_flos": progress.n_flops,
        "train_batch_size": match options.limit {
            BatchLimit::Sequences(n) => json!(n),
            BatchLimit::Tokens(_) => Value::Null,
        },
        "trial_name": null,
        "trial_params": null,
    })
}

/// A line of the log, flat: `eval_topic_accuracy`.
fn entry(line: &LogLine) -> Value {
    let LogLine::Evaluation { step, epoch, eval_loss, eval_runtime, eval } = line else {
        return line.shown();
    };
    let mut entry = Map::new();
    for (name, value) in [
        ("step", json!(step)),
        ("epoch", json!(epoch)),
        ("eval_loss", json!(eval_loss)),
        ("eval_runtime", json!(eval_runtime)),
    ] {
        entry.insert(name.to_owned(), value);
    }
    for task in &eval.tasks {
        let name = &task.task;
        entry.insert(format!("eval_{name}_loss"), json!(task.loss));
        entry.insert(format!("eval_{name}_accuracy"), json!(task.confusion.accuracy()));
        entry.insert(format!("eval_{name}_macro_f1"), json!(task.confusion.macro_f1()));
        entry.insert(format!("eval_{name}_mcc"), json!(task.confusion.mcc()));
    }
    Value::Object(entry)
}
