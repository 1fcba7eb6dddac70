//! From signals to a freeze: which depth, why, how sure, and what would change it.
//!
//! No published study shows that any score of frozen features predicts the right depth. What stands here is a rule of
//! thumb with its reasons ([`votes`](super::votes)); `docs/advise.md` tells how it fared where it was tried, and a sweep
//! ([`super::sweep`]) overrules it.

use serde::Serialize;

use super::costs::{DepthCost, Limits};
use super::figures::{duration, megabytes, points, share};
use super::votes::{FEW_ROWS, Vote, expected_loss, few_rows, votes};
use crate::model::Pooling;

/// The rate of new heads above layers that train, where nobody gives one.
pub const HEAD_RATE: f32 = 1e-3;

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
    /// The share of rows that nobody can get right, since their texts have contradicting labels.
    pub irreducible: f64,
    /// The best accuracy of any layer.
    pub best_accuracy: f64,
    /// The lowest layer within one standard error of that.
    pub flattens_at: usize,
    /// The other pooling and its accuracy, where a probe of that is better by more than two standard errors.
    pub better_pooling: Option<(Pooling, f64)>,
    /// Whether the model has a head for it already.
    pub has_head: bool,
    /// Whether every probe found its optimum.
    pub is_converged: bool,
    /// Labelled training rows beyond the first of their text.
    pub n_repeated: usize,
    /// Labelled evaluation rows, and those whose text is a training row's too.
    pub n_eval_rows: usize,
    pub n_leaked: usize,
}

impl TaskSignal {
    /// The share of rows that the probe gets wrong and something better could get right.
    pub fn errors(&self) -> f64 {
        (1.0 - self.accuracy - self.irreducible).max(0.0)
    }

    /// How far the probe comes from always naming the commonest label, at 0, to no error, at 1; and its standard error.
    pub fn lift(&self) -> (f64, f64) {
        let most = (1.0 - self.majority).max(f64::EPSILON);
        ((self.accuracy - self.majority) / most, self.standard_error / most)
    }

    /// Whether the probe is no better than the commonest label, up to chance.
    pub fn is_blind(&self) -> bool {
        self.accuracy - self.majority <= 2.0 * self.standard_error
    }
}

/// What was found out of the words.
#[derive(Clone, Copy, Debug)]
pub struct WordSignal {
    /// Shares of words that are split, in the task's texts and in general English.
    pub continued: f64,
    pub general_continued: f64,
    /// The share of words with an unknown token.
    pub unknown: f64,
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
    pub limits: Limits,
    pub n_layers: usize,
    /// Of the runs that the costs are of.
    pub learning_rate: f32,
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
    /// What is not known.
    pub doubts: Vec<String>,
    /// What to take instead, and when.
    pub alternatives: Vec<String>,
}

/// The recommendation that follows.
///
/// # Panics
/// Without tasks or candidates.
pub fn recommend(signals: &Signals) -> Recommendation {
    let votes = votes(signals);
    let most = votes.iter().map(|vote| vote.most_frozen).min().unwrap_or(signals.n_layers);
    let few = few_rows(signals);
    let wanted = most.max(few.as_ref().map_or(0, |(least, _)| *least));
    // The deepest candidate that is not deeper than wanted, and within the limits the next deeper one.
    let at_most = |cost: &&DepthCost| cost.n_frozen_layers <= wanted;
    let preferred = signals.costs.iter().find(at_most).unwrap_or(&signals.costs[0]);
    let chosen = match preferred.fits {
        true => Some(preferred),
        false => (signals.costs.iter().rev())
            .find(|cost| cost.fits && cost.n_frozen_layers >= preferred.n_frozen_layers),
    };
    let mut reasons: Vec<String> = votes.iter().map(|vote| vote.reason.clone()).collect();
    reasons.extend(few.map(|(_, reason)| reason));
    reasons.extend(by_limits(signals, preferred, chosen));
    let is_limited = chosen.is_none_or(|chosen| chosen.freeze != preferred.freeze);
    let alternatives = chosen.map(|chosen| {
        cheaper(signals, chosen).into_iter().chain(dearer(signals, chosen)).collect()
    });
    Recommendation {
        freeze: chosen.map(|cost| cost.freeze.clone()),
        schedule: chosen.and_then(|cost| schedule(cost, signals)),
        learning_rate: signals.learning_rate,
        head_learning_rate: chosen.unwrap_or(preferred).head_learning_rate,
        confidence: if is_limited { Confidence::Low } else { confidence(signals, &votes) },
        reasons,
        doubts: doubts(signals, chosen.is_some()),
        alternatives: alternatives.unwrap_or_default(),
    }
}

