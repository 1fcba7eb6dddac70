//! One head that does well beside one that does not: what freezing the good one saves, and what it keeps.

use serde::Serialize;

use super::figures::percent;
use super::recommend::TaskSignal;
use crate::Result;
use crate::freeze::FreezeSpec;
use crate::model::Network;
use crate::plan::{Counts, Layout, StepOptions, compile};

/// What freezing the head of the task that does best would mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeadAdvice {
    /// The task that does best.
    pub task: String,
    /// The one that does worst.
    pub other: String,
    /// The recommended freeze with that head frozen too.
    pub freeze: String,
    /// Of a full batch's step under the recommended freeze.
    pub saved_flops_share: f64,
    pub saved_memory_bytes: u64,
    /// Values that train no more.
    pub saved_parameters: usize,
    pub text: String,
}

/// The advice about the head that does better than another by more than chance, by how far a probe comes from the
/// commonest label to no error; None where there is none, where nothing is recommended that it could be added to, and
/// where the encoder is frozen: heads then have nothing to do with each other.
///
/// # Errors
/// None that a recommended freeze could cause.
pub fn head_advice(
    network: &Network,
    tasks: &[TaskSignal],
    freeze: Option<&str>,
    step: &StepOptions,
) -> Result<Option<HeadAdvice>> {
    let by_lift = |a: &&TaskSignal, b: &&TaskSignal| a.lift().0.total_cmp(&b.lift().0);
    let ends = tasks.iter().max_by(by_lift).zip(tasks.iter().min_by(by_lift));
    let freeze = freeze.filter(|freeze| *freeze != "backbone");
    let Some(((good, other), freeze)) = ends.zip(freeze) else { return Ok(None) };
    let ((high, high_error), (low, low_error)) = (good.lift(), other.lift());
    // Two standard errors of a difference.
    if high - low <= 2.0 * high_error.hypot(low_error) {
        return Ok(None);
    }
    let with_head = format!("{freeze}+head:{}", good.task);
    let plan = |spec: &str| -> Result<_> {
        Ok(compile(network, &FreezeSpec::parse(spec)?.mask(network)?, step))
    };
    let (before, after) = (plan(freeze)?, plan(&with_head)?);
    let counts = Counts::full(step.capacity, network.heads.len());
    let [flops_before, flops_after] =
        [&before, &after].map(|plan| plan.total_cost(&counts).flops as f64);
    let [memory_before, memory_after] =
        [&before, &after].map(|plan| Layout::new(plan).memory.total() as u64);
    let mut advice = HeadAdvice {
        task: good.task.clone(),
        other: other.task.clone(),
        freeze: with_head,
        saved_flops_share: 1.0 - flops_after / flops_before,
        saved_memory_bytes: memory_before.saturating_sub(memory_after),
        saved_parameters: before.n_trained_values() - after.n_trained_values(),
        text: String::new(),
    };
    advice.text = text(&advice, good, (high, low));
    Ok(Some(advice))
}

fn text(advice: &HeadAdvice, good: &TaskSignal, (high, low): (f64, f64)) -> String {
    let HeadAdvice { task, other, freeze, saved_parameters, saved_memory_bytes, .. } = advice;
    let saved = match 100.0 * advice.saved_flops_share {
        percent if percent < 0.01 => "less than 0.01 %".to_owned(),
        percent => format!("{percent:.2} %"),
    };
    let first = if good.has_head { "" } else { " once it is trained" };
    format!(
        "{task} does better than {other}: a probe comes {} of the way from the commonest label to no error, against {}. Its \
         head may be frozen{first} ({freeze}) where its weights must not change while its loss still trains the encoder. \
         That saves {saved} of a step's FLOPs, {saved_parameters} trained values and {} kB, next to nothing, and keeps the \
         head's bytes, not its results: those move with the encoder below it. To keep results too, freeze what they stand \
         on (backbone+head:{task}), so that the other heads alone learn.",
        percent(high),
        percent(low),
        saved_memory_bytes / 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::recommend::tests::task;
    use crate::model::{Config, Pooling};
    use crate::plan::Capacity;
    use crate::tensor::DType;

    fn advice(accuracies: [f64; 2], freeze: Option<&str>) -> Option<HeadAdvice> {
        let config = Config::published("minilm-l6").unwrap();
        let sizes = [("topic".to_owned(), 4), ("mood".to_owned(), 3)];
        let network = Network::new(&config, None, &sizes, Pooling::Mean).unwrap();
        let capacity = Capacity { tokens: 64, sequences: 4, max_length: 16 };
        let step = StepOptions::plain(capacity, DType::F32);
        let tasks = [task("topic", accuracies[0]), task("mood", accuracies[1])];
        head_advice(&network, &tasks, freeze, &step).unwrap()
    }

    #[test]
    fn the_good_head_and_what_it_saves() {
        let found = advice([0.9, 0.7], Some("lower:3")).unwrap();
        assert_eq!((found.task.as_str(), found.other.as_str()), ("topic", "mood"));
        assert_eq!(found.freeze, "lower:3+head:topic");
        assert_eq!(found.saved_parameters, 4 * 384 + 4);
        assert!(found.saved_flops_share > 0.0 && found.saved_flops_share < 1e-3, "{found:?}");
        // The gradient and both moments are no more.
        assert!(found.saved_memory_bytes >= 8 * (4 * 384 + 4), "{found:?}");
    }

    #[test]
    fn no_advice_by_chance() {
        // Two standard errors of the difference are 0.028, of what lies above the majority as well.
        assert_eq!(advice([0.72, 0.70], Some("lower:3")), None);
        assert!(advice([0.73, 0.70], Some("lower:3")).is_some());
        assert_eq!(advice([0.9, 0.7], None), None);
        assert_eq!(advice([0.9, 0.7], Some("backbone")), None, "heads do not meet");
    }
}
