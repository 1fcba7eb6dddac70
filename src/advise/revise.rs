//! What a sweep makes of a recommendation: it wins, and says where scores and sweep agree.

use serde::Serialize;

use super::agreement::spearman;
use super::candidates::Candidate;
use super::figures::share;
use super::layers::{LayerPoint, TaskCurve};
use super::recommend::{Confidence, Recommendation};
use super::sweep::SweepOutcome;
use super::verdict::DepthSummary;
use crate::model::Pooling;

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

/// The scores of a layer, as reports call them.
const SCORES: [(&str, fn(&LayerPoint) -> Option<f64>); 3] = [
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
        let values: Vec<f64> = tasks.filter_map(|one| one.accuracy).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
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

/// The recommendation that a sweep leaves of one that scores made.
pub fn revise(advised: &Recommendation, sweep: &SweepOutcome) -> Recommendation {
    let verdict = &sweep.verdict;
    let of = |freeze: &str| verdict.depths.iter().find(|depth| depth.freeze == freeze);
    let shown = |freeze: &str| of(freeze).map_or(freeze.to_owned(), shown);
    let chosen = &verdict.cheapest;
    let mut reasons = vec![match chosen == &verdict.winner {
        true => format!("measured: {} is the best", shown(chosen)),
        false => format!(
            "measured: {} cannot be told from the best, {}, and costs less",
            shown(chosen),
            shown(&verdict.winner)
        ),
    }];
    reasons.push(match &advised.freeze {
        Some(freeze) if freeze == chosen => "the scores had recommended the same".to_owned(),
        Some(freeze) => format!(
            "the scores had recommended {}: they disagree with the sweep, which wins",
            shown(freeze)
        ),
        None => "the scores had recommended nothing".to_owned(),
    });
    reasons.extend(advised.reasons.iter().cloned());
    let is_about_proof = |doubt: &&String| !doubt.contains("--prove");
    let mut doubts: Vec<String> = advised.doubts.iter().filter(is_about_proof).cloned().collect();
    if sweep.seeds.len() < 3 {
        doubts.push(format!(
            "{} seeds: what seeds alone change is not well known",
            sweep.seeds.len()
        ));
    }
    Recommendation {
        freeze: Some(chosen.clone()),
        schedule: None,
        confidence: Confidence::Measured,
        reasons,
        doubts,
        ..advised.clone()
    }
}

/// A depth with its score: `lower:3 (0.774 ±0.004 in 3 trainings)`.
fn shown(depth: &DepthSummary) -> String {
    let freeze = &depth.freeze;
    match (depth.mean, depth.sd) {
        (Some(mean), Some(sd)) => {
            format!("{freeze} ({} ±{} over {} seeds)", share(mean), share(sd), depth.n_full)
        }
        (Some(mean), None) => format!("{freeze} ({} with one seed)", share(mean)),
        (None, _) => format!("{freeze} (left behind after a short training)"),
    }
}
