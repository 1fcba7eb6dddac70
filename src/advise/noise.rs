//! Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating
//! Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068).
//!
//! It needs probabilities of rows that the classifier was not fitted on. It takes the classifier's word where it is
//! sure: on features that do not tell the labels apart it is sure of wrong labels too, and the estimate is too high.

use serde::Serialize;

/// What is probably wrong with the labels of some rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelNoise {
    /// Rows that were looked at.
    pub n_rows: usize,
    /// The estimated share of wrong labels.
    pub share: f64,
    /// Rows that the classifier is sure have another label than their own, the most suspicious first.
    pub suspects: Vec<Suspect>,
}

/// A row whose label is probably wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Suspect {
    /// Its number among the rows that were looked at, or the example's where a caller knows it.
    pub row: usize,
    /// The label that it has.
    pub given: usize,
    /// The one that it probably should have.
    pub suggested: usize,
    /// What the classifier gives the two.
    pub probability_given: f64,
    pub probability_suggested: f64,
}

impl LabelNoise {
    /// Of rows with these classes and the probability of every label, `[N, n_labels]`, from a classifier that did not
    /// see the row.
    ///
    /// A row counts for label j where j's probability is no less than the mean that rows of label j themselves have
    /// for it; of several such labels for the most probable. Rows counted by given label and by that one are the
    /// confident joint; scaled so that every given label has all its rows, its share off the diagonal is the estimate.
    /// The suspects are the rows off the diagonal, ordered by how much more probable the other label is.
    ///
    /// # Panics
    /// For another number of probabilities, and for a class that is none of the labels.
    pub fn of(probabilities: &[f64], classes: &[usize], n_labels: usize) -> Self {
        assert_eq!(probabilities.len(), classes.len() * n_labels, "a probability a row and label");
        let rows = || probabilities.chunks_exact(n_labels).zip(classes.iter().copied());
        let mut counts = vec![0.0; n_labels];
        let mut thresholds = vec![0.0; n_labels];
        for (row, given) in rows() {
            counts[given] += 1.0;
            thresholds[given] += row[given];
        }
        for (threshold, count) in thresholds.iter_mut().zip(&counts) {
            // No row can be confident of a label that none has.
            *threshold = if *count > 0.0 { *threshold / count } else { f64::INFINITY };
        }
        let mut joint = vec![vec![0.0; n_labels]; n_labels];
        let mut suspects = Vec::new();
        for (at, (row, given)) in rows().enumerate() {
            let confident = (0..n_labels).filter(|label| row[*label] >= thresholds[*label]);
            let is_better =
                |best: usize, label: usize| if row[label] > row[best] { label } else { best };
            let Some(suggested) = confident.reduce(is_better) else { continue };
            joint[given][suggested] += 1.0;
            if suggested != given {
                suspects.push(Suspect {
                    row: at,
                    given,
                    suggested,
                    probability_given: row[given],
                    probability_suggested: row[suggested],
                });
            }
        }
        // A label of which no row is confident keeps its rows on the diagonal.
        let share_of = |(given, joint): (usize, &Vec<f64>)| {
            let n_confident: f64 = joint.iter().sum();
            let n_others = n_confident - joint[given];
            if n_confident > 0.0 { counts[given] * n_others / n_confident } else { 0.0 }
        };
        let n_wrong: f64 = joint.iter().enumerate().map(share_of).sum();
        let margin = |one: &Suspect| one.probability_suggested - one.probability_given;
        // A stable sort: rows of one margin stay in order.
        suspects.sort_by(|a, b| margin(b).total_cmp(&margin(a)));
        let share = if classes.is_empty() { 0.0 } else { n_wrong / classes.len() as f64 };
        Self { n_rows: classes.len(), share, suspects }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thresholds are 0.59375 for label 0 and 0.71875 for label 1.
    #[test]
    fn counted_by_hand() {
        #[rustfmt::skip]
        let probabilities = [
            0.875, 0.125, 0.0,  0.75, 0.25, 0.0,  0.125, 0.875, 0.0,  0.625, 0.375, 0.0,
            0.375, 0.625, 0.0,  0.25, 0.75, 0.0,  0.5, 0.5, 0.0,  0.0, 1.0, 0.0,
        ];
        let classes = [0, 0, 0, 0, 1, 1, 1, 1];
        let noise = LabelNoise::of(&probabilities, &classes, 3);
        // Of label 0 three are confident of 0 and one of 1; of label 1 two of 1, and two of nothing.
        let expected = Suspect {
            row: 2,
            given: 0,
            suggested: 1,
            probability_given: 0.125,
            probability_suggested: 0.875,
        };
        assert_eq!(noise, LabelNoise { n_rows: 8, share: 0.125, suspects: vec![expected] });
    }

    #[test]
    fn no_rows_and_no_confidence() {
        let none = LabelNoise::of(&[], &[], 2);
        assert_eq!(none, LabelNoise { n_rows: 0, share: 0.0, suspects: Vec::new() });
        // Label 2 has no row: nothing is confident of it, however probable.
        let noise = LabelNoise::of(&[0.1, 0.2, 0.7, 0.2, 0.1, 0.7], &[0, 1], 3);
        // Row 0: 0.1 and 0.2 against 0.1 and 0.1.
        assert_eq!(noise.suspects.iter().map(|s| s.suggested).collect::<Vec<_>>(), [1, 0]);
    }
}
