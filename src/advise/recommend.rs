//! From signals to a freeze: which depth, why, how sure, and what would change it.
//!
//! No published study shows that any score of frozen features predicts the right depth. What stands here is a rule of
//! thumb with its reasons; `docs/which_freeze.md` tells how it fared on the data sets that it was calibrated on, and a
//! sweep ([`super::sweep`]) overrules it.

use serde::Serialize;

use super::candidates::HEADS_ALONE;
use super::costs::DepthCost;
use super::figures::{duration, megabytes, percent, points, share};
use crate::model::Pooling;

/// Of the errors of a probe on the frozen encoder, the share that training everything wins back, as it was on the data
/// sets of the guide.
pub const REGAINED_SHARE: f64 = 0.25;
/// The loss of accuracy that a freeze may cost: a point.
pub const ACCEPTED_LOSS: f64 = 0.01;
/// The rate of new heads above layers that train.
pub const HEAD_RATE: f32 = 1e-3;
/// Labelled rows under which training all layers is said to be unstable (Zhang et al., Mosbach et al., ICLR 2021 tried
/// about 1000 and 2500).
const FEW_ROWS: usize = 500;
/// The share of words that are split, less that of general English, from which on the vocabulary counts as foreign:
/// reviews have 4 % of them, tweets 13 %, titles of diseases 34 %.
const FOREIGN: f64 = 0.2;
/// Width from which on models are trained at the lower rate that BERT's and RoBERTa's authors give for the large ones.
const LARGE: usize = 1024;

/// What was found out of a task, at the pooling that its head reads.
#[derive(Clone, Debug)]
pub struct TaskSignal {
    pub task: String,
    /// Labelled training rows.
    pub n_rows: usize,
    /// Cross-validated accuracy of the probe behind the last layer, and its standard error.
    pub accuracy: f64,
    pub standard_error: f64,
    /// The share of the commonest label.
    pub majority: f64,
    /// The lowest layer from which the probe is as good as behind the best.
    pub flattens_at: usize,
    /// The other pooling and its accuracy, where a probe of that is better by more than two standard errors.
    pub better_pooling: Option<(Pooling, f64)>,
    /// Whether the model has a head for it already.
    pub has_head: bool,
    /// Whether every probe found its optimum.
    pub is_converged: bool,
}

/// What was found out of the words.
#[derive(Clone, Copy, Debug)]
pub struct WordSignal {
    /// Shares of words that are split, in the task's texts and in general English.
    pub continued: f64,
    pub general_continued: f64,
    /// Whether the texts are English as the reference knows it.
    pub is_covered: bool,
}

/// All that a recommendation rests on.
#[derive(Clone, Debug)]
pub struct Signals<'a> {
    pub tasks: &'a [TaskSignal],
    pub words: WordSignal,
    /// One a candidate, the most frozen first.
    pub costs: &'a [DepthCost],
    pub n_layers: usize,
    pub hidden_size: usize,
}

/// How far a recommendation can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    Low,
    Moderate,
    /// A sweep has shown it.
    Measured,
}

