//! Which training rows probes see.

use super::rows::distinct_classes;
use crate::data::{Corpus, SplitMix64};

/// Rows of a task, at most, that its probes see.
const MOST_ROWS: usize = 3000;
/// Rows of a label, where it has as many, that are seen in any case: what probes and their folds need.
const LEAST_OF_LABEL: usize = 10;

/// The training rows that the probes of all tasks see, in order.
///
/// Rows that repeat a text with its label are left out. Of a task with more rows than 3000 every label keeps its share, drawn by `seed`, and 10 rows at least.
pub fn probed_rows(corpus: &Corpus, seed: u64) -> Vec<usize> {
    let split = &corpus.train;
    let mut chosen = vec![false; split.len()];
    for (task, info) in corpus.tasks.iter().enumerate() {
        let classes = distinct_classes(split, task);
        let mut random = SplitMix64::stream(seed, task as u64);
        for row in stratified(&classes, info.labels.len(), MOST_ROWS, &mut random) {
            chosen[row] = true;
        }
    }
    (0..split.len()).filter(|row| chosen[*row]).collect()
}

fn stratified(
    classes: &[Option<usize>],
    n_labels: usize,
    most: usize,
    random: &mut SplitMix64,
) -> Vec<usize> {
    let mut by_label: Vec<Vec<usize>> = vec![Vec::new(); n_labels];
    for (row, class) in classes.iter().enumerate() {
        if let Some(class) = class {
            by_label[*class].push(row);
        }
    }
    let n_rows: usize = by_label.iter().map(Vec::len).sum();
    let share = (most as f64 / n_rows.max(1) as f64).min(1.0);
    let quota = |n: usize| ((share * n as f64).round() as usize).max(n.min(LEAST_OF_LABEL));
    let draw = |mut rows: Vec<usize>| {
        let n = quota(rows.len());
        if n < rows.len() {
            random.shuffle(&mut rows);
            rows.truncate(n);
        }
        rows
    };
    by_label.into_iter().flat_map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows chosen of each label.
    fn chosen(classes: &[Option<usize>], n_labels: usize, most: usize) -> Vec<usize> {
        let rows = stratified(classes, n_labels, most, &mut SplitMix64::new(1));
        let mut counts = vec![0; n_labels];
        for row in rows {
            counts[classes[row].unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn labels_that_alternate_keep_their_shares() {
        let classes: Vec<_> = (0..600).map(|row| Some(row % 2)).collect();
        assert_eq!(chosen(&classes, 2, 300), [150, 150]);
    }

    #[test]
    fn rare_labels_are_seen() {
        let label = |row| match row {
            7..12 => Some(2),
            300..350 => Some(1),
            9000.. => None,
            _ => Some(0),
        };
        let classes: Vec<_> = (0..10_000).map(label).collect();
        let n_common = 9000 - 55;
        let share = 300.0 * n_common as f64 / 9000.0;
        assert_eq!(chosen(&classes, 3, 300), [share.round() as usize, 10, 5]);
    }

    #[test]
    fn few_rows_are_all_seen() {
        let classes = [Some(1), None, Some(0), Some(1)];
        assert_eq!(chosen(&classes, 2, 300), [1, 2]);
        assert!(chosen(&[], 2, 300).iter().all(|n| *n == 0));
    }
}