fn by_limits(
    signals: &Signals,
    preferred: &DepthCost,
    chosen: Option<&DepthCost>,
) -> Option<String> {
    if chosen.is_some_and(|chosen| chosen.freeze == preferred.freeze) {
        return None;
    }
    let Limits { seconds, memory_bytes } = signals.limits;
    let time = seconds.filter(|most| preferred.run_seconds > *most).map(|most| {
        format!("{}, where {} is the budget", duration(preferred.run_seconds), duration(most))
    });
    let memory = memory_bytes.filter(|most| preferred.memory_bytes > *most).map(|most| {
        format!("{}, where {} may be used", megabytes(preferred.memory_bytes), megabytes(most))
    });
    let needs = [time, memory].into_iter().flatten().collect::<Vec<_>>().join(", and ");
    let freeze = &preferred.freeze;
    Some(match chosen {
        Some(chosen) => format!(
            "{freeze} would be wanted, but needs {needs}: {} is the least frozen that does not",
            chosen.freeze
        ),
        None => {
            let least = &signals.costs[0];
            format!(
                "{freeze} would be wanted, but needs {needs}, and nothing that is more frozen stays within the limits \
                 either: {} takes {} and {}",
                least.freeze,
                duration(least.run_seconds),
                megabytes(least.memory_bytes)
            )
        }
    })
}

/// Heads first (LP-FT: Kumar et al., ICLR 2022), where frozen features are good and heads are new.
fn schedule(chosen: &DepthCost, signals: &Signals) -> Option<String> {
    let is_good = |task: &TaskSignal| !task.has_head && task.lift().0 >= 0.5;
    let has_depth = chosen.n_frozen_layers < signals.n_layers;
    (has_depth && signals.tasks.iter().all(is_good))
        .then(|| format!("0:backbone 1:{}", chosen.freeze))
}

fn confidence(signals: &Signals, votes: &[Vote]) -> Confidence {
    let depths = votes.iter().map(|vote| vote.most_frozen);
    let spread = depths.clone().max().unwrap_or(0) - depths.min().unwrap_or(0);
    let is_weak =
        |task: &TaskSignal| task.n_rows < FEW_ROWS || !task.is_converged || task.is_blind();
    match 2 * spread > signals.n_layers || signals.tasks.iter().any(is_weak) {
        true => Confidence::Low,
        false => Confidence::Moderate,
    }
}

/// Whether rows are too many to be passed over: one in fifty.
fn is_share(n: usize, all: usize) -> bool {
    50 * n > all
}

