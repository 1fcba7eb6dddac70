//! All that is found out of a model and its data without training anything.

use std::time::Instant;

use serde::Serialize;

use super::candidates::Candidate;
use super::costs::{CostOptions, DepthCost, Limits, costs, least_frozen};
use super::heads::{HeadAdvice, head_advice};
use super::layers::{LayerPoint, TaskCurve, TaskLabels, n_points, task_curves};
use super::recommend::{Recommendation, Signals, TaskSignal, WordSignal, recommend};
use super::revise::Agreement;
use super::rows::RowProfile;
use super::sample::probed_rows;
use super::separability::ClassSeparability;
use super::sweep::SweepOutcome;
use super::vectors::{Origin, VectorStore, probed_vectors};
use super::votes::expected_loss;
use super::words::TextProfile;
use crate::batch::Batch;
use crate::data::{Corpus, Tokenizer};
use crate::measure::{Ceilings, Pace};
use crate::model::{Network, Pooling};
use crate::session::Session;
use crate::train::{TrainOptions, step_options};
use crate::{Error, Result};

/// What is asked about one model.
pub struct Question<'a> {
    /// What reports call it.
    pub model: String,
    pub network: &'a Network,
    pub corpus: &'a Corpus,
    pub tokenizer: &'a Tokenizer,
    /// By task, whether the model has a head for it.
    pub has_head: Vec<bool>,
    /// The most frozen first.
    pub candidates: &'a [Candidate],
    pub train: &'a TrainOptions,
    pub ceilings: Ceilings,
    /// Bytes that a cache may have at most.
    pub cache_limit_bytes: u64,
    pub limits: Limits,
    /// Where vectors are kept for later advice; None for nowhere.
    pub vectors: Option<&'a VectorStore>,
}

/// A part of a survey that takes a while, told before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The forward pass over so many texts.
    Vectors {
        n_texts: usize,
    },
    /// So many pairs of a layer's vectors and a task.
    Probes {
        n_points: usize,
    },
    Costs,
}

/// Told of a survey as it goes on.
pub trait SurveyObserver: Sync {
    /// Before a part begins.
    fn begin(&self, stage: Stage);
    /// So many units of the part are done.
    fn done(&self, n: usize);
    /// Where the vectors came from.
    fn vectors(&self, origin: &Origin);
}

/// All that is said about one model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelAdvice {
    pub model: String,
    pub n_layers: usize,
    pub hidden_size: usize,
    pub n_values: usize,
    pub pooling: Pooling,
    pub texts: TextProfile,
    pub tasks: Vec<TaskAdvice>,
    pub pace: Pace,
    /// The most frozen first.
    pub costs: Vec<DepthCost>,
    /// The freeze that the scores recommended.
    pub advised: Option<String>,
    /// What is recommended: by the sweep where there was one.
    pub recommendation: Recommendation,
    /// By task, in their order.
    #[serde(skip)]
    pub signals: Vec<TaskSignal>,
    pub head: Option<HeadAdvice>,
    pub sweep: Option<SweepOutcome>,
    /// How scores and sweep agree; empty without one.
    pub agreement: Vec<Agreement>,
    /// Of the survey, the sweep apart.
    pub seconds: f64,
}

/// All that is said about one task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskAdvice {
    pub rows: RowProfile,
    pub curve: TaskCurve,
    /// The share of rows that the probe behind the last layer gets wrong and something better could get right.
    pub errors: f64,
    /// The labels, by the same probe.
    pub classes: Vec<ClassSeparability>,
    pub noise: NoiseAdvice,
}

/// Labels that may be wrong, by the same probe.
#[derive(Clone, Debug, Serialize)]
pub struct NoiseAdvice {
    /// The estimated share of wrong labels.
    pub share: f64,
    /// The most suspicious texts.
    pub suspects: Vec<SuspectText>,
}

/// A text whose label the probe does not believe.
#[derive(Clone, Debug, Serialize)]
pub struct SuspectText {
    pub text: String,
    pub given: String,
    pub suggested: String,
    /// What a probe that did not see the text gives the two labels.
    pub probability_given: f64,
    pub probability_suggested: f64,
}

/// Suspects of a task that are kept.
const N_SUSPECTS: usize = 5;

impl ModelAdvice {
    /// The pooling whose probes stand for what the heads read.
    pub fn probe_pooling(&self) -> Pooling {
        probe_pooling(self.pooling)
    }

    /// The probe of a task that stands for what its head reads.
    pub fn last_point<'a>(&self, task: &'a TaskAdvice) -> Option<&'a LayerPoint> {
        task.curve.point(self.n_layers, self.probe_pooling())
    }
}

impl TaskAdvice {
    /// The expected loss with so many layers frozen, see [`expected_loss`].
    pub fn expected_loss(&self, n_frozen: usize, n_layers: usize) -> f64 {
        expected_loss(self.errors, n_frozen, n_layers)
    }
}

/// The pooling of a probe that stands for what heads read: a pooler reads the first token.
fn probe_pooling(pooling: Pooling) -> Pooling {
    match pooling {
        Pooling::Mean => Pooling::Mean,
        Pooling::Cls | Pooling::Pooler => Pooling::Cls,
    }
}

