//! What the trials of a sweep say: which depth is best, and which of the others may be as good.

use serde::Serialize;

use super::paired::paired_error;
use crate::sums::mean;
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
    /// Of each such row whether it was right, in the order that all trials have.
    #[serde(skip)]
    pub hits: Vec<bool>,
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
    /// None for the winner, and where there was no trial at full length.
    pub behind: Option<Behind>,
}

/// How far a depth is behind the winner.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Behind {
    /// The winner's mean less the depth's, over the same seeds.
    pub difference: f64,
    /// See [`paired_error`].
    pub standard_error: f64,
}

/// What a sweep has found out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// By depth, the most frozen first.
    pub depths: Vec<DepthSummary>,
    /// The best mean at full length, over the seeds that all depths have that were trained so long; of equals the most
    /// frozen.
    pub winner: String,
    /// Others at full length whose mean is below the winner's by less than the standard error of the difference, the
    /// most frozen first.
    ///
    /// To prefer the simplest of those within one standard error is Breiman's rule (Breiman et al., 1984), and no test: a
    /// difference of that size comes by chance often.
    pub not_told_apart: Vec<String>,
    /// The most frozen of the winner and these, which costs least.
    pub cheapest: String,
}

impl TaskScore {
    /// The shares of every task.
    pub(super) fn all(quality: Quality) -> Vec<Self> {
        let of = |task: TaskQuality| Self {
            task: task.task,
            accuracy: task.confusion.accuracy(),
            macro_f1: task.confusion.macro_f1(),
            hits: task.hits,
        };
        quality.tasks.into_iter().map(of).collect()
    }
}

/// What `trials` say of the depths `freezes`, the most frozen first, which `metric` compares; None where none was trained
/// for `n_steps`, which is full length.
pub fn verdict(
    trials: &[Trial],
    freezes: &[String],
    n_steps: u64,
    metric: &Metric,
) -> Option<Verdict> {
    let full = |freeze: &String| -> Vec<&Trial> {
        let is_full = |trial: &&Trial| trial.freeze == *freeze && trial.n_steps == n_steps;
        trials.iter().filter(is_full).collect()
    };
    let full: Vec<Vec<&Trial>> = freezes.iter().map(full).collect();
    let compared = with_common_seeds(&full);
    let score = |trials: &Vec<&Trial>| mean(trials.iter().map(|trial| trial.score));
    let means: Vec<Option<f64>> = compared.iter().map(score).collect();
    let mut winner: Option<usize> = None;
    for (at, own) in means.iter().enumerate() {
        if own.is_some() && winner.is_none_or(|best| *own > means[best]) {
            winner = Some(at);
        }
    }
    let winner = winner?;
    let depth = |at: usize| {
        let rung =
            trials.iter().filter(|trial| trial.freeze == freezes[at]).map(|trial| trial.rung);
        let scores = full[at].iter().map(|trial| trial.score);
        let behind = || {
            Some(Behind {
                difference: means[winner]? - means[at]?,
                standard_error: paired_error(metric, &compared[winner], &compared[at])?,
            })
        };
        DepthSummary {
            freeze: freezes[at].clone(),
            rung: rung.max().unwrap_or(0),
            n_full: full[at].len(),
            mean: score(&full[at]),
            sd: score(&full[at]).and_then(|mean| deviation(mean, scores)),
            behind: (at != winner).then(behind).flatten(),
        }
    };
    let depths: Vec<DepthSummary> = (0..freezes.len()).map(depth).collect();
    let is_near = |at: &usize| {
        depths[*at].behind.is_some_and(|behind| behind.difference < behind.standard_error)
    };
    let near: Vec<usize> = (0..depths.len()).filter(is_near).collect();
    let cheapest = near.first().map_or(winner, |first| winner.min(*first));
    Some(Verdict {
        winner: freezes[winner].clone(),
        not_told_apart: near.into_iter().map(|at| freezes[at].clone()).collect(),
        cheapest: freezes[cheapest].clone(),
        depths,
    })
}

/// Of the trials of each depth those whose seed every depth with trials has.
fn with_common_seeds<'a>(depths: &[Vec<&'a Trial>]) -> Vec<Vec<&'a Trial>> {
    let is_common = |trial: &&Trial| {
        let mut others = depths.iter().filter(|trials| !trials.is_empty());
        others.all(|trials| trials.iter().any(|other| other.seed == trial.seed))
    };
    let common = |trials: &Vec<&'a Trial>| trials.iter().copied().filter(is_common).collect();
    depths.iter().map(common).collect()
}

