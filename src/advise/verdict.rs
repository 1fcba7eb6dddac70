//! What the trials of a sweep say: which depth is best, and which of the others may be as good.

use serde::Serialize;

use crate::train::evaluate::TaskQuality;
use crate::train::{Metric, Quality};

/// A training that was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// See [`halving`](super::halving).
    pub rung: usize,
    pub freeze: String,
    pub seed: u64,
    pub n_steps: u64,
    /// The metric on the evaluation rows at its end.
    pub score: f64,
    /// See [`standard_error`].
    pub standard_error: f64,
    pub tasks: Vec<TaskScore>,
    /// Whether its frozen part was read from a cache.
    pub is_cached: bool,
    /// Of opening the session, the steps and the evaluation; filling caches is counted apart.
    pub predicted_seconds: f64,
    pub seconds: f64,
}

/// A trial's shares of one task's evaluation rows; None where it has no such row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskScore {
    pub task: String,
    pub accuracy: Option<f64>,
    pub macro_f1: Option<f64>,
}

/// What became of a depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DepthSummary {
    pub freeze: String,
    /// The last rung that it was on.
    pub rung: usize,
    /// Trials at full length.
    pub n_full: usize,
    /// The score's mean over the seeds at full length; None where there was no such trial.
    pub mean: Option<f64>,
    /// Its standard deviation over the seeds (n - 1); None for less than two.
    pub sd: Option<f64>,
    /// The mean of the trials' errors at full length. It does not fall with the number of seeds: all are evaluated on
    /// the same rows.
    pub standard_error: Option<f64>,
}

/// What a sweep has found out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// By depth, the most frozen first.
    pub depths: Vec<DepthSummary>,
    /// The best mean at full length; of equals the most frozen.
    pub winner: String,
    /// Others at full length whose mean is below the winner's by less than the standard error of a difference, the most
    /// frozen first.
    ///
    /// That error is √(a² + b²) of the two errors, as if they were of different rows; they are of the same, on which two
    /// depths are often wrong together. To prefer the simplest of those within one standard error is Breiman's rule
    /// (Breiman et al., 1984), and no test: a difference of that size comes by chance often.
    pub not_told_apart: Vec<String>,
    /// The most frozen of the winner and these, which costs least.
    pub cheapest: String,
}

impl TaskScore {
    /// The shares of every task.
    pub(super) fn all(quality: &Quality) -> Vec<Self> {
        let of = |task: &TaskQuality| Self {
            task: task.task.clone(),
            accuracy: task.confusion.accuracy(),
            macro_f1: task.confusion.macro_f1(),
        };
        quality.tasks.iter().map(of).collect()
    }
}

/// The standard error of a score by the number of rows that it is of; None without rows.
///
/// A task's accuracy p over n rows has √(p (1 - p) / n), the binomial distribution's, where p counts one row more of
/// either kind, so that no share is beyond doubt. A macro F1 has no such formula and takes its accuracy's, which is too
/// small where labels are rare. The error of a mean over tasks is the mean of their errors, and no more than that
/// whatever the tasks, often on the same rows, have to do with each other.
pub fn standard_error(metric: &Metric, quality: &Quality) -> Option<f64> {
    let asked =
        quality.tasks.iter().filter(|task| metric.task().is_none_or(|name| name == task.task));
    let errors: Vec<f64> = asked
        .filter_map(|task| {
            let n_rows = task.confusion.n_rows() as f64;
            let share = (task.confusion.accuracy()? * n_rows + 1.0) / (n_rows + 2.0);
            Some((share * (1.0 - share) / n_rows).sqrt())
        })
        .collect();
    mean(&errors)
}

/// What `trials` say of the depths `freezes`, the most frozen first; None where none was trained for `n_steps`, which is
/// full length.
pub fn verdict(trials: &[Trial], freezes: &[String], n_steps: u64) -> Option<Verdict> {
    let depths: Vec<DepthSummary> =
        freezes.iter().map(|freeze| summary(trials, freeze, n_steps)).collect();
    let mut winner: Option<&DepthSummary> = None;
    for depth in &depths {
        let is_better = |best: &DepthSummary| depth.mean > best.mean;
        if depth.mean.is_some() && winner.is_none_or(is_better) {
            winner = Some(depth);
        }
    }
    let winner = winner?;
    let is_like_it = |depth: &&DepthSummary| {
        difference(winner, depth).is_some_and(|(difference, error)| difference < error)
    };
    let alike: Vec<&DepthSummary> = depths.iter().filter(is_like_it).collect();
    let others = alike.iter().filter(|depth| depth.freeze != winner.freeze);
    Some(Verdict {
        winner: winner.freeze.clone(),
        not_told_apart: others.map(|depth| depth.freeze.clone()).collect(),
        // The winner is like itself.
        cheapest: alike.first().map_or(&winner.freeze, |depth| &depth.freeze).clone(),
        depths,
    })
}

