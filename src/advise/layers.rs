//! How well each layer of an encoder knows a task before anything trains: cross-validated probes on its frozen
//! vectors, and scores that need no fit.

use std::borrow::Cow;

use rayon::prelude::*;
use serde::Serialize;

use super::folds::Folds;
use super::noise::LabelNoise;
use super::scores::Scores;
use super::separability::{ClassSeparability, separability};
use crate::data::{Corpus, Split, TaskInfo};
use crate::features::LayerVectors;
use crate::model::Pooling;
use crate::probe::{Preconditioner, Probe};
use crate::train::metrics::Confusion;
use crate::{Error, Result};

/// A task's labels on the rows of some vectors.
#[derive(Clone, Debug)]
pub struct TaskLabels {
    pub task: String,
    /// Class `c` is called `labels[c]`.
    pub labels: Vec<String>,
    /// The class of each row, if it has one.
    pub classes: Vec<Option<usize>>,
}

impl TaskLabels {
    /// The labels of every task of a corpus on some examples of one of its splits.
    pub fn of(corpus: &Corpus, split: &Split, examples: &[usize]) -> Vec<Self> {
        let task = |(at, task): (usize, &TaskInfo)| Self {
            task: task.name.clone(),
            labels: task.labels.clone(),
            classes: examples.iter().map(|example| split.class(*example, at)).collect(),
        };
        corpus.tasks.iter().enumerate().map(task).collect()
    }
}

/// What the layers know of one task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskCurve {
    pub task: String,
    pub labels: Vec<String>,
    /// Rows with a label.
    pub n_rows: usize,
    /// Of them those that were held out once, all but the only rows of their labels.
    pub n_validated: usize,
    pub n_folds: usize,
    /// The share of the commonest label: the accuracy of one who always says that.
    pub majority: f64,
    /// By depth from the bottom up, at each first the mean over the tokens, then the first token.
    pub points: Vec<LayerPoint>,
    /// Labels with one row: probes are fitted on it, and it is never held out.
    pub unvalidated: Vec<String>,
    /// The places of the validated rows among the vectors', and their classes.
    #[serde(skip)]
    places: Vec<usize>,
    #[serde(skip)]
    classes: Vec<usize>,
}

/// What one depth, read in one way, knows of a task. All but the scores is of rows held out.
#[derive(Clone, Debug, Serialize)]
pub struct LayerPoint {
    /// Layers below: 0 behind the embeddings, L behind the last layer.
    pub layer: usize,
    /// `mean` or `cls`.
    pub pooling: Pooling,
    pub accuracy: f64,
    /// Of the accuracy, binomial: `√(a (1 - a) / N)`.
    pub standard_error: f64,
    pub macro_f1: f64,
    /// Mean negative logarithm of the probability of the true label.
    pub nll: f64,
    /// See [`Scores::logme`].
    pub logme: Option<f64>,
    /// See [`Scores::h_score`].
    pub h_score: Option<f64>,
    /// Why a score is missing.
    pub no_score: Option<String>,
    /// Whether all probes are the best that there are, or the search for one was given up.
    pub converged: bool,
    /// `[validated rows, C]`.
    #[serde(skip)]
    probabilities: Vec<f64>,
}

