//! Quality of a classifier: accuracy, macro F1 and the correlation of truth and prediction, as scikit-learn defines
//! them.

use serde::{Deserialize, Serialize};

use crate::sums::mean;

/// Rows counted by true and predicted label, for one task of C labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    n_labels: usize,
    /// `[C, C]`, rows the truth, columns the prediction.
    counts: Vec<u64>,
    /// `[C]`: rows of each true label for which nothing was predicted.
    unpredicted: Vec<u64>,
}

impl Confusion {
    /// No rows yet, of a task with `n_labels` labels.
    pub fn new(n_labels: usize) -> Self {
        Confusion { n_labels, counts: vec![0; n_labels * n_labels], unpredicted: vec![0; n_labels] }
    }

    /// Counts a row. A row without a prediction ([`argmax`] of logits that are not numbers) is a miss
    /// of its true label.
    ///
    /// # Panics
    /// For a label beyond the task's, which readers of data and heads exclude.
    pub fn add(&mut self, label: usize, predicted: Option<usize>) {
        assert!(label < self.n_labels, "label {label} of a task with {} labels", self.n_labels);
        match predicted {
            Some(predicted) => {
                assert!(predicted < self.n_labels, "prediction {predicted} is beyond the labels");
                self.counts[label * self.n_labels + predicted] += 1;
            }
            None => self.unpredicted[label] += 1,
        }
    }

    /// Rows of this true label for which that one was predicted.
    pub fn count(&self, label: usize, predicted: usize) -> u64 {
        self.counts[label * self.n_labels + predicted]
    }

    /// Rows so far.
    pub fn n_rows(&self) -> u64 {
        self.counts.iter().chain(&self.unpredicted).sum()
    }

    /// The share of rows whose label was predicted; None without rows.
    pub fn accuracy(&self) -> Option<f64> {
        let n_right: u64 = (0..self.n_labels).map(|label| self.count(label, label)).sum();
        let n_rows = self.n_rows();
        (n_rows > 0).then(|| n_right as f64 / n_rows as f64)
    }

    /// Rows of a true label, whatever was predicted.
    fn n_true(&self, label: usize) -> u64 {
        let predicted = (0..self.n_labels).map(|other| self.count(label, other));
        predicted.sum::<u64>() + self.unpredicted[label]
    }

    fn n_predicted(&self, label: usize) -> u64 {
        (0..self.n_labels).map(|other| self.count(other, label)).sum()
    }

    /// Matthews' correlation of truth and prediction, 1 where all is right and 0 where the one says nothing of the
    /// other; None without rows.
    ///
    /// For more than two labels it is Gorodkin's R_K (Computational Biology and Chemistry 28, 2004), as
    /// `sklearn.metrics.matthews_corrcoef`: 0 where truth or prediction never changes.
    pub fn mcc(&self) -> Option<f64> {
        let n_rows = self.n_rows() as f64;
        let labels = || 0..self.n_labels;
        let n_right: u64 = labels().map(|label| self.count(label, label)).sum();
        let of = |count: &dyn Fn(usize) -> f64| labels().map(count).sum::<f64>();
        let both = of(&|label| self.n_true(label) as f64 * self.n_predicted(label) as f64);
        let truth = n_rows.powi(2) - of(&|label| (self.n_true(label) as f64).powi(2));
        let predicted = n_rows.powi(2) - of(&|label| (self.n_predicted(label) as f64).powi(2));
        let scale = (truth * predicted).sqrt();
        let covariance = n_right as f64 * n_rows - both;
        (n_rows > 0.0).then(|| if scale > 0.0 { covariance / scale } else { 0.0 })
    }

    /// Counts by true label (rows) and predicted label (columns).
    pub fn counts(&self) -> Vec<&[u64]> {
        self.counts.chunks(self.n_labels).collect()
    }

