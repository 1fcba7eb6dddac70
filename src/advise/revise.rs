//! What a sweep makes of a recommendation: it wins, and says where scores and sweep agree.

use serde::Serialize;

use super::agreement::spearman;
use super::candidates::Candidate;
use super::costs::DepthCost;
use super::figures::{duration, points, share};
use super::layers::{LayerPoint, TaskCurve};
use super::recommend::{Confidence, NO_SCORE, Recommendation};
use super::sweep::SweepOutcome;
use super::verdict::DepthSummary;
use crate::model::Pooling;
use crate::sums::mean;

/// How a score of frozen features ranks depths, beside how a task fared at them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    pub task: String,
    /// What ranks layer N, the last below a frost line.
    pub score: &'static str,
    /// Spearman's, of the score behind the frozen layers and the accuracy of the trained model; None where one of them
    /// is the same at all depths.
    pub rank_correlation: Option<f64>,
    pub n_depths: usize,
    /// Steps of the trainings that are compared.
    pub n_steps: u64,
}

/// A score of a layer.
type Score = fn(&LayerPoint) -> Option<f64>;

/// The scores of a layer, as reports call them.
const SCORES: [(&str, Score); 3] = [
    ("probe accuracy", |point| Some(point.accuracy)),
    ("LogME", |point| point.logme),
    ("H-score", |point| point.h_score),
];

/// Rank correlations over the depths of a sweep, of every task and score; the trainings compared are those of the
/// shortest length, which all depths have.
pub fn agreement(
    sweep: &SweepOutcome,
    candidates: &[Candidate],
    curves: &[&TaskCurve],
    pooling: Pooling,
) -> Vec<Agreement> {
    let n_steps = sweep.trials.iter().map(|trial| trial.n_steps).min().unwrap_or(0);
    let accuracy = |freeze: &str, task: &str| {
        let trials = sweep.trials.iter().filter(|t| t.n_steps == n_steps && t.freeze == freeze);
        let tasks = trials.flat_map(|trial| &trial.tasks).filter(|one| one.task == task);
        mean(tasks.filter_map(|one| one.accuracy))
    };
    let mut all = Vec::new();
    for curve in curves {
        for (score, of) in SCORES {
            let pair = |candidate: &Candidate| {
                let point = curve.point(candidate.n_frozen_layers, pooling)?;
                Some((of(point)?, accuracy(&candidate.freeze, &curve.task)?))
            };
            let (scores, accuracies): (Vec<f64>, Vec<f64>) =
                candidates.iter().filter_map(pair).unzip();
            all.push(Agreement {
                task: curve.task.clone(),
                score,
                rank_correlation: spearman(&scores, &accuracies),
                n_depths: scores.len(),
                n_steps,
            });
        }
    }
    all
}

/// The recommendation that a sweep leaves of one that scores made; `costs` are those of the sweep's depths.
pub fn revise(
    advised: &Recommendation,
    sweep: &SweepOutcome,
    costs: &[DepthCost],
) -> Recommendation {
    let verdict = &sweep.verdict;
    let chosen = &verdict.cheapest;
    let mut reasons = vec![
        match chosen == &verdict.winner {
            true => format!("measured: {} is the best", shown(sweep, chosen)),
            false => format!(
                "measured: {} is within one standard error of the best, {}, and costs less",
                shown(sweep, chosen),
                shown(sweep, &verdict.winner)
            ),
        },
        scores_beside(advised.freeze.as_deref(), sweep),
    ];
    reasons.extend(advised.reasons.iter().map(|reason| format!("scores: {reason}")));
    let mut doubts: Vec<String> =
        advised.doubts.iter().filter(|doubt| *doubt != NO_SCORE).cloned().collect();
    doubts.extend(doubts_of(sweep));
    let cost = |freeze: &str| costs.iter().find(|cost| cost.freeze == freeze);
    let mean = |freeze: &str| verdict.depths.iter().find(|depth| depth.freeze == freeze)?.mean;
    let full = verdict.depths.iter().filter(|depth| depth.n_full > 0 && depth.freeze != *chosen);
    let alternative = |depth: &DepthSummary| {
        let (own, of_chosen) = (cost(&depth.freeze)?, cost(chosen)?);
        // Neither better nor cheaper is nothing to choose.
        let is_one = depth.mean > mean(chosen) || own.run_seconds < of_chosen.run_seconds;
        is_one.then(|| {
            format!(
                "{} takes about {} in all, {chosen} {}",
                shown(sweep, &depth.freeze),
                duration(own.run_seconds),
                duration(of_chosen.run_seconds)
            )
        })
    };
    let rate = cost(chosen).map(|cost| cost.head_learning_rate);
    Recommendation {
        freeze: Some(chosen.clone()),
        schedule: None,
        learning_rate: advised.learning_rate,
        head_learning_rate: rate.unwrap_or(advised.head_learning_rate),
        confidence: Confidence::Measured,
        reasons,
        doubts,
        alternatives: full.filter_map(alternative).collect(),
    }
}