/// How the layers of `vectors` do on each task: a curve a task, in their order. `progress` is told of points done, of
/// which there are [`n_points`].
///
/// Folds are drawn by `seed`, and are the same for all points of a task, so that layers compare row by row. The result
/// is the same for every number of threads.
///
/// # Errors
/// A task with fewer than two labels of two rows. Vectors that are not finite.
///
/// # Panics
/// For another number of classes than vectors.
pub fn task_curves(
    vectors: &[LayerVectors],
    tasks: &[TaskLabels],
    seed: u64,
    progress: impl Fn(usize) + Sync,
) -> Result<Vec<TaskCurve>> {
    let tasks = tasks.iter().map(|task| Rows::new(task, seed)).collect::<Result<Vec<_>>>()?;
    // Tasks of one file have the same rows, and share what does not ask for labels.
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (at, task) in tasks.iter().enumerate() {
        match groups.iter_mut().find(|group| tasks[group[0]].places == task.places) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    let mut jobs = Vec::new();
    for (layer, vectors) in vectors.iter().enumerate() {
        for (pooling, features) in [(Pooling::Mean, &vectors.mean), (Pooling::Cls, &vectors.cls)] {
            jobs.extend(groups.iter().map(|group| ((layer, pooling), features, group)));
        }
    }
    let points = jobs.into_par_iter().map(|(at, all, group)| {
        let features = selected(&all.values, all.cols, &tasks[group[0]].places);
        if !features.iter().all(|x| x.is_finite()) {
            return Err(Error::Run(format!("vectors behind {} layers are not finite", at.0)));
        }
        let shared = Shared {
            cols: all.cols,
            scores: Scores::of(&features, all.cols),
            preconditioner: Preconditioner::of(&features, all.cols),
            features: &features,
        };
        let point = |task: &usize| {
            let point = tasks[*task].point(at, &shared)?;
            progress(1);
            Ok((*task, point))
        };
        group.par_iter().map(point).collect::<Result<Vec<_>>>()
    });
    let points: Vec<Vec<(usize, LayerPoint)>> = points.collect::<Result<_>>()?;
    let mut curves: Vec<TaskCurve> = tasks.into_iter().map(Rows::into_curve).collect();
    for (task, point) in points.into_iter().flatten() {
        curves[task].points.push(point);
    }
    Ok(curves)
}

/// Points in all of the curves of so many tasks.
pub fn n_points(vectors: &[LayerVectors], n_tasks: usize) -> usize {
    2 * vectors.len() * n_tasks
}

impl TaskCurve {
    /// The points of one way of reading, from the bottom up.
    pub fn points_of(&self, pooling: Pooling) -> impl Iterator<Item = &LayerPoint> {
        self.points.iter().filter(move |point| point.pooling == pooling)
    }

    /// The point behind so many layers, read in one way; None where there is none.
    pub fn point(&self, layer: usize, pooling: Pooling) -> Option<&LayerPoint> {
        self.points_of(pooling).find(|point| point.layer == layer)
    }

    /// The point of the highest accuracy, the lowest of equals; None for a pooling that has no points.
    pub fn best(&self, pooling: Pooling) -> Option<&LayerPoint> {
        let points = self.points_of(pooling);
        points.reduce(|best, point| if point.accuracy > best.accuracy { point } else { best })
    }

    /// Where the curve flattens: the lowest point whose accuracy is no more than one standard error of the best below
    /// the best. None for a pooling that has no points.
    ///
    /// It is the rule of one standard error (Breiman, Friedman, Olshen and Stone, "Classification and Regression
    /// Trees", 1984): of what does as well as the best up to chance, the simplest. All points are of the same rows,
    /// whose chance they share, so that the rule is cautious: a lower point within it may still be worse.
    pub fn flattens_at(&self, pooling: Pooling) -> Option<&LayerPoint> {
        let best = self.best(pooling)?;
        let enough = best.accuracy - best.standard_error;
        self.points_of(pooling).find(|point| point.accuracy >= enough)
    }

    /// How the labels do at one of the curve's points, in their order, on rows held out.
    pub fn separability(&self, point: &LayerPoint) -> Vec<ClassSeparability> {
        separability(&point.confusion(&self.classes, self.labels.len()), &self.labels)
    }

    /// Labels that are probably wrong by one of the curve's points; suspects' rows are places among the vectors.
    pub fn label_noise(&self, point: &LayerPoint) -> LabelNoise {
        let mut noise = LabelNoise::of(&point.probabilities, &self.classes, self.labels.len());
        noise.suspects.iter_mut().for_each(|suspect| suspect.row = self.places[suspect.row]);
        noise
    }
}

impl LayerPoint {
    /// Of validated rows with these classes.
    fn confusion(&self, classes: &[usize], n_labels: usize) -> Confusion {
        let mut confusion = Confusion::new(n_labels);
        for (row, class) in self.probabilities.chunks_exact(n_labels).zip(classes) {
            let is_better =
                |best: usize, label: usize| if row[label] > row[best] { label } else { best };
            confusion.add(*class, (0..n_labels).reduce(is_better));
        }
        confusion
    }
}

/// A task's labelled rows, and how they are held out.
struct Rows<'a> {
    task: &'a TaskLabels,
    /// The rows' places among the vectors.
    places: Vec<usize>,
    classes: Vec<usize>,
    folds: Folds,
}

/// What the tasks of one set of rows share of one point.
struct Shared<'a> {
    /// `[N, D]`, of the labelled rows.
    features: &'a [f32],
    /// D.
    cols: usize,
    scores: Scores,
    preconditioner: Preconditioner,
}