    /// The mean F1 of the labels that occur, be it as truth or as prediction; None without rows.
    ///
    /// It is `sklearn.metrics.f1_score(average="macro", zero_division=0)`.
    pub fn macro_f1(&self) -> Option<f64> {
        mean((0..self.n_labels).filter_map(|label| {
            // 2 tp / (2 tp + fp + fn), whose denominator is these two sums.
            let n_either = self.n_true(label) + self.n_predicted(label);
            let n_right = self.count(label, label);
            (n_either > 0).then(|| 2.0 * n_right as f64 / n_either as f64)
        }))
    }
}

/// Index of the largest logit, the first of equals. None for no logits and where one of them is NaN: a
/// broken row must not be counted as right.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if *logit > logits[best] {
            best = index;
        }
    }
    (!logits.is_empty()).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion(n_labels: usize, truth: &[usize], predicted: &[usize]) -> Confusion {
        let mut confusion = Confusion::new(n_labels);
        for (&label, &predicted) in truth.iter().zip(predicted) {
            confusion.add(label, Some(predicted));
        }
        confusion
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        // A few roundings of numbers below 1.
        assert!((found - expected).abs() <= 1e-15, "{found}, not {expected}");
    }

    /// Label 4 is never predicted, label 3 never occurs.
    #[test]
    fn equals_scikit_learn() {
        let truth = [0, 0, 1, 2, 2, 2, 4, 0];
        let confusion = confusion(5, &truth, &[0, 1, 1, 2, 0, 2, 0, 0]);
        assert_eq!(confusion.n_rows(), 8);
        assert_eq!((confusion.count(2, 0), confusion.count(0, 2)), (1, 0));
        close(confusion.accuracy(), 5.0 / 8.0);
        // f1_score with scikit-learn 1.9.1; by label 4/7, 2/3, 4/5 and 0.
        close(confusion.macro_f1(), 0.509_523_809_523_809_5);
        // matthews_corrcoef.
        close(confusion.mcc(), 0.476_731_294_622_796_2);
        assert_eq!(confusion.counts()[2], [1, 0, 2, 0, 0]);
    }

    /// Label 3 is predicted and never true: it counts, with an F1 of 0.
    #[test]
    fn a_label_that_is_only_predicted_counts() {
        // f1_score with scikit-learn 1.9.1.
        let confusion = confusion(4, &[0, 0, 1], &[0, 3, 1]);
        close(confusion.macro_f1(), 0.555_555_555_555_555_5);
        close(confusion.mcc(), 0.612_372_435_695_794_6);
    }

    #[test]
    fn all_right_all_wrong_and_none() {
        let right = confusion(2, &[0, 1, 1], &[0, 1, 1]);
        assert_eq!((right.accuracy(), right.macro_f1()), (Some(1.0), Some(1.0)));
        let wrong = confusion(2, &[0, 1, 1], &[1, 0, 0]);
        assert_eq!((wrong.accuracy(), wrong.macro_f1()), (Some(0.0), Some(0.0)));
        assert_eq!((right.mcc(), wrong.mcc()), (Some(1.0), Some(-1.0)));
        assert_eq!(confusion(2, &[0, 0], &[0, 0]).mcc(), Some(0.0));
        let none = Confusion::new(3);
        assert_eq!((none.accuracy(), none.macro_f1(), none.mcc()), (None, None, None));
    }

    #[test]
    fn a_row_without_prediction_is_a_miss() {
        let mut confusion = confusion(2, &[0, 1], &[0, 1]);
        confusion.add(1, argmax(&[0.3, f32::NAN]));
        close(confusion.accuracy(), 2.0 / 3.0);
        // Label 0: 1. Label 1: one right, one missed, 2 / 3.
        close(confusion.macro_f1(), 5.0 / 6.0);
    }

    #[test]
    fn argmax_of_ordinary_and_broken_rows() {
        assert_eq!(argmax(&[-1.0, 2.0, 2.0, 0.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Some(0));
        assert_eq!(argmax(&[0.0, f32::INFINITY]), Some(1));
        for broken in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::NAN; 2]] {
            assert_eq!(argmax(&broken), None);
        }
        assert_eq!(argmax(&[]), None);
    }
}