fn doubts(signals: &Signals, is_recommended: bool) -> Vec<String> {
    let mut doubts = Vec::new();
    for task in signals.tasks {
        let TaskSignal { task: name, accuracy, majority, .. } = task;
        if task.is_blind() {
            doubts.push(format!(
                "{name}: the frozen encoder tells its labels no better than the commonest label does ({} and {}): they \
                 follow from something that this encoder does not know, or not from the text; look at the labels first",
                share(*accuracy),
                share(*majority)
            ));
        }
        if let Some((pooling, other)) = task.better_pooling {
            doubts.push(format!(
                "{name}: {} pooling tells more of the frozen encoder ({} against {}): try --pooling {0}",
                pooling.name(),
                share(other),
                share(*accuracy),
            ));
        }
        if is_share(task.n_repeated, task.n_rows) {
            doubts.push(format!(
                "{name}: {} of {} training rows repeat another's text, which probes read once and trainings as often as it \
                 stands there",
                task.n_repeated, task.n_rows
            ));
        }
        if is_share(task.n_leaked, task.n_eval_rows) {
            doubts.push(format!(
                "{name}: {} of {} evaluation rows have a training row's text: what a training shows on them is memory",
                task.n_leaked, task.n_eval_rows
            ));
        }
        if !task.is_converged {
            doubts.push(format!("{name}: a probe's search was given up before its optimum"));
        }
    }
    if !signals.words.is_covered {
        doubts.push(
            "the texts are not general English: figures about their words compare with nothing, the probes hold"
                .to_owned(),
        );
    }
    if signals.words.unknown > 0.05 {
        doubts.push(format!(
            "the tokenizer does not know {:.0} % of the words: a model whose tokenizer does may tell more",
            100.0 * signals.words.unknown
        ));
    }
    if is_recommended {
        doubts.push(NO_SCORE.to_owned());
    }
    doubts
}

/// The doubt about every recommendation that no sweep has made.
pub(super) const NO_SCORE: &str =
    "no score is known to predict the right depth: --prove measures it on this data";

/// The nearest deeper freeze that saves much, and what it should cost.
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