/// Surveys a model and its data. It leaves the session's values as they are.
///
/// # Errors
/// A task with fewer than two labels of two rows, vectors that are not finite, a device that lacks the memory or fails.
pub fn survey(
    session: &mut Session,
    question: &Question,
    observer: &dyn SurveyObserver,
) -> Result<ModelAdvice> {
    let begun = Instant::now();
    let Question { network, corpus, train, .. } = *question;
    let texts = TextProfile::new(&corpus.train, question.tokenizer)?;
    let examples = probed_rows(corpus, train.seed);
    observer.begin(Stage::Vectors { n_texts: examples.len() });
    let done = |n| observer.done(n);
    let (vectors, origin) = probed_vectors(session, corpus, &examples, question.vectors, done)?;
    observer.vectors(&origin);
    let labels = TaskLabels::of(corpus, &corpus.train, &examples);
    let n_points = n_points(&vectors, labels.len());
    observer.begin(Stage::Probes { n_points });
    let curves = task_curves(&vectors, &labels, train.seed, |n| observer.done(n))?;
    drop(vectors);
    observer.begin(Stage::Costs);
    let candidates = &question.candidates;
    let options = CostOptions {
        train,
        compute: session.compute(),
        cache_limit_bytes: question.cache_limit_bytes,
        limits: question.limits,
    };
    let timed = least_frozen(network, corpus, candidates, &options);
    let batch = typical_batch(corpus, train)?;
    let pace = Pace::of(session, &batch, &timed.mask, question.ceilings)?;
    let costs = costs(network, corpus, candidates, &pace, &options)?;
    let pooling = probe_pooling(network.pooling);
    let (mut tasks, mut signals) = (Vec::new(), Vec::new());
    for (at, curve) in curves.into_iter().enumerate() {
        let rows = RowProfile::new(corpus, at);
        let last = curve.point(network.layers.len(), pooling);
        let ((last, flat), best) = last
            .zip(curve.flattens_at(pooling))
            .zip(curve.best(pooling))
            .ok_or_else(|| Error::Run(format!("{}: no probe behind the last layer", rows.task)))?;
        signals.push(TaskSignal {
            task: curve.task.clone(),
            n_rows: rows.rows,
            accuracy: last.accuracy,
            standard_error: last.standard_error,
            majority: curve.majority,
            irreducible: rows.least_wrong_labels as f64 / rows.rows as f64,
            best_accuracy: best.accuracy,
            flattens_at: flat.layer,
            better_pooling: better_pooling(&curve, last),
            has_head: question.has_head[at],
            is_converged: curve.points_of(pooling).all(|point| point.converged),
            n_repeated: rows.repeated_rows,
            n_eval_rows: rows.eval_rows,
            n_leaked: rows.leaked_eval_rows,
        });
        tasks.push(TaskAdvice {
            errors: signals[at].errors(),
            classes: curve.separability(last),
            noise: noise(corpus, &curve, last, &examples),
            rows,
            curve,
        });
    }
    let split = |of: Option<super::words::Fragmentation>| of.map_or(0.0, |one| one.continued_share);
    let recommendation = recommend(&Signals {
        tasks: &signals,
        words: WordSignal {
            continued: split(texts.fragmentation),
            general_continued: split(Some(texts.reference.fragmentation)),
            unknown: texts.fragmentation.map_or(0.0, |one| one.unknown_share),
            is_covered: texts.reference_applies,
        },
        costs: &costs,
        limits: question.limits,
        n_layers: network.layers.len(),
        learning_rate: train.learning_rate,
    });
    let freeze = recommendation.freeze.clone();
    let step = step_options(corpus, session.compute(), train);
    Ok(ModelAdvice {
        model: question.model.clone(),
        n_layers: network.layers.len(),
        hidden_size: network.config.hidden_size,
        n_values: network.n_values(),
        pooling: network.pooling,
        texts,
        tasks,
        pace,
        costs,
        head: head_advice(network, &signals, freeze.as_deref(), &step)?,
        advised: freeze,
        recommendation,
        signals,
        sweep: None,
        agreement: Vec::new(),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The other pooling and its accuracy, where a probe on it is better than `point` by more than two standard errors.
fn better_pooling(curve: &TaskCurve, point: &LayerPoint) -> Option<(Pooling, f64)> {
    let other = match point.pooling {
        Pooling::Mean => Pooling::Cls,
        Pooling::Cls | Pooling::Pooler => Pooling::Mean,
    };
    let accuracy = curve.point(point.layer, other)?.accuracy;
    (accuracy > point.accuracy + 2.0 * point.standard_error).then_some((other, accuracy))
}

/// The batch of an epoch whose number of tokens is the median.
fn typical_batch(corpus: &Corpus, train: &TrainOptions) -> Result<Batch> {
    let mut batches: Vec<Vec<usize>> = train.epoch(corpus, 0)?.into_iter().flatten().collect();
    let n_tokens =
        |rows: &Vec<usize>| -> usize { rows.iter().map(|row| corpus.train.length(*row)).sum() };
    batches.sort_by_key(n_tokens);
    let middle = batches.get(batches.len() / 2);
    Ok(corpus.pack(&corpus.train, middle.map_or(&[], Vec::as_slice)))
}

fn noise(
    corpus: &Corpus,
    curve: &TaskCurve,
    point: &LayerPoint,
    examples: &[usize],
) -> NoiseAdvice {
    let noise = curve.label_noise(point);
    let suspects = noise.suspects.iter().take(N_SUSPECTS).map(|suspect| SuspectText {
        text: corpus.train.text(examples[suspect.row]).0.to_owned(),
        given: curve.labels[suspect.given].clone(),
        suggested: curve.labels[suspect.suggested].clone(),
        probability_given: suspect.probability_given,
        probability_suggested: suspect.probability_suggested,
    });
    NoiseAdvice { share: noise.share, suspects: suspects.collect() }
}
