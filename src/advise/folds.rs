//! Which rows are held out together.

use crate::data::SplitMix64;
use crate::{Error, Result};

/// Folds of a cross-validation.
const N_FOLDS: usize = 5;

/// Rows of one task shared out among folds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folds {
    /// Two or more.
    pub n: usize,
    /// The fold that each row is held out in; None for the only row of its label, on which every fold is fitted.
    pub of_row: Vec<Option<usize>>,
}

impl Folds {
    /// Five folds of rows of these classes, below `n_labels`, drawn by `seed`.
    ///
    /// Each label's rows are dealt out evenly, and so are all rows: counts differ by one at most, between folds. A
    /// label of two rows or more is thus fitted on in every fold, be it rarer than there are folds. There are fewer
    /// folds only where no label has five rows.
    ///
    /// # Errors
    /// Fewer than two labels with two rows: nothing can be told apart in rows held out.
    pub fn new(classes: &[usize], n_labels: usize, seed: u64) -> Result<Self> {
        let mut by_label = vec![Vec::new(); n_labels];
        for (row, class) in classes.iter().enumerate() {
            by_label[*class].push(row);
        }
        by_label.retain(|rows| rows.len() > 1);
        if by_label.len() < 2 {
            return Err(Error::Run(format!(
                "a cross-validation takes two labels with two rows or more, of {} labelled rows there are {}",
                classes.len(),
                by_label.len()
            )));
        }
        let most = by_label.iter().map(Vec::len).max().unwrap_or_default();
        let n = most.min(N_FOLDS);
        let mut of_row = vec![None; classes.len()];
        let mut n_dealt = 0;
        for (label, mut rows) in by_label.into_iter().enumerate() {
            SplitMix64::stream(seed, label as u64).shuffle(&mut rows);
            for row in rows {
                of_row[row] = Some(n_dealt % n);
                n_dealt += 1;
            }
        }
        Ok(Self { n, of_row })
    }

    /// Rows that are held out in a fold.
    pub fn held_out(&self, fold: usize) -> Vec<usize> {
        self.rows(|of| of == Some(fold))
    }

    /// Rows that a fold is fitted on.
    pub fn fitted(&self, fold: usize) -> Vec<usize> {
        self.rows(|of| of != Some(fold))
    }

    /// Rows that are held out in some fold.
    pub fn validated(&self) -> Vec<usize> {
        self.rows(|of| of.is_some())
    }

    fn rows(&self, is_one: impl Fn(Option<usize>) -> bool) -> Vec<usize> {
        (0..self.of_row.len()).filter(|row| is_one(self.of_row[*row])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(folds: &Folds, rows: &[usize]) -> Vec<usize> {
        let count = |fold| rows.iter().filter(|row| folds.of_row[**row] == Some(fold)).count();
        (0..folds.n).map(count).collect()
    }

    #[test]
    fn every_label_is_dealt_out_evenly() {
        // Of label 0 61 rows, of 1 25, of 2 13, of 3 2.
        let class = |row: usize| [61, 86, 99, 101].iter().position(|end| row < *end).unwrap();
        let classes: Vec<usize> = (0..101).map(class).collect();
        let folds = Folds::new(&classes, 4, 1).unwrap();
        assert_eq!(folds.n, 5);
        let all: Vec<usize> = (0..101).collect();
        for rows in [&all[..61], &all[61..86], &all[86..99], &all[99..], &all] {
            let counts = counts(&folds, rows);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1 && counts.iter().sum::<usize>() == rows.len(), "{counts:?}");
        }
        for fold in 0..5 {
            let mut both = [folds.held_out(fold), folds.fitted(fold)].concat();
            both.sort_unstable();
            assert_eq!(both, all);
        }
        assert_eq!(folds.validated(), all);
        assert_eq!(folds, Folds::new(&classes, 4, 1).unwrap());
        assert_ne!(folds, Folds::new(&classes, 4, 2).unwrap());
    }

    /// Two rows of a label lie in two folds, a single one in none.
    #[test]
    fn rare_labels() {
        let folds = Folds::new(&[0, 1, 0, 2, 2, 2], 3, 7).unwrap();
        assert_eq!(folds.n, 3);
        assert_eq!(folds.of_row[1], None);
        assert_ne!(folds.of_row[0], folds.of_row[2]);
        assert_eq!(folds.validated(), [0, 2, 3, 4, 5]);
        assert!((0..3).all(|fold| folds.fitted(fold).contains(&1)));
    }

    #[test]
    fn what_cannot_be_validated_is_refused() {
        for classes in [&[][..], &[0, 0, 0], &[0, 1, 2], &[0, 0, 1]] {
            let message = Folds::new(classes, 3, 1).unwrap_err().to_string();
            assert!(message.contains("two labels"), "{message}");
        }
    }
}
