//! What an encoder still knows of data that it was not trained on: how well a probe reads the labels off its pooled
//! vectors, before training and after it.

use serde::Serialize;

use super::metrics::Confusion;
use crate::data::{Corpus, Split};
use crate::features::pooled;
use crate::probe::Probe;
use crate::session::Session;
use crate::{Error, Result};

/// Rows at most that a probe is fitted on.
const MOST_ROWS: usize = 4000;

/// Another labelled data set.
pub struct ForgettingSet {
    pub name: String,
    corpus: Corpus,
    /// The training rows that probes are fitted on.
    fitted: Vec<usize>,
}

/// How a probe does on the test rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProbeScore {
    pub accuracy: f64,
    pub macro_f1: f64,
    /// Whether the probe is the best that there is, or its search was given up.
    pub converged: bool,
}

/// What became of one data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forgetting {
    pub name: String,
    /// Rows that the probes were fitted on.
    pub rows_train: usize,
    /// Rows that they were scored on.
    pub rows_test: usize,
    pub before: ProbeScore,
    pub after: ProbeScore,
    /// After less before: below 0 where something was forgotten.
    pub change: ScoreChange,
}

/// A difference of two scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScoreChange {
    pub accuracy: f64,
    pub macro_f1: f64,
}

impl ForgettingSet {
    /// A data set of one task: probes are fitted on its training rows, 4000 at most, and scored on its evaluation
    /// rows.
    ///
    /// # Errors
    /// A data set without evaluation rows, or one whose training rows have a single label.
    pub fn new(name: &str, corpus: Corpus) -> Result<Self> {
        if corpus.eval.is_empty() {
            return Err(Error::usage(format!(
                "--forgetting {name}: no rows to score a probe on: give a `split` column or --holdout"
            )));
        }
        let fitted = corpus.train.spread(MOST_ROWS);
        let classes = classes(&corpus.train, &fitted);
        if classes.iter().all(|class| *class == classes[0]) {
            return Err(Error::usage(format!(
                "--forgetting {name}: the {} training rows have a single label, a probe needs two",
                fitted.len()
            )));
        }
        Ok(Self { name: name.to_owned(), corpus, fitted })
    }

    /// Rows that probes are fitted on.
    pub fn n_fitted(&self) -> usize {
        self.fitted.len()
    }

    /// Training rows in all.
    pub fn n_training_rows(&self) -> usize {
        self.corpus.train.len()
    }

    /// Fits a probe on the pooled vectors of the network of `session` as it is now, and scores it.
    ///
    /// # Errors
    /// When the device lacks the memory or fails, or gives vectors that are not finite.
    pub fn score(&self, session: &mut Session) -> Result<ProbeScore> {
        let (corpus, n_labels) = (&self.corpus, self.corpus.tasks[0].labels.len());
        let tested: Vec<usize> = (0..corpus.eval.len()).collect();
        let train = pooled(session, corpus, &corpus.train, &self.fitted)?;
        let test = pooled(session, corpus, &corpus.eval, &tested)?;
        let probe = Probe::fit(&train.values, &classes(&corpus.train, &self.fitted), n_labels)?;
        let mut confusion = Confusion::new(n_labels);
        let predicted = probe.predict(&test.values);
        for (class, predicted) in classes(&corpus.eval, &tested).into_iter().zip(predicted) {
            confusion.add(class, predicted);
        }
        let shares = confusion.accuracy().zip(confusion.macro_f1());
        let (accuracy, macro_f1) = shares
            .ok_or_else(|| Error::Run(format!("--forgetting {}: no test rows", self.name)))?;
        Ok(ProbeScore { accuracy, macro_f1, converged: probe.is_converged })
    }

    /// The data set's part of a report.
    pub fn compare(&self, before: ProbeScore, after: ProbeScore) -> Forgetting {
        Forgetting::new(&self.name, [self.fitted.len(), self.corpus.eval.len()], before, after)
    }
}

impl Forgetting {
    /// What became of a data set, by its scores on the same rows: those to train, those to test.
    pub fn new(
        name: &str,
        [rows_train, rows_test]: [usize; 2],
        before: ProbeScore,
        after: ProbeScore,
    ) -> Self {
        let change = ScoreChange {
            accuracy: after.accuracy - before.accuracy,
            macro_f1: after.macro_f1 - before.macro_f1,
        };
        Self { name: name.to_owned(), rows_train, rows_test, before, after, change }
    }
}

/// The classes of examples of a split of one task, whose rows all have one.
fn classes(split: &Split, examples: &[usize]) -> Vec<usize> {
    examples.iter().filter_map(|example| split.class(*example, 0)).collect()
}