/// The standard deviation (n - 1); None of less than two.
fn deviation(mean: f64, scores: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let n = scores.len();
    let squares: f64 = scores.map(|score| (score - mean).powi(2)).sum();
    (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A trial that is right on `n_right` of 100 rows, the first of which is `first`.
    pub fn trial(
        freeze: &str,
        (rung, n_steps): (usize, u64),
        (first, n_right): (usize, usize),
    ) -> Trial {
        let score = n_right as f64 / 100.0;
        let hits = (0..100).map(|row| (first..first + n_right).contains(&row)).collect();
        Trial {
            rung,
            freeze: freeze.to_owned(),
            seed: 1,
            n_steps,
            score,
            tasks: vec![TaskScore {
                task: "topic".to_owned(),
                accuracy: Some(score),
                macro_f1: Some(score),
                hits,
            }],
            is_cached: true,
            predicted_seconds: 1.0,
            seconds: 2.0,
        }
    }

    fn of(trials: &[Trial], freezes: &[&str], n_steps: u64) -> Option<Verdict> {
        let freezes: Vec<String> = freezes.iter().map(|freeze| freeze.to_string()).collect();
        verdict(trials, &freezes, n_steps, &Metric::Accuracy(None))
    }

    #[test]
    fn the_best_mean_wins_and_the_near_are_named() {
        let trials = [
            trial("backbone", (0, 10), (0, 99)),
            trial("lower:2", (1, 60), (10, 80)),
            trial("lower:1", (2, 60), (0, 80)),
            trial("lower:1", (2, 60), (0, 84)),
            trial("none", (1, 60), (0, 70)),
        ];
        let verdict = of(&trials, &["backbone", "lower:2", "lower:1", "none"], 60).unwrap();
        assert_eq!((verdict.winner.as_str(), verdict.cheapest.as_str()), ("lower:1", "lower:2"));
        assert_eq!(verdict.not_told_apart, ["lower:2"]);
        let [backbone, lower2, lower1, none] = verdict.depths.as_slice() else { panic!() };
        assert_eq!((backbone.rung, backbone.n_full, backbone.mean), (0, 0, None));
        assert_eq!((backbone.behind, lower1.behind), (None, None));
        assert_eq!((lower2.n_full, lower2.sd), (1, None));
        assert_eq!((lower1.rung, lower1.n_full), (2, 2));
        // 0.04 apart, over √2.
        assert!((lower1.sd.unwrap() - 0.02 * 2.0_f64.sqrt()).abs() <= 1e-12);
        assert!((lower1.mean.unwrap() - 0.82).abs() <= 1e-12);
        // Rows 0 to 9 speak for lower:1, 84 to 89 against it, and 80 to 83 half; 70 to 79 against none, 80 to 83 half.
        for (depth, difference, [squares, sum]) in
            [(lower2, 0.02, [17.0, 2.0]), (none, 0.12, [11.0, 12.0])]
        {
            let behind = depth.behind.unwrap();
            let error = (squares + 1.0 - f64::powi(sum, 2) / 102.0).sqrt() / 102.0;
            assert!((behind.difference - difference).abs() <= 1e-12, "{depth:?}");
            assert!((behind.standard_error - error).abs() <= 1e-12, "{depth:?}, not {error}");
        }
    }

    #[test]
    fn depths_are_compared_by_the_seeds_that_they_share() {
        let with_seed = |seed, trial| Trial { seed, ..trial };
        let trials = [
            with_seed(1, trial("lower:1", (1, 60), (0, 80))),
            with_seed(2, trial("lower:1", (2, 60), (0, 60))),
            with_seed(1, trial("none", (1, 60), (0, 78))),
            with_seed(1, trial("backbone", (0, 10), (0, 99))),
        ];
        let found = of(&trials, &["backbone", "lower:1", "none"], 60).unwrap();
        assert_eq!(found.winner, "lower:1", "by seed 1, whatever seed 2 gave");
        let [_, lower1, none] = found.depths.as_slice() else { panic!() };
        assert!((lower1.mean.unwrap() - 0.7).abs() <= 1e-12);
        assert!((none.behind.unwrap().difference - 0.02).abs() <= 1e-12);
    }

    #[test]
    fn of_equals_the_most_frozen_wins() {
        let trials = [trial("backbone", (0, 60), (0, 80)), trial("none", (0, 60), (0, 80))];
        let found = of(&trials, &["backbone", "none"], 60).unwrap();
        assert_eq!((found.winner.as_str(), found.cheapest.as_str()), ("backbone", "backbone"));
        assert_eq!(found.not_told_apart, ["none"]);
        assert_eq!(of(&trials, &["backbone", "none"], 61), None);
    }
}