/// How what the scores recommended stands beside what was measured.
fn scores_beside(advised: Option<&str>, sweep: &SweepOutcome) -> String {
    let verdict = &sweep.verdict;
    let Some(freeze) = advised else {
        return "the scores had recommended nothing".to_owned();
    };
    let is_near = |freeze: &str| {
        freeze == verdict.winner || verdict.not_told_apart.iter().any(|other| other == freeze)
    };
    match freeze {
        freeze if freeze == verdict.cheapest => "the scores had recommended the same".to_owned(),
        freeze if is_near(freeze) => format!(
            "the scores had recommended {}, which is as good up to one standard error and costs more",
            shown(sweep, freeze)
        ),
        freeze => format!(
            "the scores had recommended {}: scores and sweep disagree, and the sweep wins",
            shown(sweep, freeze)
        ),
    }
}

/// What a sweep leaves open.
fn doubts_of(sweep: &SweepOutcome) -> Vec<String> {
    let verdict = &sweep.verdict;
    let mut doubts = Vec::new();
    let mut full = verdict.depths.iter().filter(|depth| depth.n_full > 0);
    if full.any(|depth| depth.n_full < 3) {
        doubts.push(
            "depths with fewer than three seeds are compared: what a seed alone changes may be as much".to_owned(),
        );
    }
    let near = verdict.depths.iter().filter(|one| verdict.not_told_apart.contains(&one.freeze));
    let errors = near.filter_map(|depth| depth.behind).map(|behind| behind.standard_error);
    if let Some(error) = errors.max_by(f64::total_cmp) {
        doubts.push(format!(
            "the evaluation rows do not tell {} from {}: the standard error of a difference is up to {} points",
            verdict.not_told_apart.join(", "),
            verdict.winner,
            points(error)
        ));
    }
    if sweep.n_epochs < 1.0 {
        doubts.push(format!(
            "{} steps are {:.2} of an epoch: heads that train alone are ahead at first, and more is frozen than longer \
             trainings would show to be right",
            sweep.n_steps, sweep.n_epochs
        ));
    }
    if let Some(none) = verdict.depths.last().filter(|depth| depth.n_full == 0) {
        doubts.push(format!(
            "{} was left behind after a short training: what freezing costs beside it was not measured (--prove=full does)",
            none.freeze
        ));
    }
    doubts.push(
        "the evaluation rows have chosen the depth: what they say of it is a little too good"
            .to_owned(),
    );
    doubts
}