/// Training everything, where that is possible and should bring something.
fn dearer(signals: &Signals, chosen: &DepthCost) -> Option<String> {
    let last = signals.costs.last().filter(|last| last.fits && last.freeze != chosen.freeze)?;
    let loss = worst_loss(signals, chosen);
    let is_blind = signals.tasks.iter().any(TaskSignal::is_blind);
    (loss >= 0.0005 && !is_blind && few_rows(signals).is_none()).then(|| {
        format!(
            "if the last {} points matter, {} takes {} and {} instead of {} and {}",
            points(loss),
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
        |task: &TaskSignal| expected_loss(task.errors(), cost.n_frozen_layers, signals.n_layers);
    signals.tasks.iter().map(loss).fold(0.0, f64::max)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::advise::costs::CacheCost;

    /// Depths of 6 layers; a layer takes 10 s, everything below it in a cache.
    pub fn costs(fits: impl Fn(usize) -> bool) -> Vec<DepthCost> {
        let one = |n: usize| DepthCost {
            freeze: match n {
                6 => "backbone".to_owned(),
                0 => "none".to_owned(),
                n => format!("lower:{n}"),
            },
            n_frozen_layers: n,
            trainable_parameters: 1000 * (7 - n),
            parameters_per_row: (7 - n) as f64 / 3.0,
            head_learning_rate: if n == 6 { 3e-3 } else { 1e-3 },
            flops_share: 1.0 - n as f64 / 9.0,
            step_seconds: 0.1,
            cache: (n > 0).then_some(CacheCost { bytes: 1, fill_seconds: 1.0, step_seconds: 0.1 }),
            run_seconds: 10.0 * (7 - n) as f64,
            run_is_cached: n > 0,
            memory_bytes: 100_000_000 * (7 - n) as u64,
            fits: fits(n),
        };
        (0..=6).rev().map(one).collect()
    }

    /// What a probe with this accuracy over 3000 rows leaves to be said.
    pub fn task(name: &str, accuracy: f64) -> TaskSignal {
        TaskSignal {
            task: name.to_owned(),
            n_rows: 3000,
            accuracy,
            standard_error: 0.01,
            majority: 0.4,
            irreducible: 0.0,
            best_accuracy: accuracy,
            flattens_at: 6,
            better_pooling: None,
            has_head: false,
            is_converged: true,
            n_repeated: 0,
            n_eval_rows: 0,
            n_leaked: 0,
        }
    }

    const PLAIN: WordSignal =
        WordSignal { continued: 0.04, general_continued: 0.01, unknown: 0.0, is_covered: true };

    fn advice(tasks: &[TaskSignal], words: WordSignal, fits: fn(usize) -> bool) -> Recommendation {
        let costs = costs(fits);
        // Only the wanted depth is held against the limits here.
        let limits = Limits { seconds: Some(5.0), memory_bytes: None };
        let learning_rate = 5e-5;
        recommend(&Signals { tasks, words, costs: &costs, limits, n_layers: 6, learning_rate })
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
        let peak = TaskSignal { flattens_at: 3, best_accuracy: 0.985, ..task("topic", 0.97) };
        assert_eq!(freeze(&[peak]).as_deref(), Some("lower:3"));
        // As good as the last layer up to chance: no reason to train more.
        let flat = TaskSignal { flattens_at: 0, best_accuracy: 0.979, ..task("topic", 0.97) };
        assert_eq!(freeze(&[flat]).as_deref(), Some("backbone"));
        let foreign = WordSignal { continued: 0.3, ..PLAIN };
        let found = advice(&[task("topic", 0.97)], foreign, |_| true);
        assert_eq!(found.freeze.as_deref(), Some("lower:3"));
        assert!(
            found.reasons.iter().any(|reason| reason.contains("30 % of the words")),
            "{found:?}"
        );
    }

    #[test]
    fn rows_that_say_nothing_new_are_doubted() {
        let doubts = |n_repeated, n_leaked| {
            let known = TaskSignal { n_repeated, n_eval_rows: 100, n_leaked, ..task("topic", 0.8) };
            advice(&[known], PLAIN, |_| true).doubts
        };
        assert_eq!(doubts(60, 2), [NO_SCORE], "one in fifty may be passed over");
        let found = doubts(61, 3);
        assert!(found[0].contains("61 of 3000 training rows repeat"), "{found:?}");
        assert!(found[1].contains("3 of 100 evaluation rows"), "{found:?}");
    }

    #[test]
    fn other_languages_are_not_held_against_english() {
        let words = WordSignal { continued: 0.9, unknown: 0.2, is_covered: false, ..PLAIN };
        let found = advice(&[task("topic", 0.97)], words, |_| true);
        assert_eq!(found.freeze.as_deref(), Some("backbone"));
        assert!(found.doubts[0].contains("not general English"), "{found:?}");
        assert!(found.doubts[1].contains("does not know 20 % of the words"), "{found:?}");
    }

    #[test]
    fn contradictions_are_no_headroom() {
        let torn = TaskSignal { irreducible: 0.17, ..task("topic", 0.8) };
        assert_eq!(freeze(&[torn]).as_deref(), Some("backbone"));
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
        assert_eq!(deeper.confidence, Confidence::Low);
        let reason = deeper.reasons.last().unwrap();
        assert!(reason.contains("lower:1 would be wanted"), "{reason}");
        let nothing = advice(&[task("topic", 0.5)], PLAIN, |_| false);
        assert_eq!((nothing.freeze, nothing.schedule), (None, None));
        assert!(nothing.reasons.last().unwrap().contains("nothing that is more frozen"));
        // What is less frozen than wanted is not better for staying within them.
        assert_eq!(advice(&[task("topic", 0.97)], PLAIN, |n| n < 6).freeze, None);
    }

    #[test]
    fn labels_that_nothing_tells_apart_are_said() {
        let found = advice(&[task("topic", 0.41)], PLAIN, |_| true);
        assert_eq!((found.confidence, &found.schedule), (Confidence::Low, &None));
        assert!(found.doubts[0].contains("no better than the commonest"), "{found:?}");
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
        let cheaper = &found.alternatives[0];
        assert!(
            cheaper.contains("2.2 points") && cheaper.contains("lower:4 takes 30 s"),
            "{cheaper}"
        );
    }
}