impl<'a> Rows<'a> {
    fn new(task: &'a TaskLabels, seed: u64) -> Result<Self> {
        let labelled = task.classes.iter().enumerate();
        let (places, classes): (Vec<usize>, Vec<usize>) =
            labelled.filter_map(|(place, class)| Some((place, (*class)?))).unzip();
        let folds = Folds::new(&classes, task.labels.len(), seed)
            .map_err(|problem| Error::Run(format!("task {}: {problem}", task.task)))?;
        Ok(Self { task, places, classes, folds })
    }

    fn classes_of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|row| self.classes[*row]).collect()
    }

    /// The logarithms of the probabilities of all validated rows, `[N, C]`, each by the fold that did not see the row,
    /// and whether all fits converged.
    fn cross_validate(&self, shared: &Shared) -> Result<(Vec<f64>, bool)> {
        let (cols, n_labels) = (shared.cols, self.task.labels.len());
        let fold = |fold: usize| {
            let (fitted, held_out) = (self.folds.fitted(fold), self.folds.held_out(fold));
            let probe = Probe::fit_fold(
                &selected(shared.features, cols, &fitted),
                &self.classes_of(&fitted),
                n_labels,
                &shared.preconditioner,
            )?;
            let rows = selected(shared.features, cols, &held_out);
            Ok((held_out, probe.log_probabilities(&rows), probe.is_converged))
        };
        let folds = (0..self.folds.n).into_par_iter().map(fold).collect::<Result<Vec<_>>>()?;
        let is_converged = folds.iter().all(|(_, _, is_converged)| *is_converged);
        let mut of_row = vec![&[][..]; self.classes.len()];
        for (held_out, log_probabilities, _) in &folds {
            for (row, own) in held_out.iter().zip(log_probabilities.chunks_exact(n_labels)) {
                of_row[*row] = own;
            }
        }
        // Rows that are never held out have none.
        Ok((of_row.concat(), is_converged))
    }

    fn point(&self, (layer, pooling): (usize, Pooling), shared: &Shared) -> Result<LayerPoint> {
        let n_labels = self.task.labels.len();
        let classes = self.classes_of(&self.folds.validated());
        let (log_probabilities, converged) = self.cross_validate(shared)?;
        let rows = log_probabilities.chunks_exact(n_labels).zip(&classes);
        let nll = rows.map(|(row, class)| -row[*class]).sum::<f64>() / classes.len() as f64;
        let (logme, h_score) =
            (shared.scores.logme(&self.classes), shared.scores.h_score(&self.classes));
        let problem = logme.err().or(h_score.err());
        let mut point = LayerPoint {
            layer,
            pooling,
            accuracy: f64::NAN,
            standard_error: f64::NAN,
            macro_f1: f64::NAN,
            nll,
            logme: logme.ok(),
            h_score: h_score.ok(),
            no_score: problem.map(|problem| problem.to_string()),
            converged,
            probabilities: log_probabilities.into_iter().map(f64::exp).collect(),
        };
        let confusion = point.confusion(&classes, n_labels);
        let shares = confusion.accuracy().zip(confusion.macro_f1());
        (point.accuracy, point.macro_f1) =
            shares.ok_or_else(|| Error::Run(format!("task {}: no rows", self.task.task)))?;
        let variance = point.accuracy * (1.0 - point.accuracy) / classes.len() as f64;
        point.standard_error = variance.sqrt();
        Ok(point)
    }

    /// A curve without points.
    fn into_curve(self) -> TaskCurve {
        let TaskLabels { task, labels, .. } = self.task.clone();
        let mut counts = vec![0; labels.len()];
        self.classes.iter().for_each(|class| counts[*class] += 1);
        let commonest = counts.iter().max().copied().unwrap_or_default();
        let validated = self.folds.validated();
        let singles = labels.iter().zip(&counts).filter(|(_, count)| **count == 1);
        TaskCurve {
            task,
            n_rows: self.classes.len(),
            n_validated: validated.len(),
            n_folds: self.folds.n,
            majority: commonest as f64 / self.classes.len() as f64,
            points: Vec::new(),
            unvalidated: singles.map(|(label, _)| label.clone()).collect(),
            places: validated.iter().map(|row| self.places[*row]).collect(),
            classes: self.classes_of(&validated),
            labels,
        }
    }
}

/// Some rows of `values`, `[N, cols]`.
fn selected<'a>(values: &'a [f32], cols: usize, rows: &[usize]) -> Cow<'a, [f32]> {
    if rows.len() * cols == values.len() {
        // Rows are ascending and distinct: these are all.
        return Cow::Borrowed(values);
    }
    let row = |row: &usize| &values[row * cols..(row + 1) * cols];
    Cow::Owned(rows.iter().flat_map(row).copied().collect())
}