/// A depth with its score: `lower:3 (0.774 ±0.004 over 3 seeds)`.
fn shown(sweep: &SweepOutcome, freeze: &str) -> String {
    let depth = sweep.verdict.depths.iter().find(|depth| depth.freeze == freeze);
    let Some(depth) = depth else { return freeze.to_owned() };
    match (depth.mean, depth.sd) {
        (Some(mean), Some(sd)) => {
            format!("{freeze} ({} ±{} over {} seeds)", share(mean), share(sd), depth.n_full)
        }
        (Some(mean), None) => format!("{freeze} ({} with one seed)", share(mean)),
        (None, _) => format!("{freeze} (left behind after a short training)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::forecast::Forecast;
    use crate::advise::halving::Search;
    use crate::advise::recommend::tests::costs;
    use crate::advise::verdict::tests::trial;
    use crate::advise::verdict::{Trial, verdict};
    use crate::train::Metric;

    /// Trials of three depths: freeze, steps and rows that are right, each from another row on.
    fn sweep(trials: &[(&str, u64, usize)]) -> SweepOutcome {
        let trial = |(at, &(freeze, n_steps, n_right)): (usize, &(&str, u64, usize))| {
            trial(freeze, (0, n_steps), (10 - 5 * at, n_right))
        };
        let trials: Vec<Trial> = trials.iter().enumerate().map(trial).collect();
        let freezes = ["backbone", "lower:1", "none"].map(str::to_owned);
        SweepOutcome {
            search: Search::Full,
            metric: "accuracy".to_owned(),
            seeds: vec![1],
            n_steps: 60,
            n_epochs: 1.5,
            verdict: verdict(&trials, &freezes, 60, &Metric::Accuracy(None)).unwrap(),
            trials,
            forecast: Forecast {
                n_steps: 60,
                n_short_steps: None,
                seconds: [1.0; 2],
                fill_seconds: [0.0; 2],
                plain_seconds: 1.0,
                depths: Vec::new(),
            },
            predicted_trial_seconds: 1.0,
            trial_seconds: 1.0,
            fill_seconds: 0.0,
        }
    }

    fn advised(freeze: &str) -> Recommendation {
        Recommendation {
            freeze: Some(freeze.to_owned()),
            schedule: Some("0:backbone 1:none".to_owned()),
            learning_rate: 5e-5,
            head_learning_rate: 1e-3,
            confidence: Confidence::Low,
            reasons: vec!["why".to_owned()],
            doubts: vec!["but".to_owned()],
            alternatives: vec!["or".to_owned()],
        }
    }

    const TRIALS: [(&str, u64, usize); 3] =
        [("backbone", 60, 70), ("lower:1", 60, 79), ("none", 60, 80)];

    #[test]
    fn the_sweep_wins() {
        let found = revise(&advised("backbone"), &sweep(&TRIALS), &costs(|_| true));
        assert_eq!(found.freeze.as_deref(), Some("lower:1"));
        assert_eq!((found.confidence, &found.schedule), (Confidence::Measured, &None));
        assert!(found.reasons[0].contains("lower:1 (0.790 with one seed) is within"), "{found:?}");
        assert!(found.reasons[1].contains("scores and sweep disagree"), "{found:?}");
        assert_eq!(found.reasons[2], "scores: why");
        assert_eq!(found.doubts[0], "but");
        let untold = |doubt: &String| doubt.contains("do not tell lower:1 from none");
        assert_eq!(found.doubts.iter().filter(|doubt| untold(doubt)).count(), 1, "{found:?}");
        let apart = revise(&advised("backbone"), &sweep(&[TRIALS[0], ("none", 60, 99)]), &[]);
        assert!(!apart.doubts.iter().any(|doubt| doubt.contains("do not tell")), "{apart:?}");
        let doubted = |sweep: &SweepOutcome, words: &str| {
            let mut advised = advised("backbone");
            advised.doubts.push(NO_SCORE.to_owned());
            revise(&advised, sweep, &[]).doubts.iter().any(|doubt| doubt.contains(words))
        };
        let whole = sweep(&TRIALS);
        assert!(!doubted(&whole, "no score") && !doubted(&whole, "of an epoch"));
        assert!(!doubted(&whole, "left behind"));
        let short = SweepOutcome { n_epochs: 0.4, ..sweep(&TRIALS) };
        assert!(doubted(&short, "60 steps are 0.40 of an epoch"));
        assert!(doubted(&sweep(&[TRIALS[1], ("none", 10, 80)]), "none was left behind"));
        let [backbone, none] = found.alternatives.as_slice() else { panic!("{found:?}") };
        assert!(backbone.ends_with("takes about 10 s in all, lower:1 60 s"), "cheaper: {backbone}");
        assert!(none.ends_with("takes about 70 s in all, lower:1 60 s"), "better: {none}");
        let best = sweep(&[("backbone", 60, 99), ("none", 60, 70)]);
        let alone = revise(&advised("backbone"), &best, &costs(|_| true));
        assert!(alone.alternatives.is_empty(), "neither better nor cheaper: {alone:?}");
    }

    #[test]
    fn agreement_is_said_as_it_is() {
        let reason =
            |freeze: &str| revise(&advised(freeze), &sweep(&TRIALS), &[]).reasons[1].clone();
        assert!(reason("lower:1").contains("the same"));
        assert!(reason("none").contains("as good up to one standard error and costs more"));
        let short = sweep(&[("backbone", 10, 70), TRIALS[1], TRIALS[2]]);
        let found = revise(&advised("backbone"), &short, &[]);
        assert!(found.reasons[1].contains("left behind after a short training"), "{found:?}");
    }
}
