//! A linear probe: how well the labels of texts can be read off fixed vectors by a multinomial logistic regression.
//!
//! It is scikit-learn's `LogisticRegression` with C = 1 behind its `StandardScaler`: the sum of the cross-entropies
//! and half the squared norm of the weights, intercepts free. For two labels scikit-learn fits the difference of their
//! two rows alone, with a ridge on that, which comes to twice the ridge of this one.

mod lanes;
mod lbfgs;
mod objective;

use self::lbfgs::{Limits, minimise};
pub use self::objective::Preconditioner;
use self::objective::{Objective, Scaling, scores};
use crate::sums::largest;
use crate::{Error, Result};

/// Iterations after which the search for the optimum gives up.
const MAX_ITERATIONS: usize = 1000;
/// Of the largest component of the gradient.
const TOLERANCE: f64 = 1e-5;
/// The same for a fold of a cross-validation, by row that it is fitted on, but no less than the other. On 42 curve
/// points of real tasks with a ridge of 1, 1e-5 in its place changed three accuracies by one row of 3000, and the
/// log-likelihood by 4e-5 of itself.
const FOLD_TOLERANCE: f64 = 5e-7;
const LIMITS: Limits = Limits { tolerance: TOLERANCE, max_iterations: MAX_ITERATIONS };

/// A fitted probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The label of each class: those that training rows have, ascending.
    labels: Vec<usize>,
    /// C, of all labels.
    n_labels: usize,
    /// D.
    cols: usize,
    scaling: Scaling,
    /// `[classes, D + 1]`: for each class its weights on scaled features, and its intercept.
    weights: Vec<f64>,
    /// What was minimised, at the weights.
    pub loss: f64,
    pub n_iterations: usize,
    /// Whether the weights are the optimum: no component of the gradient is above 1e-5.
    pub is_converged: bool,
}

impl Probe {
    /// Fits a probe on `features`, `[N, D]`, and the label of each row, below `n_labels`.
    ///
    /// The result is the same for every number of threads.
    ///
    /// # Errors
    /// No rows, no columns, features that are no rows of one length or not finite, a label that is none of the
    /// labels, rows of a single label.
    pub fn fit(features: &[f32], labels: &[usize], n_labels: usize) -> Result<Self> {
        Self::fit_within(features, labels, n_labels, None, LIMITS)
    }

    /// As [`Probe::fit`], for one of many fits that run side by side: on the calling thread alone, with a
    /// preconditioner that all fits on most of the same rows share and the ridge that it is for (scikit-learn's 1 / C),
    /// and to a gradient of 5e-7 a row.
    ///
    /// # Errors
    /// As [`Probe::fit`].
    ///
    /// # Panics
    /// For a preconditioner of another width.
    pub fn fit_fold(
        features: &[f32],
        labels: &[usize],
        n_labels: usize,
        preconditioner: &Preconditioner,
    ) -> Result<Self> {
        let tolerance = (FOLD_TOLERANCE * labels.len() as f64).max(TOLERANCE);
        let limits = Limits { tolerance, ..LIMITS };
        Self::fit_within(features, labels, n_labels, Some(preconditioner), limits)
    }

    /// With a preconditioner of its own, all threads work on this fit.
    fn fit_within(
        features: &[f32],
        labels: &[usize],
        n_labels: usize,
        preconditioner: Option<&Preconditioner>,
        limits: Limits,
    ) -> Result<Self> {
        let cols = check(features, labels, n_labels)?;
        let mut present = labels.to_vec();
        present.sort_unstable();
        present.dedup();
        if let [only] = present.as_slice() {
            return Err(fault(format!(
                "all {} rows have label {only}, where it takes two labels at least",
                labels.len()
            )));
        }
        let scaling = Scaling::of(features, cols);
        let scaled = scaling.apply(features);
        let classes = labels.iter().map(|label| present.partition_point(|p| p < label)).collect();
        let in_parallel = preconditioner.is_none();
        let ridge = preconditioner.map_or(1.0, |preconditioner| preconditioner.ridge);
        let objective = Objective::new(&scaled, cols, classes, present.len(), ridge, in_parallel);
        let own = match preconditioner {
            Some(_) => None,
            None => Some(Preconditioner::of_scaled(&scaled, cols, ridge)),
        };
        drop(scaled);
        let preconditioner = preconditioner.or(own.as_ref());
        let precondition = |gradient: &[f64]| match preconditioner {
            Some(preconditioner) => preconditioner.apply(gradient),
            None => gradient.to_vec(),
        };
        let start = vec![0.0; objective.n_parameters()];
        let found = minimise(start, limits, precondition, |point| objective.at(point));
        Ok(Self {
            labels: present,
            n_labels,
            cols,
            scaling,
            weights: found.point,
            loss: found.value,
            n_iterations: found.n_iterations,
            is_converged: found.is_converged,
        })
    }