impl Confidence {
    /// The word that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Moderate => "moderate",
            Confidence::Measured => "measured",
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommendation {
    /// The freeze spec; None where no candidate stays within the limits.
    pub freeze: Option<String>,
    /// What to try where the run may take longer.
    pub schedule: Option<String>,
    pub learning_rate: f32,
    pub head_learning_rate: f32,
    pub confidence: Confidence,
    pub reasons: Vec<String>,
    /// What is not known, and what would change the recommendation.
    pub doubts: Vec<String>,
}

/// A limit on the depth, with its reason.
struct Vote {
    most_frozen: usize,
    reason: String,
}

/// The loss of accuracy that a task is expected to suffer with so many of its layers frozen, beside training
/// everything: a share of the frozen probe's errors that grows with the square of the depth.
pub fn expected_loss(accuracy: f64, n_frozen: usize, n_layers: usize) -> f64 {
    let depth = n_frozen as f64 / n_layers as f64;
    (1.0 - accuracy) * REGAINED_SHARE * depth.powi(2)
}

/// The recommendation that follows.
///
/// # Panics
/// Without tasks or candidates.
pub fn recommend(signals: &Signals) -> Recommendation {
    let mut votes: Vec<Vote> =
        signals.tasks.iter().map(|task| by_headroom(task, signals)).collect();
    votes.extend(signals.tasks.iter().filter_map(|task| by_curve(task, signals)));
    votes.extend(by_words(signals));
    let most = votes.iter().map(|vote| vote.most_frozen).min().unwrap_or(signals.n_layers);
    let least_frozen = least_frozen(signals);
    let wanted = most.max(least_frozen.as_ref().map_or(0, |(least, _)| *least));
    // The deepest candidate that is not deeper than wanted, and else, within the limits, the next deeper one.
    let at_most = |cost: &&DepthCost| cost.n_frozen_layers <= wanted;
    let preferred = signals.costs.iter().find(at_most).unwrap_or(&signals.costs[0]);
    let chosen = match preferred.fits {
        true => Some(preferred),
        false => (signals.costs.iter().rev())
            .find(|cost| cost.fits && cost.n_frozen_layers >= preferred.n_frozen_layers),
    };
    let mut reasons: Vec<String> = votes.iter().map(|vote| vote.reason.clone()).collect();
    reasons.extend(least_frozen.map(|(_, reason)| reason));
    reasons.extend(by_limits(preferred, chosen));
    let freezes_all = chosen.is_some_and(|cost| cost.n_frozen_layers == signals.n_layers);
    Recommendation {
        freeze: chosen.map(|cost| cost.freeze.clone()),
        schedule: chosen.and_then(|cost| schedule(cost, signals)),
        learning_rate: if signals.hidden_size >= LARGE { 2e-5 } else { 5e-5 },
        head_learning_rate: if freezes_all { HEADS_ALONE * HEAD_RATE } else { HEAD_RATE },
        confidence: confidence(signals, &votes),
        reasons,
        doubts: doubts(signals, chosen),
    }
}

/// How much the frozen encoder still gets wrong.
fn by_headroom(task: &TaskSignal, signals: &Signals) -> Vote {
    let n_layers = signals.n_layers;
    let loss = |n_frozen| expected_loss(task.accuracy, n_frozen, n_layers);
    let depths = (0..=n_layers).rev();
    let most_frozen = depths.into_iter().find(|n| loss(*n) <= ACCEPTED_LOSS).unwrap_or_default();
    let TaskSignal { task, accuracy, standard_error, majority, .. } = task;
    let regained = points(loss(n_layers));
    let reason = format!(
        "{task}: a linear probe on the frozen encoder gets {} right (standard error {}, the commonest label alone {}); \
         training everything should add about {regained} points, of which {} are given up with {most_frozen} of \
         {n_layers} layers frozen",
        share(*accuracy),
        share(*standard_error),
        share(*majority),
        points(loss(most_frozen))
    );
    Vote { most_frozen, reason }
}

/// Where more layers stop helping.
fn by_curve(task: &TaskSignal, signals: &Signals) -> Option<Vote> {
    let (at, n_layers) = (task.flattens_at, signals.n_layers);
    (at < n_layers).then(|| Vote {
        // What lies at the flat part's beginning is worth keeping; the layers above have not helped this task so far.
        most_frozen: at.max(1),
        reason: format!(
            "{}: layer {at} of {n_layers} tells its labels as well as any layer does: what trains should begin there",
            task.task
        ),
    })
}

/// Words that are put together from pieces are put together in the lower layers.
fn by_words(signals: &Signals) -> Option<Vote> {
    let WordSignal { continued, general_continued, .. } = signals.words;
    (continued - general_continued >= FOREIGN).then(|| Vote {
        most_frozen: signals.n_layers / 2,
        reason: format!(
            "{} of the words are split into pieces, {} of those of general English: let the upper half at least learn \
             what the pieces mean together (a hypothesis, not shown for BERT)",
            percent(continued),
            percent(general_continued)
        ),
    })
}

/// The depth that few rows ask for.
fn least_frozen(signals: &Signals) -> Option<(usize, String)> {
    let fewest = signals.tasks.iter().min_by_key(|task| task.n_rows)?;
    (fewest.n_rows < FEW_ROWS).then(|| {
        let least = if fewest.n_rows < FEW_ROWS / 5 { signals.n_layers } else { signals.n_layers / 2 };
        let reason = format!(
            "{} has {} labelled rows: too few to move all layers without luck, so {least} of {} stay frozen",
            fewest.task, fewest.n_rows, signals.n_layers
        );
        (least, reason)
    })
}

fn by_limits(preferred: &DepthCost, chosen: Option<&DepthCost>) -> Option<String> {
    match chosen {
        Some(chosen) if chosen.freeze == preferred.freeze => None,
        Some(chosen) => Some(format!(
            "{} would be wanted, but needs {} and {}: {} is the least frozen that stays within the limits",
            preferred.freeze,
            duration(preferred.run_seconds),
            megabytes(preferred.memory_bytes),
            chosen.freeze
        )),
        None => Some(format!(
            "nothing stays within the limits: the wanted {} needs {} and {}",
            preferred.freeze,
            duration(preferred.run_seconds),
            megabytes(preferred.memory_bytes)
        )),
    }
}

/// Heads first (LP-FT: Kumar et al., ICLR 2022), where frozen features are good and heads are new.
fn schedule(chosen: &DepthCost, signals: &Signals) -> Option<String> {
    let is_good = |task: &TaskSignal| {
        !task.has_head && task.accuracy - task.majority >= 0.5 * (1.0 - task.majority)
    };
    let has_depth = chosen.n_frozen_layers < signals.n_layers;
    (has_depth && signals.tasks.iter().all(is_good))
        .then(|| format!("0:backbone 1:{}", chosen.freeze))
}

fn confidence(signals: &Signals, votes: &[Vote]) -> Confidence {
    let depths = votes.iter().map(|vote| vote.most_frozen);
    let spread = depths.clone().max().unwrap_or(0) - depths.min().unwrap_or(0);
    let is_weak = |task: &TaskSignal| {
        task.n_rows < FEW_ROWS
            || !task.is_converged
            || task.accuracy - task.majority <= 2.0 * task.standard_error
    };
    match 2 * spread > signals.n_layers || signals.tasks.iter().any(is_weak) {
        true => Confidence::Low,
        false => Confidence::Moderate,
    }
}

fn doubts(signals: &Signals, chosen: Option<&DepthCost>) -> Vec<String> {
    let mut doubts = Vec::new();
    for task in signals.tasks {
        let TaskSignal { task: name, accuracy, majority, standard_error, .. } = task;
        if accuracy - majority <= 2.0 * standard_error {
            doubts.push(format!(
                "{name}: the frozen encoder tells its labels no better than the commonest label does ({} and {}): they \
                 may not follow from the text, or from nothing that this encoder knows; look at the labels first",
                share(*accuracy),
                share(*majority)
            ));
        }
        if let Some((pooling, other)) = task.better_pooling {
            doubts.push(format!(
                "{name}: {} pooling tells more of the frozen encoder ({} against {}): try --pooling {}",
                pooling.name(),
                share(other),
                share(*accuracy),
                pooling.name()
            ));
        }
        if !task.is_converged {
            doubts.push(format!("{name}: a probe's search was given up before its optimum"));
        }
    }
    if !signals.words.is_covered {
        doubts.push(
            "the texts are not general English: figures about words compare with nothing, the probes do".to_owned(),
        );
    }
    if let Some(chosen) = chosen {
        doubts.extend(cheaper(signals, chosen));
        doubts.extend(dearer(signals, chosen));
    }
    doubts.push(
        "no score is known to predict the right depth: --prove measures it on this data".to_owned(),
    );
    doubts
}

/// What the loss would be with the next deeper freezes, and what they save.
fn cheaper(signals: &Signals, chosen: &DepthCost) -> Option<String> {
    let at = signals.costs.iter().position(|cost| cost.freeze == chosen.freeze)?;
    let other =
        signals.costs[..at].iter().rfind(|cost| cost.run_seconds <= 0.6 * chosen.run_seconds)?;
    Some(format!(
        "if about {} points may be lost, {} takes {} instead of {}",
        points(worst_loss(signals, other)),
        other.freeze,
        duration(other.run_seconds),
        duration(chosen.run_seconds)
    ))
}

fn dearer(signals: &Signals, chosen: &DepthCost) -> Option<String> {
    let last = signals.costs.last()?;
    (last.freeze != chosen.freeze).then(|| {
        format!(
            "if the last {} points matter, {} takes {} and {} instead of {} and {}",
            points(worst_loss(signals, chosen)),
            last.freeze,
            duration(last.run_seconds),
            megabytes(last.memory_bytes),
            duration(chosen.run_seconds),
            megabytes(chosen.memory_bytes)
        )
    })
}

/// The expected loss of the task that loses most.
fn worst_loss(signals: &Signals, cost: &DepthCost) -> f64 {
    let loss =
        |task: &TaskSignal| expected_loss(task.accuracy, cost.n_frozen_layers, signals.n_layers);
    signals.tasks.iter().map(loss).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::costs::CacheCost;

    /// Depths of 6 layers; a layer takes 10 s, everything below it in a cache.
    fn costs(fits: impl Fn(usize) -> bool) -> Vec<DepthCost> {
        let one = |n: usize| DepthCost {
            freeze: match n {
                6 => "backbone".to_owned(),
                0 => "none".to_owned(),
                n => format!("lower:{n}"),
            },
            n_frozen_layers: n,
            trainable_parameters: 1000 * (7 - n),
            parameters_per_row: (7 - n) as f64 / 3.0,
            flops_share: 1.0 - n as f64 / 9.0,
            step_seconds: 0.1,
            cache: (n > 0).then_some(CacheCost { bytes: 1, fill_seconds: 1.0, step_seconds: 0.1 }),
            run_seconds: 10.0 * (7 - n) as f64,
            memory_bytes: 100_000_000 * (7 - n) as u64,
            fits: fits(n),
        };
        (0..=6).rev().map(one).collect()
    }

    fn task(name: &str, accuracy: f64) -> TaskSignal {
        TaskSignal {
            task: name.to_owned(),
            n_rows: 3000,
            accuracy,
            standard_error: 0.01,
            majority: 0.4,
            flattens_at: 6,
            better_pooling: None,
            has_head: false,
            is_converged: true,
        }
    }

    const PLAIN: WordSignal =
        WordSignal { continued: 0.04, general_continued: 0.01, is_covered: true };

    fn advice(tasks: &[TaskSignal], words: WordSignal, fits: fn(usize) -> bool) -> Recommendation {
        let costs = costs(fits);
        recommend(&Signals { tasks, words, costs: &costs, n_layers: 6, hidden_size: 384 })
    }

    fn freeze(tasks: &[TaskSignal]) -> Option<String> {
        advice(tasks, PLAIN, |_| true).freeze
    }

    #[test]
    fn what_the_encoder_knows_stays_frozen() {
        // 0.25 of 3 errors in a hundred are less than a point.
        let known = advice(&[task("topic", 0.97)], PLAIN, |_| true);
        assert_eq!(known.freeze.as_deref(), Some("backbone"));
        assert_eq!((known.head_learning_rate, known.schedule), (3e-3, None));
        assert_eq!(known.confidence, Confidence::Moderate);
        // 0.25 (1 - 0.8) (n / 6)^2 is a point at n = 2.7, 0.25 (1 - 0.5) (n / 6)^2 at n = 1.7.
        assert_eq!(freeze(&[task("topic", 0.8)]).as_deref(), Some("lower:2"));
        assert_eq!(freeze(&[task("topic", 0.5)]).as_deref(), Some("lower:1"));
        // The task that needs more decides.
        let both = freeze(&[task("topic", 0.97), task("mood", 0.8)]);
        assert_eq!(both.as_deref(), Some("lower:2"));
    }

    #[test]
    fn a_flat_curve_and_foreign_words_want_more_to_train() {
        let flat = TaskSignal { flattens_at: 3, ..task("topic", 0.97) };
        assert_eq!(freeze(&[flat]).as_deref(), Some("lower:3"));
        let foreign = WordSignal { continued: 0.3, ..PLAIN };
        let found = advice(&[task("topic", 0.97)], foreign, |_| true);
        assert_eq!(found.freeze.as_deref(), Some("lower:3"));
        assert!(
            found.reasons.iter().any(|reason| reason.contains("30 % of the words")),
            "{found:?}"
        );
    }

    #[test]
    fn few_rows_want_less_to_train() {
        let few = |n_rows| [TaskSignal { n_rows, ..task("topic", 0.5) }];
        assert_eq!(freeze(&few(499)).as_deref(), Some("lower:3"));
        assert_eq!(freeze(&few(99)).as_deref(), Some("backbone"));
        let found = advice(&few(99), PLAIN, |_| true);
        assert_eq!(found.confidence, Confidence::Low);
    }

    #[test]
    fn limits_decide_last() {
        let deeper = advice(&[task("topic", 0.5)], PLAIN, |n| n >= 4);
        assert_eq!(deeper.freeze.as_deref(), Some("lower:4"));
        let reason = deeper.reasons.last().unwrap();
        assert!(reason.contains("lower:1 would be wanted"), "{reason}");
        let nothing = advice(&[task("topic", 0.5)], PLAIN, |_| false);
        assert_eq!((nothing.freeze, nothing.schedule), (None, None));
        assert!(nothing.reasons.last().unwrap().contains("nothing stays within"));
        // What is less frozen than wanted is not better for staying within them.
        assert_eq!(advice(&[task("topic", 0.97)], PLAIN, |n| n < 6).freeze, None);
    }

    #[test]
    fn labels_that_nothing_tells_apart_are_said() {
        let found = advice(&[task("topic", 0.41)], PLAIN, |_| true);
        assert_eq!((found.confidence, &found.schedule), (Confidence::Low, &None));
        assert!(found.doubts[0].contains("no better than the commonest"), "{found:?}");
        assert!(found.doubts.last().unwrap().contains("--prove"));
    }

    #[test]
    fn a_better_pooling_is_told() {
        let better = TaskSignal { better_pooling: Some((Pooling::Cls, 0.9)), ..task("topic", 0.8) };
        let found = advice(&[better], PLAIN, |_| true);
        assert!(found.doubts[0].contains("(0.900 against 0.800): try --pooling cls"), "{found:?}");
    }

    #[test]
    fn heads_come_first_where_features_are_good() {
        let found = advice(&[task("topic", 0.8)], PLAIN, |_| true);
        assert_eq!(found.schedule.as_deref(), Some("0:backbone 1:lower:2"));
        let known = TaskSignal { has_head: true, ..task("topic", 0.8) };
        assert_eq!(advice(&[known], PLAIN, |_| true).schedule, None);
        // lower:2 takes 50 s, the cheaper lower:4 takes 30 s and loses 0.25 0.2 (4 / 6)^2.
        let cheaper = found.doubts.iter().find(|doubt| doubt.contains("may be lost")).unwrap();
        assert!(
            cheaper.contains("2.2 points") && cheaper.contains("lower:4 takes 30 s"),
            "{cheaper}"
        );
    }
}