/// How far a depth's mean is below the winner's, and the standard error of that.
fn difference(winner: &DepthSummary, other: &DepthSummary) -> Option<(f64, f64)> {
    let error = winner.standard_error?.hypot(other.standard_error?);
    Some((winner.mean? - other.mean?, error))
}

fn summary(trials: &[Trial], freeze: &str, n_steps: u64) -> DepthSummary {
    let own: Vec<&Trial> = trials.iter().filter(|trial| trial.freeze == freeze).collect();
    let full = || own.iter().filter(|trial| trial.n_steps == n_steps);
    let scores: Vec<f64> = full().map(|trial| trial.score).collect();
    let errors: Vec<f64> = full().map(|trial| trial.standard_error).collect();
    let mean_score = mean(&scores);
    let deviation = |mean: f64| {
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        (squares / (scores.len() - 1) as f64).sqrt()
    };
    DepthSummary {
        freeze: freeze.to_owned(),
        rung: own.iter().map(|trial| trial.rung).max().unwrap_or(0),
        n_full: scores.len(),
        mean: mean_score,
        sd: mean_score.filter(|_| scores.len() > 1).map(deviation),
        standard_error: mean(&errors),
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Confusion;

    fn trial(freeze: &str, rung: usize, n_steps: u64, score: f64) -> Trial {
        Trial {
            rung,
            freeze: freeze.to_owned(),
            seed: 1,
            n_steps,
            score,
            standard_error: 0.03,
            tasks: Vec::new(),
            is_cached: true,
            predicted_seconds: 1.0,
            seconds: 1.0,
        }
    }

    fn freezes(all: &[&str]) -> Vec<String> {
        all.iter().map(|freeze| freeze.to_string()).collect()
    }

    #[test]
    fn the_best_mean_wins_and_the_near_are_named() {
        let trials = [
            trial("backbone", 0, 10, 0.99),
            trial("lower:2", 1, 60, 0.80),
            trial("lower:1", 2, 60, 0.80),
            trial("lower:1", 2, 60, 0.84),
            trial("none", 1, 60, 0.70),
        ];
        let all = freezes(&["backbone", "lower:2", "lower:1", "none"]);
        let verdict = verdict(&trials, &all, 60).unwrap();
        assert_eq!((verdict.winner.as_str(), verdict.cheapest.as_str()), ("lower:1", "lower:2"));
        // The error of a difference is 0.0424: 0.02 is within, 0.12 is not.
        assert_eq!(verdict.not_told_apart, ["lower:2"]);
        let [backbone, lower2, lower1, _] = verdict.depths.as_slice() else { panic!() };
        assert_eq!((backbone.rung, backbone.n_full, backbone.mean), (0, 0, None));
        assert_eq!((lower2.n_full, lower2.sd), (1, None));
        assert_eq!((lower1.rung, lower1.n_full), (2, 2));
        // 0.04 apart, over √2.
        assert!((lower1.sd.unwrap() - 0.02 * 2.0_f64.sqrt()).abs() <= 1e-12);
        assert!((lower1.mean.unwrap() - 0.82).abs() <= 1e-12);
        assert!((lower1.standard_error.unwrap() - 0.03).abs() <= 1e-12);
    }

    #[test]
    fn of_equals_the_most_frozen_wins() {
        let trials = [trial("backbone", 0, 60, 0.8), trial("none", 0, 60, 0.8)];
        let found = verdict(&trials, &freezes(&["backbone", "none"]), 60).unwrap();
        assert_eq!((found.winner.as_str(), found.cheapest.as_str()), ("backbone", "backbone"));
        assert_eq!(found.not_told_apart, ["none"]);
        assert_eq!(verdict(&trials, &freezes(&["backbone", "none"]), 61), None);
    }

    #[test]
    fn errors_are_those_of_shares() {
        let task = |name: &str, n_right: usize, n_rows: usize| {
            let mut confusion = Confusion::new(2);
            (0..n_rows).for_each(|row| confusion.add(0, Some(usize::from(row >= n_right))));
            TaskQuality { task: name.to_owned(), confusion, loss: 0.5 }
        };
        let quality = Quality { tasks: vec![task("a", 7, 8), task("b", 8, 8), task("c", 0, 0)] };
        let of = |metric: &Metric| standard_error(metric, &quality).unwrap();
        // 8 of 10 and 9 of 10, over 8 rows.
        let (a, b) = ((0.16_f64 / 8.0).sqrt(), (0.09_f64 / 8.0).sqrt());
        for (metric, expected) in [
            (Metric::Accuracy(Some("a".into())), a),
            (Metric::MacroF1(Some("b".into())), b),
            (Metric::Accuracy(None), (a + b) / 2.0),
        ] {
            // A few roundings.
            assert!((of(&metric) - expected).abs() <= 1e-12, "{metric:?}");
        }
        assert_eq!(standard_error(&Metric::Accuracy(Some("c".into())), &quality), None);
    }
}
