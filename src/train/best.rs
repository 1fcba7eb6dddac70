//! The best of several evaluations: which one it is, when to stop looking, and the values that it had.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::evaluate::{Quality, TaskQuality};
use super::run::values_of;
use crate::data::Corpus;
use crate::model::ParamId;
use crate::session::Session;
use crate::sums::mean;
use crate::{Error, Result};

/// What makes one evaluation better than another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Metric {
    /// The sum over the tasks of the mean cross-entropy; less is better.
    Loss,
    /// Of one task, or the mean over the tasks that have rows; more is better.
    Accuracy(Option<String>),
    MacroF1(Option<String>),
}

impl Metric {
    /// Parses `loss`, `accuracy`, `macro_f1`, or one of a task, `topic_accuracy`; transformers' prefix `eval_` may
    /// stand in front.
    ///
    /// # Errors
    /// What there is.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let name = text.strip_prefix("eval_").unwrap_or(text);
        if name == "loss" {
            return Ok(Metric::Loss);
        }
        for (suffix, metric) in
            [("accuracy", Metric::Accuracy as fn(_) -> _), ("macro_f1", Metric::MacroF1)]
        {
            match name.strip_suffix(suffix) {
                Some("") => return Ok(metric(None)),
                Some(task) => {
                    if let Some(task) = task.strip_suffix('_').filter(|task| !task.is_empty()) {
                        return Ok(metric(Some(task.to_owned())));
                    }
                }
                None => {}
            }
        }
        Err("expected loss, accuracy, macro_f1, TASK_accuracy or TASK_macro_f1".into())
    }

    /// Its name, with transformers' prefix.
    pub fn name(&self) -> String {
        let named = |task: &Option<String>, name: &str| match task {
            Some(task) => format!("eval_{task}_{name}"),
            None => format!("eval_{name}"),
        };
        match self {
            Metric::Loss => "eval_loss".to_owned(),
            Metric::Accuracy(task) => named(task, "accuracy"),
            Metric::MacroF1(task) => named(task, "macro_f1"),
        }
    }

    /// The task that it is of; None where it is of all.
    pub fn task(&self) -> Option<&str> {
        match self {
            Metric::Loss => None,
            Metric::Accuracy(task) | Metric::MacroF1(task) => task.as_deref(),
        }
    }

    /// Its value; None where no row counts.
    pub fn of(&self, quality: &Quality) -> Option<f64> {
        let of_tasks = |one: fn(&TaskQuality) -> Option<f64>| {
            let asked = |task: &&TaskQuality| self.task().is_none_or(|name| name == task.task);
            mean(quality.tasks.iter().filter(asked).filter_map(one))
        };
        match self {
            Metric::Loss => Some(quality.loss()),
            Metric::Accuracy(_) => of_tasks(|task| task.confusion.accuracy()),
            Metric::MacroF1(_) => of_tasks(|task| task.confusion.macro_f1()),
        }
    }

    fn is_better(&self, value: f64, than: f64) -> bool {
        match self {
            Metric::Loss => value < than,
            Metric::Accuracy(_) | Metric::MacroF1(_) => value > than,
        }
    }
}

/// What to do about the best evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BestOptions {
    pub metric: Metric,
    /// End after so many evaluations in a row that were not better.
    pub patience: Option<u64>,
    /// Keep the values of the best instead of the last.
    pub keeps_values: bool,
}

/// The best evaluation.
#[derive(Clone, Debug)]
pub struct Best {
    pub step: u64,
    /// The metric's value.
    pub value: f64,
    pub eval: Quality,
    /// What the parameters that had trained were then; None where the last values are kept.
    pub values: Option<BTreeMap<ParamId, Vec<f32>>>,
}

/// What the search knows, but for values.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SearchProgress {
    best: Option<BestEvaluation>,
    /// Evaluations in a row that were no better.
    n_worse: u64,
}