    /// The most probable label of each row of `features`, `[N, D]`; None for a row with a feature that is not finite.
    ///
    /// # Panics
    /// For features of another width than the probe was fitted on.
    pub fn predict(&self, features: &[f32]) -> Vec<Option<usize>> {
        assert!(features.len().is_multiple_of(self.cols), "rows are {} wide", self.cols);
        let label = |row: &[f32]| {
            let scores = scores(&self.weights, &self.scaling.apply(row));
            let best = largest(&scores)?;
            row.iter().all(|x| x.is_finite()).then_some(self.labels[best])
        };
        features.chunks_exact(self.cols).map(label).collect()
    }

    /// The logarithm of the probability of each label for each row of `features`, `[N, C]`: minus infinity for labels
    /// that no training row had, NaN for a row with a feature that is not finite.
    ///
    /// # Panics
    /// For features of another width than the probe was fitted on.
    pub fn log_probabilities(&self, features: &[f32]) -> Vec<f64> {
        assert!(features.len().is_multiple_of(self.cols), "rows are {} wide", self.cols);
        let mut found = vec![f64::NEG_INFINITY; features.len() / self.cols * self.n_labels];
        let rows = features.chunks_exact(self.cols).zip(found.chunks_exact_mut(self.n_labels));
        for (row, found) in rows {
            let scores = scores(&self.weights, &self.scaling.apply(row));
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
            for (label, score) in self.labels.iter().zip(scores) {
                found[*label] = score - highest - sum.ln();
            }
            if !row.iter().all(|x| x.is_finite()) {
                found.fill(f64::NAN);
            }
        }
        found
    }
}

/// The number of columns of features that a probe can be fitted on.
fn check(features: &[f32], labels: &[usize], n_labels: usize) -> Result<usize> {
    let (n, n_values) = (labels.len(), features.len());
    if n == 0 {
        return Err(fault("there are no rows".to_owned()));
    }
    if n_values == 0 || !n_values.is_multiple_of(n) {
        return Err(fault(format!("{n_values} features are not the same number for {n} rows")));
    }
    if let Some(label) = labels.iter().find(|label| **label >= n_labels) {
        return Err(fault(format!("label {label} is beyond the {n_labels} labels")));
    }
    let cols = n_values / n;
    if let Some(at) = features.iter().position(|x| !x.is_finite()) {
        let (row, value) = (at / cols, features[at]);
        return Err(fault(format!("feature {} of row {row} is {value}", at % cols)));
    }
    Ok(cols)
}

