//! How well each layer of an encoder knows a task before anything trains: cross-validated probes on its frozen
//! vectors, and scores that need no fit.

use std::borrow::Cow;

use rayon::prelude::*;
use serde::Serialize;

use super::folds::Folds;
use super::noise::LabelNoise;
use super::rows::distinct_classes;
use super::scores::Scores;
use super::separability::{ClassSeparability, separability};
use crate::data::{Corpus, Split, TaskInfo};
use crate::features::LayerVectors;
use crate::model::Pooling;
use crate::probe::{Preconditioner, Probe};
use crate::sums::largest;
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
    /// The labels of every task of a corpus on some examples of one of its splits. A row whose text had its label before
    /// has none.
    pub fn of(corpus: &Corpus, split: &Split, examples: &[usize]) -> Vec<Self> {
        let task = |(at, task): (usize, &TaskInfo)| {
            let classes = distinct_classes(split, at);
            Self {
                task: task.name.clone(),
                labels: task.labels.clone(),
                classes: examples.iter().map(|example| classes[*example]).collect(),
            }
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
            preconditioner: Preconditioner::of(&features, all.cols, ridge(all.cols)),
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

/// The ridge of the probes on D standardised columns.
///
/// Weights of that prior precision give scores a standard deviation of 2, whatever D is: probabilities of all sizes.
/// scikit-learn's ridge of 1 lets hundreds of columns learn their rows by heart: with the last layer of
/// all-MiniLM-L6-v2 (D = 384) held-out accuracy was 0.75, 0.66 and 0.64 on the demo's topics, sentiments and
/// diagnoses, and 0.80, 0.68 and 0.72 with a ridge of 100.
fn ridge(cols: usize) -> f64 {
    cols as f64 / 4.0
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
            confusion.add(*class, largest(row));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::philox::normal;

    fn labels(n: usize) -> Vec<String> {
        (0..n).map(|label| format!("label {label}")).collect()
    }

    fn task(name: &str, n_labels: usize, classes: Vec<Option<usize>>) -> TaskLabels {
        TaskLabels { task: name.to_owned(), labels: labels(n_labels), classes }
    }

    /// Noise, and columns that know the class: as `tests/golden/scores.py` makes them, exact in f32.
    fn golden_features(cols: usize, classes: &[usize]) -> Vec<f32> {
        let mut state = 12345_u64;
        let mut value = |class: usize, col: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let noise = (state >> 44) as f64 / f64::from(1 << 19) - 1.0;
            let own = if col.is_multiple_of(4) { 0.5 * ((class + col) % 3) as f64 } else { 0.0 };
            ((noise + own) * (1 + col % 5) as f64 + 0.25 * (col % 3) as f64) as f32
        };
        let row = |class: &usize| (0..cols).map(|col| value(*class, col)).collect::<Vec<_>>();
        classes.iter().flat_map(row).collect()
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        logme: f64,
        h_score: f64,
        accuracy: f64,
        macro_f1: f64,
        nll: f64,
        noise: GoldenNoise,
    }

    #[derive(serde::Deserialize)]
    struct GoldenNoise {
        share: f64,
        /// Row and suggested label.
        suspects: Vec<(usize, usize)>,
    }

    #[track_caller]
    fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
        let error = (found - expected).abs() / expected.abs();
        assert!(error <= tolerance, "{what}: {found}, not {expected}: {error:e}");
    }

    fn equals_numpy_and_scikit_learn(
        name: &str,
        [n, cols, n_labels, n_folds]: [usize; 4],
        class: impl Fn(usize) -> usize,
    ) {
        let classes: Vec<usize> = (0..n).map(class).collect();
        let features = golden_features(cols, &classes);
        let all: std::collections::HashMap<String, Golden> =
            serde_json::from_str(include_str!("../../tests/golden/scores.json")).unwrap();
        let expected = &all[name];
        let task = task(name, n_labels, classes.iter().copied().map(Some).collect());
        let mut rows = Rows::new(&task, 1).unwrap();
        rows.folds =
            Folds { n: n_folds, of_row: (0..n).map(|at| Some(at / 6 % n_folds)).collect() };
        let shared = Shared {
            features: &features,
            cols,
            scores: Scores::of(&features, cols),
            preconditioner: Preconditioner::of(&features, cols, ridge(cols)),
        };
        let point = rows.point((0, Pooling::Mean), &shared).unwrap();
        // Another way to the same eigenvalues, in f64: the smallest lose a few digits to the squares.
        assert_close("LogME", point.logme.unwrap(), expected.logme, 1e-8);
        assert_close("H-score", point.h_score.unwrap(), expected.h_score, 1e-8);
        assert!(point.converged);
        // Counts over counts.
        assert_close("accuracy", point.accuracy, expected.accuracy, 1e-12);
        assert_close("macro F1", point.macro_f1, expected.macro_f1, 1e-12);
        // Gradients are up to 3e-4, the curvature is above 1.
        assert_close("log-likelihood", point.nll, expected.nll, 1e-4);
        let noise = LabelNoise::of(&point.probabilities, &classes, n_labels);
        assert!((noise.share - expected.noise.share).abs() <= 1e-12, "{}", noise.share);
        let mut suspects: Vec<_> = noise.suspects.iter().map(|s| (s.row, s.suggested)).collect();
        let mut others = expected.noise.suspects.clone();
        assert_eq!(suspects.first(), others.first(), "the most suspicious");
        // Further down, probabilities may be as near to each other as they are exact.
        suspects.sort_unstable();
        others.sort_unstable();
        assert_eq!(suspects, others);
    }

    #[test]
    fn golden_balanced() {
        equals_numpy_and_scikit_learn("balanced", [60, 7, 3, 4], |row| row % 3);
    }

    #[test]
    fn golden_unbalanced() {
        let class = |row: usize| match row {
            row if row % 3 > 0 => 0,
            row if row % 9 > 0 => 1,
            row if row % 27 > 0 => 2,
            _ => 3,
        };
        equals_numpy_and_scikit_learn("unbalanced", [90, 12, 4, 5], class);
    }

    #[test]
    fn golden_fewer_rows_than_columns() {
        equals_numpy_and_scikit_learn("few rows", [30, 48, 3, 3], |row| row / 2 % 3);
    }

    #[test]
    fn golden_larger() {
        let class = |row: usize| if row.is_multiple_of(7) { row % 5 } else { row * row % 5 };
        equals_numpy_and_scikit_learn("larger", [600, 64, 5, 5], class);
    }

    /// Clusters `apart` standard deviations from the origin, one a class: `[N, 6]`. Columns have scales of their own:
    /// all of one would be shrunk to that, and have no H-score.
    fn clusters(classes: &[usize], apart: f32, stream: u32) -> Features {
        let cols = 6;
        let mut values = normal(9, stream, classes.len() * cols, 1.0);
        for (row, class) in values.chunks_exact_mut(cols).zip(classes) {
            row[*class] += apart;
            row.iter_mut().enumerate().for_each(|(col, x)| *x *= 1.0 + col as f32);
        }
        Features { values, cols }
    }

    /// Three depths that know more and more.
    fn layers(classes: &[usize]) -> Vec<LayerVectors> {
        let depth = |(at, apart): (u32, f32)| LayerVectors {
            mean: clusters(classes, apart, 2 * at),
            cls: clusters(classes, 0.5 * apart, 2 * at + 1),
        };
        [(0, 0.5), (1, 1.5), (2, 3.0)].into_iter().map(depth).collect()
    }

    fn some(classes: &[usize]) -> Vec<Option<usize>> {
        classes.iter().copied().map(Some).collect()
    }

    #[test]
    fn deeper_layers_know_more() {
        let classes: Vec<usize> = (0..300).map(|row| row * 7 % 3).collect();
        let vectors = layers(&classes);
        // The second task has fewer rows, among them the only one of its last label.
        let mut few: Vec<Option<usize>> = classes
            .iter()
            .enumerate()
            .map(|(row, class)| (row % 3 < 2).then_some(*class))
            .collect();
        few[2] = Some(3);
        let tasks = [task("all", 3, some(&classes)), task("few", 4, few)];
        let n_done = std::sync::atomic::AtomicUsize::new(0);
        let done = |n| {
            n_done.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        };
        let curves = task_curves(&vectors, &tasks, 3, done).unwrap();
        assert_eq!(n_done.into_inner(), n_points(&vectors, 2));
        for curve in &curves {
            assert_eq!(curve.points.len(), 6);
            for pooling in [Pooling::Mean, Pooling::Cls] {
                let points: Vec<&LayerPoint> = curve.points_of(pooling).collect();
                assert_eq!(points.iter().map(|point| point.layer).collect::<Vec<_>>(), [0, 1, 2]);
                for pair in points.windows(2) {
                    assert!(pair[1].accuracy > pair[0].accuracy && pair[1].nll < pair[0].nll);
                    assert!(pair[1].logme > pair[0].logme && pair[1].h_score > pair[0].h_score);
                }
                assert_eq!(curve.flattens_at(pooling).unwrap().layer, 2);
                assert!(curve.separability(points[2]).iter().all(|one| one.recall != Some(0.0)));
            }
            assert!(curve.points.iter().all(|point| point.converged && point.no_score.is_none()));
        }
        assert!((curves[0].majority - 1.0 / 3.0).abs() <= 1e-15);
        assert_eq!((curves[0].n_rows, curves[0].n_validated, curves[0].n_folds), (300, 300, 5));
        assert!(curves[0].unvalidated.is_empty());
        assert_eq!((curves[1].n_rows, curves[1].n_validated), (201, 200));
        assert_eq!(curves[1].unvalidated, ["label 3"]);
        assert_eq!(curves[1].separability(&curves[1].points[0])[3].n_rows, 0);
        // What a task finds, others do not change.
        let alone = task_curves(&vectors, &tasks[..1], 3, |_| {}).unwrap();
        let json = |curve: &TaskCurve| serde_json::to_string(curve).unwrap();
        assert_eq!(json(&alone[0]), json(&curves[0]));
    }

    #[test]
    fn threads_change_no_bit() {
        let classes: Vec<usize> = (0..150).map(|row| row * 7 % 3).collect();
        let vectors = layers(&classes);
        let tasks = [task("all", 3, some(&classes))];
        let on = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let curves = pool.install(|| task_curves(&vectors, &tasks, 3, |_| {})).unwrap();
            let probabilities = curves[0].points.iter().flat_map(|point| &point.probabilities);
            let bits: Vec<u64> = probabilities.map(|p| p.to_bits()).collect();
            (bits, serde_json::to_string(&curves).unwrap())
        };
        let on_one = on(1);
        assert_eq!(on_one, on(2));
        assert_eq!(on_one, on(3));
    }

    #[test]
    fn one_in_ten_labels_is_wrong() {
        let truth: Vec<usize> = (0..1000).map(|row| row * 7 % 3).collect();
        let is_wrong = |row: usize| row % 10 == 3;
        let given =
            |(row, class): (usize, &usize)| if is_wrong(row) { (class + 1) % 3 } else { *class };
        let classes: Vec<usize> = truth.iter().enumerate().map(given).collect();
        let vectors =
            [LayerVectors { mean: clusters(&truth, 6.0, 1), cls: clusters(&truth, 6.0, 2) }];
        let curves =
            task_curves(&vectors, &[task("flipped", 3, some(&classes))], 3, |_| {}).unwrap();
        for point in &curves[0].points {
            let noise = curves[0].label_noise(point);
            // Labels that are only just on the wrong side of a fit that the wrong ones blunt: two in a hundred.
            assert!((noise.share - 0.1).abs() <= 0.02, "{}", noise.share);
            let right = |suspect: &&super::super::noise::Suspect| {
                is_wrong(suspect.row) && suspect.suggested == truth[suspect.row]
            };
            assert!(noise.suspects[..50].iter().all(|suspect| right(&suspect)));
            // Probabilities of the rest are below the mean of their label's own.
            assert!(noise.suspects.iter().filter(right).count() >= 75);
        }
    }

    fn curve(accuracies: &[f64], standard_error: f64) -> TaskCurve {
        let task = task("task", 2, some(&[0, 0, 1, 1]));
        let mut curve = Rows::new(&task, 1).unwrap().into_curve();
        let point = |(layer, accuracy): (usize, &f64)| LayerPoint {
            layer,
            pooling: Pooling::Cls,
            accuracy: *accuracy,
            standard_error,
            macro_f1: 0.0,
            nll: 0.0,
            logme: None,
            h_score: None,
            no_score: None,
            converged: true,
            probabilities: Vec::new(),
        };
        curve.points = accuracies.iter().enumerate().map(point).collect();
        curve
    }

    #[test]
    fn the_lowest_layer_within_one_standard_error() {
        let at = |accuracies: &[f64], standard_error| {
            let curve = curve(accuracies, standard_error);
            let layer = |point: Option<&LayerPoint>| point.map(|point| point.layer);
            assert!(
                curve.best(Pooling::Mean).is_none() && curve.flattens_at(Pooling::Mean).is_none()
            );
            (layer(curve.best(Pooling::Cls)), layer(curve.flattens_at(Pooling::Cls)))
        };
        assert_eq!(at(&[0.5, 0.7, 0.75, 0.75, 0.7], 0.0625), (Some(2), Some(1)));
        assert_eq!(at(&[0.5, 0.7, 0.75, 0.75, 0.7], 0.03125), (Some(2), Some(2)));
        assert_eq!(at(&[0.75, 0.7], 0.0), (Some(0), Some(0)));
        // On the edge.
        assert_eq!(at(&[0.5, 0.25, 0.75], 0.25), (Some(2), Some(0)));
    }

    /// Ten rows that say nothing, of more columns than rows: figures or a reason, and no NaN.
    #[test]
    fn degenerate_vectors_have_figures_or_a_reason() {
        let classes: Vec<usize> = (0..10).map(|row| row % 2).collect();
        let tasks = [task("ten", 2, some(&classes))];
        let features = |values: Vec<f32>| Features { cols: values.len() / 10, values };
        let vectors = [
            LayerVectors { mean: features(vec![0.0; 40]), cls: features(vec![2.5; 40]) },
            LayerVectors {
                mean: features(normal(1, 1, 400, 1.0)),
                cls: features(normal(1, 2, 10, 1.0)),
            },
        ];
        let curves = task_curves(&vectors, &tasks, 1, |_| {}).unwrap();
        for point in &curves[0].points {
            let figures = [point.accuracy, point.standard_error, point.macro_f1, point.nll];
            let scores = [point.logme, point.h_score];
            assert!(figures.into_iter().chain(scores.into_iter().flatten()).all(f64::is_finite));
            assert_eq!(point.no_score.is_some(), scores.contains(&None), "{point:?}");
        }
        assert_eq!(curves[0].points[0].no_score.as_deref(), Some("all features are 0"));
        assert_eq!(curves[0].points[1].no_score.as_deref(), Some("no feature varies"));
        assert!(curves[0].points[2..].iter().all(|point| point.no_score.is_none()));
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        let classes = [0, 0, 1, 1];
        let mut values = vec![1.0; 8];
        let both = |values: &[f32]| {
            let features = Features { values: values.to_vec(), cols: 2 };
            [LayerVectors { mean: features.clone(), cls: features }]
        };
        let refused = |vectors: &[LayerVectors], classes: &[usize]| {
            let tasks = [task("mood", 2, some(classes))];
            task_curves(vectors, &tasks, 1, |_| {}).unwrap_err().to_string()
        };
        let message = refused(&both(&values), &[0, 0, 0, 1]);
        assert!(message.contains("task mood") && message.contains("two labels"), "{message}");
        values[3] = f32::NAN;
        assert!(refused(&both(&values), &classes).contains("behind 0 layers"));
    }
}
