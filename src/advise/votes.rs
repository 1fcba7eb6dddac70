//! What each signal says of the depth: the most that it would freeze, and why.

use super::figures::{percent, points, share};
use super::recommend::{Signals, TaskSignal, WordSignal};

/// Of the errors of a probe on the frozen encoder, the share that training everything wins back: a tenth to a third on the
/// tasks of `docs/advise.md`.
pub const REGAINED_SHARE: f64 = 0.25;
/// The loss of accuracy that a freeze may cost: a point.
const ACCEPTED_LOSS: f64 = 0.01;
/// Labelled rows under which training all layers is taken to be unstable: the studies that found it so had 2,500 rows and
/// fewer (Mosbach et al., Zhang et al., ICLR 2021).
pub(super) const FEW_ROWS: usize = 500;
/// The share of words that are split, less that of general English, from which on the vocabulary counts as foreign:
/// reviews have 4 % of them, tweets 13 %, titles of diseases 34 %.
const FOREIGN: f64 = 0.2;

/// A limit on the depth, with its reason.
pub(super) struct Vote {
    pub most_frozen: usize,
    pub reason: String,
}

/// The loss of accuracy that a task is expected to suffer with so many of its layers frozen, beside training
/// everything: a share of the errors of a probe on the frozen encoder that grows with the square of the depth.
pub fn expected_loss(errors: f64, n_frozen: usize, n_layers: usize) -> f64 {
    let depth = n_frozen as f64 / n_layers as f64;
    errors * REGAINED_SHARE * depth.powi(2)
}

/// All votes, of which the least counts.
pub(super) fn votes(signals: &Signals) -> Vec<Vote> {
    let tasks = || signals.tasks.iter();
    let mut votes: Vec<Vote> = tasks().map(|task| by_headroom(task, signals.n_layers)).collect();
    votes.extend(tasks().filter_map(|task| by_curve(task, signals.n_layers)));
    votes.extend(by_words(signals));
    votes
}

/// How much the frozen encoder still gets wrong.
fn by_headroom(task: &TaskSignal, n_layers: usize) -> Vote {
    let loss = |n_frozen| expected_loss(task.errors(), n_frozen, n_layers);
    let most_frozen = (0..=n_layers).rev().find(|n| loss(*n) <= ACCEPTED_LOSS).unwrap_or(0);
    let reason = format!(
        "{}: a linear probe on the frozen encoder gets {} right in folds of the training rows (standard error {}, the \
         commonest label alone {}); by the rule of thumb training everything adds about {} points, of which {} are given up with {most_frozen} of {n_layers} \
         layers frozen",
        task.task,
        share(task.accuracy),
        share(task.standard_error),
        share(task.majority),
        points(loss(n_layers)),
        points(loss(most_frozen))
    );
    Vote { most_frozen, reason }
}

/// A layer that tells more than the last one, whose upper layers have learned something else.
fn by_curve(task: &TaskSignal, n_layers: usize) -> Option<Vote> {
    let at = task.flattens_at;
    let is_worse = task.best_accuracy - task.accuracy > task.standard_error;
    (is_worse && at > 0).then(|| Vote {
        most_frozen: at,
        reason: format!(
            "{}: {at} of {n_layers} layers tell its labels better than all do ({} at best, {} behind the last): what \
             trains should begin there",
            task.task,
            share(task.best_accuracy),
            share(task.accuracy)
        ),
    })
}

/// Words that are put together from pieces are put together in the lower layers.
fn by_words(signals: &Signals) -> Option<Vote> {
    let WordSignal { continued, general_continued, is_covered, .. } = signals.words;
    let most_frozen = signals.n_layers / 2;
    (is_covered && most_frozen > 0 && continued - general_continued >= FOREIGN).then(|| Vote {
        most_frozen,
        reason: format!(
            "{} of the words are split into pieces, {} of those of general English: let the upper half at least learn \
             what the pieces mean together (a hypothesis, not shown for BERT)",
            percent(continued),
            percent(general_continued)
        ),
    })
}

/// The depth that few rows ask for.
pub(super) fn few_rows(signals: &Signals) -> Option<(usize, String)> {
    let fewest = signals.tasks.iter().min_by_key(|task| task.n_rows)?;
    let n_layers = signals.n_layers;
    let least = match fewest.n_rows {
        n if n < FEW_ROWS / 5 => n_layers,
        n if n < FEW_ROWS => n_layers / 2,
        _ => 0,
    };
    (least > 0).then(|| {
        let reason = format!(
            "{} has {} labelled rows: too few to move all layers without luck, so at least {least} of {n_layers} stay \
             frozen",
            fewest.task, fewest.n_rows
        );
        (least, reason)
    })
}
