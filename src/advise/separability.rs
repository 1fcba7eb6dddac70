//! Which labels of a task features tell apart, and which they take for each other.

use serde::Serialize;

use crate::train::metrics::Confusion;

/// How a classifier does on the rows of one label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassSeparability {
    pub label: String,
    /// Rows with the label on which it was tried.
    pub n_rows: u64,
    /// The share of them that it finds; None where there is none.
    pub recall: Option<f64>,
    /// The share that is right of what it calls so; None where it never does.
    pub precision: Option<f64>,
    /// `2 tp / (2 tp + fp + fn)`; None where no row has the label or is called so.
    pub f1: Option<f64>,
    /// The label that the others are most often taken for, the first of equals; None where none is.
    pub mistaken_for: Option<Mistake>,
}

/// Rows of one label that are taken for another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    pub label: String,
    pub n_rows: u64,
    /// Of all rows with the true label.
    pub share: f64,
}

/// Each label of a task, in their order, by the rows counted in `confusion`.
///
/// # Panics
/// For counts of another number of labels.
pub fn separability(confusion: &Confusion, labels: &[String]) -> Vec<ClassSeparability> {
    let counts = confusion.counts();
    assert_eq!(counts.len(), labels.len(), "a row of counts a label");
    let share = |part: u64, all: u64| (all > 0).then(|| part as f64 / all as f64);
    let one = |(own, label): (usize, &String)| {
        let n_rows: u64 = counts[own].iter().sum();
        let n_called: u64 = counts.iter().map(|row| row[own]).sum();
        let n_right = counts[own][own];
        let mut mistaken_for: Option<(usize, u64)> = None;
        for (other, &count) in counts[own].iter().enumerate() {
            let most = mistaken_for.map_or(0, |(_, count)| count);
            if other != own && count > most {
                mistaken_for = Some((other, count));
            }
        }
        ClassSeparability {
            label: label.clone(),
            n_rows,
            recall: share(n_right, n_rows),
            precision: share(n_right, n_called),
            f1: share(2 * n_right, n_rows + n_called),
            mistaken_for: mistaken_for.map(|(other, count)| Mistake {
                label: labels[other].clone(),
                n_rows: count,
                share: count as f64 / n_rows as f64,
            }),
        }
    };
    labels.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_found_mistaken_and_never_seen() {
        let labels = ["a", "b", "c", "d"].map(String::from);
        let mut confusion = Confusion::new(4);
        // Label c is never predicted, d has no rows.
        for (label, predicted) in [(0, 0), (0, 0), (0, 1), (0, 3), (1, 1), (2, 1), (2, 1), (2, 0)] {
            confusion.add(label, Some(predicted));
        }
        let found = separability(&confusion, &labels);
        let figures = |one: &ClassSeparability| (one.n_rows, one.recall, one.precision, one.f1);
        assert_eq!(figures(&found[0]), (4, Some(0.5), Some(2.0 / 3.0), Some(4.0 / 7.0)));
        assert_eq!(figures(&found[1]), (1, Some(1.0), Some(0.25), Some(0.4)));
        assert_eq!(figures(&found[2]), (3, Some(0.0), None, Some(0.0)));
        assert_eq!(figures(&found[3]), (0, None, Some(0.0), Some(0.0)));
        let mistake =
            |label: &str, n_rows, share| Some(Mistake { label: label.to_owned(), n_rows, share });
        // The first of equals.
        assert_eq!(found[0].mistaken_for, mistake("b", 1, 0.25));
        assert_eq!(found[1].mistaken_for, None);
        assert_eq!(found[2].mistaken_for, mistake("b", 2, 2.0 / 3.0));
        assert_eq!(found[3].mistaken_for, None);
    }
}