impl SearchProgress {
    /// Step and metric of the best evaluation so far.
    pub fn best(&self) -> Option<(u64, f64)> {
        self.best.as_ref().map(|best| (best.step, best.value))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct BestEvaluation {
    step: u64,
    value: f64,
    eval: Quality,
}

/// Looks for the best evaluation while training goes on.
pub(super) struct Search<'a> {
    options: &'a BestOptions,
    progress: SearchProgress,
    values: Option<BTreeMap<ParamId, Vec<f32>>>,
}

impl<'a> Search<'a> {
    /// Goes on where an earlier search was.
    ///
    /// # Errors
    /// Where nothing can be evaluated, or the metric is of a task that is not there.
    pub(super) fn new(
        options: &'a BestOptions,
        corpus: &Corpus,
        progress: SearchProgress,
        values: Option<BTreeMap<ParamId, Vec<f32>>>,
    ) -> Result<Self> {
        if corpus.eval.is_empty() {
            return Err(Error::usage(
                "no rows to look for the best model on: give --eval, a `split` column or --holdout",
            ));
        }
        if let Some(task) = options.metric.task()
            && !corpus.tasks.iter().any(|known| known.name == task)
        {
            let known: Vec<&str> = corpus.tasks.iter().map(|task| task.name.as_str()).collect();
            let (name, known) = (options.metric.name(), known.join(", "));
            return Err(Error::usage(format!(
                "--metric-for-best-model {name}: no task {task}; there are {known}"
            )));
        }
        Ok(Self { options, progress, values })
    }

    /// Takes an evaluation into account.
    ///
    /// # Errors
    /// Where none of its rows has a label of the metric's task; when the device fails.
    pub(super) fn look_at(
        &mut self,
        eval: &Quality,
        step: u64,
        session: &mut Session,
        trained: &[ParamId],
    ) -> Result<()> {
        let metric = &self.options.metric;
        let Some(value) = metric.of(eval) else {
            return Err(Error::usage(format!(
                "--metric-for-best-model {}: none of the evaluation rows has a label of it",
                metric.name()
            )));
        };
        let best = self.progress.best.as_ref();
        if best.is_some_and(|best| !metric.is_better(value, best.value)) {
            self.progress.n_worse += 1;
            return Ok(());
        }
        if self.options.keeps_values {
            self.values = Some(values_of(session, trained)?);
        }
        let best = BestEvaluation { step, value, eval: eval.clone() };
        self.progress = SearchProgress { best: Some(best), n_worse: 0 };
        Ok(())
    }

    /// Whether so many evaluations were no better that it is time to stop.
    pub(super) fn is_over(&self) -> bool {
        self.options.patience.is_some_and(|patience| self.progress.n_worse >= patience)
    }

    /// What it knows.
    pub(super) fn progress(&self) -> &SearchProgress {
        &self.progress
    }

    /// The values of the best evaluation, where they are kept.
    pub(super) fn values(&self) -> Option<&BTreeMap<ParamId, Vec<f32>>> {
        self.values.as_ref()
    }

    /// What was found.
    pub(super) fn into_best(self) -> Option<Best> {
        let BestEvaluation { step, value, eval } = self.progress.best?;
        Some(Best { step, value, eval, values: self.values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Confusion;

    #[test]
    fn metrics_are_named_as_in_the_log() {
        for (text, metric) in [
            ("loss", Metric::Loss),
            ("eval_accuracy", Metric::Accuracy(None)),
            ("topic_accuracy", Metric::Accuracy(Some("topic".into()))),
            ("eval_my_task_macro_f1", Metric::MacroF1(Some("my_task".into()))),
        ] {
            let parsed = Metric::parse(text).unwrap();
            assert_eq!(parsed, metric);
            assert_eq!(Metric::parse(&parsed.name()), Ok(metric));
        }
        for text in ["", "f1", "_accuracy", "topicaccuracy", "eval_"] {
            assert!(Metric::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_of_tasks_and_their_mean() {
        let task = |name: &str, n_right: usize, n_rows: usize| {
            let mut confusion = Confusion::new(2);
            (0..n_rows).for_each(|row| confusion.add(0, Some(usize::from(row >= n_right))));
            TaskQuality { task: name.to_owned(), confusion, loss: 0.5, hits: Vec::new() }
        };
        let quality = Quality { tasks: vec![task("a", 3, 4), task("b", 1, 4), task("c", 0, 0)] };
        let of = |text: &str| Metric::parse(text).unwrap().of(&quality);
        assert_eq!(of("a_accuracy"), Some(0.75));
        assert_eq!(of("accuracy"), Some(0.5));
        assert_eq!(of("c_accuracy"), None);
        assert_eq!(of("loss"), Some(1.5));
        assert!(Metric::Loss.is_better(1.0, 2.0) && !Metric::Accuracy(None).is_better(0.5, 0.5));
    }
}