fn fault(problem: String) -> Error {
    Error::Run(format!("a probe cannot be fitted: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last column says nothing.
    #[rustfmt::skip]
    const FEATURES: [f32; 36] = [
        0.5, 1.0, 2.0,    1.5, -0.5, 2.0,    0.25, 0.75, 2.0,   -1.0, 2.0, 2.0,
        -0.5, 1.5, 2.0,   -2.0, -1.0, 2.0,   -1.5, -0.25, 2.0,  2.0, -1.0, 2.0,
        1.0, 0.5, 2.0,    -0.75, -2.0, 2.0,  3.0, 0.0, 2.0,     0.0, -1.5, 2.0,
    ];
    const LABELS: [usize; 12] = [0, 0, 1, 1, 1, 2, 2, 0, 1, 2, 0, 1];

    /// With gradients of at most 1e-5 and a curvature of at least 1 (the ridge's; the intercepts' is of that order),
    /// weights are within a few 1e-5 of the optimum.
    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 5e-5, "{found:?}, not {expected:?}");
        }
    }

    /// `LogisticRegression(C=1, tol=1e-14, solver="newton-cg")` on `StandardScaler` of scikit-learn 1.9.1.
    #[test]
    fn equals_scikit_learn() {
        let probe = Probe::fit(&FEATURES, &LABELS, 3).unwrap();
        assert!(probe.is_converged && probe.n_iterations > 2, "{probe:?}");
        #[rustfmt::skip]
        let expected = [
            1.137_661_895_635, 0.065_736_098_807, 0.0, 0.026_571_184_317,
            -0.068_001_304_967, 0.509_567_989_741, 0.0, 0.535_593_712_156,
            -1.069_660_590_668, -0.575_304_088_549, 0.0, -0.562_164_896_474,
        ];
        assert_near(&probe.weights, &expected);
        // At the optimum errors of the weights count squared.
        assert!((probe.loss - 7.624_465_686_281_6).abs() <= 1e-8, "{}", probe.loss);
        let predicted: Vec<usize> = probe.predict(&FEATURES).into_iter().flatten().collect();
        assert_eq!(predicted, [1, 0, 1, 1, 1, 2, 2, 0, 1, 2, 0, 2]);
    }

    /// One row of weights with C = 2 there is the difference of two here.
    #[test]
    fn two_labels_are_scikit_learn_with_half_the_ridge() {
        let labels = LABELS.map(|label| usize::from(label == 0));
        let probe = Probe::fit(&FEATURES, &labels, 2).unwrap();
        let (first, second) = probe.weights.split_at(4);
        let difference: Vec<f64> = second.iter().zip(first).map(|(b, a)| b - a).collect();
        assert_near(&difference, &[1.809_352_148_3, 0.010_230_782_241, 0.0, -1.050_144_559_234]);
    }

    /// Labels that no row has take no part.
    #[test]
    fn labels_keep_their_numbers() {
        let labels = LABELS.map(|label| 2 * label + 1);
        let probe = Probe::fit(&FEATURES, &labels, 7).unwrap();
        let same = Probe::fit(&FEATURES, &LABELS, 3).unwrap();
        assert_eq!(probe.weights, same.weights);
        let renamed = |label: Option<usize>| label.map(|label| 2 * label + 1);
        let expected: Vec<_> = same.predict(&FEATURES).into_iter().map(renamed).collect();
        assert_eq!(probe.predict(&FEATURES), expected);
    }

    /// The ridge keeps weights finite where a line separates all rows; columns of any scale do.
    #[test]
    fn separable_rows_are_told_apart() {
        let features: Vec<f32> = (0..20).flat_map(|row| [1e6 + row as f32, 1e-6]).collect();
        let labels: Vec<usize> = (0..20).map(|row| row / 10).collect();
        let probe = Probe::fit(&features, &labels, 2).unwrap();
        assert!(probe.is_converged && probe.weights.iter().all(|w| w.abs() < 10.0), "{probe:?}");
        let expected: Vec<_> = labels.into_iter().map(Some).collect();
        assert_eq!(probe.predict(&features), expected);
    }

    #[test]
    fn a_probe_that_did_not_converge_says_so() {
        let probe =
            Probe::fit_within(&FEATURES, &LABELS, 3, None, Limits { max_iterations: 1, ..LIMITS })
                .unwrap();
        assert!(!probe.is_converged && probe.n_iterations == 1, "{probe:?}");
    }

    #[test]
    fn broken_rows_have_no_label() {
        let probe = Probe::fit(&FEATURES, &LABELS, 3).unwrap();
        let rows = [0.5, f32::NAN, 2.0, 0.5, 1.0, 2.0, f32::INFINITY, 1.0, 2.0];
        assert_eq!(probe.predict(&rows), [None, Some(1), None]);
        assert_eq!(probe.predict(&[]), []);
    }

    /// Labels without rows have none, broken rows have no probabilities at all.
    #[test]
    fn probabilities_of_labels() {
        let labels = LABELS.map(|label| 2 * label);
        let probe = Probe::fit(&FEATURES, &labels, 5).unwrap();
        let found = probe.log_probabilities(&FEATURES);
        let predicted = probe.predict(&FEATURES);
        for (row, predicted) in found.chunks(5).zip(predicted) {
            assert!(row[1] == f64::NEG_INFINITY && row[3] == f64::NEG_INFINITY);
            assert!((row.iter().map(|x| x.exp()).sum::<f64>() - 1.0).abs() <= 1e-14, "{row:?}");
            let highest = (0..5).max_by(|a, b| row[*a].total_cmp(&row[*b]));
            assert_eq!(highest, predicted);
        }
        let squares: f64 = probe.weights.chunks(4).flat_map(|row| &row[..3]).map(|w| w * w).sum();
        let likelihood: f64 = found.chunks(5).zip(labels).map(|(row, label)| -row[label]).sum();
        assert!((likelihood + 0.5 * squares - probe.loss).abs() <= 1e-12, "{likelihood}");
        assert!(probe.log_probabilities(&[0.5, f32::NAN, 2.0]).iter().all(|x| x.is_nan()));
    }

    /// The same optimum, up to the tolerance.
    #[test]
    fn a_fold_with_a_ridge_of_one_is_the_probe() {
        let probe = Probe::fit(&FEATURES, &LABELS, 3).unwrap();
        let preconditioner = Preconditioner::of(&FEATURES, 3, 1.0);
        let fold = Probe::fit_fold(&FEATURES, &LABELS, 3, &preconditioner).unwrap();
        assert!(fold.is_converged);
        assert_near(&fold.weights, &probe.weights);
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        for (features, labels, problem) in [
            (&[][..], &[][..], "no rows"),
            (&[], &[0, 1], "0 features"),
            (&[1.0, 2.0, 3.0], &[0, 1], "3 features are not the same number for 2 rows"),
            (&[1.0, 2.0], &[1, 1], "all 2 rows have label 1"),
            (&[1.0, 2.0], &[0, 3], "label 3 is beyond the 3 labels"),
            (&[1.0, 2.0, 3.0, f32::NAN], &[0, 1], "feature 1 of row 1 is NaN"),
        ] {
            let message = Probe::fit(features, labels, 3).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }
}
